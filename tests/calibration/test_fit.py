"""Fits: known parameters come back from rows the forms made, splits hold out whole shapes, real tables meet their error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulator import catalog
from simulator.calibration import fit, kernel_tables
from simulator.calibration.solver import HeldOut, Prior, Problem, held_out, solve
from simulator.cost.efficiency import CalibrationFile, load_efficiency
from simulator.errors import InputError, UnknownName
from simulator.hardware import load_gpu, load_link
from simulator.records import read_record

H100 = load_gpu("h100-sxm")
FITTED = load_efficiency(H100)
LINK = load_link("nvlink-4")


@pytest.fixture(scope="module")
def kernels() -> Path:
    """Real kernel tables, which are no part of the project."""
    given = os.environ.get("MEMWALL_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "kernels" / "h100_sxm").is_dir():
        if os.environ.get("MEMWALL_REQUIRE"):
            pytest.fail("no kernel tables: set MEMWALL_DATA")
        pytest.skip("no kernel tables: set MEMWALL_DATA to a folder that holds kernels/h100_sxm")
    return data / "kernels"


def with_noise(problem: Problem, values: dict[str, float], spread: float) -> Problem:
    """`problem` with latencies made by its own form and log-normal noise."""
    noise = np.random.default_rng(1).normal(0.0, spread, len(problem.group))
    problem.columns["latency_s"] = problem.predict(values, problem.columns) * np.exp(noise)
    return problem


def grid(**axes) -> dict[str, np.ndarray]:
    columns = np.meshgrid(*(np.array(a, float) for a in axes.values()), indexing="ij")
    made = {name: column.ravel() for name, column in zip(axes, columns, strict=True)}
    return made | {"latency_s": np.ones(len(columns[0].ravel()))}


def test_matmul_parameters_come_back():
    sizes = [128, 512, 1024, 2048, 4096, 8192, 16384]
    columns = grid(m=[1, 16, 64, 256, 1024, 4096], n=sizes, k=sizes)
    truth = {"t0_s": 3e-6, "bandwidth": 0.8, "compute": 0.75, "tile_half": 8.0, "k_extra": 150.0, "k_step_s": 3e-9,
             "split_s": 2e-6, "l2_speedup": 3.0} | fit.MATMUL_SET  # fmt: skip
    found = solve(with_noise(fit.matmul_problem(columns, H100), truth, 0.01))
    assert found.success
    checked = {"t0_s": 0.03, "bandwidth": 0.02, "compute": 0.04, "k_step_s": 0.1, "split_s": 0.1}
    for name, tolerance in checked.items():
        assert found.values[name] == pytest.approx(truth[name], rel=tolerance)
        error = found.standard_errors[name]
        assert error is not None
        assert abs(found.values[name] - truth[name]) < 6 * error
    assert found.standard_errors["power"] is None


def test_attention_parameters_come_back():
    columns = grid(sequences=[1, 8, 64, 512], new_tokens=[1], keys=[64, 512, 4096, 32768], heads=[8, 32, 64],
                   kv_heads=[1, 8], head_dim=[64, 128, 256])  # fmt: skip
    truth = FITTED.decode_attention._asdict() | {"bandwidth": 0.7, "wave_s": 2e-6, "power": 2.0, "copy_s": 3e-6}
    problem = fit.attention_problem(columns, H100, "decode", compute=truth["compute"])
    found = solve(with_noise(problem, truth, 0.01)).values
    for name, tolerance in {"t0_s": 0.02, "bandwidth": 0.05, "wave_s": 0.05, "copy_s": 0.1}.items():
        assert found[name] == pytest.approx(truth[name], rel=tolerance)


def test_all_reduce_parameters_come_back():
    columns = grid(message_bytes=2.0 ** np.arange(8, 31), gpus=[2, 4, 8])
    truth = FITTED.all_reduce._asdict() | {"power": 2.0, "t0_s": 3e-6}
    found = solve(with_noise(fit.all_reduce_problem(columns, LINK), truth, 0.005)).values
    for name in ("t0_s", "one_shot_bandwidth", "pipeline_bandwidth", "doubling"):
        assert found[name] == pytest.approx(truth[name], rel=0.05)


def test_held_out_groups_are_unseen():
    """A form that can only remember groups is right on what it saw and wrong on all it did not."""
    columns = {"x": np.repeat(np.arange(8.0), 4), "latency_s": np.ones(32)}
    seen: list[set[float]] = []

    def predict(values, c):
        seen.append(set(c["x"].tolist()))
        return np.full(len(c["x"]), values["a"])

    problem = Problem(columns, columns["x"], {"a": (2.0, 0.1, 10.0)}, {}, predict)
    unseen = held_out(problem, folds=4)
    assert unseen.errors == pytest.approx(np.zeros(32), abs=1e-6)
    assert {len(x) for x in seen} == {6, 2}


def test_spread_is_a_root_mean_square_of_logarithms():
    ratios = np.array([0.3, -0.4, 0.0, 0.0])
    made = HeldOut(np.exp(ratios), np.ones(4), np.array([0, 0, 1, 1]))
    assert made.spread() == pytest.approx(0.25)
    assert made.spread(np.array([True, False, False, False])) == pytest.approx(0.3)
    assert made.log_ratios == pytest.approx(ratios)


def test_an_interval_does_not_know_its_own_fold():
    ratios = np.array([0.1, 0.1, 0.5, 0.5, 0.2, 0.2])
    made = HeldOut(np.exp(ratios), np.ones(6), np.array([0, 0, 1, 1, 2, 2]))
    first, second, third = np.sqrt((0.25 + 0.04) / 2), np.sqrt((0.01 + 0.04) / 2), np.sqrt((0.01 + 0.25) / 2)
    assert made.claimed_log_sd() == pytest.approx([first, first, second, second, third, third])
    # Regimes are told apart; one that only its own fold has takes what all other rows say.
    early = np.arange(6) < 4
    assert made.claimed_log_sd(early, ~early) == pytest.approx([0.5, 0.5, 0.1, 0.1, third, third])


def made_problem(rows: int, truth: float) -> Problem:
    """Rows of ``a`` seconds each, whatever they are."""
    columns = {"latency_s": np.full(rows, truth)}
    bounds = {"a": (1.0, 1e-3, 1e3)}
    return Problem(columns, np.arange(rows), bounds, {}, lambda values, c: np.full(len(c["latency_s"]), values["a"]))


@pytest.mark.parametrize(("rows", "noise", "width"), [(1, 0.1, 0.3), (12, 0.1, 0.3), (4, 0.5, 0.05)])
def test_a_prior_is_one_more_measurement(rows, noise, width):
    """Of a normal mean with a normal prior the estimate is the mean weighted with precisions: textbook algebra."""
    found = solve(made_problem(rows, 2.0), prior=Prior({"a": 1.0}, log_sd=width, noise_log_sd=noise))
    precision = rows / noise**2 + 1 / width**2
    assert np.log(found.values["a"]) == pytest.approx(np.log(2.0) * rows / noise**2 / precision, rel=1e-4)
    assert found.standard_errors["a"] == pytest.approx(found.values["a"] / np.sqrt(precision), rel=1e-2)


def test_without_rows_that_say_more_the_prior_stands():
    """A matmul's fixed time cannot be seen in large matrices: it stays where the prior has it."""
    columns = grid(m=[4096, 8192], n=[8192], k=[8192])
    problem = fit.matmul_problem(columns, H100)
    truth = FITTED.matmul._asdict()
    centre = truth | {"t0_s": 5e-6, "compute": 0.5}
    columns["latency_s"] = problem.predict(truth, columns)
    found = solve(problem, prior=Prior(centre)).values
    assert found["t0_s"] == pytest.approx(5e-6, rel=0.02)
    assert problem.predict(found, columns) == pytest.approx(columns["latency_s"], rel=0.06)


