"""A measured device's profile says only what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simulator.calibration.device_profile import DeviceProfile, bundled_gpu
from simulator.calibration.device_validation import validate_device
from simulator.calibration.measured import read_measurements
from simulator.hardware import load_gpu
from tests.calibration import synthetic


def written(tmp_path, keep):
    """The paper device's file with only the lines that `keep` wants."""
    path = synthetic.write(tmp_path / "paper.jsonl")
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *(line for line in lines if keep(json.loads(line)))]) + "\n")
    return read_measurements(path)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla T4", None),
    ],
)
def test_a_board_is_the_bundled_one_or_it_is_not(device, name):
    assert bundled_gpu(device) == name


def test_host_times_are_fitted_only_where_they_were_seen(tmp_path):
    without = DeviceProfile.of(written(tmp_path, lambda line: line["kind"] in ("matmul", "step")), "paper")
    assert without.engine_file.figures["host_step"].source == "unfitted"
    # The paper device's rounds take 0.1 ms of the host's for every pass: a plain one has one, γ = 4 has five more.
    both = DeviceProfile.of(written(tmp_path, lambda line: line["kind"] in ("matmul", "step", "launch")), "paper")
    assert both.engine_file.figures["host_step"].value == pytest.approx(1e-4)
    assert both.engine_file.figures["host_draft_pass"].value == pytest.approx(1e-4)
    assert "not fitted" not in both.engine_file.title


def test_a_profile_held_against_its_own_measurements_counts_the_host_once(tmp_path):
    measured = read_measurements(synthetic.write(tmp_path / "paper.jsonl"))
    (tmp_path / "paper.yaml").write_text(DeviceProfile.of(measured, "paper").text())
    again = DeviceProfile.held_against(measured, load_gpu(str(tmp_path / "paper.yaml")))
    comparisons = {c.name: c for c in validate_device(again).comparisons}
    for name in ("whole steps, all", "draft passes", "rounds, small drafter", "rounds without drafts"):
        assert abs(comparisons[name].bias) < 0.02, name


def test_kernels_alone_claim_nothing_about_steps(tmp_path):
    profile = DeviceProfile.of(written(tmp_path, lambda line: line["kind"] == "matmul"), "paper")
    assert "step" not in profile.spread
    notes = " ".join(validate_device(profile).notes)
    assert "Nothing measured says how far whole steps are off" in notes
    assert profile.calibration.typical_error["decode_attention"] >= 0.3


def test_kernels_in_another_format_are_left_out(tmp_path):
    path = synthetic.write(tmp_path / "paper.jsonl")
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"dtype": "fp32"}), *lines]) + "\n")
    measured = read_measurements(path)
    assert not measured.of_kind("matmul", "attention")
    assert measured.dropped["matmul"] == {"not in the models' fp32": 60}


def test_a_fit_at_its_bounds_still_has_finite_errors(tmp_path):
    """Everything at the datasheet's rates: shares of 1, whose logarithm is 0."""
    path = synthetic.write(tmp_path / "paper.jsonl", noise=0.0)
    first, *lines = path.read_text().splitlines()
    fast = [json.loads(line) for line in lines]
    for line in fast:
        for name in ("median_s", "min_s", "q1_s", "q3_s", "max_s"):
            line[name] *= 0.5
    path.write_text("\n".join([first, *map(json.dumps, fast)]) + "\n")
    profile = DeviceProfile.of(read_measurements(path), "paper")
    assert np.isfinite(profile.fit.covariance).all()
    assert profile.text()
