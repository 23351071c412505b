"""A dozen rows: one of each class, and enough to move another GPU's parameters where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.calibration import fit
from simulator.calibration.few_rows import TOKEN_CLASSES, WEIGHT_CLASSES, dozen, few_rows_comparisons
from simulator.cost.efficiency import load_efficiency
from simulator.errors import InputError
from simulator.hardware import load_gpu

A100, H100 = load_gpu("a100-sxm-80gb"), load_gpu("h100-sxm")
OWN, OTHER = load_efficiency(A100).matmul._asdict(), load_efficiency(H100).matmul._asdict()


def made() -> fit.Problem:
    """Matmuls timed by the form itself with the A100's parameters."""
    sizes = np.array([256, 512, 1024, 2048, 4096, 8192, 16384], float)
    m, n, k = (
        x.ravel() for x in np.meshgrid(np.array([1, 8, 64, 128, 1024, 4096], float), sizes, sizes, indexing="ij")
    )
    problem = fit.matmul_problem({"m": m, "n": n, "k": k}, A100)
    problem.columns["latency_s"] = problem.predict(OWN, problem.columns)
    return problem


@pytest.mark.parametrize("seed", range(3))
def test_a_dozen_is_one_of_each_class(seed):
    columns = made().columns
    chosen = dozen(columns, A100, seed)
    assert len(set(chosen.tolist())) == 12
    share = 2.0 * columns["n"][chosen] * columns["k"][chosen] / A100.l2_bytes
    classes = [(w, t) for w in WEIGHT_CLASSES for t in TOKEN_CLASSES]
    for weights, tokens, ((low, high), (least, most)) in zip(share, columns["m"][chosen], classes, strict=True):
        assert low <= weights <= high
        assert least <= tokens <= most
    assert dozen(columns, A100, seed).tolist() == chosen.tolist()


def test_an_empty_class_is_named():
    columns = {name: column[made().columns["m"] < 1000] for name, column in made().columns.items()}
    with pytest.raises(InputError, match="at 1024 to 8192 tokens"):
        dozen(columns, A100)


def test_a_dozen_rows_undo_most_of_another_gpus_error():
    carried, refitted = few_rows_comparisons(made(), A100, {"h100-sxm": OTHER}, designs=3)
    assert (carried.name, carried.basis) == ("matmul, parameters of h100-sxm", "not fitted on")
    assert refitted.basis == "not among the dozen rows"
    assert set(np.unique(refitted.labels["design"])) == {0, 1, 2}
    assert carried.mape > 0.1
    assert refitted.mape < 0.5 * carried.mape
    same, again = few_rows_comparisons(made(), A100, {"itself": OWN}, designs=1)
    assert same.mape == pytest.approx(0.0, abs=1e-9)
    assert again.mape < 1e-3
    assert len(again) == len(same) - 12
