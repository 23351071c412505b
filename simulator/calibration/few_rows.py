"""A GPU with a dozen measured matmuls, the rest taken from another GPU: which twelve, and how far that gets.

The twelve are one of each weight class at each class of token counts (`dozen`); the fit starts from the other GPU's
parameters and is held there by a prior (`solver.Prior`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.comparison import Comparison
from simulator.calibration.kernel_tables import Columns
from simulator.calibration.solver import Prior, Problem, rows, solve
from simulator.errors import InputError
from simulator.hardware import Gpu

WEIGHT_CLASSES = ((1 / 1000, 1 / 20), (1 / 20, 1 / 10), (1 / 4, 1.0), (1.0, 10.0))
"""Bytes of weights, as shares of L2: launch; found in L2 by a hot loop over six matrices; two sizes of streaming."""
TOKEN_CLASSES = ((1, 16), (32, 256), (1024, 8192))
"""Bound by bandwidth; in between; bound by arithmetic."""
DESIGNS = 5
MOST_SCORED = 4000


def dozen(columns: Columns, gpu: Gpu, seed: int = 0) -> NDArray[np.int64]:
    """Twelve matmul rows (bf16) [12], one of each class of weights and tokens; `seed` draws the representatives.

    Raises InputError when a class is empty.
    """
    rng = np.random.default_rng(seed)
    share = 2.0 * columns["n"] * columns["k"] / gpu.l2_bytes
    chosen = []
    for low, high in WEIGHT_CLASSES:
        for least, most in TOKEN_CLASSES:
            fits = (share >= low) & (share <= high) & (columns["m"] >= least) & (columns["m"] <= most)
            if not fits.any():
                where = (
                    f"{low * gpu.l2_bytes / 1e6:.3g} to {high * gpu.l2_bytes / 1e6:.3g} MB at {least} to {most} tokens"
                )
                raise InputError("matmul", f"{len(share)} rows", f"hold one with weights of {where}")
            chosen.append(rng.choice(np.flatnonzero(fits)))
    return np.array(chosen)


def few_rows_comparisons(
    problem: Problem, gpu: Gpu, priors: Mapping[str, Mapping[str, float]], designs: int = DESIGNS, seed: int = 0
) -> list[Comparison]:
    """For each of the `priors` (GPU → its matmul parameters) two comparisons: carried over as they are, and fitted again on
    a dozen rows, `designs` times over. Scored on rows drawn from all others."""
    total = len(problem.columns["m"])
    found = []
    for name, centre in priors.items():
        own = {n: v for n, v in centre.items() if n in problem.bounds or n in problem.fixed}
        scored = np.sort(np.random.default_rng(seed).permutation(total)[:MOST_SCORED])
        test = rows(problem.columns, scored)
        predicted = problem.predict(problem.fixed | own, test)
        carried = f"matmul, parameters of {name}"
        found.append(Comparison(carried, test["latency_s"], predicted, "not fitted on", _labels(test)))
        parts: list[tuple[Columns, NDArray[Any]]] = []
        for design in range(designs):
            twelve = dozen(problem.columns, gpu, design)
            values = solve(problem.where(twelve), prior=Prior(own)).values
            others = rows(problem.columns, np.setdiff1d(scored, twelve))
            parts.append((others, problem.predict(values, others)))
        errors = [float(np.abs(p / c["latency_s"] - 1.0).mean()) for c, p in parts]
        labels = {k: np.concatenate([_labels(c)[k] for c, _ in parts]) for k in _labels(test)}
        labels["design"] = np.repeat(np.arange(designs), [len(p) for _, p in parts])
        found.append(
            Comparison(
                f"matmul, a dozen rows and the parameters of {name}",
                np.concatenate([c["latency_s"] for c, _ in parts]),
                np.concatenate([p for _, p in parts]),
                "not among the dozen rows",
                labels,
                note=f"{designs} choices of twelve rows miss by {min(errors):.1%} to {max(errors):.1%} on average.",
            )
        )
    return found


def _labels(columns: Columns) -> dict[str, NDArray[Any]]:
    return {"tokens": columns["m"], "n": columns["n"], "k": columns["k"]}
