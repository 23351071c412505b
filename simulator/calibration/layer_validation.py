"""A folder of layer timings validated: rows held out by layer, batch, context or chunk, and mixed batches never fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.calibration import fit, layer_timings
from simulator.calibration.comparison import Comparison, Validation
from simulator.calibration.kernel_tables import Columns
from simulator.calibration.layer_timings import HELD_OUT_BY, LAYERS, SOURCE, leave_one_out
from simulator.calibration.solver import HeldOut, solve
from simulator.calibration.table_validation import kernel_roof, labels_of, rows_text
from simulator.cost.efficiency import AttentionEfficiency
from simulator.hardware import Gpu

HELD_OUT_NAMES = {
    "layer": "layer", "sequences": "batch", "keys": "context", "new_tokens": "chunk", "cached": "cached context",
}  # fmt: skip
"""What the columns that rows are held out by are called in reports."""


def validate_layers(folder: Path, gpu: Gpu, *, seed: int = 0) -> Validation:
    """Everything the layer timings in `folder` say about the fits of `gpu`. Takes some seconds.

    Raises InputError when the folder is damaged or was taken on another device.
    """
    timings = layer_timings.read(folder, gpu)
    prior = layer_timings.family_prior(gpu)
    problems = layer_timings.layer_problems(timings, gpu, prior, seed)
    tables = {kind: getattr(timings, kind) for kind in problems}
    comparisons = []
    for kind, ways in HELD_OUT_BY.items():
        for by in ways:
            unseen = leave_one_out(problems[kind], by, seed)
            columns = tables[kind].columns
            comparison = _comparison(kind.replace("_", " "), columns, unseen, f"held out by {HELD_OUT_NAMES[by]}")
            comparisons.append(comparison)
            if kind == "matmul":
                few = columns["m"] <= fit.SMALL_TOKENS
                comparisons.append(comparison.where(few, f"matmul, up to {fit.SMALL_TOKENS} tokens"))
    prefill = AttentionEfficiency(**solve(problems["prefill_attention"], seed).values)
    mixed = timings.mixed_attention.columns
    mixed_s = layer_timings.mixed_seconds(timings.mixed_attention, gpu, timings.decoder, prefill)
    name = "attention of a prompt's chunk and decoding sequences in one kernel"
    comparisons.append(Comparison(name, mixed["latency_s"], mixed_s, "not fitted on", labels_of(mixed)))
    return Validation(
        title=f"Layer timings of {gpu.title}",
        subject=f"fits of kernel times on {gpu.title}",
        conditions=[
            ("source", SOURCE),
            ("measured", timings.origin),
            *((kind.replace("_", " "), rows_text(table)) for kind, table in tables.items()),
        ],
        comparisons=comparisons,
        roof=kernel_roof({kind: t.columns for kind, t in tables.items() if kind != "elementwise"}, gpu, seed),
        notes=[
            f"Collectives and the matmul's rate of bytes found in L2 are those of {prior.name}: one GPU whose kernels run "
            "inside a forward pass shows neither.",
            "Mixed batches are priced as one launch of the prefill kernel, with the parameters of prompts alone.",
        ],
    )


def _comparison(name: str, columns: Columns, unseen: HeldOut, basis: str) -> Comparison:
    labels = labels_of(columns)
    if "layer" in labels:
        labels["layer"] = np.array(list(LAYERS))[labels["layer"].astype(int)]
    return Comparison(name, unseen.measured_s, unseen.predicted_s, basis, labels, unseen.claimed_log_sd())
