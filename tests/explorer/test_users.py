"""Many users: what the page simulates is what its controls say, its files give it back, and it can be stopped."""

from __future__ import annotations

import hashlib
import io

import pyarrow.parquet as pq
import pytest
import yaml

from simulator import catalog, load_scenario, simulate
from simulator.errors import InputError, MemwallError, UnknownName
from simulator.explorer.answer import Tell, Upload
from simulator.explorer.asked import PLAIN, UPLOADED, Users, asked
from simulator.explorer.link import of_query
from simulator.explorer.users import ManyUsers
from simulator.output.columns import request_bytes
from simulator.serving.traffic import with_load
from tests.explorer.conftest import findings, shown

PAGE = ManyUsers()
TRACE = (
    b"arrival_s,prompt_tokens,output_tokens\n" + b"".join(b"%d,%d,20\n" % (i, 200 + i) for i in range(80)) + b"x,1,1\n"
)


def answer(**settings):
    return PAGE.answer(Users(**{"requests": 200, **settings}), {}, Tell())


def sent(content=TRACE, name="mine.csv"):
    return {"trace": Upload(name, content, hashlib.sha256(content).hexdigest())}


def numbers(found):
    return {number.label: number.value for number in found.numbers}


# --- what is asked ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_a_scenario_that_is_not_changed_is_the_bundled_one(name):
    bundled = load_scenario(name)
    expected = bundled.model_copy(update={"traffic": with_load(bundled.traffic, requests=500)})
    assert asked(Users(scenario=name, requests=500)).scenario.model_dump() == expected.model_dump()


def test_controls_change_what_they_say_and_nothing_else():
    base = asked(Users(requests=500)).scenario.model_dump()
    changed = asked(Users(
        requests=500, gpu="h200-sxm", replicas=3, max_sequences=64, gamma=5, acceptance=0.6, policy="goodput", rate_per_s=7.5,
        ttft_ms=250, seed=9,
    )).scenario  # fmt: skip
    assert (changed.gpu, changed.replicas, changed.engine.max_sequences, changed.seed) == ("h200-sxm", 3, 64, 9)
    assert changed.speculation.gamma == 5
    assert changed.speculation.acceptance.alpha == 0.6
    assert changed.speculation.policy.kind == "goodput"
    assert changed.speculation.draft == base["speculation"]["draft"]
    assert changed.traffic.rate_per_s == 7.5
    assert (changed.slo.ttft_s, changed.slo.tpot_s) == (0.25, base["slo"]["tpot_s"])
    assert changed.model_dump()["traffic"]["lengths"] == base["traffic"]["lengths"]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"traffic": "poisson"}, "poisson"),
        ({"traffic": "gamma", "burstiness": 0.2}, "gamma"),
        ({"traffic": "closed-loop", "users": 5}, "closed-loop"),
        ({"traffic": "clients"}, "clients"),
        ({"scenario": "mixed-classes", "traffic": "poisson"}, "poisson"),
    ],
)
def test_traffic_of_every_kind(settings, kind):
    traffic = asked(Users(**settings)).scenario.traffic
    assert traffic.kind == kind
    for name in ("burstiness", "users"):
        if name in settings:
            assert getattr(traffic, name) == settings[name]


def test_all_prompts_of_one_length():
    run = simulate(asked(Users(requests=50, prompt=321)).scenario).main
    assert set(run.requests["prompt_tokens"]) == {321}
    assert len(set(run.requests["output_tokens"])) > 5


def test_a_model_that_the_drafter_was_not_made_for_decodes_plainly_and_says_so():
    found = asked(Users(model="llama-3.1-70b", tp=4))
    assert found.scenario.speculation is None
    assert "eagle-llama-3.1-8b was not made for llama-3.1-70b" in found.notes[0]
    other = asked(Users(model="llama-3.1-70b", tp=4, draft="eagle3-llama-3.1-70b"))
    assert other.scenario.speculation.draft == "eagle3-llama-3.1-70b"
    assert other.notes == []


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gamma": 99}, "speculation.gamma"),
        ({"users": 4}, "users"),
        ({"scenario": "stock-8b-h100", "gamma": 2}, "gamma"),
        ({"scenario": "mixed-gpus", "gpu": "l4"}, "gpu"),
        ({"scenario": "mixed-gpus", "replicas": 2}, "replicas"),
        ({"traffic": "clients", "prompt": 7}, "prompt"),
        ({"traffic": UPLOADED}, "trace"),
        ({"scenario": "failing-replica", "replicas": 1}, "cluster.failures.replica"),
    ],
)
def test_what_cannot_be_names_its_control(settings, field):
    with pytest.raises(InputError) as caught:
        answer(**settings)
    assert caught.value.field == field
    assert not str(caught.value).startswith(":")


