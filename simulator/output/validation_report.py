"""What a validation says in words and tables: a verdict, the comparisons, the points furthest off, figures of whole runs.

Every mean stands beside its number of points and its worst case. Points without a positive finite time on both sides have
no error; `usable` takes them out and counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import units
from simulator.calibration.comparison import LEVEL, Comparison, Course, Quantity, Sweep, Validation, interval_factor
from simulator.output.report import NONE, Block
from simulator.output.rows import Table
from simulator.output.tables import Section, properties
from simulator.output.validation_sweeps import sweep_sections

WORST_POINTS = 10
NEAR = 0.10
"""|predicted/measured − 1| up to which a figure of a whole run counts as near in the verdict."""


def as_list(validations: Validation | Sequence[Validation]) -> list[Validation]:
    """One validation or several, as a list, each `usable`."""
    several = [validations] if isinstance(validations, Validation) else validations
    return [usable(v) for v in several]


def usable(validation: Validation) -> Validation:
    """`validation` with only those points that have an error, and a note on those that have none."""
    comparisons, notes = [], list(validation.notes)
    for comparison in validation.comparisons:
        both = np.stack([comparison.measured_s, comparison.predicted_s]).astype(float)
        good = (np.isfinite(both) & (both > 0)).all(axis=0)
        comparisons.append(comparison if good.all() else comparison.where(good, comparison.name))
        if not good.all():
            left_out = f"{(~good).sum():,} of {good.size:,} points of {comparison.name}"
            notes.append(f"Left out: {left_out} without a positive finite time, measured and predicted.")
    return replace(validation, comparisons=comparisons, notes=notes)


def is_fitted(basis: str) -> bool:
    """Whether the measurements were used in the fit, by the convention of `Comparison.basis`."""
    return basis.startswith("fitted on")


def held_out(validation: Validation) -> tuple[list[Comparison], list[Quantity]]:
    """What the verdict may rest on: comparisons with points and quantities that the fit has not seen, if there are any."""
    comparisons = [c for c in validation.comparisons if len(c)]
    quantities = [q for q in validation.quantities if quantity_error(q) is not None]
    return (
        [c for c in comparisons if not is_fitted(c.basis)] or comparisons,
        [q for q in quantities if not is_fitted(q.basis)] or quantities,
    )


def quantity_error(quantity: Quantity) -> float | None:
    """predicted/measured − 1; None without a prediction or where the measurement is zero or missing."""
    if quantity.predicted is None or quantity.measured == 0:
        return None
    error = quantity.error
    return error if error is not None and math.isfinite(error) else None


# --- sentences --------------------------------------------------------------------------------------------------------
def verdict(validation: Validation) -> str:
    """How far off the predictions are, in one sentence, by points the fit has not seen."""
    comparisons, quantities = held_out(validation)
    parts = []
    if comparisons:
        parts.append(_points_clause(comparisons))
    if validation.sweeps:
        parts.append(_sweeps_clause(validation.sweeps))
    if quantities:
        parts.append(_quantities_clause(quantities))
    if not parts and validation.courses:
        parts = [_course_clause(course) for course in validation.courses]
    if not parts:
        return "Nothing was compared."
    bases = [c.basis for c in comparisons] + [q.basis for q in quantities]
    if bases and all(is_fitted(basis) for basis in bases):
        parts.append(
            "all of it fitted on these very measurements, which says how well the form fits, not how it predicts"
        )
    return capitalised("; ".join(parts)) + "."


def _points_clause(comparisons: Sequence[Comparison]) -> str:
    worst = max(comparisons, key=lambda c: abs(c.worst_error))
    claiming = [c for c in comparisons if c.coverage() is not None]
    n = sum(len(c) for c in comparisons)
    if len(comparisons) == 1:
        only = comparisons[0]
        kept = "" if is_fitted(only.basis) else f" ({only.basis})"
        text = f"{only.name}{kept}: {only.mape:.1%} mean error over {points(n)}, worst {signed(only.worst_error)}"
    else:
        kept = "all fitted on" if is_fitted(worst.basis) else "none fitted on"
        text = (
            f"mean error {span(comparisons, lambda c: c.mape)} over {points(n)} in {len(comparisons)} comparisons, {kept}; "
            f"worst {signed(worst.worst_error)} ({worst.name})"
        )
    if not claiming:
        return text + "; no interval is claimed"
    if len(claiming) == 1:
        where = "" if len(comparisons) == 1 else f" of {claiming[0].name}"
        return text + f"; {claiming[0].coverage():.0%} of points{where} inside their {LEVEL:.0%} interval"
    held = span(claiming, lambda c: c.coverage() or 0.0, ".0%")
    return text + f"; {LEVEL:.0%} intervals hold {held} of their points"


def _sweeps_clause(sweeps: Sequence[Sweep]) -> str:
    right = [s for s in sweeps if s.best_measured == s.best_predicted]
    missed = [
        f"{s.name}: {s.best_predicted} for {s.best_measured}, which costs {s.regret:.1%}"
        for s in sweeps
        if s not in right
    ]
    if not missed:
        each = ", ".join(dict.fromkeys(f"{s.best_measured}" for s in sweeps))
        return f"the best γ found in {'the sweep' if len(sweeps) == 1 else f'all {len(sweeps)} sweeps'} ({each})"
    return f"the best γ found in {len(right)} of {len(sweeps)} sweeps ({'; '.join(missed)})"


def _quantities_clause(quantities: Sequence[Quantity]) -> str:
    errors = [quantity_error(q) or 0.0 for q in quantities]
    near = sum(abs(e) <= NEAR for e in errors)
    i = max(range(len(errors)), key=lambda k: abs(errors[k]))
    if len(quantities) == 1:
        return f"{quantities[0].name}: {signed(errors[0])}"
    return (
        f"{near} of {len(quantities)} figures of whole runs within {NEAR:.0%}, median error "
        f"{np.median(np.abs(errors)):.1%}, worst {signed(errors[i])} ({quantities[i].name})"
    )


def _course_clause(course: Course) -> str:
    return f"{course.name}: {amount(course.apart, course.unit)} apart on average over {points(len(course.time_s))}"


def span(
    comparisons: Sequence[Comparison], value: Callable[[Comparison], float], form: str = ".1%", *, count: bool = False
) -> str:
    """`value` of the comparisons from least to most, with names (and numbers of points) where it differs."""
    ordered = sorted(comparisons, key=value)

    def named(c: Comparison) -> str:
        return f"{value(c):{form}} ({c.name}{f', n = {len(c):,}' if count else ''})"

    least, most = ordered[0], ordered[-1]
    if format(value(least), form) == format(value(most), form):
        return format(value(least), form)
    return f"{named(least)} to {named(most)}"


def points(n: int) -> str:
    """ "1 point", "1,312 points"."""
    return f"{n:,} point{'' if n == 1 else 's'}"


def signed(share: float, form: str = "+.1%") -> str:
    """A share with its sign, as it stands in a sentence."""
    return format(share, form).replace("-", "−")


def capitalised(text: str) -> str:
    """`text` with a capital first letter, unless its first word has a spelling of its own ("vLLM")."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].islower() else text


