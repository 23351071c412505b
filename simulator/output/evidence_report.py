"""What a device's numbers rest on, in tables: errors by kind of operator, what no fit saw, and the source of every figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from simulator.calibration.comparison import LEVEL
from simulator.calibration.error_record import LEVELS, ErrorRecord
from simulator.calibration.evidence import Evidence
from simulator.calibration.provenance import Stated, kinds
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section

KINDS = {
    "datasheet": "from datasheets", "measured": "measured", "fitted": "fitted to measurements", "estimate": "estimated or set",
    "price-list": "from price lists", "configuration": "from configurations",
}  # fmt: skip
"""What figures rest on, in the order of reports, and how a sentence says it."""


def operator_section(evidence: Evidence) -> Section:
    """Mean error, number of points and interval of each kind of operator."""
    body = [
        (
            o.name, "measured" if o.measured else "assumed", f"{o.points:,}" if o.points else NONE, f"{o.mape:.1%}",
            f"× and ÷ {o.factor():.3f}",
        )
        for o in evidence.operators
    ]  # fmt: skip
    headers = ("kind of operator", "its error is", "n", "mean error", f"{LEVEL:.0%} interval")
    note = f"{evidence.efficiency.label}; {evidence.calibration.source}, {evidence.calibration.date}."
    return Section("Errors by kind of operator", Table(headers, body), note)


def record_section(records: Sequence[ErrorRecord], title: str, note: str = "") -> Section:
    """One row per comparison: errors, bias, and what its intervals hold."""
    headers = ("", "kept from the fit", "n", "MAPE", "median", "p95", "bias", "worst", f"{LEVEL:.0%} factor",
               *(f"{level:.0%} hold" for level in LEVELS))  # fmt: skip
    body = []
    for r in records:
        held = [f"{r.coverage[f'{level:g}']:.0%}" if r.coverage else NONE for level in LEVELS]
        factor = NONE if r.interval_factor is None else f"{r.interval_factor:.3f}"
        errors = (f"{r.mape:.1%}", f"{r.median_error:.1%}", f"{r.p95_error:.1%}")
        body.append(
            (r.name, r.basis, f"{r.points:,}", *errors, f"{r.bias:+.1%}", f"{r.worst_error:+.1%}", factor, *held)
        )
    return Section(title, Table(headers, body), note)


def provenance_sentence(rows: Sequence[Stated]) -> str:
    """How many figures rest on what."""
    counted = kinds(rows)
    parts = [
        f"{counted[kind]} {'is' if counted[kind] == 1 else 'are'} {said}"
        for kind, said in KINDS.items()
        if counted.get(kind)
    ]
    return f"Of {len(rows):,} figures, " + ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."


def provenance_columns(rows: Sequence[Stated]) -> dict[str, list[str]]:
    """Column by column, under the names that a table shows."""
    names = ("of", "figure", "value", "rests on", "source", "address", "date", "note")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def columns_csv(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> str:
    """Columns of equal length as CSV, a header first; None is an empty cell."""
    made = io.StringIO(newline="")
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return made.getvalue()
