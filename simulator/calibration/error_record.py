"""What a validation found, small enough to travel with the project: errors, coverage and their course over what was measured.

Measurements that are not ours to copy are summed up: `record_of` turns a `Comparison` into quantiles and shares, and
``hardware_profiles/measurements/held-out/<device>.json`` keeps those of each calibrated device (written by
``benchmarks/held_out_errors.py``). A comparison that was made just now has a record of the same kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulator import catalog
from simulator.calibration.comparison import Comparison, interval_factor
from simulator.records import Record, read_record

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares that the intervals claim to hold, at which coverage is kept."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of predicted/measured, in `Slot.ratios` and `ErrorRecord.ratios`."""
LABELS = (
    "batch",
    "sequences",
    "tokens",
    "new_tokens",
    "context_tokens",
    "keys",
    "message_bytes",
    "gamma",
    "model",
    "layer",
)
"""Labels whose course is kept, in the order of their figures."""
MOST_VALUES = 14
"""Values of a numeric label that stand apart; more are gathered in `BINS` of as many points each."""
BINS = 8
MEASURED = "measured"
"""The course over the measured time itself; its slots carry times."""


class Named(Protocol):
    """What has a name for people."""

    @property
    def name(self) -> str:
        """As in `Comparison`."""


N = TypeVar("N", bound=Named)


class Slot(Record):
    """Points that have one value of a label, or one stretch of them, in common."""

    text: str
    """The value, e.g. "64" or "65–512" or "llama-3.1-8b"."""
    points: int = Field(ge=1)
    """Points."""
    ratios: tuple[float, float, float, float, float]
    """predicted/measured at `QUANTILES`."""
    median_s: float
    """Median of the measured times, s."""
    at: float | None = None
    """Median of the label's values where they are numbers."""


class ErrorRecord(Record):
    """A `Comparison` summed up. Ratios are predicted/measured, errors |ratio − 1|."""

    name: str
    """For people, e.g. "decode attention"."""
    basis: str
    """How the points were kept from the fit: "held out by matrix"."""
    points: int = Field(ge=1)
    """Points."""
    mape: float
    """Mean error."""
    median_error: float
    """Median error."""
    p95_error: float
    """95th percentile of the errors."""
    bias: float
    """Geometric mean of the ratios, less 1."""
    worst_error: float
    """The ratio furthest from 1, less 1."""
    ratios: tuple[float, float, float, float, float]
    """Ratios at `QUANTILES`."""
    interval_factor: float | None = None
    """Median f of the claimed 90 % intervals, prediction / f … prediction · f; None: none is claimed."""
    coverage: dict[str, float] = {}
    """Share of points inside their interval, by the share that it claims to hold (`LEVELS`, as text)."""
    by: dict[str, tuple[Slot, ...]] = {}
    """Course over each label that has more than one value, and over the measured time."""


class ErrorFile(Record):
    """The layout of ``hardware_profiles/measurements/held-out/*.json``."""

    gpu: str
    """The device; equals the file's name."""
    source: str
    """Where the measurements come from, and under which licence."""
    date: str
    """When the validation was run, YYYY-MM-DD."""
    command: str
    """What writes the file again."""
    records: tuple[ErrorRecord, ...]
    """One per comparison."""


def record_of(comparison: Comparison) -> ErrorRecord:
    """`comparison` summed up; it has at least one point, and all its times are finite and above 0."""
    c = comparison
    claims = c.log_sd is not None
    return ErrorRecord(
        name=c.name, basis=c.basis, points=len(c), mape=_short(c.mape), median_error=_short(c.median_error),
        p95_error=_short(c.p95_error), bias=_short(c.bias), worst_error=_short(c.worst_error),
        ratios=_quantiles(c.predicted_s / c.measured_s),
        interval_factor=_short(float(np.median(interval_factor(np.asarray(c.log_sd)))), 5) if claims else None,
        coverage={f"{level:g}": _short(c.coverage(level) or 0.0) for level in LEVELS} if claims else {},
        by=_courses(c),
    )  # fmt: skip


