"""The committed measurements of real devices, and the bars that predictions for them have to clear.

What a point is scored on was not fitted: steps are predicted without their batch size or their model, rounds and speed-ups
without any round.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator import catalog
from simulator.calibration.device_profile import DeviceProfile
from simulator.calibration.device_validation import validate_device
from simulator.calibration.measured import read_measurements
from simulator.cost.efficiency import CalibrationFile
from simulator.hardware import load_gpu
from simulator.records import read_record

CPU = "epyc-9004-1-thread"
FOLDER = catalog.root() / "hardware_profiles" / "measurements"


@pytest.fixture(scope="module")
def profile():
    return DeviceProfile.of(read_measurements(FOLDER / f"{CPU}.jsonl"), CPU)


@pytest.fixture(scope="module")
def comparisons(profile):
    return {c.name: c for c in validate_device(profile).comparisons}


@pytest.mark.parametrize(
    ("name", "bar"), [("whole steps, batch size unseen", 0.06), ("whole steps, model unseen", 0.12)]
)
def test_held_out_steps(comparisons, name, bar):
    assert len(comparisons[name]) >= 60
    assert comparisons[name].mape <= bar


def test_rounds_are_within_ten_percent(comparisons):
    rounds = [c for name, c in comparisons.items() if name.startswith("rounds")]
    assert sum(map(len, rounds)) >= 20
    for c in rounds:
        assert c.mape <= 0.10, c.name


def test_speed_ups_are_within_ten_percent(profile):
    errors = [abs(q.error) for q in validate_device(profile).quantities if q.name.startswith("speed-up")]
    assert len(errors) >= 15
    assert np.mean(errors) <= 0.10


def test_the_run_was_what_the_bars_ask_for(profile):
    """One thread, bf16, models of 80 M parameters and more, passes of up to 512 tokens."""
    header, steps = profile.measured.header, profile.data.steps
    assert (header["device_kind"], header["threads"], header["dtype"]) == ("cpu", 1, "bf16")
    sizes = {model: profile.measured.models[model].parameters for model in set(steps.label("model"))}
    assert len(sizes) >= 2
    assert min(sizes.values()) >= 80e6
    assert max(line["tokens"] for line in profile.measured.of_kind("matmul")) == 512


def test_most_points_are_inside_their_interval(comparisons):
    """A claim of 90 %, made by other groups of points; a binomial of so many points wavers by five."""
    for name in ("whole steps, batch size unseen", "whole steps, model unseen"):
        assert comparisons[name].coverage() >= 0.80, name


def test_the_bundled_profile_is_the_fit_of_the_bundled_measurements(profile):
    bundled = read_record(CalibrationFile, catalog.locate("gpu", CPU), "calibration")
    for section in ("matmul", "decode_attention", "elementwise"):
        for name, parameter in getattr(profile.calibration, section).items():
            assert getattr(bundled, section)[name].value == pytest.approx(parameter.value, rel=0.05), (section, name)
    assert load_gpu(CPU).profile is not None


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_file_says_what_it_was_taken_on(path):
    header = read_measurements(path).header
    assert all(header.get(name) for name in ("device", "torch", "date"))
    assert not header.get("toy")
    if header["device_kind"] == "cuda":
        assert header["driver"]
