"""Figures of a fitted log carry the numbers of its judgement, and its page needs no network."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

from simulator.figures import acceptance
from simulator.output.acceptance_report import acceptance_yaml
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.ladder.counters import PositionCounts
from simulator.speculation.ladder.held_out import BARS
from simulator.speculation.ladder.result import LogFit, fit_log
from simulator.speculation.ladder.rungs import Replayed
from tests.speculation.ladder.test_rungs import recording_of


@pytest.fixture(scope="module")
def fit() -> LogFit:
    recording = recording_of(Acceptance((0.8, 0.6), request_icc=0.1), 2, 50)
    return fit_log(recording, "<log>.jsonl", folds=2, rung="requests")


def test_misses_are_those_of_all_folds_and_of_each(fit):
    judged = fit.judged
    figure = acceptance.misses_figure(judged)
    shown = [p for p in judged.predictions if p.kind is not Replayed]
    together = [trace for trace in figure.data if trace.name is not None and trace.showlegend is not False]
    assert [trace.name for trace in together] == [p.kind.name for p in shown]
    for trace, prediction in zip(together, shown, strict=True):
        assert list(trace.x) == pytest.approx([judged.misses(prediction, name)[0] for name in BARS], nan_ok=True)
    folds = [trace for trace in figure.data if trace.showlegend is False]
    assert all(len(trace.x) == len(BARS) * 2 for trace in folds)
    assert [(s.x0, s.x1) for s in figure.layout.shapes[: len(BARS)]] == [(-bar, bar) for bar in BARS.values()]


def test_requests_and_tokens_are_the_recorded_ones(fit):
    judged = fit.judged
    recorded = acceptance.requests_figure(judged).data[0]
    assert list(recorded.x) == pytest.approx(sorted(judged.actual.by_request))
    bars = acceptance.tokens_figure(judged).data[0]
    assert sum(bars.y) == pytest.approx(1.0)
    assert list(bars.x) == ["1", "2", "3"]
    correlation = acceptance.correlation_figure(judged).data[0]
    assert correlation.y[0] == pytest.approx(judged.actual.lag_1)


def test_conditional_and_marginal_are_drawn_apart():
    counts = PositionCounts(100.0, (80.0, 50.0, 20.0), "x")
    figure = acceptance.rates_figure(fit_log(counts, "x"))
    by_name = {trace.name: list(trace.y) for trace in figure.data}
    assert by_name["conditional, recorded"] == pytest.approx([0.8, 0.625, 0.4])
    assert by_name["marginal, recorded"] == pytest.approx([0.8, 0.5, 0.2])


def test_the_page(fit):
    page = acceptance.acceptance_page(fit, "memwall acceptance fit <log>.jsonl")
    assert page.count("<figure") == 5
    assert "&lt;log&gt;.jsonl" in page
    assert "<log>" not in page
    # The block for a scenario can be copied as it is.
    block = re.search(r"<li>For a scenario[^<]*<pre><code>(.*?)</code></pre></li>", page, re.DOTALL)
    assert block is not None
    assert html.unescape(block[1]) + "\n" == acceptance_yaml(fit)
    assert "repetition" not in fit.config.model_dump(exclude_defaults=True)
    assert np.isfinite(fit.judged.actual.mean)
