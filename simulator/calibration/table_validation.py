"""A folder of kernel tables validated: every row predicted by a fit that knew nothing of its matrix, head shape or size.

Rows are held out by matrix and head shape, and again by model: everything that one model's layers use, on any number of
GPUs, at once. Never single rows, whose neighbours would give them away. Claimed intervals rest on other folds' rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import catalog
from simulator.calibration import fit
from simulator.calibration.comparison import Comparison, Progress, Roof, Validation
from simulator.calibration.composed_steps import MODELS, Steps, step_comparison, steps_of
from simulator.calibration.few_rows import few_rows_comparisons
from simulator.calibration.kernel_tables import SOURCE, Columns, Table
from simulator.calibration.look_up import looked_up
from simulator.calibration.model_shapes import Matrix, has_heads, has_matrix, shares_of
from simulator.calibration.solver import FloatArray, HeldOut, Problem, Values, held_out, rows, solve
from simulator.cost.efficiency import CalibrationFile, load_efficiency
from simulator.hardware import Gpu, Link, load_link
from simulator.records import read_record

BY_MODEL = (*MODELS, "qwen3-8b", "qwen3-32b", "mistral-nemo-12b", "mixtral-8x22b", "llama-3.2-1b")
"""Models whose matrices are held out together; of the bundled ones the tables know most of these."""
HEADS_BY_MODEL = (*MODELS, "qwen3-30b-a3b", "gpt-oss-20b", "mixtral-8x22b")
"""Models whose head shapes are; others share theirs with these."""
FEWER_ROWS = 2000
"""Rows of one fit where many are made: without one model, without half of the token counts."""
LIGHT_BYTES = 16e6
"""Weights below it are reported apart: a hot loop finds them in L2, and launch and splits weigh more."""
LONG_TOKENS = 512
LOOKED_UP_ROWS = 6000
ROOF_POINTS = {"matmul": 900, "decode_attention": 300, "prefill_attention": 300}
LABELS = {"m": "tokens"}
Mask = NDArray[np.bool_]


def validate_tables(
    folder: Path, gpu: Gpu, link: Link | None = None, *, seed: int = 0, progress: Progress | None = None
) -> list[Validation]:  # fmt: skip
    """Everything the kernel tables of `gpu` in `folder` say about its fits, in four parts: kernels, whole decode steps,
    tables looked up instead, and a dozen rows on top of another GPU's fit.

    Collectives over `link`, the GPU's node link unless given. Takes about 20 s. Raises InputError when a table is missing
    or holds no usable row.
    """
    link = link or load_link(gpu.node_link)
    tables = fit.read_tables(folder, gpu)
    problems = fit.table_problems(tables, gpu, link, seed)
    kinds = fit.told(problems, "rows held out", progress)
    unseen = {kind: fit.held_out_rows(kind, problem, seed) for kind, problem in kinds}
    by_model, steps = _by_model(problems, unseen, seed, progress)
    if progress is not None:
        progress("tables looked up instead, and a dozen rows", 0, 1)
    kernels = Validation(
        title=f"Kernel tables of {gpu.title}",
        subject=f"fits of kernel times on {gpu.title}, collectives over {link.title}",
        conditions=[
            ("source", SOURCE),
            *((kind.replace("_", " "), rows_text(table)) for kind, table in tables.items()),
        ],
        comparisons=[
            *_matmuls(problems["matmul"], unseen["matmul"]), *_attention(problems, unseen), *_collectives(problems, unseen, link),
            *by_model,
        ],
        roof=kernel_roof({kind: tables[kind].columns for kind in ROOF_POINTS}, gpu, seed),
        notes=_notes(tables, unseen, gpu),
    )  # fmt: skip
    source = [("source", SOURCE)]
    return [
        kernels,
        Validation(
            title=f"Whole decode steps on {gpu.title}, composed",
            subject="sums of fitted kernels against sums of the tables' own rows",
            conditions=source,
            comparisons=steps,
            notes=[_STEPS_NOTE if steps else _NO_STEPS_NOTE],
        ),
        Validation(
            title=f"Tables looked up instead, {gpu.title}",
            subject="interpolation between the other rows, beside the formula at the same points",
            conditions=source,
            comparisons=_by_look_up(problems["matmul"], unseen["matmul"], gpu, seed),
        ),
        Validation(
            title=f"A dozen rows of {gpu.title}, the rest from another GPU",
            subject="matmul fits of other GPUs, as they are and with a dozen rows of this one",
            conditions=source,
            comparisons=few_rows_comparisons(problems["matmul"], gpu, _other_gpus(gpu), seed=seed),
        ),
    ]


_STEPS_NOTE = "Steps are sums of matmuls and attention: no elementwise kernels, no collectives, on either side."
_NO_STEPS_NOTE = "No whole step could be composed: the tables lack rows of the models' matrices or head shapes."


def _matmuls(problem: Problem, unseen: HeldOut) -> list[Comparison]:
    few, light = problem.columns["m"] <= fit.SMALL_TOKENS, light_weights(problem.columns)
    whole = _comparison("matmul", problem.columns, unseen, "held out by matrix", (few, ~few))
    return [
        whole,
        whole.where(few, f"matmul, up to {fit.SMALL_TOKENS} tokens"),
        whole.where(light, "matmul, weights under 16 MB"),
        whole.where(~light, "matmul, weights from 16 MB"),
        whole.where(few & light, f"matmul, up to {fit.SMALL_TOKENS} tokens, weights under 16 MB"),
        whole.where(few & ~light, f"matmul, up to {fit.SMALL_TOKENS} tokens, weights from 16 MB"),
    ]


def _by_look_up(problem: Problem, unseen: HeldOut, gpu: Gpu, seed: int) -> list[Comparison]:
    """Tables instead of parameters, and the parameters at the same points."""
    c = problem.columns
    shown = np.sort(np.random.default_rng(seed).permutation(len(c["m"]))[:LOOKED_UP_ROWS])
    by_tokens = held_out(Problem(c, c["m"], problem.bounds, problem.fixed, problem.predict), 2, seed, FEWER_ROWS)
    found = []
    for case, basis, theirs in (
        ("matrix unknown", "held out by matrix", unseen),
        ("matrix known", "held out by token count", by_tokens),
    ):
        table_s = looked_up(c, theirs.fold, gpu)
        for way, seconds in (("by look-up", table_s), ("by formula, same points", theirs.predicted_s)):
            name = f"matmul {way}, {case}"
            found.append(Comparison(name, c["latency_s"][shown], seconds[shown], basis, labels_of(rows(c, shown))))
    return found


def _attention(problems: Mapping[str, Problem], unseen: Mapping[str, HeldOut]) -> list[Comparison]:
    decode, prefill = problems["decode_attention"].columns, problems["prefill_attention"].columns
    basis = "held out by head shape"
    whole = _comparison("prefill attention", prefill, unseen["prefill_attention"], basis)
    return [
        _comparison("decode attention", decode, unseen["decode_attention"], basis),
        whole,
        whole.where(prefill["new_tokens"] >= LONG_TOKENS, f"prefill attention from {LONG_TOKENS} tokens"),
    ]


def _collectives(problems: Mapping[str, Problem], unseen: Mapping[str, HeldOut], link: Link) -> list[Comparison]:
    names = {"all_reduce": f"all-reduce over {link.name}", "exchange": f"all-gather and all-to-all over {link.name}"}
    basis = "held out by message size"
    return [_comparison(name, problems[kind].columns, unseen[kind], basis) for kind, name in names.items()]


def _by_model(
    problems: Mapping[str, Problem], unseen: Mapping[str, HeldOut], seed: int, progress: Progress | None = None
) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons by model of matmul and decode attention, and those of whole steps of `MODELS`."""
    matmul, decode = problems["matmul"], problems["decode_attention"]
    every_step = {model: steps_of(model, matmul.columns, decode.columns) for model in MODELS}
    few = matmul.columns["m"] <= fit.SMALL_TOKENS

    def without(model: str, problem: Problem, own: Mask, done: int) -> Values:
        if progress is not None:
            progress(f"fits that have not seen {model}", done, len(BY_MODEL) + len(HEADS_BY_MODEL))
        return solve(problem.where(~own), seed, FEWER_ROWS).values

    made_of = {model: _matrices(model, every_step.get(model, ())) for model in BY_MODEL}
    matmul_fits = {
        model: without(model, matmul, has_matrix(matmul.columns, made_of[model]), done)
        for done, model in enumerate(BY_MODEL)
    }
    decode_rows = {model: has_heads(decode.columns, _heads(model)) for model in HEADS_BY_MODEL}
    decode_fits = {
        model: without(model, decode, own, done) for done, (model, own) in enumerate(decode_rows.items(), len(BY_MODEL))
    }
    matmul_rows = {model: has_matrix(matmul.columns, _matrices(model)) for model in BY_MODEL}
    every = np.ones(len(decode.group), bool)
    found = [
        _models_comparison("matmul of a new model", matmul, unseen["matmul"], matmul_rows, matmul_fits, (few, ~few)),
        _models_comparison(
            "decode attention of a new model", decode, unseen["decode_attention"], decode_rows, decode_fits, (every,)
        ),
    ]
    spreads = (unseen["matmul"].spread(), unseen["decode_attention"].spread())
    on_all = (solve(matmul, seed).values, solve(decode, seed).values)
    steps = []
    for model, made in every_step.items():
        if made:
            name, fits = f"decode step of {model}, composed", (matmul_fits[model], decode_fits[model])
            basis = "kernels fitted without its matrices and head shapes"
            steps.append(step_comparison(made, matmul, decode, fits, spreads, name, basis))
            steps.append(
                step_comparison(made, matmul, decode, on_all, spreads, name, "fitted on all rows of the tables")
            )
    return [c for c in found if c is not None], steps