def amount(value: float | None, unit: str, digits: int = 4) -> str:
    """`value` in a dimension that `units.show` knows, or with the unit as printed."""
    if value is None or not math.isfinite(value):
        return NONE
    try:
        return units.show(value, unit, digits)
    except KeyError:
        return f"{f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.{digits}g}'} {unit}".rstrip()


def interval_text(quantity: Quantity) -> str:
    """Its prediction interval, e.g. "12.1 – 14.9 ms"; "" where none is claimed."""
    if quantity.low is None or quantity.high is None:
        return ""
    low, high = amount(quantity.low, quantity.unit), amount(quantity.high, quantity.unit)
    number, _, unit = low.partition(" ")
    return f"{number if unit == high.partition(' ')[2] else low} – {high}"


def label_text(comparison: Comparison, index: int) -> str:
    """What tells a point from the others, e.g. "batch 4, context 2,048 tokens, llama-3.1-8b"; missing labels are left out."""
    parts = []
    for name, column in comparison.labels.items():
        text = value_text(column[index])
        if text and name.endswith("_tokens"):
            parts.append(f"{label_name(name).removesuffix(' tokens')} {text} tokens")
        elif text:
            # A word speaks for itself: "llama-3.1-8b" needs no "model" before it.
            parts.append(text if isinstance(column[index], str) else f"{label_name(name)} {text}")
    return ", ".join(parts)


def label_name(name: str) -> str:
    """A column's name in words."""
    return name.replace("_", " ")