def whole(named: Sequence[N]) -> list[N]:
    """Records or comparisons that are no part of another one: "matmul, up to 64 tokens" is one of "matmul"."""
    names = {one.name for one in named}
    return [one for one in named if not any(one.name.startswith((f"{n}, ", f"{n} from ")) for n in names)]


def read_errors(gpu_name: str) -> ErrorFile | None:
    """What is bundled of the device called `gpu_name`; None where nothing is."""
    path = folder() / f"{gpu_name}.json"
    return read_record(ErrorFile, path) if path.is_file() else None


def folder() -> Path:
    """Where the bundled records lie."""
    return catalog.root() / "hardware_profiles" / "measurements" / "held-out"


def _courses(c: Comparison) -> dict[str, tuple[Slot, ...]]:
    columns: dict[str, NDArray[Any]] = {name: np.asarray(c.labels[name]) for name in LABELS if name in c.labels}
    found = {
        name: _slots(c, column, _bytes if name.endswith("_bytes") else _number) for name, column in columns.items()
    }
    found[MEASURED] = _slots(c, c.measured_s, _number, times=True)
    return {name: slots for name, slots in found.items() if len(slots) > 1}


def _slots(
    c: Comparison, column: NDArray[Any], show: Callable[[Any], str], *, times: bool = False
) -> tuple[Slot, ...]:  # fmt: skip
    if column.dtype.kind not in "iuf":
        texts = np.array(["" if value is None else str(value) for value in column], dtype=object)
        masks = {text: texts == text for text in dict.fromkeys(texts.tolist()) if text}
        return tuple(_slot(c, text, mask) for text, mask in masks.items())
    known = column[np.isfinite(column)]
    values = np.unique(known)
    if len(values) <= MOST_VALUES and not times:
        return tuple(_slot(c, show(v), column == v, column) for v in values)
    # Between values, never through the points of one.
    edges = np.unique(np.quantile(known, np.linspace(0.0, 1.0, BINS + 1), method="lower"))
    slots = []
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        last = i == len(edges) - 2
        mask = (column >= low) & ((column <= high) if last else (column < high))
        inside = column[mask]
        text = show(inside.min()) + ("" if inside.min() == inside.max() else f" – {show(inside.max())}")
        slots.append(_slot(c, text, mask, column))
    return tuple(slots)


def _slot(c: Comparison, text: str, mask: NDArray[np.bool_], column: NDArray[Any] | None = None) -> Slot:
    return Slot(
        text=text, points=int(mask.sum()), ratios=_quantiles(c.predicted_s[mask] / c.measured_s[mask]),
        median_s=_short(float(np.median(c.measured_s[mask]))),
        at=None if column is None else _short(float(np.median(column[mask]))),
    )  # fmt: skip


def _number(value: Any) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{float(value):.3g}"


def _bytes(value: Any) -> str:
    size, unit = next(
        (s, u) for s, u in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")) if value >= s or s == 1
    )
    return f"{value / size:.3g} {unit}"


def _quantiles(ratios: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    least, low, middle, high, most = (_short(float(q), 5) for q in np.quantile(ratios, QUANTILES))
    return least, low, middle, high, most


def _short(value: float, digits: int = 4) -> float:
    """Rounded to what a reader can use, so that files stay small."""
    return float(f"{value:.{digits}g}")


def records_of(comparisons: Sequence[Comparison]) -> tuple[ErrorRecord, ...]:
    """Of all that have points with a time on both sides; points without are left out."""
    found = []
    for c in comparisons:
        both = np.stack([c.measured_s, c.predicted_s])
        good = np.asarray((np.isfinite(both) & (both > 0)).all(axis=0))
        if good.any():
            found.append(record_of(c if good.all() else c.where(good, c.name)))
    return tuple(found)
