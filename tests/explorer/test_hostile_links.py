"""Links that no page of ours wrote: one sentence, figures all the same, and never a traceback."""

from __future__ import annotations

import pytest

from simulator.explorer.controls import escaped

GARBAGE = (
    "tp=3",
    "x",
    "=",
    "\0",
    "&&&",
    "%",
    "model=/etc/passwd",
    "model=x",
    "a=a",
    "x" * 9000,
    "😀=1",
    "tp=1e999",
    "tp=nan",
)


@pytest.mark.parametrize("pinned", GARBAGE)
@pytest.mark.parametrize("path", ["why-slow", "speculation", "gpus", "trust"])
def test_a_pinned_setting_that_cannot_be(app, path, pinned):
    page = app(path, a=pinned)
    assert not page.exception
    assert page.metric or page.info[0].value.startswith("A")
    assert page.warning or page.error or page.info[0].value.startswith("A")


@pytest.mark.parametrize(
    ("path", "pinned"),
    [
        ("speculation", "gamma=0"),
        ("speculation", "gamma=100000"),
        ("speculation", "accept=one rate&alpha=7"),
        ("speculation", "tree=true&nodes=0"),
        ("speculation", "tree=true&depth=-1"),
        ("speculation", "most=100000000"),
        ("speculation", "batch=0"),
        ("gpus", "load=-1"),
        ("gpus", "share=0"),
        ("gpus", "ttft_target_ms=0"),
        ("gpus", "tpot_target_ms=-4"),
        ("gpus", "gpus="),
        ("gpus", "tps=1000"),
        ("gpus", "acceptance=9"),
        ("many-users", "requests=1000000000"),
        ("many-users", "requests=0"),
        ("many-users", "rate_per_s=-1"),
        ("many-users", "traffic=uploaded"),
        ("many-users", "replicas=1000000"),
        ("many-users", "ttft_ms=-1"),
        ("trust", "what=x"),
    ],
)
def test_numbers_that_no_control_offers(app, path, pinned):
    more = {"requests": "100"} if path == "many-users" else {}
    page = app(path, a=pinned, **more)
    assert not page.exception
    assert page.metric or page.table  # alone, or beside the pinned one where that works out after all
    said = [box.value for box in (*page.warning, *page.error)]
    assert any("pinned setting" in text for text in said) or page.info[0].value.startswith("A"), said


@pytest.mark.parametrize("path", ["why-slow", "speculation", "many-users", "gpus", "trust"])
def test_a_parameter_that_no_page_knows_is_shown_as_it_is(app, path):
    name = "<img src=x onerror=alert(1)>"
    more = {"requests": "100"} if path == "many-users" else {}
    page = app(path, **{name: "[link](http://x)"}, **more)
    assert not page.exception
    assert page.metric
    assert escaped(name) in page.warning[0].value


def test_what_was_refused_is_said_until_a_control_is_moved(app):
    page = app("many-users", requests="100", seed="-5")
    assert "Seed" in page.warning[0].value
    page.run()
    assert any("Seed" in w.value for w in page.warning)
    page.toggle(key="intervals").set_value(True).run()
    assert not any("Seed" in w.value for w in page.warning)
