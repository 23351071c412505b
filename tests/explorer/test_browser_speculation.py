"""Page 2 in a browser: a log that is uploaded moves the figures, a control that is moved too, and files can be taken away."""

from __future__ import annotations

import json
import re

import pytest

BAD = "\n".join(json.dumps({"tokens_per_step": [1, 1, 2, 1, 1, 1]}) for _ in range(30)).encode()
GOOD = "\n".join(json.dumps({"tokens_per_step": [5, 5, 4, 5, 5, 5]}) for _ in range(30)).encode()


def send(one, content, name="answers.jsonl"):
    one.page.locator('input[type="file"]').set_input_files(
        {"name": name, "mimeType": "application/json", "buffer": content}
    )


def until_changed(one, label, old):
    one.page.wait_for_function(
        "([label, old]) => [...document.querySelectorAll('[data-testid=\"stMetric\"]')].some(m => m.innerText.includes(label)"
        " && m.querySelector('[data-testid=\"stMetricValue\"]').innerText !== old)",
        arg=[label, old],
    )
    one.settle()
    return one.metric(label)


def test_a_log_that_is_sent_changes_the_figures(tab):
    one = tab()
    one.open("speculation?accept=from+a+log&gamma=4")
    published = one.metric("Tokens per round")
    assert "No log has been sent yet" in one.page.inner_text('[data-testid="stMain"]')
    send(one, GOOD)
    better = until_changed(one, "Tokens per round", published)
    assert float(better) == pytest.approx((5 + 5 + 4 + 5 + 5 + 5) / 6, abs=1e-3)
    assert "180 rounds of 30 requests" in one.page.inner_text('[data-testid="stMain"]')
    one.keep("speculation-log")
    one.page.locator('[data-testid="stFileUploader"] button').last.click()
    send(one, BAD)
    worse = until_changed(one, "Tokens per round", better)
    assert float(worse) < 1.6


def test_what_is_no_log_is_one_sentence_and_the_last_figures_stay(tab):
    one = tab()
    one.open("speculation?accept=from+a+log")
    before = one.metric("Speed-up")
    send(one, b"not,a,log\n1,2,3\n", "table.csv")
    one.page.get_by_text("tell of acceptance").first.wait_for()
    assert "memwall-logs" not in one.page.inner_text("body")
    assert one.metric("Speed-up") == before


def test_a_pinned_log_is_kept_as_rates(tab):
    one = tab()
    one.open("speculation?accept=from+a+log&gamma=4")
    published = one.metric("Tokens per round")
    send(one, GOOD)
    until_changed(one, "Tokens per round", published)
    one.page.get_by_role("button", name="Pin this as A").click()
    one.page.wait_for_url(re.compile("a=.*rates"))
    batch = one.page.get_by_role("slider", name="Sequences in the batch")
    batch.focus()
    batch.press("ArrowRight")
    one.page.get_by_text("From A to B").wait_for()
    other = tab()
    other.open(one.page.url.removeprefix(one.address).replace("accept=from+a+log", "accept=one+rate"))
    other.page.get_by_text("From A to B").wait_for()
    assert "rates conditional:" in other.page.inner_text('[data-testid="stMain"]')


def test_a_slider_moves_the_figures_and_the_link(tab):
    one = tab()
    one.open("speculation")
    before = one.metric("Speed-up")
    context = one.page.get_by_role("slider", name="Tokens of context each")
    context.focus()
    for _ in range(4):
        context.press("ArrowRight")
    one.page.wait_for_url(re.compile("context=16384"))
    assert until_changed(one, "Speed-up", before) != before


@pytest.mark.parametrize("label", ["This page as HTML", "Speed-ups as CSV", "Schedule for vLLM"])
def test_files_can_be_taken_away(tab, tmp_path, label):
    one = tab()
    one.open("speculation")
    with one.page.expect_download() as waiting:
        one.page.get_by_role("button", name=label).click()
    taken = tmp_path / "file"
    waiting.value.save_as(taken)
    assert taken.stat().st_size > 100


def test_controls_that_two_pages_share_keep_their_values(tab):
    one = tab()
    one.open("?model=llama-3.1-70b&tp=4&context=4096")
    one.page.get_by_role("link", name="What does speculation buy?").click()
    one.page.get_by_role("heading", name="What does speculation buy?", level=1).wait_for()
    one.page.get_by_text("Speed-up", exact=True).first.wait_for()
    one.settle()
    conditions = one.page.inner_text('[data-testid="stMain"]')
    assert "model: llama-3.1-70b" in conditions
    assert "context: 4096 tokens each" in conditions


def test_a_preset_goes_before_what_other_pages_said(tab):
    one = tab()
    one.open("?model=llama-3.1-405b&gpu=h200-sxm&tp=8")
    one.page.get_by_role("button", name="Start from a question").click()
    one.page.get_by_role("button", name="EAGLE-3 on an 8B model").click()
    one.page.get_by_role("heading", name="What does speculation buy?", level=1).wait_for()
    one.page.get_by_text("model: llama-3.1-8b").wait_for()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (1920, True), (390, False), (390, True)])
@pytest.mark.parametrize("query", ["batch=16", "tree=true&batch=4&most=128"], ids=["chains", "trees"])
def test_it_fits_the_screen(tab, width, dark, query):
    one = tab(width, dark=dark)
    one.open("speculation?" + query)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    one.keep(f"speculation-{query.split('=')[0]}-{width}{'-dark' if dark else ''}")
