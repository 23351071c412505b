"""A device made up on paper is found again from its noisy measurements, and what is held out really is."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.calibration import device_fit
from simulator.calibration.comparison import Comparison
from simulator.calibration.device_fit import Data
from simulator.calibration.measured import read_measurements
from simulator.errors import InputError
from simulator.hardware import load_gpu
from tests.calibration import synthetic

NOISE = 0.02


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return read_measurements(synthetic.write(tmp_path_factory.mktemp("paper") / "paper.jsonl", NOISE))


@pytest.fixture(scope="module")
def data(measured):
    return Data.of(measured, load_gpu("h200"))


def comparison(measured_s, predicted_s):
    return Comparison("points", measured_s, predicted_s, "")


def test_what_was_measured_is_explained_as_well_as_its_noise_allows(data):
    """Noise of 2 % has a mean absolute error of 1.6 %; a fit may take a little of it away, and the form is exact."""
    found = device_fit.solve(data)
    assert found.success
    for predicted_s, measured_s in (
        (device_fit.pass_s(data, "steps", found.kernels, 0.0), data.steps.measured_s),
        (device_fit.pass_s(data, "drafts", found.kernels, 0.0), data.drafts.measured_s),
        (device_fit.matmul_s(data, found.kernels), data.matmul["latency_s"]),
    ):
        assert comparison(measured_s, predicted_s).mape < 1.5 * NOISE


def test_parameters_that_the_points_show_are_found(data):
    kernels, true = device_fit.solve(data).kernels, synthetic.truth(data.gpu)
    assert kernels.matmul.bandwidth == pytest.approx(true.matmul.bandwidth, rel=0.05)
    assert kernels.matmul.compute == pytest.approx(true.matmul.compute, rel=0.05)
    assert kernels.decode_attention.bandwidth == pytest.approx(true.decode_attention.bandwidth, rel=0.1)
    assert kernels.elementwise.t0_s == pytest.approx(true.elementwise.t0_s, rel=0.2)


@pytest.mark.parametrize("by", ["batch", "model"])
def test_unseen_groups_are_predicted_within_their_noise(measured, data, by):
    """The form is the truth's own, so that only noise and what the other groups cannot show is left."""
    held = device_fit.held_out(measured, data, by)
    assert np.isfinite(held.step_s).all()
    assert comparison(data.steps.measured_s, held.step_s).mape < 0.05


def test_steps_without_graphs_are_not_how_a_gpu_serves(measured, data):
    steps = measured.of_kind("step")
    assert {line["graphs"] for line in steps} == {True, False}
    assert set(data.steps.label("graphs")) == {True}
    assert len(data.steps) == sum(line["graphs"] for line in steps)


def test_a_held_out_model_takes_its_kernels_along(measured, data):
    """llama-8b: 4 matrices of 5 token counts each; its heads (32, 8, 128) are nobody else's: 27 attention rows."""
    left = data.without(measured, "model", "llama-8b")
    assert len(data.matmul["m"]) - len(left.matmul["m"]) == 20
    assert len(data.attention["keys"]) - len(left.attention["keys"]) == 27
    assert "llama-8b" not in left.steps.label("model")


def test_a_held_out_batch_is_nowhere(measured, data):
    left = data.without(measured, "batch", 32)
    assert 32 not in left.steps.label("batch")
    assert 32 not in left.drafts.label("batch")
    assert len(left.steps) == len(data.steps) - 18  # 3 models, 3 token counts, 2 contexts


def test_an_outlier_moves_nothing_much(data):
    """One step measured while somebody else had the machine: three times too slow."""
    steps = data.steps
    slow = steps.measured_s.copy()
    slow[7] *= 3.0
    clean, fooled = (
        device_fit.solve(device_fit.replace(data, steps=device_fit.replace(steps, measured_s=times)))
        for times in (steps.measured_s, slow)
    )
    others = np.arange(len(slow)) != 7
    moved = device_fit.pass_s(data, "steps", fooled.kernels, 0.0) / device_fit.pass_s(data, "steps", clean.kernels, 0.0)
    assert np.abs(moved[others] - 1.0).max() < 0.03


def test_too_few_rows_are_refused(measured, data):
    few = device_fit.replace(
        data, steps=data.steps.where(np.arange(len(data.steps)) < 5),
        matmul={name: column[:3] for name, column in data.matmul.items()},
        attention={name: column[:3] for name, column in data.attention.items()},
    )  # fmt: skip
    with pytest.raises(InputError, match="5 steps and 6 kernels"):
        few.require_enough("file")


def test_a_dozen_rows_are_worth_it(measured, data):
    """Twelve matmuls of the paper device, the rest its family's: all other matmuls come closer than from the family alone."""
    rows = np.linspace(0, len(data.matmul["m"]) - 1, 12).astype(int)
    few = device_fit.replace(
        data, matmul={name: column[rows] for name, column in data.matmul.items()},
        attention={name: column[:0] for name, column in data.attention.items()},
        steps=data.steps.where(np.zeros(len(data.steps), bool)), step_terms=None,
        drafts=data.drafts.where(np.zeros(len(data.drafts), bool)), draft_terms=None,
    )  # fmt: skip
    few.require_enough("file")
    others = np.ones(len(data.matmul["m"]), bool)
    others[rows] = False
    prior = device_fit.Layout.of(data.gpu)
    start = prior.values(np.log([prior.bounds[section][name][0] for section, name in prior.names]))
    errors = [
        comparison(data.matmul["latency_s"][others], device_fit.matmul_s(data, kernels)[others]).mape
        for kernels in (device_fit.solve(few).kernels, device_fit.kernels_of(start))
    ]
    assert errors[0] < 0.5 * errors[1]
    held = device_fit.held_out(measured, few, "matrix")
    assert np.isfinite(held.log_errors["matmul"]).all()
    assert len(held.log_errors["matmul"]) == 12