def test_names_nobody_knows_are_refused():
    for settings in (
        {"scenario": "x"},
        {"model": "x"},
        {"gpu": "x"},
        {"draft": "x"},
        {"engine": "x"},
        {"traffic": "x"},
    ):
        with pytest.raises(UnknownName):
            answer(**settings)


def test_a_link_holds_what_was_changed():
    settings = Users(scenario="mixed-classes", rate_per_s=3.5, seed=4, intervals=True, draft=PLAIN)
    assert settings.query() == "scenario=mixed-classes&draft=none&rate_per_s=3.5&seed=4&intervals=true"
    assert of_query(Users, settings.query()) == settings


# --- what is answered -------------------------------------------------------------------------------------------------
def test_the_answer_is_the_simulation():
    found = answer(rate_per_s=8)
    result = simulate(asked(Users(requests=200, rate_per_s=8)).scenario)
    summary = result.main.summary
    assert numbers(found)["TTFT, median"] == summary.ttft_s.p50
    assert numbers(found)["E2E, mean"] == summary.e2e_s.mean
    assert numbers(found)["Within objectives"] == summary.good_share
    expected = result.plain.summary.tpot_s.mean / summary.tpot_s.mean
    assert numbers(found)["Speed-up of tokens"] == pytest.approx(expected)
    assert found.verdict.startswith("Speculation with eagle-llama-3.1-8b")
    assert found.complete
    assert [plot.key for plot in found.plots][:4] == ["gains", "ttft_s", "tpot_s", "e2e_s"]


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_every_scenario_has_its_figures_tables_and_files(name):
    found = answer(scenario=name)
    for plot in found.plots:
        figure = found.figure(plot, dark=False)
        assert figure.layout.meta["finding"]
        assert figure.layout.meta["tag"]
    assert len({plot.key for plot in found.plots}) == len(found.plots)
    assert all(section.title for section in found.sections)
    for section in found.sections:
        assert len(set(section.table.headers)) == len(section.table.headers)
        assert all(len(row) == len(section.table.headers) for row in section.table.rows)
    for file in found.downloads:
        assert file.make()


def test_files_give_the_simulation_back(tmp_path):
    found = answer(traffic="gamma", rate_per_s=6.5, max_sequences=32)
    files = {file.file_name: file.make() for file in found.downloads}
    path = tmp_path / "scenario.yaml"
    path.write_text(files["scenario.yaml"], encoding="utf-8")
    again = simulate(load_scenario(path))
    assert request_bytes(again, "parquet") == files["requests.parquet"]
    assert request_bytes(again, "csv") == files["requests.csv"]
    assert pq.read_table(io.BytesIO(files["requests.parquet"])).num_rows == 400
    assert files["simulate.html"].startswith("<!DOCTYPE html>")
    assert found.code["Scenario as YAML"] == files["scenario.yaml"]


def test_a_trace_that_was_sent_is_replayed_and_named_as_it_was():
    found = PAGE.answer(Users(traffic=UPLOADED, requests=50), sent(), Tell())
    (text,) = [text for label, text in found.conditions if label == "your trace"]
    assert text == "mine.csv (CSV): 80 of 81 rows used, 1 dropped (unreadable time)"
    data = yaml.safe_load(found.code["Scenario as YAML"])
    assert data["traffic"] == {"kind": "trace", "path": "mine.csv", "limit": 50}
    assert not any("memwall-" in str(part) for part in (found.conditions, found.notes, found.verdict, found.code))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"a,b\n1,2\n", b"arrival_s,prompt_tokens,output_tokens\nx,y,z\n"]
)
def test_a_trace_that_cannot_be_read_is_one_sentence(content):
    with pytest.raises(MemwallError) as caught:
        PAGE.answer(Users(traffic=UPLOADED), sent(content), Tell())
    assert "mine.csv" in str(caught.value)
    assert "memwall-" not in str(caught.value)


def test_intervals_are_there_where_they_are_asked_for():
    found = answer(intervals=True)
    assert "intervals" in [plot.key for plot in found.plots]
    assert "90 % prediction intervals" in [section.title for section in found.sections]


