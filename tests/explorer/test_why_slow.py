"""Page 1 without a browser."""

from __future__ import annotations

import pytest

from simulator.explorer.answer import Tell
from simulator.explorer.why_slow import Step, WhySlow
from tests.explorer.conftest import findings, shown


def test_it_takes_a_decode_step_apart(app):
    page = app("why-slow")
    assert page.title[0].value == "Why is decoding slow?"
    assert "HBM" in page.info[0].value
    assert shown(page)
    assert len(findings(page)) >= 4


def test_a_larger_batch_changes_what_it_finds(app):
    page = app("why-slow")
    alone = findings(page)
    page.select_slider(key="batch").set_value(1024)
    page.select_slider(key="context").set_value(128).run()
    assert findings(page) != alone


def test_an_impossible_choice_is_one_sentence_and_keeps_the_last_good_answer(app):
    page = app("why-slow")
    before = findings(page)
    page.selectbox(key="model").set_value("llama-3.1-405b").run()
    assert not page.exception
    assert any("needs" in error.value for error in page.error)
    assert findings(page) == before


def test_a_pinned_setting_stands_beside_the_other(app):
    page = app("why-slow")
    page.button(key="pin").click().run()
    page.select_slider(key="batch").set_value(64).run()
    assert not page.exception
    assert "batch" in next(m.value for m in page.markdown if m.value.startswith("From A to B"))
    assert [info.value[:1] for info in page.info] == ["A", "B"]
    page.button(key="unpin").click().run()
    assert len(page.info) == 1


def test_a_link_to_what_is_unknown_says_so(app):
    page = app("why-slow", gpu="h100-sxn")
    assert "did you mean h100\\-sxm" in page.warning[0].value.replace("h100-", "h100\\-")
    assert shown(page)


def test_key_figures_say_whose_peak_which_desk_and_how_many_gpus():
    def told(**chosen):
        found = WhySlow().answer(Step(**chosen), {}, Tell())
        return {number.label: number.note for number in found.numbers}

    plain = told(model="llama-3.1-70b", tp=4)
    assert plain["HBM moves"].endswith("of the datasheet's peak of each GPU")
    assert plain["SMs reach"].endswith("of the dense peak of each GPU")
    assert "desk" not in plain["Time per token"]
    wished = told(hbm=2.0, desk="10 GB")
    assert wished["HBM moves"].endswith("of the made-up peak")
    assert wished["Time per token"].endswith("with the desk as it is")


@pytest.mark.parametrize(
    "pinned",
    [
        "layers=xyz",
        "layers=-3",
        "layer=0&layers=2",
        "layer=-7",
        "hbm=1e308",
        "desk=-1 GB",
        "model=/etc/passwd",
        "\0",
        "tp=3",
    ],
)
def test_whatever_a_link_pins_is_a_sentence(app, pinned):
    page = app("why-slow", a=pinned)
    assert not page.exception
    assert page.metric
    assert page.warning or page.error


def test_what_another_model_left_is_not_out_of_range(app):
    page = app("why-slow", model="llama-3.1-70b", tp="8", layers="2", layer="70")
    assert page.slider(key="layer").value == 70
    page.selectbox(key="model").set_value("llama-3.1-8b").run()
    assert shown(page)
    assert page.slider(key="layer").value <= 32
