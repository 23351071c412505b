"""How many GPUs? What the page answers is what the search finds for its controls, and its files give that back."""

from __future__ import annotations

import csv
import io
import threading

import pytest

from simulator import load_scenario
from simulator.errors import InputError, MemwallError, UnknownName
from simulator.explorer.answer import Tell
from simulator.explorer.gpus import LOADS, MADE_FOR_IT, NONE, HowManyGpus, Load, prices_of
from simulator.explorer.link import of_query
from simulator.explorer.presets import PRESETS
from simulator.output.candidates_report import verdict
from simulator.planning import plan_check
from simulator.planning.candidate_search import auto_draft, find_plans
from simulator.planning.capacity import Level
from simulator.planning.work import Work
from simulator.slo import Slo
from tests.explorer.conftest import findings, shown

PAGE = HowManyGpus()
FEW = {"gpus": ("h100-sxm", "l40s"), "tps": ("1", "2"), "load": 20.0}
LINK = {"gpus": ["h100-sxm", "l40s"], "tps": ["1", "2"], "load": "20"}


def answer(**settings):
    return PAGE.answer(Load(**{**FEW, **settings}), {}, Tell())


def numbers(found):
    return {number.label: number.value for number in found.numbers}


@pytest.fixture(scope="module")
def plans():
    return find_plans(
        "llama-3.1-8b", 20.0, Work.of_lengths(1024, 256), Level(Slo(ttft_s=1.0, tpot_s=0.04), share=0.95),
        gpus=("h100-sxm", "l40s"), tps=(1, 2), drafts=[auto_draft("llama-3.1-8b")],
    )  # fmt: skip


# --- what is asked ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("", {}),
        ("h100-sxm=2.1, b200=5", {"h100-sxm": 2.1, "b200": 5.0}),
        (" H100 = $1.5 ;l40s=0.5,, ", {"h100-sxm": 1.5, "l40s": 0.5}),
        ("b200=5,b200=6", {"b200": 6.0}),
    ],
)
def test_prices_are_read(text, prices):
    assert prices_of(text) == prices


@pytest.mark.parametrize(
    "text", ["h100-sxm", "=3", "h100-sxm=", "h100-sxm=x", "b200=0", "b200=-1", "b200=nan", "b200=inf", "b200=1e9",
             "h100=1=2", "gpu9000=1", "/etc/passwd=1", "../gpus/b200.yaml=1"],
)  # fmt: skip
def test_wrong_prices_name_their_control(text):
    with pytest.raises(InputError) as caught:
        answer(prices=text)
    assert caught.value.field == "prices"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gpus": ()}, "gpus"), ({"tps": ()}, "tps"), ({"formats": ()}, "formats"),
        ({"load": 0.0}, "load"), ({"share": 100}, "share"), ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"prompt_tokens": 200_000}, "prompt_tokens"), ({"answer_tokens": 1}, "answer_tokens"),
        ({"formats": ("fp3",)}, "formats"),
        ({"speculate": "mtp-deepseek-v3"}, "speculate"), ({"speculate": "eagle3-llama-3.1-70b"}, "speculate"),
        ({"speculate": "llama-3.2-1b"}, "acceptance"),
    ],
)  # fmt: skip
def test_what_cannot_be_names_its_control(settings, field):
    with pytest.raises(InputError) as caught:
        answer(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "settings", [{"model": "x"}, {"gpus": ("x",)}, {"engine": "x"}, {"speculate": "x"}, {"tps": ("3",)}]
)
def test_names_nobody_knows_are_refused(settings):
    with pytest.raises(UnknownName):
        answer(**settings)


