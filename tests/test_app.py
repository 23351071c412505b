"""The explorer runs as a user would run it, without a browser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[1] / "app.py"


@pytest.fixture
def app():
    if os.environ.get("MEMWALL_REQUIRE"):
        from streamlit.testing.v1 import AppTest
    else:
        AppTest = pytest.importorskip(
            "streamlit.testing.v1", reason="streamlit is not installed: pip install memwall[app]"
        ).AppTest
    return AppTest.from_file(str(APP), default_timeout=180)


def findings(app):
    assert not app.exception, app.exception
    assert not app.error, app.error
    return [heading.value for heading in app.subheader]


def test_first_page_takes_a_decode_step_apart(app):
    app.run()
    assert app.title[0].value == "Why is decoding slow?"
    assert "HBM" in app.info[0].value
    assert len(findings(app)) == 6


def test_a_larger_batch_changes_the_finding(app):
    alone = findings(app.run())
    app.select_slider(key="batch").set_value(1024)
    app.select_slider(key="context").set_value(128)
    assert findings(app.run()) != alone


def test_second_page_shows_where_speculation_stops_paying(app):
    app.run()
    app.radio(key="question").set_value("What does speculation buy?").run()
    assert len(findings(app)) == 2
    assert "Speculation" in app.info[0].value


def test_third_page_simulates_a_bundled_scenario(app):
    app.run()
    app.radio(key="question").set_value("Many users").run()
    app.select_slider(key="requests").set_value(200).run()
    assert len(findings(app)) >= 5
    assert any("200 read = 200 used" in caption.value for caption in app.caption)


def test_an_impossible_choice_is_one_sentence_not_a_traceback(app):
    app.run()
    app.selectbox(key="model").set_value("llama-3.1-405b").run()
    assert not app.exception
    assert len(app.error) == 1
    assert "needs" in app.error[0].value