def _models_comparison(
    name: str, problem: Problem, unseen: HeldOut, masks: Mapping[str, Mask], fits: Mapping[str, Values],
    regimes: Sequence[Mask],
) -> Comparison | None:  # fmt: skip
    """Rows of each model predicted by the fit without it; a row that two models share counts for both."""
    measured, predicted, claimed, labels = [], [], [], []
    for model, own in masks.items():
        if not own.any():
            continue
        theirs = rows(problem.columns, own)
        measured.append(theirs["latency_s"])
        predicted.append(problem.predict(fits[model], theirs))
        log_sd = np.empty(len(own))
        for regime in regimes:
            log_sd[regime] = unseen.spread(regime & ~own)
        claimed.append(log_sd[own])
        labels.append(labels_of(theirs) | {"model": np.full(int(own.sum()), model)})
    if not measured:
        return None
    return Comparison(
        name,
        np.concatenate(measured),
        np.concatenate(predicted),
        "held out by model",
        {name: np.concatenate([part[name] for part in labels]) for name in labels[0]},
        np.concatenate(claimed),
    )


def _matrices(model: str, steps: Sequence[Steps] = ()) -> set[Matrix]:
    """Those of its layers on any number of GPUs, and the blocks that `steps` are made of."""
    return {matrix for share in shares_of(model) for matrix in share.matrices}.union(*(s.kernels for s in steps))


