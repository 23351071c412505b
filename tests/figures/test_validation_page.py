"""The page of validations: stands alone, carries the terminal's numbers, and treats others' text as text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from simulator.figures.validation_page import validation_page
from simulator.output.tables import Section
from simulator.output.validation_report import validation_report, verdict
from tests.figures import test_browser
from tests.figures.conftest import HOSTILE
from tests.validation_sample import sample

chromium = test_browser.chromium
COMMAND = "memwall validate h200-mine --html page.html"


def hostile():
    """`sample` with a script in every text there is."""
    v = sample(HOSTILE, HOSTILE)
    comparisons = [
        replace(
            c, name=f"{HOSTILE} {i}", basis=HOSTILE, note=HOSTILE,
            labels={HOSTILE: np.array([f"{HOSTILE} {k % 3}" for k in range(len(c))]), "batch": c.labels["batch"]},
        )
        for i, c in enumerate(v.comparisons)
    ]  # fmt: skip
    return replace(
        v, comparisons=comparisons, conditions=[(HOSTILE, HOSTILE)], notes=[HOSTILE],
        quantities=[replace(q, name=HOSTILE, unit=HOSTILE, basis=HOSTILE, note=HOSTILE) for q in v.quantities],
        courses=[replace(c, name=HOSTILE, unit=HOSTILE) for c in v.courses],
        roof=replace(v.roof, rests_on=HOSTILE, kind=np.full(len(v.roof.kind), HOSTILE)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages():
    return {
        "one": validation_page(sample(), COMMAND),
        "several": validation_page([sample(), sample("another calibration")], COMMAND),
        "hostile": validation_page([hostile(), hostile()], HOSTILE),
        "empty": validation_page(replace(sample(), comparisons=(), quantities=(), courses=(), roof=None), COMMAND),
    }


@pytest.mark.parametrize(("name", "figures"), [("one", 10), ("several", 20), ("hostile", 16), ("empty", 0)])
def test_page_is_one_file_that_loads_nothing(pages, outline, name, figures):
    found = outline(pages[name])
    assert [load for load in found.loads if not load.address.startswith("#")] == []
    assert {load.address[1:] for load in found.loads} <= set(found.ids)
    assert not found.open
    assert pages[name].count("plotly.js v") == 1
    assert "default-src 'none'" in pages[name]
    assert len(found.ids) == len(set(found.ids))
    assert len(found.plots) == figures
    for text in found.plots:
        figure = json.loads(text)
        assert figure["data"]
        assert figure["layout"]["meta"]["finding"] in " ".join(found.visible)
        assert figure["layout"]["meta"]["tag"] in " ".join(found.visible)


def test_page_carries_the_tables_of_the_terminal(pages, outline):
    text = outline(pages["one"]).text
    assert verdict(sample()) in text
    assert COMMAND in text
    for block in validation_report(sample()):
        for cell in [cell for row in block.table.rows for cell in row] if isinstance(block, Section) else []:
            assert cell in text
    assert "12 shapes were skipped" in text
    assert "simulated, not measured" not in text


def test_several_validations_have_a_section_each_and_a_list_on_top(pages, outline):
    found = outline(pages["several"])
    assert [load.address for load in found.loads] == ["#part-0", "#part-1"]
    assert pages["several"].count("<article") == 2
    assert pages["one"].count("<article") == 0
    assert found.text.count("another calibration") >= 2
    assert outline(validation_page([sample()], COMMAND)).text == outline(pages["one"]).text


def test_hostile_text_is_text(pages, outline):
    found = outline(pages["hostile"])
    assert HOSTILE in found.text
    assert HOSTILE not in pages["hostile"]
    assert found.scripts == 2 + len(found.plots)
    for plot in found.plots:
        figure = json.loads(plot)
        figure["layout"].pop("meta")  # set as text by the page, never by plotly
        assert "<script" not in json.dumps(figure)
        assert "<img" not in json.dumps(figure)


def test_same_validation_gives_the_same_page(pages):
    assert validation_page(sample(), COMMAND) == pages["one"]


def test_every_figure_is_drawn(pages, chromium, tmp_path):
    document, console = test_browser.opened(chromium, pages["hostile"], tmp_path)
    assert console == []
    assert document.count('class="plot-container') == 16
