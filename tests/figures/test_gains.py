"""The comparison of on and off carries the gains, and its colours say what is sure; classes carry their summaries."""

from __future__ import annotations

import dataclasses

import pytest

from simulator import load_scenario, simulate
from simulator.figures import serving
from simulator.figures.classes import classes_figure
from simulator.figures.gains import difference_figure
from simulator.serving.confidence import HalfWidth, Ratio
from simulator.serving.gains import Gain, gains


def points(figure):
    """name → (x, half-width, colour)."""
    names = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    return {
        names[y]: (x, half, trace.marker.color)
        for trace in figure.data
        for x, y, half in zip(trace.x, trace.y, trace.error_x.array, strict=True)
    }


def test_every_gain_is_a_point_with_its_interval(service):
    found = points(difference_figure(service))
    for gain in gains(service):
        for point in ("mean", "p50", "p95", "p99"):
            ratio = gain.speedup[point]
            x, half, _ = found[f"{gain.field.removesuffix('_s').upper()} {point}"]
            assert x == ratio.ratio
            assert half == (ratio.width.half_width if ratio.width else 0.0)
    assert len(found) == 12
    (line,) = difference_figure(service).layout.shapes
    assert line.x0 == line.x1 == 1


def test_colours_say_what_is_sure(service):
    def of(field, ratio, half):
        width = None if half is None else HalfWidth(half, 8, 20, 0.0)
        return Gain(field, 160, 0.0, None, 0.5, {"mean": Ratio(ratio, width)})

    figure = difference_figure(service, (of("ttft_s", 0.8, 0.1), of("tpot_s", 1.5, 0.2), of("e2e_s", 1.1, 0.2)))
    colours = [colour for _, _, colour in points(figure).values()]
    assert len(set(colours)) == 3
    assert [trace.name for trace in figure.data] == [
        "faster with speculation",
        "slower with speculation",
        "cannot tell",
    ]
    finding = figure.layout.meta["finding"]
    assert "tokens come 1.50 × faster (1.30 to 1.70)" in finding
    assert "first tokens 1.25 × slower (1.11 to 1.43)" in finding
    assert "whole answers about as fast (1.10 ×)" in finding
    (unknown,) = difference_figure(service, (of("tpot_s", 1.5, None),)).data
    assert unknown.name == "cannot tell"
    assert "too few requests" in unknown.text[0]


def test_plain_decoding_alone_has_no_comparison(plain_service):
    assert difference_figure(plain_service) is None
    assert classes_figure(plain_service) is None


@pytest.mark.parametrize("latency", serving.LATENCIES, ids=lambda latency: latency.field)
def test_classes_reach_from_their_median_to_their_last_percentile(with_classes, latency):
    figure = classes_figure(with_classes, latency)
    names = [c.name for c in with_classes.main.summary.classes]
    assert list(figure.layout.yaxis.ticktext) == names
    for run, trace in zip(with_classes.runs, figure.data, strict=False):
        expected = []
        for kind in run.summary.classes:
            spread = getattr(kind, latency.field)
            expected += [spread.p50 * latency.scale, spread.p99 * latency.scale] if spread.n else []
        assert [x for x in trace.x if x is not None] == pytest.approx(expected)
    limits = [kind.slo[latency.field] for kind in with_classes.main.summary.classes if latency.field in kind.slo]
    assert len(figure.data) == len(with_classes.runs) + bool(limits)
    if limits:
        assert list(figure.data[-1].x) == pytest.approx([s * latency.scale for s in limits])


def test_arrivals_that_hang_on_answers_are_said_to_differ(service):
    assert "arrivals differ" not in difference_figure(service).layout.meta["tag"]
    data = service.scenario.model_dump(mode="json", exclude_defaults=True)
    data["traffic"] = {"kind": "closed-loop", "users": 8, "think_time_s": 0.5, "requests": 100}
    data["traffic"]["lengths"] = {"prompt": 256, "output": 64}
    closed = simulate(load_scenario(data, where=""))
    tag = difference_figure(closed).layout.meta["tag"]
    assert "the same requests and luck, but users ask again after their answers: arrivals differ" in tag


def test_an_interrupted_run_says_how_many_of_the_requests_are_compared(service):
    assert "compared" not in difference_figure(service).layout.meta["tag"]
    fewer = tuple(dataclasses.replace(gain, n=gain.n // 2) for gain in gains(service))
    most = max(gain.n for gain in fewer)
    assert (
        f"{most:,} of them compared, which finished both ways" in difference_figure(service, fewer).layout.meta["tag"]
    )
