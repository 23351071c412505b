"""Published speeds: each row predicted without having been fitted on, and both side by side.

`published_rows` reads the table, `published_cases` says what a row is taken for. Rows named in `HOST_ROWS` gave the vLLM
profile its host times, those in `VOCABULARY_ROWS` what an EAGLE-3 head adds to them. Each of them is predicted with host times fitted again without it (`host_times`), all others by the
profile as it is. `published_sweeps` asks more of the same rows: what do a few of them say of the others?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simulator.calibration.comparison import Quantity, Validation
from simulator.calibration.host_times import HostRow, HostTimes, fit_host_times
from simulator.calibration.published_cases import Case, case_of, price
from simulator.calibration.published_rows import COLUMNS, METRICS, Row, read_published
from simulator.engine import Engine, load_engine
from simulator.errors import InputError, MemwallError
from simulator.uncertainty import interval_factor, log_sds

__all__ = ["COLUMNS", "HOST_ENGINE", "HOST_ROWS", "METRICS", "read_published", "validate_published"]

HOST_ENGINE = "vllm"
HOST_ROWS = ("vllm20780-v", "vllm20780-e1-2", "vllm20780-e1-7", "vllm-dsd-1-0", "vllm-dsd-32-0")
"""Rows that the host times of `HOST_ENGINE` were fitted on."""

VOCABULARY_ROWS = ("vllm20780-e3-2", "vllm20780-e3-7")
"""Rows that its `host_reduced_vocabulary` was fitted on: what a pass of an EAGLE-3 head takes beyond its kernels and
`host_draft_pass`, least squares of relative errors."""

_SHOWN = 10  # dropped rows that a note names


def validate_published(path: Path) -> Validation:
    """Every usable row of `path` measured and predicted; see the top of this module for what is not fitted on what."""
    table = read_published(path)
    quantities = [_quantity(row, table.rows) for row in table.rows]
    counted = ", ".join(f"{n} {reason}" for reason, n in table.dropped.items())
    notes = [f"not used: {problem}" for problem in table.problems[:_SHOWN]]
    if len(table.problems) > _SHOWN:
        notes.append(f"and {len(table.problems) - _SHOWN} more rows not used")
    points = _host_rows(table.rows)
    if len(points) == len(HOST_ROWS):
        notes.append(_host_note(fit_host_times(list(points.values())), load_engine(HOST_ENGINE)))
    return Validation(
        title="Published speeds",
        subject="calibrations and engine profiles as bundled",
        conditions=(
            ("rows", f"{table.read} read, {len(table.rows)} used, {table.read - len(table.rows)} dropped"
                     + (f" ({counted})" if counted else "")),
            ("acceptance", "the number of tokens per round is the row's own, not predicted"),
            ("intervals", intervals_text(quantities)),
        ),
        quantities=quantities,
        notes=notes,
    )  # fmt: skip


def intervals_text(quantities: Sequence[Quantity]) -> str:
    """What the intervals of `quantities` are made of, and how many of them hold what was measured."""
    claimed = [q for q in quantities if q.low is not None and q.high is not None]
    held = sum((q.low or 0.0) <= q.measured <= (q.high or 0.0) for q in claimed)
    return (
        "contexts at both ends of what is plausible, and 90 % of what the times are uncertain by; they hold "
        f"{held} of {len(claimed)} figures"
    )


def _quantity(row: Row, rows: Sequence[Row]) -> Quantity:
    unit = METRICS[row.metric]
    try:
        case = case_of(row)
        engine, basis, notes = _unfitted_engine(row, case, rows)
        served = replace(case.deployment, engine=engine)
        figures = [row.figure(price(row, served, c).seconds) for c in case.contexts]
    except MemwallError as error:
        return Quantity(row.title, unit, row.value, None, "not predicted", note=str(error))
    said = (*case.notes, *notes, f"the source adds: {row.notes}" if row.notes else "")
    note = "; ".join(text for text in said if text)
    log_sd = log_sds(served, lambda d: {"round": price(row, d, case.contexts[0]).seconds})["round"]
    factor = float(interval_factor(log_sd))
    return Quantity(row.title, unit, row.value, figures[0], basis, min(figures) / factor, max(figures) * factor, note)


def _unfitted_engine(row: Row, case: Case, rows: Sequence[Row]) -> tuple[Engine, str, list[str]]:
    """Engine whose host times this row had no part in, the basis, and what to add to the note."""
    engine = case.deployment.engine
    if engine.name != HOST_ENGINE:
        return engine, "not fitted on", []
    if row.id in VOCABULARY_ROWS:
        return _refitted_vocabulary(row, case, rows), "left out of the fit", ["time per pass fitted on the other row"]
    if row.id not in HOST_ROWS:
        near = any(other.id in HOST_ROWS and other.source == row.source for other in rows)
        return engine, "not fitted on", ["host times were fitted on other rows of this source"] if near else []
    others = {id: point for id, point in _host_rows(rows).items() if id != row.id}
    if len(others) < len(HOST_ROWS) - 1:
        missing = ", ".join(id for id in HOST_ROWS if id != row.id and id not in others)
        raise InputError("rows", missing, "be there to fit host times without this row", where=row.id)
    times = fit_host_times(list(others.values()))
    notes = ["host times fitted on the other four rows"]
    if times.ambiguous:
        notes.append(f"which cannot tell {' from '.join(times.ambiguous)}")
    return times.of(engine), "left out of the fit", notes


def _refitted_vocabulary(row: Row, case: Case, rows: Sequence[Row]) -> Engine:
    """The case's engine with what a reduced vocabulary adds to a pass from the other of `VOCABULARY_ROWS`."""
    others = [other for other in rows if other.id in VOCABULARY_ROWS and other.id != row.id]
    if not others:
        missing = ", ".join(id for id in VOCABULARY_ROWS if id != row.id)
        raise InputError("rows", missing, "be there to fit host times without this row", where=row.id)
    other, engine = others[0], case.deployment.engine
    plain_pass_s = load_engine(HOST_ENGINE).host_draft_pass_s
    without = replace(case.deployment, engine=replace(engine, host_draft_pass_s=plain_pass_s))
    extra_s = (other.step_s - price(other, without, case.contexts[0]).seconds) / other.gamma
    return replace(engine, host_draft_pass_s=plain_pass_s + max(0.0, extra_s))


def _host_rows(rows: Sequence[Row]) -> dict[str, HostRow]:
    """What the rows of `HOST_ROWS` took beyond their passes, by id; those that cannot be priced are left out."""
    bare, found = load_engine("ideal"), {}
    for row in rows:
        if row.id not in HOST_ROWS:
            continue
        try:
            case = case_of(row)
        except MemwallError:
            continue
        passes = price(row, replace(case.deployment, engine=bare), case.contexts[0])
        found[row.id] = HostRow(row.step_s - passes.seconds, row.batch, row.gamma, row.source)
    return found if len({point.version for point in found.values()}) <= 2 else {}


def _host_note(fitted: HostTimes, engine: Engine) -> str:
    pairs = [
        (name, getattr(fitted, field), getattr(engine, field))
        for name, field in (("step", "host_step_s"), ("sequence", "host_per_sequence_s"),
                            ("round", "host_speculative_round_s"), ("draft pass", "host_draft_pass_s"))
    ]  # fmt: skip
    said = ", ".join(f"{name} {1e3 * ours:.3f} ({1e3 * theirs:g})" for name, ours, theirs in pairs)
    return (
        f"host times over all {len(HOST_ROWS)} fitted rows, in ms, and in brackets the {engine.name} profile's: {said}"
    )