def value_text(value: Any) -> str:
    """A label's value as it is printed; "" where it is missing."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float | np.floating) else str(value)


# --- tables -----------------------------------------------------------------------------------------------------------
def validation_report(validations: Validation | Sequence[Validation]) -> list[Block]:
    """Conditions, verdict, tables and notes of one validation or of several, one below the other."""
    blocks: list[Block] = []
    for validation in as_list(validations):
        blocks.append(properties(validation.title, [("validated", validation.subject), *validation.conditions]))
        blocks.append(verdict(validation))
        blocks += result_sections(validation)
        if validation.notes:
            blocks.append("\n".join(f"Note: {note}" for note in validation.notes))
    return blocks


def result_sections(validation: Validation) -> list[Section]:
    """The tables that have rows."""
    comparisons = [c for c in validation.comparisons if len(c)]
    claims = any(c.log_sd is not None for c in comparisons)
    sections = sweep_sections(validation)
    if validation.comparisons and not validation.sweeps:  # whose tables say the same of the same points
        notes = ["bias: geometric mean, above 0 where predictions are too slow"]
        if claims:
            notes.append(
                f"a {LEVEL:.0%} interval reaches from prediction / factor to prediction × factor (median over points)"
            )
        notes += [f"{c.name}: {c.note}" for c in validation.comparisons if c.note]
        sections.append(
            Section("Predicted against measured", comparison_table(validation.comparisons), "; ".join(notes))
        )
    if comparisons and not validation.sweeps:
        found = _worst(comparisons)
        title = f"The {len(found)} points furthest off" if len(found) > 1 else "The only point"
        sections.append(Section(title, _worst_table(found)))
    if validation.quantities:
        bases = {q.basis for q in validation.quantities}
        title = "Figures of whole runs" + (f" ({bases.pop()})" if len(bases) == 1 else "")
        sections.append(Section(title, quantity_table(validation.quantities)))
    if validation.courses:
        sections.append(Section("Courses over time", course_table(validation.courses)))
    return sections


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per comparison: how its points were kept from the fit, errors, and what its intervals hold."""
    headers = ("", "kept from the fit", "n", "MAPE", "median", "p95", "bias", "worst")
    body = [(c.name, c.basis, f"{len(c):,}", *_errors(c), *_claim(c)) for c in comparisons]
    return Table((*headers, f"{LEVEL:.0%} factor", "holds"), body)


def _errors(c: Comparison) -> tuple[str, ...]:
    if not len(c):
        return (NONE,) * 5
    return f"{c.mape:.1%}", f"{c.median_error:.1%}", f"{c.p95_error:.1%}", f"{c.bias:+.1%}", f"{c.worst_error:+.1%}"


def _claim(c: Comparison) -> tuple[str, str]:
    coverage = c.coverage() if len(c) else None
    if coverage is None:
        return NONE, NONE
    return f"{float(np.median(interval_factor(np.asarray(c.log_sd)))):.3f}", f"{coverage:.1%}"


def _worst(comparisons: Sequence[Comparison]) -> list[tuple[Comparison, int]]:
    """The points with the largest |error|, largest first; ties in the order of the comparisons."""
    found = [(c, int(i)) for c in comparisons for i in worst_indices(c)]
    return sorted(found, key=lambda point: -abs(point[0].errors[point[1]]))[:WORST_POINTS]


def worst_indices(comparison: Comparison, n: int = WORST_POINTS) -> NDArray[np.intp]:
    """Indices of the `n` points with the largest |error|, largest first."""
    return np.argsort(-np.abs(comparison.errors), kind="stable")[:n]


def _worst_table(found: Sequence[tuple[Comparison, int]]) -> Table:
    body = []
    for c, i in found:
        low, high = limits(c)
        inside = NONE if c.log_sd is None else "yes" if low[i] <= c.measured_s[i] <= high[i] else "no"
        seconds = (units.show(float(t[i]), "s", digits=4) for t in (c.measured_s, c.predicted_s))
        body.append((c.name, label_text(c, i) or NONE, *seconds, f"{c.errors[i]:+.1%}", inside))
    return Table(("", "point", "measured", "predicted", "error", f"inside {LEVEL:.0%}"), body)


def limits(comparison: Comparison, level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Between which times in s a measurement is claimed to lie [points]; NaN where nothing is claimed."""
    log_sd = np.nan if comparison.log_sd is None else comparison.log_sd
    factor = np.broadcast_to(interval_factor(log_sd, level), comparison.predicted_s.shape)
    return comparison.predicted_s / factor, comparison.predicted_s * factor


def quantity_table(quantities: Sequence[Quantity]) -> Table:
    """One row per figure of a run; without columns that nobody fills, and without the basis where all have the same."""
    several = len({q.basis for q in quantities}) > 1
    body = []
    for q in quantities:
        error = quantity_error(q)
        between = interval_text(q) or NONE
        shown = NONE if error is None else f"{error:+.1%}"
        body.append(
            (
                q.name,
                amount(q.measured, q.unit),
                amount(q.predicted, q.unit),
                shown,
                between,
                q.basis if several else "",
                q.note,
            )
        )
    headers = ("", "measured", "predicted", "error", f"{LEVEL:.0%} interval", "kept from the fit", "note")
    keep = [i for i in range(len(headers)) if i < 4 or any(row[i] not in ("", NONE) for row in body)]
    return Table(tuple(headers[i] for i in keep), [tuple(row[i] for i in keep) for row in body])


def course_table(courses: Sequence[Course]) -> Table:
    """One row per figure over time; means over its points."""
    body = [
        (c.name, f"{len(c.time_s):,}", *(amount(v, c.unit) for v in (c.measured.mean(), c.simulated.mean(), c.apart)))
        for c in courses
        if len(c.time_s)
    ]
    return Table(("", "points", "measured, mean", "simulated, mean", "mean distance"), body)
