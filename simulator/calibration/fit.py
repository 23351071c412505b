"""The efficiencies of one GPU, fitted on kernel tables.

    memwall calibrate KERNELS_FOLDER --gpu h100-sxm -o hardware_profiles/calibrations/h100-sxm.yaml

The errors that are written down are measured on matrices, head shapes or message sizes that the fit did not see: they are
split at random, and every part is predicted by a fit on the rest. The parameters written down are fitted on all of them.
`solver` does the fitting; here stands what is fitted, between which bounds, and what is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from simulator.calibration import kernel_tables
from simulator.calibration.comparison import Progress
from simulator.calibration.kernel_tables import Columns, Table
from simulator.calibration.passes import attention_rows
from simulator.calibration.solver import Bounds, FloatArray, HeldOut, Problem, Values, held_out, solve
from simulator.cost.collectives import all_gather_s, all_reduce_s
from simulator.cost.efficiency import (
    AttentionEfficiency,
    CalibrationFile,
    CollectiveEfficiency,
    MatmulEfficiency,
    Parameter,
    Rows,
)
from simulator.cost.roofline import attention_rates, l2_share, matmul_time
from simulator.hardware import Gpu, Link

SMALL_TOKENS = 64
"""Matmuls of at most so many tokens are also scored apart: decoding lives there."""

# name: (start, lowest, highest). What is absent here is set, not fitted; see the `*_SET` tables.
MATMUL: Bounds = {
    "t0_s": (2.5e-6, 5e-7, 1e-5), "bandwidth": (0.85, 0.3, 1.0), "compute": (0.8, 0.3, 1.0),
    "tile_half": (5.0, 0.1, 300.0), "k_extra": (100.0, 1.0, 2000.0), "k_step_s": (2e-9, 1e-12, 1e-7),
    "split_s": (2e-6, 1e-8, 1e-5), "l2_speedup": (2.0, 1.0, 10.0),
}  # fmt: skip
MATMUL_SET: Values = {"power": 3.0}

DECODE: Bounds = {
    "t0_s": (8e-6, 5e-7, 3e-5), "bandwidth": (0.85, 0.3, 0.95), "wave_s": (3e-6, 1e-8, 2e-5),
    "wide_head": (0.1, 1e-3, 1.0), "kv_step_s": (1e-8, 1e-11, 1e-6), "split_s": (2e-6, 1e-9, 2e-5),
    "combine_s": (3e-7, 1e-11, 1e-5), "copy_s": (1e-6, 1e-9, 2e-5), "power": (2.0, 1.0, 12.0),
    "l2_speedup": (2.0, 1.0, 10.0),
}  # fmt: skip
PREFILL: Bounds = {
    "t0_s": (8e-6, 5e-7, 3e-5), "bandwidth": (0.85, 0.3, 0.95), "compute": (0.6, 0.1, 1.0),
    "narrow_head": (0.3, 1e-3, 1.0), "wave_s": (2e-6, 1e-8, 2e-5), "kv_step_s": (1e-8, 1e-11, 1e-6),
    "power": (1.5, 1.0, 12.0), "l2_speedup": (2.0, 1.0, 10.0),
}  # fmt: skip
ALL_REDUCE: Bounds = {
    "t0_s": (2e-6, 1e-8, 3e-5), "peer_s": (2e-7, 1e-9, 2e-5), "one_shot_bandwidth": (0.5, 1e-3, 1.5),
    "two_shot_bandwidth": (0.6, 1e-3, 1.5), "pipeline_t0_s": (1e-5, 1e-7, 2e-4),
    "pipeline_bandwidth": (0.7, 1e-3, 1.5),
    "doubling": (0.9, 0.05, 2.0), "doubling_again": (0.9, 0.05, 2.0), "power": (2.0, 1.0, 12.0),
}  # fmt: skip
EXCHANGE: Bounds = {
    "exchange_t0_s": (5e-6, 1e-8, 5e-5), "exchange_peer_s": (1e-6, 1e-9, 2e-5), "exchange_bandwidth": (0.6, 1e-3, 1.5),
}  # fmt: skip
COLLECTIVE_FOLDS = 6
"""Of 23 message sizes a half would leave too few to fit on."""
ALL_REDUCE_SET: Values = {"small_limit_bytes": 8.0 * 2**20} | {name: start for name, (start, _, _) in EXCHANGE.items()}

# No table isolates fused elementwise kernels: launch as for the smallest matmuls, bandwidth as copies reach.
ELEMENTWISE_SET: Values = {"t0_s": 2e-6, "bandwidth": 0.8}
ELEMENTWISE_ERROR = 0.3

HEAD_SET: Values = {"narrow_head": 0.25, "wide_head": 0.2}
"""Between the fits of H100 and L40S, where a table holds one head_dim only."""

# FlashAttention-3 (Hopper) packs grouped heads in prefill and always may split keys; FlashAttention-2 does neither for
# ungrouped heads, and prefill never splits. Tile heights are those libraries' at head_dim 128.
NEVER = 1e9


def attention_set(gpu: Gpu, phase: str) -> Values:
    """Attention parameters that follow from the library's design rather than from timings."""
    hopper = gpu.family == "hopper"
    if phase == "decode":
        return {"narrow_head": 0.0, "query_tile": 64.0, "packs_group": 1.0, "split_from_group": 1.0 if hopper else 2.0}
    return {"wide_head": 0.0, "split_s": 0.0, "combine_s": 0.0, "copy_s": 0.0, "split_from_group": NEVER,
            "query_tile": 128.0 if hopper else 64.0, "packs_group": float(hopper)}  # fmt: skip


