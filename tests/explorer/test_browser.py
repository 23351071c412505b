"""What only a browser shows: pages load by themselves, controls move figures, a link restores them, files come and go."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install memwall[app]")

from simulator.explorer.main import QUESTIONS

PATHS = [question.path for question in QUESTIONS]


def address(path: str) -> str:
    """The first page is the server's root."""
    return "" if path == PATHS[0] else path


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1920, True), (390, False)])
def test_each_page_draws_its_figures(tab, path, width, dark):
    one = tab(width, dark=dark)
    one.open(address(path))
    headings = one.page.locator("h4")
    assert headings.count() > 0
    assert one.page.locator(".js-plotly-plot .main-svg").count() > 0
    wide = one.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0  # nothing hangs over the side
    one.keep(f"{path}-{width}{'-dark' if dark else ''}")


def test_a_slider_moves_figures_and_link(tab):
    one = tab()
    one.open("?model=llama-3.1-70b&tp=4")
    before, label = one.metric("Time per token"), one.page.locator("h4").first.inner_text()
    batch = one.page.get_by_role("slider", name="Sequences in the batch")
    batch.focus()
    for _ in range(7):
        batch.press("ArrowRight")
    one.page.wait_for_url(re.compile("batch=128"))
    one.page.wait_for_function("old => document.querySelector('h4').innerText !== old", arg=label)
    one.settle()
    assert one.metric("Time per token") != before


def test_a_link_restores_the_state_in_a_fresh_browser(tab):
    one = tab()
    one.open("?model=llama-3.1-70b&tp=4&batch=64")
    one.page.get_by_role("button", name="Pin this as A").click()
    one.page.wait_for_url(re.compile("a=model"))
    context = one.page.get_by_role("slider", name="Tokens of context each")
    context.focus()
    context.press("ArrowRight")
    one.page.wait_for_url(re.compile("context=2048"))
    one.settle()
    headings = one.page.locator("h4").all_inner_texts()
    other = tab()
    other.open(one.page.url.removeprefix(one.address))
    assert other.page.locator("h4").all_inner_texts() == headings
    assert "From A to B: context 1024 → 2048" in other.page.inner_text('[data-testid="stMain"]')


def test_a_preset_goes_to_its_page(tab):
    one = tab()
    one.open("")
    one.page.get_by_role("button", name="Start from a question").click()
    one.page.get_by_role("button", name="The article's 70B").click()
    one.page.wait_for_url(re.compile("model=llama-3.1-70b"))
    one.settle()


def test_files_can_be_taken_away(tab, tmp_path):
    one = tab()
    one.open("")
    with one.page.expect_download() as waiting:
        one.page.get_by_role("button", name="This page as HTML").click()
    taken = tmp_path / "page.html"
    waiting.value.save_as(taken)
    assert "Why is decoding slow?" in taken.read_text(encoding="utf-8")


def test_two_browsers_do_not_share_their_state(tab):
    first, second = tab(), tab()
    first.open("?batch=64")
    second.open("")
    assert first.metric("Time per token") != second.metric("Time per token")
    first.page.reload()
    first.settle()
    assert "batch=64" in first.page.url
    assert "batch" not in second.page.url
