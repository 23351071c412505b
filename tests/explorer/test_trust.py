"""Can I trust it? The page says what the evidence says, and gives an uploaded file back as a profile or a sentence."""

from __future__ import annotations

import hashlib

import pytest
import yaml

from simulator import catalog
from simulator.calibration.evidence import devices, evidence
from simulator.errors import InputError, MemwallError
from simulator.explorer.answer import Tell, Upload
from simulator.explorer.link import of_query
from simulator.explorer.trust import CanITrustIt, Trust
from simulator.serving.simulation import Stopped
from tests.calibration import synthetic
from tests.explorer.conftest import findings, shown

PAGE = CanITrustIt()
CPU = "epyc-9004-1-thread"
BUNDLED = catalog.root() / "hardware_profiles" / "measurements"


def answer(tell=None, uploads=None, **settings):
    return PAGE.answer(Trust(**settings), uploads or {}, tell or Tell())


def sent(name, content):
    return {"file": Upload(name, content, hashlib.sha256(content).hexdigest())}


def built(found):
    """Every figure, table and file of an answer, none of which may fail."""
    figures = {plot.key: plot.build() for plot in found.plots}
    for grid in found.grids:
        assert len({len(column) for column in grid.columns().values()}) == 1
    assert all(download.make() for download in found.downloads)
    assert len(figures) == len(found.plots)
    return figures


# --- answers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", devices())
def test_every_device_says_how_far_off_it_is(name):
    found = answer(device=name)
    assert found.verdict == evidence(name).says
    figures = built(found)
    assert "operators" in figures
    assert ("coverage" in figures) == (evidence(name).rests_on == "calibrated")
    assert not any("Mean" in n.label for n in found.numbers if evidence(name).rests_on != "calibrated")


def test_key_figures_are_those_of_the_calibration():
    numbers = {n.label: n.value for n in answer(device="h100-sxm").numbers}
    assert numbers["Mean error, matmul"] == evidence("h100-sxm").calibration.typical_error["matmul"]
    assert 0.85 < numbers["Inside 90% intervals"] < 0.97
    assert "Mean error, elementwise" not in numbers


def test_published_speeds_of_a_device_or_of_all_where_it_has_none():
    own, all_of_them = (
        answer(what="published speeds", device="h100-sxm"),
        answer(what="published speeds", device="mi325x"),
    )
    assert not own.notes
    assert "No published speed on AMD" in all_of_them.notes[0]
    assert len(all_of_them.sections[0].table.rows) > len(own.sections[0].table.rows)
    built(own)
    assert answer(what="published speeds", device="mi325x").notes == all_of_them.notes  # nothing piles up


def test_sources_are_counted_and_listed():
    found = answer(what="sources", device="h200-sxm", draft="eagle-llama-3.1-8b")
    built(found)
    (grid,) = found.grids
    columns = grid.columns()
    assert f"Of {len(columns['figure'])} figures" in found.verdict
    assert set(columns["rests on"]) >= {"datasheet", "fitted", "estimate"}
    more = answer(what="sources", device="h200-sxm")
    assert len(more.grids[0].columns()["figure"]) < len(columns["figure"])


def test_the_bundled_measurements_are_fitted_again_with_progress():
    tell = Tell()
    found = answer(tell, what="fit again", device=CPU)
    assert tell.of
    assert "none fitted on" in found.verdict
    figures = built(found)
    assert {"0-points", "0-spread", "0-coverage", "0-by-batch", "0-roof", "0-runs"} <= set(figures)
    assert {n.label for n in found.numbers} >= {"Mean error", "Inside 90% intervals", "Runs within 10%"}


def test_who_has_no_measurements_is_told_who_has():
    with pytest.raises(InputError, match=CPU) as raised:
        answer(what="fit again", device="b200")
    assert raised.value.field == "device"


# --- one's own measurements -------------------------------------------------------------------------------------------
def test_without_a_file_it_says_what_to_send():
    found = answer(what="my measurements")
    assert "Send your measurements" in found.verdict
    assert "memwall measure" in "".join(found.code.values())


def test_a_file_comes_back_as_a_profile(tmp_path):
    content = synthetic.write(tmp_path / "paper.jsonl").read_bytes()
    found = answer(what="my measurements", uploads=sent("My paper.jsonl", content))
    built(found)
    profile = found.downloads[0]
    assert profile.file_name == "my-paper.yaml"
    assert yaml.safe_load(profile.make())["calibration"]["name"] == "my-paper"
    assert found.code["On the command line"] == "memwall calibrate 'My paper.jsonl' -o my-paper.yaml"


def test_a_profile_can_be_held_against_a_file(tmp_path):
    found = answer(
        what="my measurements", gpu=CPU, uploads=sent(f"{CPU}.jsonl", (BUNDLED / f"{CPU}.jsonl").read_bytes())
    )
    assert not any(d.label.startswith("Profile") for d in found.downloads)
    assert f"--gpu {CPU}" in found.code["On the command line"]
    built(found)


def test_a_benchmark_needs_what_served():
    rows = "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s\n" + "".join(f"{i},100,20,0.1,1.0\n" for i in range(20))
    with pytest.raises(InputError, match="what served") as raised:
        answer(what="my measurements", uploads=sent("bench.csv", rows.encode()))
    assert raised.value.field == "scenario"
    built(answer(what="my measurements", scenario="chat-8b-h100-eagle", uploads=sent("bench.csv", rows.encode())))


@pytest.mark.parametrize("content", [b"", b"hello", b"{}\n", bytes(range(256)), b'{"kind": "header"}\n', b"[" * 9999])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.zip"])
def test_what_cannot_be_read_is_one_sentence(name, content):
    with pytest.raises(MemwallError) as raised:
        answer(what="my measurements", uploads=sent(name, content))
    assert "\n" not in str(raised.value)


def test_a_fit_can_be_stopped(tmp_path):
    tell = Tell()
    tell.stop.set()
    with pytest.raises(Stopped):
        answer(tell, what="fit again", device=CPU)


def test_a_link_that_asks_for_no_such_question_is_refused():
    with pytest.raises(InputError, match="what"):
        of_query(Trust, "what=everything")


# --- on the page ------------------------------------------------------------------------------------------------------
def test_the_page_shows_the_default_device(app):
    page = app("trust")
    assert page.title[0].value == "Can I trust it?"
    assert shown(page)["Mean error, matmul"] == "6.1%"
    assert len(findings(page)) >= 5


def test_another_device_and_another_question(app):
    page = app("trust")
    page.selectbox(key="device").set_value("b200").run()
    assert "Not calibrated" in page.info[0].value
    page.selectbox(key="what").set_value("sources").run()
    assert any("Of " in info.value for info in page.info)
    assert not page.exception


def test_a_device_without_measurements_is_a_sentence_beside_the_control(app):
    page = app("trust", what="fit again", device="b200")
    assert not page.exception
    assert any("must be one whose measurements" in error.value for error in page.error)


def test_the_page_asks_for_a_file(app):
    page = app("trust", what="my measurements")
    assert "Send your measurements" in page.info[0].value
    assert not page.exception