@pytest.mark.parametrize("field", ["model", "engine", "speculate", "gpus"])
def test_a_link_reads_no_file(field, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("secret: 1", encoding="utf-8")
    with pytest.raises(UnknownName) as caught:
        answer(**{field: (str(path),) if field == "gpus" else str(path)})
    assert "secret" not in str(caught.value)


def test_a_link_holds_what_was_changed():
    settings = Load(load=5, gpus=("b200", "l4"), formats=("model", "fp8"), prices="b200=5", check=True)
    assert of_query(Load, settings.query()) == settings
    assert Load().query() == ""
    for load in LOADS:  # a slider finds its step again by how it is written
        assert str(of_query(Load, Load(load=load).query()).load) == str(load)


def test_presets_are_settings_that_can_be_answered():
    mine = [p for p in PRESETS if p.path == "gpus"]
    assert len(mine) >= 3
    for preset in mine:
        settings = of_query(Load, preset.query)
        assert settings.changed()
        assert settings.load in LOADS


# --- what is answered -------------------------------------------------------------------------------------------------
def test_the_answer_is_the_search(plans):
    found, best = answer(), plans.cheapest
    assert found.verdict == verdict(plans)
    assert numbers(found)["USD per hour"] == pytest.approx(best.usd_per_s * 3600.0)
    assert numbers(found)["GPUs"] == best.gpus
    assert numbers(found)["TPOT, mean"] == best.tpot_s
    assert numbers(found)["TTFT, mean"] == best.ttft_s
    assert numbers(found)["Meet the objectives"] == best.share_met
    for plot in found.plots:
        figure = found.figure(plot, dark=True)
        assert figure.layout.meta["finding"]
        assert figure.layout.meta["tag"]
    assert "2026" in dict(found.conditions)["prices"]  # list prices have a date


def test_own_prices_change_the_cheapest():
    dear = answer(prices="h100-sxm=50, l40s=50")
    assert numbers(dear)["USD per hour"] == pytest.approx(50.0 * numbers(dear)["GPUs"])
    assert "given" in dict(dear.conditions)["prices"]
    free = answer(prices="l40s=0.01")
    assert "L40S" in free.verdict.split(".")[0]


def test_without_speculation_nothing_drafts(plans):
    plain = numbers(answer(speculate=NONE))
    assert plain["USD per hour"] >= numbers(answer())["USD per hour"]
    assert plain["TPOT, mean"] == plans.cheapest_plain.tpot_s


def test_a_model_without_a_drafter_says_so():
    found = answer(model="mistral-7b", speculate=MADE_FOR_IT)
    assert "plain decoding only" in found.notes[0]
    assert numbers(found)["GPUs"] >= 1


def test_where_nothing_serves_the_nearest_objectives_are_said():
    found = answer(tpot_target_ms=3, gpus=("l40s",))
    assert found.verdict.startswith("Nothing meets TTFT 1 s and TPOT 3 ms")
    assert "Nearest: " in found.verdict
    assert all(value is None for value in numbers(found).values())
    assert [plot.key for plot in found.plots] == ["candidates"]
    assert "scenario" not in " ".join(found.code)
    checked = answer(tpot_target_ms=3, gpus=("l40s",), check=True)
    assert checked.notes == ["There is no plan to simulate."]


def test_files_give_the_plans_back(plans, tmp_path):
    found = answer()
    files = {file.file_name: file.make() for file in found.downloads}
    rows = list(csv.DictReader(io.StringIO(files["plans.csv"])))
    assert len(rows) == len(plans.candidates) + len(plans.rejected)
    assert min(float(r["usd_per_h"]) for r in rows if r["usd_per_h"]) == pytest.approx(
        plans.cheapest.usd_per_s * 3600.0
    )
    path = tmp_path / "plan.yaml"
    path.write_text(files["plan.yaml"], encoding="utf-8")
    scenario = load_scenario(path)
    assert (scenario.gpu, scenario.tp, scenario.replicas) == (
        plans.cheapest.gpu.name,
        plans.cheapest.tp,
        plans.cheapest.replicas,
    )
    assert files["gpus.html"].startswith("<!DOCTYPE html>")
    (grid,) = found.grids
    assert {len(column) for column in grid.columns().values()} == {len(rows)}


def test_the_python_call_gives_the_verdict_again(capsys):
    found = answer(prices="l40s=0.5", acceptance=0.6, formats=("model", "fp8"))
    exec(found.code["In Python"], {})
    assert capsys.readouterr().out.strip() == found.verdict


# --- the check --------------------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(plan_check, "LEAST_REQUESTS", 400)
    monkeypatch.setattr(plan_check, "MOST_REQUESTS", 2000)


def test_the_cheapest_is_simulated_where_that_is_asked_for(quick):
    found = answer(check=True)
    assert 0.0 <= numbers(found)["Meet them, simulated"] <= 1.0
    assert "Simulated, " in found.verdict
    assert found.sections[0].title == "Closed form and simulation"
    assert {"check-0", "check-1"} <= {plot.key for plot in found.plots}
    assert "requests of the same load, seed 0" in dict(found.conditions)["simulation"]
    page = next(file.make() for file in found.downloads if file.file_name == "gpus.html")
    assert "simulated" in page


def test_a_dearer_plan_that_holds_is_offered(quick, monkeypatch):
    whole = plan_check.PlanCheck.holds.fget
    monkeypatch.setattr(plan_check.PlanCheck, "holds", property(lambda c: c.plan.gpus > first and whole(c)))
    first = numbers(answer())["GPUs"]
    found = answer(check=True)
    assert found.verdict.startswith("Simulated, ")
    assert "too tight" in found.verdict
    names = [file.file_name for file in found.downloads]
    assert ("plan-that-holds.yaml" in names) == ("The next that holds is" in found.verdict)


class Stopping(Tell):
    """Stops as soon as it is told of `what`."""

    def __init__(self, what):
        super().__init__(stop=threading.Event())
        self._what = what

    def __call__(self, what, done, of):
        super().__call__(what, done, of)
        if self._what in what:
            self.stop.set()


@pytest.mark.parametrize("what", ["GPUs", "Simulating"])
def test_it_can_be_stopped(quick, what):
    with pytest.raises(MemwallError, match=r"^Stopped before"):
        PAGE.answer(Load(**FEW, check=True), {}, Stopping(what))


# --- the page ---------------------------------------------------------------------------------------------------------
def test_the_page_answers_and_a_control_changes_it(app):
    run = app("gpus", **LINK)
    before = shown(run)
    assert before["USD per hour"].startswith("$")
    assert len(findings(run)) == 2
    run.select_slider(key="load").set_value(300).run()
    assert float(shown(run)["GPUs"]) > float(before["GPUs"])


def test_a_link_restores_the_page(app):
    run = app("gpus", **LINK, tpot_target_ms="20", prices="l40s=0.1", speculate=NONE)
    assert run.multiselect(key="gpus").value == ["h100-sxm", "l40s"]
    assert run.select_slider(key="load").value == 20
    assert run.select_slider(key="tpot_target_ms").value == 20
    assert run.text_input(key="prices").value == "l40s=0.1"
    assert run.selectbox(key="speculate").value == NONE
    assert "acceptance" not in {widget.key for widget in run.number_input}
    shown(run)


def test_a_preset_sets_its_controls(app):
    run = app("gpus", **LINK)
    preset = next(p for p in PRESETS if p.title.startswith("70B at 5 requests/s"))
    run.button(key=f"preset-gpus-{preset.title}").click().run()
    assert run.select_slider(key="load").value == 5
    assert run.multiselect(key="formats").value == ["model", "fp8"]
    shown(run)


def test_wrong_input_is_said_beside_its_control_and_the_last_answer_stays(app):
    run = app("gpus", **LINK)
    before = shown(run)
    run.text_input(key="prices").set_value("h100-sxm").run()
    assert not run.exception
    assert len(run.error) == 2  # beside the control and above the figures
    assert {metric.label: metric.value for metric in run.metric} == before
    run.text_input(key="prices").set_value("h100-sxm=1").run()
    assert shown(run) != before


def test_the_check_is_a_toggle(app, quick):
    run = app("gpus", **LINK)
    assert "Meet them, simulated" not in shown(run)
    run.toggle(key="check").set_value(True).run()
    assert "Meet them, simulated" in shown(run)
    assert len(findings(run)) == 4


def test_one_published_number_of_acceptance_is_said_to_leave_the_plan_s_rounds_open():
    few = {"model": "deepseek-v3", "gpus": ("mi300x",), "tps": ("4",), "load": 5.0, "ttft_target_ms": 2000}
    found = answer(**few)
    assert "γ = 5" in found.verdict
    assert any(
        "known by one number (acceptance length 1.875 at γ = 1" in note and "at γ = 5" in note for note in found.notes
    )
    assert not any("one number" in note for note in answer(**few, acceptance=0.8).notes)
