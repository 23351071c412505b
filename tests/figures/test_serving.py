"""Curves and timelines carry the records: medians, sums over buckets, counts."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.figures import serving
from simulator.figures.serving import LATENCIES
from simulator.serving.intervals import Intervals
from simulator.uncertainty import Interval


@pytest.mark.parametrize("latency", LATENCIES, ids=lambda latency: latency.field)
def test_curves_pass_through_the_percentiles_of_the_summary(service, latency):
    figure = serving.latency_figure(service, latency)
    scale = 1e3 if latency.field == "tpot_s" else 1.0
    assert len(figure.data) == len(service.runs) == 2
    for run, curve in zip(service.runs, figure.data, strict=True):
        found = getattr(run.summary, latency.field)
        assert len(serving.measured(run, latency.field)) == found.n
        # At most 400 of n points are drawn: here all, and then the curve holds the largest and the median.
        assert curve.x[-1] == pytest.approx(found.largest * scale)
        assert np.interp(50, curve.y, curve.x) == pytest.approx(found.p50 * scale, rel=0.05)
        assert curve.y[-1] == 100.0
        assert np.all(np.diff(curve.x) >= 0)


def test_objectives_are_drawn_where_given(service):
    lines = {latency.field: serving.latency_figure(service, latency).layout.shapes for latency in LATENCIES}
    assert lines["ttft_s"][0].x0 == 0.5
    assert lines["tpot_s"][0].x0 == pytest.approx(30)
    assert not lines["e2e_s"]


def test_timelines_integrate_to_the_records(service):
    figure = serving.load_figure(service)
    panels = len(figure.data) // len(service.runs)
    assert panels == 5
    for index, run in enumerate(service.runs):
        running, waiting, occupancy, output, prompts = figure.data[index * panels : (index + 1) * panels]
        width_s = output.x[1] - output.x[0] if len(output.x) > 1 else run.bucket_s
        finished = run.requests["generated_tokens"].sum()
        assert sum(output.y) * width_s == pytest.approx(finished, rel=1e-9)
        busy_running = run.series[1].sum()
        assert sum(running.y) * width_s == pytest.approx(busy_running, rel=1e-9)
        assert sum(waiting.y) * width_s == pytest.approx(run.series[2].sum(), rel=1e-9, abs=1e-9)
        assert sum(prompts.y) * width_s == pytest.approx(run.series[5].sum(), rel=1e-9)
        blocks = run.total_blocks * service.scenario.replicas
        assert sum(occupancy.y) / 100 * width_s * blocks == pytest.approx(run.series[3].sum(), rel=1e-9)


def test_intervals_are_drawn_as_shares_of_the_prediction(service):
    """−(1 − 1/f) to +(f − 1) around every figure, f = high/√(low·high)."""
    found = {}
    for run in service.runs:
        found[run.variant, "tpot_s.mean"] = Interval(8e-3, 12.5e-3)  # around 10 ms
        found[run.variant, "output_tokens_per_s"] = Interval(99.0, 99.0)
    figure = serving.interval_figure(service, Intervals(found))
    assert len(figure.data) == 2
    for bars in figure.data:
        assert list(bars.y) == ["TPOT mean", "output tokens/s"]
        assert list(bars.error_x.array) == pytest.approx([25.0, 0.0])
        assert list(bars.error_x.arrayminus) == pytest.approx([20.0, 0.0])
    assert figure.layout.meta["finding"].startswith("The least certain figure is TPOT mean: up to +25 %")


def test_a_class_has_its_curve_where_there_are_several(with_classes):
    figure = serving.latency_figure(with_classes, LATENCIES[1])
    assert [curve.name for curve in figure.data[2:]] == sorted(
        (c.name for c in with_classes.main.summary.classes),
        key=lambda name: -next(c.measured for c in with_classes.main.summary.classes if c.name == name),
    )
    for curve in figure.data[2:]:
        (found,) = [c for c in with_classes.main.summary.classes if c.name == curve.name]
        assert curve.x[-1] == pytest.approx(found.tpot_s.largest * 1e3)
    assert [line.x0 for line in figure.layout.shapes] == [
        15.0,
        15.0,
    ]  # of the two classes with an objective of their own


def test_ends_are_drawn_where_not_all_is_finished(with_classes, service):
    assert serving.ends_figure(service) is None
    figure = serving.ends_figure(with_classes)
    for run, bars in zip(with_classes.runs, figure.data, strict=True):
        assert bars.y[0] == "finished"
        assert sum(bars.x) == pytest.approx(100.0)
        assert bars.text[0] == f"{run.summary.requests['finished']:,}"
    share = with_classes.main.summary.requests["finished"] / 3000
    assert figure.layout.meta["finding"].startswith(f"{share:.1%} of the requests get their answer")


def test_a_growing_queue_is_the_finding(growing):
    finding = serving.load_figure(growing).layout.meta["finding"]
    assert finding.startswith("Plain decoding: the queue only grows: 12.0 requests/s arrive, 9.3/s leave")


def test_scatter_is_thinned_evenly_and_says_so(service, monkeypatch):
    whole = serving.arrivals_figure(service)
    assert sum(len(t.x) for t in whole.data) == 400
    assert "drawn" not in whole.layout.meta["tag"]
    monkeypatch.setattr(serving, "MOST_SCATTER_POINTS", 50)
    thinned = serving.arrivals_figure(service)
    assert sum(len(t.x) for t in thinned.data) == 100
    assert "100 of 400 requests drawn" in thinned.layout.meta["tag"]


def test_histogram_counts_every_request_with_a_round(service, plain_service):
    (bars,) = serving.tokens_per_round_figure(service).data
    requests = service.main.requests
    assert sum(bars.y) == ((requests["rounds"] > 0) & (requests["measured"] == 1)).sum()
    assert serving.tokens_per_round_figure(plain_service) is None


def test_plain_scenario_has_one_curve(plain_service):
    assert len(serving.latency_figure(plain_service, LATENCIES[0]).data) == 1
    assert "without" not in serving.latency_figure(plain_service, LATENCIES[0]).layout.meta["finding"]


@pytest.mark.parametrize("latency", LATENCIES, ids=lambda latency: latency.field)
def test_every_latency_is_drawn_over_arrivals_with_its_objective(service, latency):
    figure = serving.arrivals_figure(service, latency)
    for run, points in zip(reversed(service.runs), figure.data, strict=True):
        largest = getattr(run.summary, latency.field).largest * latency.scale  # warm-up is drawn, too
        assert max(points.y) >= largest * (1 - 1e-12)
    limit_s = getattr(service.scenario.slo, latency.field)
    assert [line.y0 for line in figure.layout.shapes] == ([] if limit_s is None else [limit_s * latency.scale])