def matmul_problem(columns: Columns, gpu: Gpu, dtype: str = "bf16") -> Problem:
    """Matmuls, held out by matrix (n, k).

    The share of a hot loop's bytes found in L2 is 1/(1 + (working set / L2)^6), with six weights in the working set.
    """
    width = {"bf16": 2.0, "fp8": 1.0}[dtype]

    def predict(values: Values, c: Columns) -> FloatArray:
        weights = width * c["n"] * c["k"]
        activations = c["m"] * (width * c["k"] + 2.0 * c["n"])
        working_set = kernel_tables.MATMUL_WEIGHT_COPIES * weights + activations
        resident = (weights + activations) * l2_share(working_set, gpu)
        e = MatmulEfficiency(**values)
        time = matmul_time(c["m"], c["n"], c["k"], weights, activations, dtype, gpu, e, resident_bytes=resident)
        return np.asarray(time.total_s)

    return Problem(columns, columns["n"] * 1e6 + columns["k"], MATMUL, MATMUL_SET, predict)


def attention_problem(
    columns: Columns, gpu: Gpu, phase: str, kv_value_bytes: float = 2.0, compute: float = 0.6
) -> Problem:
    """Attention, held out by head shape; `compute` is decode's share of peak, which its own rows cannot show."""
    fixed = attention_set(gpu, phase) | ({"compute": compute} if phase == "decode" else {})

    def predict(values: Values, c: Columns) -> FloatArray:
        e = AttentionEfficiency(**values)
        seconds = np.empty(len(c["heads"]))
        shape = c["heads"] * 1e6 + c["kv_heads"] * 1e3 + c["head_dim"]
        for key in np.unique(shape):
            i = np.flatnonzero(shape == key)
            heads, kv_heads, head_dim = (float(c[n][i[0]]) for n in ("heads", "kv_heads", "head_dim"))
            rates = attention_rates(gpu, e, dtype="bf16", kv_heads=kv_heads, heads=heads, head_dim=int(head_dim))
            s, q, keys = c["sequences"][i], c["new_tokens"][i], c["keys"][i]
            kv_bytes = s * kv_heads * keys * head_dim * 2 * kv_value_bytes
            flop = rates.flop_per_pair * s * q * (keys - q + (q + 1) / 2)
            # A hot loop's hits in L2 also serve queries and output, so the saving is stated on all bytes.
            all_bytes = kv_bytes + s * q * rates.query_bytes
            saved = all_bytes * l2_share(all_bytes, gpu) * (1.0 - 1.0 / e.l2_speedup)
            seconds[i] = attention_rows()(s, s * q, kv_bytes - saved, flop, rates)
        return seconds

    bounds = dict(PREFILL if phase == "prefill" else DECODE)
    if len(np.unique(columns["head_dim"])) == 1:
        fixed |= {name: value for name, value in HEAD_SET.items() if bounds.pop(name, None)}
    group = columns["heads"] * 1e6 + columns["kv_heads"] * 1e3 + columns["head_dim"]
    return Problem(columns, group, bounds, fixed, predict)


def all_reduce_problem(columns: Columns, link: Link) -> Problem:
    """All-reduces, held out by message size: with three group sizes in the table, none can be spared."""

    def predict(values: Values, c: Columns) -> FloatArray:
        e = CollectiveEfficiency(**values)
        seconds = np.empty(len(c["gpus"]))
        for gpus in np.unique(c["gpus"]):
            i = c["gpus"] == gpus
            seconds[i] = all_reduce_s(c["message_bytes"][i], int(gpus), link, e)
        return seconds

    return Problem(columns, columns["message_bytes"], ALL_REDUCE, ALL_REDUCE_SET, predict)


def exchange_problem(columns: Columns, link: Link, all_reduce: Values) -> Problem:
    """All-gathers and all-to-alls, held out by message size; crowding and power are those of the all-reduce."""

    def predict(values: Values, c: Columns) -> FloatArray:
        e = CollectiveEfficiency(**values)
        seconds = np.empty(len(c["gpus"]))
        for gpus in np.unique(c["gpus"]):
            i = c["gpus"] == gpus
            seconds[i] = all_gather_s(c["message_bytes"][i], int(gpus), link, e)
        return seconds

    fixed = {name: value for name, value in all_reduce.items() if name not in EXCHANGE}
    return Problem(columns, columns["message_bytes"], EXCHANGE, fixed, predict)