def _heads(model: str) -> set[tuple[int, int, int]]:
    return {share.heads for share in shares_of(model)}


def _other_gpus(gpu: Gpu) -> dict[str, dict[str, float]]:
    """Matmul parameters of every other GPU that was fitted on kernel tables."""
    found = {}
    for name in catalog.names("calibration"):
        file = read_record(CalibrationFile, catalog.locate("calibration", name), "calibration")
        if file.kind == "fitted" and file.source == SOURCE and gpu.name not in file.gpus:
            found[name] = dict(load_efficiency(gpu, calibration=name).matmul._asdict())
    return found


def _comparison(name: str, columns: Columns, unseen: HeldOut, basis: str, regimes: Sequence[Mask] = ()) -> Comparison:
    claimed = unseen.claimed_log_sd(*regimes)
    return Comparison(name, unseen.measured_s, unseen.predicted_s, basis, labels_of(columns), claimed)


def labels_of(columns: Columns) -> dict[str, NDArray[Any]]:
    """All columns but the time, under the names that reports use."""
    return {LABELS.get(name, name): column for name, column in columns.items() if name != "latency_s"}


def light_weights(columns: Columns) -> Mask:
    """Which matmul rows (bf16) have weights under 16 MB [rows]."""
    light: Mask = 2.0 * columns["n"] * columns["k"] < LIGHT_BYTES
    return light


def rows_text(table: Table) -> str:
    """How many rows of a table were used, how many left out and why, and where they come from."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in table.dropped.items())
    return (
        f"{table.used:,} of {table.read:,} rows"
        + (f"; left out: {left_out}" if left_out else "")
        + f" ({table.origin})"
    )


def _work(kind: str, c: Columns) -> tuple[FloatArray, FloatArray]:
    """(FLOP, bytes of weights or KV and of operands) of bf16 rows [rows]."""
    if kind == "matmul":
        m, n, k = c["m"], c["n"], c["k"]
        return 2.0 * m * n * k, 2.0 * (n * k + m * n + m * k)
    s, q, keys = c["sequences"], c["new_tokens"], c["keys"]
    flop = 4.0 * s * c["heads"] * c["head_dim"] * q * (keys - q + (q + 1) / 2)
    return flop, s * c["head_dim"] * (4.0 * c["kv_heads"] * keys + 4.0 * c["heads"] * q)


def kernel_roof(columns: Mapping[str, Columns], gpu: Gpu, seed: int = 0) -> Roof:
    """Up to 1,500 measured kernels (`ROOF_POINTS`) under the datasheet's roofline."""
    flop, moved, seconds, kinds = [], [], [], []
    for kind, most in ROOF_POINTS.items():
        c = columns[kind]
        chosen = np.sort(np.random.default_rng(seed).permutation(len(c["latency_s"]))[:most])
        work, moved_bytes = _work(kind, rows(c, chosen))
        flop.append(work)
        moved.append(moved_bytes)
        seconds.append(c["latency_s"][chosen])
        kinds.append(np.full(len(chosen), kind.replace("_", " ")))
    parts = (np.concatenate(part) for part in (flop, moved, seconds, kinds))
    return Roof(gpu.hbm_bytes_per_s, gpu.peak_flop_per_s("bf16"), "datasheet", *parts)


def _notes(tables: Mapping[str, Table], unseen: Mapping[str, HeldOut], gpu: Gpu) -> list[str]:
    found = []
    for kind in ROOF_POINTS:
        _, moved_bytes = _work(kind, tables[kind].columns)
        above = moved_bytes > gpu.hbm_bytes_per_s * tables[kind].columns["latency_s"]
        within = unseen[kind].errors[~above].mean()
        found.append(
            f"{above.sum():,} of {len(above):,} rows of {kind.replace('_', ' ')} move their bytes faster than HBM can: a hot "
            f"loop finds them in L2, which the form models, so they stay in. Without them the mean error is {within:.1%}."
        )
    found.append("Rows faster than the datasheet's peak FLOP/s are left out; the conditions count them.")
    return found
