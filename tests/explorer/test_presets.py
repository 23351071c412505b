"""Every preset and every default is a question that has an answer."""

from __future__ import annotations

import pytest

from simulator.explorer.answer import Tell
from simulator.explorer.link import of_query, without_files
from simulator.explorer.main import QUESTIONS
from simulator.explorer.presets import PRESETS
from tests.explorer.conftest import findings, shown

BY_PATH = {question.path: question for question in QUESTIONS}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.title)
def test_it_is_a_link_whose_every_word_a_control_takes(app, preset):
    from urllib.parse import parse_qs

    page = app(preset.path, **parse_qs(preset.query))
    assert shown(page) or preset.path == "trust"
    assert findings(page)
    assert not [w.value for w in page.warning if "The link" in w.value]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.title)
def test_all_its_figures_and_files_can_be_made(preset):
    question = BY_PATH[preset.path]
    answer = question.answer(without_files(of_query(question.settings, preset.query)), {}, Tell())
    assert answer.verdict
    for plot in answer.plots:
        assert answer.figure(plot, dark=True).layout.meta["finding"]
    for file in answer.downloads:
        assert file.make()


def test_each_has_a_name_of_its_own():
    assert len({(p.path, p.title) for p in PRESETS}) == len(PRESETS)
    assert {p.path for p in PRESETS} <= set(BY_PATH)
