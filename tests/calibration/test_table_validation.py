"""Kernel tables validated on the real data: the bars that the forms must meet on rows held out by shape and by model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from simulator.calibration import fit
from simulator.calibration.comparison import Comparison, Validation
from simulator.calibration.layer_validation import validate_layers
from simulator.calibration.table_validation import labels_of, light_weights, validate_tables
from simulator.errors import InputError
from simulator.hardware import load_gpu

GPUS = ("h100-sxm", "a100-sxm-80gb", "l40s")
MATMUL = {"h100-sxm": 0.09, "a100-sxm-80gb": 0.09, "l40s": 0.13}


@cache
def validation_of(kernels: Path, gpu: str) -> list[Validation]:
    return validate_tables(kernels, load_gpu(gpu))


@pytest.fixture(params=GPUS)
def validated(request, memwall_data) -> tuple[str, dict[str, Comparison]]:
    """A GPU's name and its comparisons by name; of two of one name the first, which is not fitted on its points."""
    found = [c for part in validation_of(memwall_data / "kernels", request.param) for c in part.comparisons]
    return request.param, {c.name: c for c in reversed(found)}


def test_at_most_a_dozen_parameters_per_kind():
    for bounds in (fit.MATMUL, fit.DECODE, fit.PREFILL, fit.ALL_REDUCE, fit.EXCHANGE):
        assert len(bounds) <= 12


def test_matmul(validated):
    gpu, c = validated
    assert c["matmul"].basis == "held out by matrix"
    assert c["matmul"].mape <= MATMUL[gpu]
    assert c["matmul of a new model"].basis == "held out by model"
    assert c["matmul of a new model"].mape <= MATMUL[gpu]
    parts = [c[f"matmul, weights {where} 16 MB"] for where in ("under", "from")]
    assert sum(len(part) for part in parts) == len(c["matmul"])
    assert (parts[0].labels["n"] * parts[0].labels["k"] * 2 < 16e6).all()
    assert c["matmul, up to 64 tokens"].labels["tokens"].max() == 64


def test_attention(validated):
    _, c = validated
    assert c["decode attention"].mape <= 0.09
    assert c["decode attention of a new model"].mape <= 0.09
    assert c["prefill attention from 512 tokens"].mape <= 0.11
    assert c["prefill attention from 512 tokens"].labels["new_tokens"].min() == 512


def test_all_reduce_over_nvlink(validated):
    _, c = validated
    over = {name.rsplit(" ", 1)[-1]: each for name, each in c.items() if name.startswith("all-reduce over")}
    assert len(over) == 1
    for link, each in over.items():
        if link.startswith("nvlink"):
            assert each.mape <= 0.12


STEPS = [
    pytest.param(
        gpu, model,
        marks=pytest.mark.xfail(strict=True, reason="kernels of 2 to 16 tokens are slower than of 32; eight GPUs miss by 8 %")
        if (gpu, model) == ("a100-sxm-80gb", "llama-3.1-8b") else (),
    )
    for gpu in GPUS for model in ("llama-3.1-8b", "llama-3.1-70b")
]  # fmt: skip


@pytest.mark.parametrize(("gpu", "model"), STEPS)
def test_whole_decode_steps(gpu, model, memwall_data):
    steps = validation_of(memwall_data / "kernels", gpu)[1]
    found = [c for c in steps.comparisons if c.name.startswith("decode step")]
    unseen = next(c for c in found if model in c.name and c.basis.startswith("kernels fitted without"))
    assert set(np.unique(unseen.labels["gpus"])) == {1, 2, 4, 8}
    assert unseen.mape <= 0.05


def test_a_dozen_rows_of_a_new_gpu(validated):
    gpu, c = validated
    for other in GPUS:
        if other != gpu:
            refitted = c[f"matmul, a dozen rows and the parameters of {other}"]
            assert refitted.mape <= 0.18
            assert refitted.mape < c[f"matmul, parameters of {other}"].mape


def test_intervals_hold_what_they_claim(validated):
    """Nine of ten points, each by a spread that knows neither the point nor its fold."""
    _, c = validated
    for name in ("matmul", "decode attention", "prefill attention", "matmul of a new model"):
        assert 0.85 <= c[name].coverage() <= 0.97


def test_a_look_up_stands_beside_the_formula(validated):
    """Same points, same folds; the formula gives up little to a table of ten thousand rows."""
    _, c = validated
    for case in ("matrix unknown", "matrix known"):
        table, formula = c[f"matmul by look-up, {case}"], c[f"matmul by formula, same points, {case}"]
        assert np.array_equal(table.measured_s, formula.measured_s)
        assert formula.mape - table.mape <= 0.05


def test_the_page_has_its_conditions(validated, memwall_data):
    gpu, _ = validated
    found = validation_of(memwall_data / "kernels", gpu)[0]
    assert 0 < len(found.roof.flop) <= 1500
    assert set(found.roof.kind) == {"matmul", "decode attention", "prefill attention"}
    assert any("faster than HBM can" in note for note in found.notes)
    assert {"source", "matmul", "decode attention", "all reduce"} <= {name for name, _ in found.conditions}


def test_layers(memwall_data):
    found = validate_layers(memwall_data / "layers" / "rtx4090", load_gpu("rtx-4090"))
    c = {(each.name, each.basis): each for each in found.comparisons}
    assert c["matmul", "held out by layer"].mape <= 0.05
    assert set(c["matmul", "held out by layer"].labels["layer"]) == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head",
    }  # fmt: skip
    assert c["decode attention", "held out by batch"].mape <= 0.1
    mixed = next(each for each in found.comparisons if each.basis == "not fitted on")
    assert len(mixed) == 8448
    assert len(found.roof.flop) == 648 + 98 + 96


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(InputError, match="kernels="):
        validate_tables(tmp_path / "none", load_gpu("h100-sxm"))


def test_labels_and_classes():
    columns = {name: np.array([4.0, 4.0]) for name in ("m", "n", "latency_s")}
    assert list(labels_of(columns)) == ["tokens", "n"]
    # 2 bytes: 4000 × 2000 values are exactly 16 MB.
    assert light_weights({"n": np.array([4000.0, 4000.0]), "k": np.array([1999.0, 2000.0])}).tolist() == [True, False]
