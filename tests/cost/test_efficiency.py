"""Calibration files: every bundled one loads, tags say what they rest on, and mistakes are named."""

from __future__ import annotations

import dataclasses

import pytest

from simulator import catalog
from simulator.calibration import kernel_tables, layer_timings
from simulator.calibration.layer_timings import PEAK_HEADROOM
from simulator.cost.efficiency import (
    PRIOR_ERROR,
    CalibrationFile,
    CollectiveEfficiency,
    efficiency_from,
    load_efficiency,
)
from simulator.errors import InputError, UnknownName
from simulator.hardware import load_gpu
from simulator.records import read_mapping, read_record, validate

H100 = load_gpu("h100-sxm")
KINDS = {
    "matmul", "matmul_small", "decode_attention", "prefill_attention", "elementwise", "all_reduce", "exchange",
}  # fmt: skip


@pytest.mark.parametrize("name", catalog.names("calibration"))
def test_every_bundled_calibration_loads(name):
    file = read_record(CalibrationFile, catalog.locate("calibration", name), "calibration")
    e = efficiency_from(file, name)
    assert file.name == name
    assert set(e.typical_error) == KINDS
    for share in (e.matmul.bandwidth, e.matmul.compute, e.decode_attention.bandwidth, e.prefill_attention.compute):
        assert 0 < share <= PEAK_HEADROOM  # boards boost past the clock their datasheet's peak is stated at
    if file.kind == "fitted":
        assert file.source in (kernel_tables.SOURCE, layer_timings.SOURCE)
        assert all(rows.used > 0 for rows in file.rows.values())
        assert any(p.standard_error is not None for p in file.matmul.values())
    else:
        assert e.tag == "analytic"
        assert min(e.typical_error.values()) >= PRIOR_ERROR


def test_a_measured_gpu_is_calibrated():
    e = load_efficiency(H100)
    assert (e.name, e.tag, e.label) == ("h100-sxm", "calibrated", "calibrated (h100-sxm)")
    assert e.typical_error["matmul"] < 0.1


def test_an_unmeasured_gpu_takes_its_family_and_says_so():
    e = load_efficiency(dataclasses.replace(H100, name="h200"))
    assert (e.name, e.tag, e.label) == ("h100-sxm", "analytic", "uncalibrated (prior of h100-sxm)")
    assert min(e.typical_error.values()) >= PRIOR_ERROR


def test_an_unknown_family_takes_the_generic_prior():
    assert load_efficiency(dataclasses.replace(H100, name="x1", family="novel")).label == (
        "uncalibrated (prior of generic)"
    )
    assert load_efficiency(dataclasses.replace(H100, name="epyc", family="cpu")).name == "cpu"


def test_a_calibration_can_be_named_or_given_by_path():
    path = str(catalog.locate("calibration", "l40s"))
    for choice in ("l40s", path):
        e = load_efficiency(H100, calibration=choice)
        assert (e.name, e.tag) == ("l40s", "analytic")
    with pytest.raises(UnknownName, match="did you mean l40s"):
        load_efficiency(H100, calibration="l40")


def generic_with(section, parameter, value):
    data = read_mapping(catalog.locate("calibration", "generic"))
    if value is None:
        del data[section][parameter]
    else:
        data[section][parameter] = {"value": value}
    return efficiency_from(validate(CalibrationFile, data, "mine.yaml"), "x1")


def test_mistakes_in_a_calibration_are_named():
    with pytest.raises(UnknownName, match=r"matmul='bandwith' must be a known parameter .* did you mean bandwidth"):
        generic_with("matmul", "bandwith", 0.8)
    with pytest.raises(InputError, match=r"matmul.t0_s=-1.0 must be at least 0"):
        generic_with("matmul", "t0_s", -1.0)
    with pytest.raises(InputError, match=r"decode_attention.power='\(absent\)' must be given"):
        generic_with("decode_attention", "power", None)
    with pytest.raises(InputError, match=r"matmul.bandwidth=0.0 must be greater than 0"):
        generic_with("matmul", "bandwidth", 0.0)


def test_collective_fields_are_the_files():
    data = read_mapping(catalog.locate("calibration", "h100-sxm"))["calibration"]
    assert set(data["all_reduce"]) == set(CollectiveEfficiency._fields)


def test_one_boards_calibration_is_not_its_familys_prior():
    """The RTX 4090's shares are of a halved tensor rate and a clock it exceeds; other Ada GPUs keep the L40S's."""
    assert load_efficiency(load_gpu("rtx-4090")).label == "calibrated (rtx-4090)"
    assert load_efficiency(load_gpu("l4")).label == "uncalibrated (prior of l40s)"