# --- stopping ---------------------------------------------------------------------------------------------------------
class Stopping(Tell):
    """Stops as soon as `after` of what it calls `what` is told."""

    def __init__(self, what, after):
        super().__init__()
        self._what, self._after = what, after

    def __call__(self, what, done, of):
        super().__call__(what, done, of)
        if self._what in what and done >= self._after:
            self.stop.set()


@pytest.mark.parametrize("after", [0, 1, 80, 200])
@pytest.mark.parametrize(("name", "what"), [("chat-8b-h100-eagle", "speculation"), ("chat-8b-h100-eagle", "plain"),
                                            ("mixed-classes", "plain"), ("disaggregated-8b", "plain")])  # fmt: skip
def test_what_was_reached_is_shown_and_not_kept(monkeypatch, name, what, after):
    monkeypatch.setattr("simulator.serving.stages.WINDOW_ARRIVALS", 20)
    found = PAGE.answer(Users(scenario=name, requests=200), {}, Stopping(what, after))
    assert not found.complete
    assert "interrupted at t = " in found.notes[0]
    assert "nan" not in found.verdict
    for plot in found.plots:
        assert "nan" not in found.figure(plot, dark=True).layout.meta["finding"]
    for file in found.downloads:
        assert file.make()


@pytest.mark.parametrize("after", [1, 3])
def test_intervals_can_be_stopped_alone(after):
    found = PAGE.answer(Users(requests=200, intervals=True), {}, Stopping("intervals", after))
    assert not found.complete
    assert "Stopped before the prediction intervals" in found.notes[-1]
    assert numbers(found) == numbers(answer())


# --- the page ---------------------------------------------------------------------------------------------------------
def test_the_page_simulates_and_a_control_changes_it(app):
    run = app("many-users", requests="200")
    before = shown(run)
    assert "Speed-up of tokens" in before
    assert len(findings(run)) >= 7
    run.number_input(key="rate_per_s").set_value(40.0).run()
    assert shown(run) != before
    assert any("Poisson arrivals at 40 /s" in c.value or "at 40 /s" in c.value.replace("\\", "") for c in run.caption)


def test_a_link_restores_the_page(app):
    run = app("many-users", scenario="mixed-classes", requests="200", rate_per_s="5", seed="3", ttft_ms="123")
    assert run.selectbox(key="scenario").value == "mixed-classes"
    assert run.number_input(key="rate_per_s").value == 5.0
    assert run.number_input(key="seed").value == 3
    assert run.number_input(key="ttft_ms").value == 123.0
    assert "TTFT, median" in shown(run)


def test_all_requests_are_listed_where_they_are_asked_for(app):
    run = app("many-users", requests="100")
    assert len(run.dataframe) == 0
    run.toggle(key="grid-All requests as a table").set_value(True).run()
    table = run.dataframe[0].value
    assert len(table) == 200
    assert {"variant", "ttft_s", "e2e_s", "replica"} <= set(table.columns)
    shown(run)


def test_controls_follow_the_scenario_and_the_traffic(app):
    run = app("many-users", requests="100")
    keys = {widget.key for widget in run.number_input}
    assert {"gamma", "rate_per_s", "tp", "replicas"} <= keys
    assert "users" not in keys
    run.selectbox(key="traffic").set_value("closed-loop").run()
    keys = {widget.key for widget in run.number_input}
    assert "users" in keys
    assert "rate_per_s" not in keys
    run.selectbox(key="draft").set_value(PLAIN).run()
    assert "gamma" not in {widget.key for widget in run.number_input}
    assert "Speed-up of tokens" not in shown(run)


def test_wrong_input_is_said_beside_its_control_and_the_last_answer_stays(app):
    run = app("many-users", requests="100")
    before = shown(run)
    run.selectbox(key="model").set_value("llama-3.1-405b").run()
    assert not run.exception
    assert len(run.error) >= 1
    assert {metric.label: metric.value for metric in run.metric} == before


def test_a_trace_is_asked_for_where_none_was_sent(app):
    run = app("many-users", requests="100", traffic=UPLOADED)
    assert not run.exception
    assert any("must be sent" in error.value.replace("\\", "") for error in run.error)


def test_half_widths_are_told_in_a_unit_that_suits_them():
    notes = [number.note for number in answer(rate_per_s=100.0, requests=1000).numbers]  # waits of seconds
    assert any(" s with 90 %" in note for note in notes)
    assert not any("e+0" in note for note in notes)
