"""A validation as a JSON document and as rows: statistics and figures in the one, every single point in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import __version__
from simulator.calibration.comparison import LEVEL, Comparison, Sweep, Validation, interval_factor
from simulator.output.documents import SCHEMA_VERSION
from simulator.output.validation_report import as_list, limits, quantity_error, verdict

COVERAGE_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

_OWN_COLUMNS = ("validation", "name", "basis", "measured_s", "predicted_s", "error", "log_sd", "low_s", "high_s")


def validation_document(validations: Validation | Sequence[Validation]) -> dict[str, Any]:
    """Everything but the single points (`comparison_columns` has those), for `documents.to_json`."""
    return {
        "schema": f"memwall.validation/{SCHEMA_VERSION}",
        "memwall": __version__,
        "validations": [_document(validation) for validation in as_list(validations)],
    }


def _document(validation: Validation) -> dict[str, Any]:
    roof = validation.roof
    return {
        "title": validation.title,
        "subject": validation.subject,
        "verdict": verdict(validation),
        "conditions": [{"name": name, "value": value} for name, value in validation.conditions],
        "comparisons": [_comparison_document(c) for c in validation.comparisons],
        "quantities": [{**vars(q), "error": quantity_error(q)} for q in validation.quantities],
        "sweeps": [_sweep_document(s) for s in validation.sweeps],
        "choices": [{**vars(c), "mapes": list(c.mapes)} for c in validation.choices],
        "draft_slopes": [vars(s) for s in validation.slopes],
        "courses": [
            {
                "name": c.name,
                "unit": c.unit,
                "mean_distance": c.apart if len(c.time_s) else None,
                "time_s": c.time_s.tolist(),
                "measured": c.measured.tolist(),
                "simulated": c.simulated.tolist(),
            }
            for c in validation.courses
        ],
        "roof": None if roof is None else {
            "bytes_per_s": roof.bytes_per_s, "flop_per_s": roof.flop_per_s, "rests_on": roof.rests_on, "points": len(roof.flop),
        },
        "notes": list(validation.notes),
    }  # fmt: skip


def _sweep_document(s: Sweep) -> dict[str, Any]:
    low, high = s.limits_s
    arrays = {"gamma": s.gamma, "tokens_per_round": s.tokens, "measured_s": s.measured_s, "predicted_s": s.predicted_s,
              "low_s": low, "high_s": high, "trained": s.trained}  # fmt: skip
    return {
        "name": s.name, "training": s.training, "batch": s.batch, "basis": s.basis, "best_measured": s.best_measured,
        "best_predicted": s.best_predicted, "regret": s.regret, "mape_held_out": s.held_out.mape if len(s.held_out) else None,
        "mape": s.whole.mape, **{name: values.tolist() for name, values in arrays.items()},
    }  # fmt: skip


def _comparison_document(c: Comparison) -> dict[str, Any]:
    some = len(c) > 0
    claims = some and c.log_sd is not None
    return {
        "name": c.name,
        "basis": c.basis,
        "note": c.note,
        "points": len(c),
        "mape": c.mape if some else None,
        "median_error": c.median_error if some else None,
        "p95_error": c.p95_error if some else None,
        "bias": c.bias if some else None,
        "worst_error": c.worst_error if some else None,
        "coverage": {f"{level:g}": c.coverage(level) for level in COVERAGE_LEVELS} if claims else None,
        "interval_factor": float(np.median(interval_factor(np.asarray(c.log_sd)))) if claims else None,
        "interval_level": LEVEL if claims else None,
    }


def comparison_columns(validations: Validation | Sequence[Validation]) -> dict[str, NDArray[Any]]:
    """One row per point of every comparison, for `columns`: times, error, 90 % interval and labels; a label that a
    comparison lacks is empty. A label with the name of one of our own columns is called ``label_…``."""
    parts = [(v, c) for v in as_list(validations) for c in v.comparisons if len(c)]
    own = [_own(v, c) for v, c in parts]
    columns = {name: np.concatenate([part[name] for part in own]) if own else np.array([]) for name in _OWN_COLUMNS}
    labels = dict.fromkeys(label for _, c in parts for label in c.labels)
    for label in labels:
        cells = [x for _, c in parts for x in (c.labels[label].tolist() if label in c.labels else [None] * len(c))]
        columns[f"label_{label}" if label in _OWN_COLUMNS else label] = _column(cells)
    return columns


def _own(validation: Validation, c: Comparison) -> Mapping[str, NDArray[Any]]:
    low, high = limits(c)
    log_sd = np.broadcast_to(np.asarray(np.nan if c.log_sd is None else c.log_sd, float), len(c))
    texts = {"validation": validation.title, "name": c.name, "basis": c.basis}
    return {
        **{name: np.full(len(c), text, object) for name, text in texts.items()},
        "measured_s": c.measured_s, "predicted_s": c.predicted_s, "error": c.errors,
        "log_sd": log_sd, "low_s": low, "high_s": high,
    }  # fmt: skip


def _column(values: list[Any]) -> NDArray[Any]:
    """Cells of one kind, None where one is missing; cells of several kinds as text, since a column has one type."""
    kinds = {type(v) for v in values if v is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        values = [None if v is None else str(v) for v in values]
    elif kinds == {int, float}:
        values = [None if v is None else float(v) for v in values]
    column = np.empty(len(values), object)
    column[:] = values
    return column
