"""No operator, pass or measurement above the roof, each at its own FLOP per byte."""

from __future__ import annotations

import pytest

from simulator import decode, deploy
from simulator.calibration.measured_points import measured_points
from simulator.figures.roofline import roofline_figure
from simulator.hardware import load_gpu, what_if
from simulator.pass_work import pass_works


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


@pytest.fixture(scope="module")
def drafted():
    return decode(deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b"), batch=4, context_tokens=2048)


def test_whole_passes_stand_beside_the_operators(drafted):
    works = pass_works(drafted, 4)
    figure = roofline_figure(drafted, works)
    points = [trace for trace in figure.data if trace.name.startswith("whole pass")]
    assert [trace.name for trace in points] == [
        "whole pass: plain decoding", "whole pass: verifying 5 tokens", "whole pass: a draft pass of llama-3.2-1b",
    ]  # fmt: skip
    for point, work in zip(points, works, strict=True):
        assert (point.x[0], point.y[0]) == pytest.approx((work.flop_per_byte, work.flop_per_s / 1e12))
    plain, verify, _ = works
    finding = figure.layout.meta["finding"]
    assert f"Verifying 5 tokens takes {verify.seconds / plain.seconds:.2f} × as long" in finding
    assert "both stand left of the ridge at 295" in finding


def test_measured_steps_are_crosses_that_name_their_source(drafted):
    measured = measured_points(drafted.deployment.gpu)
    figure = roofline_figure(drafted, (), measured)
    own, others = (trace for trace in figure.data if trace.name.startswith("measured"))
    assert (len(own.x) + len(others.x), own.name) == (len(measured), f"measured: this model (n = {len(own.x)})")
    first = next(p for p in measured if p.model == "llama-3.1-8b")
    assert (own.x[0], own.y[0]) == pytest.approx((first.flop_per_byte, first.flop_per_s / 1e12))
    assert "vllm#20780" in own.text[0]
    assert "7.07 ms" in own.text[0]
    implied = sum(not p.stated for p in measured)
    said = f"{len(measured)} measured on this GPU ({implied} of them by what the source implies)"
    assert said in figure.layout.meta["tag"]


def test_crosses_under_a_made_up_roof_are_said_to_be_of_the_gpu_that_exists():
    real = load_gpu("h100")
    result = decode(deploy("llama-3.1-8b", what_if(real, hbm_bandwidth_factor=2.0)))
    tag = roofline_figure(result, (), measured_points(real)).layout.meta["tag"]
    assert f"measured on the {real.title} that exists" in tag
    assert "this GPU" not in tag


def test_roofs_of_a_what_if_are_not_called_a_datasheet_s():
    gpu = what_if(load_gpu("h100"), hbm_bandwidth_factor=2.0)
    figure = roofline_figure(decode(deploy("llama-3.1-8b", gpu)), (), measured_points(gpu))
    tag = figure.layout.meta["tag"]
    assert "what if: 2 × the HBM bandwidth" in tag
    assert "roofs made up" in tag
    assert not tag.startswith("calibrated")
    assert not any(trace.name.startswith("measured") for trace in figure.data)
    assert not any("datasheet" in trace.name for trace in figure.data)


def test_slow_devices_are_drawn_in_their_own_unit():
    step = decode(deploy("llama-3.2-1b", "epyc-9004-1-thread", engine="reference"))
    roof = roofline_figure(step).data[0]
    assert roofline_figure(step).layout.yaxis.title.text == "GFLOP/s reached"
    assert max(roof.y) == pytest.approx(step.deployment.gpu.peak_flop_per_s("bf16") / 1e9)