def write_table(folder: Path, name: str, rows: dict[str, list]) -> None:
    folder.mkdir(parents=True)
    size = len(rows["latency"])
    stated = {"framework": ["VLLM"] * size, "version": ["1"] * size, "device": ["GPU"] * size}
    pq.write_table(pa.table(stated | rows), folder / f"{name}.parquet")


def test_dropped_rows_are_counted_by_reason(tmp_path):
    # The last row claims 2·8192³ FLOP in a microsecond: a million TFLOP/s.
    rows = {"gemm_dtype": ["bfloat16", "fp8", "bfloat16", "bfloat16"], "m": [1, 1, 1, 8192], "n": [64, 64, 64, 8192],
            "k": [64, 64, 64, 8192], "latency": [0.003, 0.003, float("nan"), 0.001]}  # fmt: skip
    write_table(tmp_path / "h100_sxm/gemm/vllm/1", "gemm_perf", rows)
    table = kernel_tables.read_matmul(kernel_tables.system_folder(tmp_path, "h100-sxm"), H100)
    assert table.dropped == {
        "other number format": 1, "no positive latency": 1, "faster than the datasheet's peak FLOP/s": 1,
    }  # fmt: skip
    assert (table.read, table.used) == (4, 1)
    assert table.columns["latency_s"] == pytest.approx([3e-6])


def test_units_and_traps_of_the_tables(tmp_path):
    one = {"batch_size": [4], "isl": [1], "step": [1023], "num_heads": [32], "num_key_value_heads": [8],
           "head_dim": [128], "kv_cache_dtype": ["bfloat16"], "latency": [0.02]}  # fmt: skip
    write_table(tmp_path / "h100_sxm/attention/vllm/1", "generation_attention_perf", one)
    comm = {
        "backend": ["vllm_graph", "vllm_eager"],
        "num_gpus": [2, 2],
        "message_size": [1024, 1024],
        "latency": [1, 1],
    }
    write_table(tmp_path / "h100_sxm/comm/vllm/1", "custom_allreduce_perf", comm)
    system = kernel_tables.system_folder(tmp_path, "h100-sxm")
    assert kernel_tables.read_attention(system, H100, "decode").columns["keys"] == [1024]
    table = kernel_tables.read_all_reduce(system)
    assert table.columns["message_bytes"] == [2048]
    assert table.dropped == {"launched without a CUDA graph": 1}


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(InputError, match="must be a folder of kernel tables"):
        kernel_tables.system_folder(tmp_path / "none", "h100-sxm")
    (tmp_path / "a100_sxm").mkdir()
    with pytest.raises(UnknownName, match="h100-sxm"):
        kernel_tables.system_folder(tmp_path, "h100-sxm")
    with pytest.raises(InputError, match="gemm_perf"):
        kernel_tables.read_matmul(kernel_tables.system_folder(tmp_path, "a100-sxm-80gb"), H100)


def test_real_tables_meet_the_errors_written_down(kernels):
    again = fit.calibrate(kernels, H100, load_link(H100.node_link), date="2026-11-23")
    for kind, documented in FITTED.typical_error.items():
        assert again.typical_error[kind] <= 1.2 * documented
    for kind, documented in read_record(
        CalibrationFile, catalog.locate("calibration", "h100-sxm"), "calibration"
    ).spread.items():
        assert again.typical_error[kind] <= again.spread[kind] <= 1.2 * documented
    for name, parameter in again.matmul.items():
        assert parameter.value == pytest.approx(getattr(FITTED.matmul, name), rel=0.05)
    assert again.rows["matmul"].used + sum(again.rows["matmul"].dropped.values()) == 107_188