def read_tables(kernels: Path, gpu: Gpu) -> dict[str, Table]:
    """The tables of `gpu` by kind of operator. Raises InputError when one is missing or holds no usable row."""
    system = kernel_tables.system_folder(kernels, gpu.name)
    return {
        "matmul": kernel_tables.read_matmul(system, gpu),
        "decode_attention": kernel_tables.read_attention(system, gpu, "decode"),
        "prefill_attention": kernel_tables.read_attention(system, gpu, "prefill"),
        "all_reduce": kernel_tables.read_all_reduce(system),
        "exchange": kernel_tables.read_exchange(system),
    }


def table_problems(tables: Mapping[str, Table], gpu: Gpu, link: Link, seed: int = 0) -> dict[str, Problem]:
    """What `read_tables` read, as problems; decode's share of peak and the exchange's crowding come from fits on the rest."""
    rows = {kind: table.columns for kind, table in tables.items()}
    prefill = attention_problem(rows["prefill_attention"], gpu, "prefill")
    compute = rounded(solve(prefill, seed).values["compute"])
    all_reduce = all_reduce_problem(rows["all_reduce"], link)
    return {
        "matmul": matmul_problem(rows["matmul"], gpu),
        "decode_attention": attention_problem(rows["decode_attention"], gpu, "decode", compute=compute),
        "prefill_attention": prefill,
        "all_reduce": all_reduce,
        "exchange": exchange_problem(rows["exchange"], link, solve(all_reduce, seed).values),
    }


def told(problems: Mapping[str, Problem], what: str, progress: Progress | None) -> Iterator[tuple[str, Problem]]:
    """`problems` one by one, with `progress` told before each."""
    for done, (kind, problem) in enumerate(problems.items()):
        if progress is not None:
            progress(f"{what}: {kind.replace('_', ' ')}", done, len(problems))
        yield kind, problem


def held_out_rows(kind: str, problem: Problem, seed: int = 0) -> HeldOut:
    """Rows of one kind, predicted by fits on the other half of its shapes, or on all but a sixth of its message sizes."""
    return held_out(problem, COLLECTIVE_FOLDS if kind in ("all_reduce", "exchange") else 2, seed)


def calibrate(
    kernels: Path, gpu: Gpu, link: Link, *, date: str, seed: int = 0, progress: Progress | None = None
) -> CalibrationFile:  # fmt: skip
    """All fits of one GPU. Raises InputError when its tables are missing or hold no usable row."""
    tables = read_tables(kernels, gpu)
    problems = table_problems(tables, gpu, link, seed)
    unseen = {kind: held_out_rows(kind, problem, seed) for kind, problem in told(problems, "rows held out", progress)}
    small = tables["matmul"].columns["m"] <= SMALL_TOKENS
    errors = {kind: h.errors for kind, h in unseen.items()} | {"matmul_small": unseen["matmul"].errors[small]}
    spread = {kind: h.spread() for kind, h in unseen.items()} | {"matmul_small": unseen["matmul"].spread(small)}
    means = {kind: rounded(float(e.mean()), 3) for kind, e in sorted(errors.items())}
    fits = {kind: parameters(problem, seed) for kind, problem in told(problems, "fits on all rows", progress)}
    exchange = fits.pop("exchange")
    fits["all_reduce"] |= {name: exchange[name] for name in EXCHANGE}
    return CalibrationFile(
        name=gpu.name,
        kind="fitted",
        gpus=(gpu.name,),
        family=gpu.family,
        source=kernel_tables.SOURCE,
        date=date,
        note=_note(tables, link),
        elementwise={name: Parameter(value=value) for name, value in ELEMENTWISE_SET.items()},
        **fits,
        rows={kind: Rows(used=t.used, dropped=dict(t.dropped)) for kind, t in tables.items()},
        typical_error=means | {"elementwise": ELEMENTWISE_ERROR},
        spread={kind: rounded(value, 3) for kind, value in sorted(spread.items())},
    )


def _note(tables: Mapping[str, Table], link: Link) -> str:
    origins = "; ".join(f"{kind}: {table.origin}" for kind, table in tables.items())
    return (
        f"{origins}. All-reduce over {link.title}. Fixed times are as measured: matmuls inside a CUDA graph of six "
        "kernels, attention with one graph replay per call, whose gap an engine that replays whole steps does not pay. "
        "Decode's share of peak is prefill's. Errors are held out by matrix, head shape and message size; the forms "
        "themselves were chosen with all rows in view. Parameters without a standard error are set or rest on a bound."
    )


def parameters(problem: Problem, seed: int) -> dict[str, Parameter]:
    """The fit on all rows, as a calibration file holds it."""
    fit = solve(problem, seed)
    return {
        name: Parameter(value=value)
        if name in problem.fixed
        else Parameter(value=rounded(value), standard_error=None if error is None else rounded(error, 2))
        for name, value in fit.values.items()
        for error in [fit.standard_errors[name]]
    }


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")
