"""Whole decode steps put together from kernels: as the fits price them, beside the sum of the table's own rows.

A step is Σ over layers of the layer's matmuls and its attention, and one LM head. Only rows that the table holds are added
up, nothing is interpolated; matrices that it lacks are done in blocks that it has. Elementwise kernels and collectives are
left out on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.calibration.comparison import Comparison
from simulator.calibration.kernel_tables import Columns
from simulator.calibration.model_shapes import Matrix, Share, matrices_in, shares_of, stand_ins
from simulator.calibration.solver import FloatArray, Problem, Values

MODELS = ("llama-3.1-8b", "llama-3.1-70b")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Steps:
    """Decode steps of one model on one number of GPUs; arrays are [steps]."""

    share: Share
    kernels: Mapping[Matrix, int]
    """The matmuls of one step and how often each runs."""
    batch: FloatArray
    context_tokens: FloatArray
    measured_s: FloatArray
    """Of the table's own rows."""

    def predicted_s(self, matmul: Problem, attention: Problem, fits: tuple[Values, Values]) -> FloatArray:
        """The same kernels as these parameters of matmul and decode attention price them, all occurrences of each
        together; attention comes last [steps, kernels + 1]."""
        m, times = np.repeat(self.batch, len(self.kernels)), np.array(list(self.kernels.values()), float)
        n, k = (np.tile([float(matrix[i]) for matrix in self.kernels], len(self.batch)) for i in (0, 1))
        seconds = matmul.predict(fits[0], {"m": m, "n": n, "k": k}).reshape(len(self.batch), -1) * times
        one = np.ones(len(self.batch))
        heads, kv_heads, head_dim = (value * one for value in self.share.heads)
        rows = {"sequences": self.batch, "new_tokens": one, "keys": self.context_tokens, "heads": heads,
                "kv_heads": kv_heads, "head_dim": head_dim}  # fmt: skip
        return np.column_stack([seconds, self.share.layers * attention.predict(fits[1], rows)])


def steps_of(model: str, matmul: Columns, attention: Columns) -> list[Steps]:
    """All steps of `model` that the rows of `matmul` and `attention` (decode) can make up, by number of GPUs."""
    table = matrices_in(matmul)
    matmul_s = dict(zip(_keys(matmul, ("m", "n", "k")), matmul["latency_s"].tolist(), strict=True))
    shape = ("sequences", "keys", "heads", "kv_heads", "head_dim")
    attention_s = dict(zip(_keys(attention, shape), attention["latency_s"].tolist(), strict=True))
    found = []
    for share in shares_of(model):
        kernels = kernels_of(share, table)
        if kernels is None:
            continue
        points = []
        for batch in BATCHES:
            rows_s = [matmul_s.get((batch, *matrix)) for matrix in kernels]
            for context in CONTEXTS:
                own_s = attention_s.get((batch, context, *share.heads))
                if own_s is None or None in rows_s:
                    continue
                dense_s = sum(s * times for s, times in zip(rows_s, kernels.values(), strict=True) if s is not None)
                points.append((batch, context, dense_s + own_s * share.layers))
        if points:
            batch_, context_, measured = np.array(points, float).T
            found.append(Steps(share, kernels, batch_, context_, measured))
    return found


def kernels_of(share: Share, table: set[Matrix]) -> dict[Matrix, int] | None:
    """The matmuls of a step out of `table`, and how often each runs; None where the table cannot make one up."""
    times: Counter[Matrix] = Counter()
    for matrix, count in Counter([*share.matmuls, share.head]).items():
        blocks = stand_ins(matrix, table)
        if blocks is None:
            return None
        times.update({block: blocks.count(block) * count for block in set(blocks)})
    return dict(sorted(times.items()))


def step_comparison(
    steps: Sequence[Steps],
    matmul: Problem,
    attention: Problem,
    fits: tuple[Values, Values],
    spreads: tuple[float, float],
    name: str,
    basis: str,
) -> Comparison:
    """All `steps` of one model as one comparison, told apart by GPUs, batch and context.

    `spreads` are those of single matmuls and of decode attention. A step is claimed to be as uncertain as a sum of kernels
    whose errors are independent: what `uncertainty` claims of every step.
    """
    labels = {
        "gpus": np.concatenate([np.full(len(s.batch), s.share.tp) for s in steps]),
        "batch": np.concatenate([s.batch for s in steps]),
        "context_tokens": np.concatenate([s.context_tokens for s in steps]),
    }
    measured = np.concatenate([s.measured_s for s in steps])
    kernels_s = [s.predicted_s(matmul, attention, fits) for s in steps]
    predicted = np.concatenate([parts_s.sum(axis=1) for parts_s in kernels_s])
    log_sd = np.concatenate([_independent(parts_s, spreads) for parts_s in kernels_s])
    parts = []
    for s in steps:
        wanted, own = {*s.share.matmuls, s.share.head}, labels["gpus"] == s.share.tp
        error = np.abs(predicted[own] / measured[own] - 1.0).mean()
        parts.append(
            f"{s.share.tp} GPU{'s' * (s.share.tp > 1)} {error:.1%} ({len(wanted & set(s.kernels))} of {len(wanted)})"
        )
    note = (
        f"Mean error and, in brackets, how many of the matrices are in the table as they are: {', '.join(parts)}. The others "
        "are done in blocks that it holds, the LM head with up to 3 % more columns, on both sides alike."
    )
    return Comparison(name, measured, predicted, basis, labels, log_sd, note)


def _independent(kernels_s: FloatArray, spreads: tuple[float, float]) -> FloatArray:
    """Standard deviation of the logarithm of a sum of kernels with independent errors [steps]."""
    log_sd = np.full(kernels_s.shape[1], spreads[0])
    log_sd[-1] = spreads[1]
    return np.asarray(np.sqrt(((kernels_s * log_sd) ** 2).sum(axis=1)) / kernels_s.sum(axis=1))


def _keys(columns: Columns, names: Sequence[str]) -> list[tuple[int, ...]]:
    return list(zip(*(columns[name].astype(int).tolist() for name in names), strict=True))
