"""No operator above the roof, each at its own FLOP per byte."""

from __future__ import annotations

import pytest

from simulator.figures.roofline import roofline_figure


def test_points_are_the_operators_and_lie_under_the_roof(step):
    roof, *points = roofline_figure(step).data
    operators = [(o, s) for o, s in step.by_operator if o.flop > 0]
    assert len(points) == len(operators)
    gpu = step.deployment.gpu
    for point, (o, _) in zip(points, operators, strict=True):
        assert point.x[0] == pytest.approx(o.flop / o.bytes_)
        assert point.y[0] == pytest.approx(o.flop / o.total_s / 1e12)
        assert point.y[0] <= min(point.x[0] * gpu.hbm_bytes_per_s, max(roof.y) * 1e12) / 1e12
    assert max(roof.y) == pytest.approx(gpu.peak_flop_per_s("bf16") / 1e12)


def test_marker_area_is_the_share_of_time(step):
    _, first, second, *_ = roofline_figure(step).data
    (_, first_s), (_, second_s) = [(o, s) for o, s in step.by_operator if o.flop > 0][:2]
    assert (second.marker.size / first.marker.size) ** 2 == pytest.approx(second_s / first_s)
