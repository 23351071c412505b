"""Published sweeps over γ: what do a few rows of a source say of its others?

A source that gives plain decoding and at least three γ of one drafter at one batch is a sweep. The host times of its engine are
fitted on three of those rows, plain decoding and the smallest and the largest γ, and on nothing else: the other γ of that batch,
and everything at other batches, are predictions. The number of tokens per round is each row's own.

Three rows are as few as the model has constants at one batch (a step, a round, a draft pass; what grows with the sequences
cannot be told from a step there, and stays 0). Which three is a choice, so every other choice is tried as well (`Choices`), beside
predictions that need no model: a straight line over γ, and a batch that takes as long as a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.comparison import Choices, DraftSlope, FloatArray, Sweep, Validation
from simulator.calibration.host_times import HostRow, HostTimes, fit_host_times
from simulator.calibration.published_cases import Case, case_of, price
from simulator.calibration.published_rows import Row, read_published
from simulator.cost.forward import Batch
from simulator.errors import MemwallError
from simulator.uncertainty import LEVEL, interval_factor, slowed, spreads

LEAST_DRAFTS = 3
"""γ of one batch that make a sweep: two to fit on, and one to predict."""
_NO_HOST = HostTimes(0.0, 0.0, 0.0, 0.0, ())


@dataclass(frozen=True)
class _Point:
    """A row with what its passes take: as calibrated, with each source of doubt slower, in short and in long contexts."""

    row: Row
    case: Case
    doubts: tuple[str, ...]
    passes_s: FloatArray
    """[1 + doubts + 2]: everything but the four fitted host times."""


@dataclass(frozen=True)
class _Machine:
    """All rows of one drafter on one source's machine; plain decoding included."""

    name: str
    source: str
    points: tuple[_Point, ...]
    batch: int
    """The smallest one that has a sweep; what is fitted on is of it."""

    def at(self, batch: int) -> tuple[_Point, ...]:
        """Its points of one batch, γ rising."""
        return tuple(sorted((p for p in self.points if p.row.batch == batch), key=lambda p: p.row.gamma))

    @property
    def base(self) -> tuple[_Point, ...]:
        """The points that constants may be fitted on."""
        return self.at(self.batch)

    @property
    def larger(self) -> list[int]:
        """Batches that are only predicted."""
        return sorted({p.row.batch for p in self.points} - {self.batch})


def validate_sweeps(path: Path) -> Validation | None:
    """The sweeps in the table at `path`; None where it has none. Raises InputError as `read_published`."""
    machines = _machines(read_published(path).rows)
    if not machines:
        return None
    sweeps = [sweep for machine in machines for sweep in _sweeps(machine)]
    choices = [found for machine in machines for found in _choices(machine, machines)]
    return Validation(
        title="Published sweeps over γ",
        subject="engine constants fitted on the training rows alone, passes as calibrated",
        conditions=(
            *((f"{m.name} trained on", _named(_default(m))) for m in machines),
            *((f"{m.name} is", f"{m.base[0].case.deployment.target.decoder.name} on {m.base[0].case.deployment.gpu.name} under "
               f"{m.base[0].case.deployment.engine.name}: {m.source}") for m in machines),
            ("held out", "every other row: the γ between, and all of the larger batches"),
            ("acceptance", "the number of tokens per round is each row's own, not predicted"),
            ("intervals", "fitted again with each kind of pass slower by what it is uncertain by, and in contexts at both ends of "
                          f"what is plausible; host times uncertain by {_host_factor(machines[0]):.2f}"),
        ),
        comparisons=[s.held_out for s in sweeps],
        sweeps=sweeps,
        choices=choices,
        slopes=[slope for m in machines for batch in (m.batch, *m.larger) if (slope := _slope(m, batch)) is not None],
        notes=[_constants(m) for m in machines],
    )  # fmt: skip


# --- from rows to points ----------------------------------------------------------------------------------------------
def _machines(rows: Sequence[Row]) -> list[_Machine]:
    keys = dict.fromkeys(
        (r.source, _word(r.engine), r.target, r.draft) for r in rows if r.gamma and r.draft and not r.tree
    )
    found = []
    for source, engine, target, draft in keys:
        chosen = [
            r for r in rows
            if (r.source, _word(r.engine), r.target) == (source, engine, target) and (not r.gamma or (r.draft == draft and not r.tree))
        ]  # fmt: skip
        points = [point for row in chosen if (point := _point(row)) is not None]
        points = [p for p in points if (p.case.deployment.gpu.name, p.doubts) == _kind(points[0])]
        first: dict[tuple[int, int], _Point] = {}
        for point in points:
            first.setdefault((point.row.batch, point.row.gamma), point)
        batches = [
            b for b in sorted({batch for batch, _ in first})
            if (b, 0) in first and sum(batch == b for batch, _ in first) > LEAST_DRAFTS
        ]  # fmt: skip
        if batches:
            name = " ".join(part for part in (_beginning([p.row.id for p in first.values()]), draft) if part)
            found.append(_Machine(name, source, tuple(first.values()), batches[0]))
    return found


def _beginning(texts: Sequence[str]) -> str:
    """What all `texts` begin with, up to a hyphen or the like."""
    shared = min(texts)
    while not all(text.startswith(shared) for text in texts):
        shared = shared[:-1]
    return shared.strip("-_ ")


def _kind(point: _Point) -> tuple[str, tuple[str, ...]]:
    return point.case.deployment.gpu.name, point.doubts


def _word(engine: str) -> str:
    return next(iter(engine.lower().split()), "")


def _point(row: Row) -> _Point | None:
    """None where the row cannot be priced; `validate_published` says why."""
    try:
        case = case_of(row)
        served = replace(case.deployment, engine=_NO_HOST.of(case.deployment.engine))
        doubts = {name: sd for name, sd in spreads(served).items() if name != "host"}
        states = [served, *(slowed(served, name, sd) for name, sd in doubts.items())]
        seconds = [price(row, state, case.contexts[0]).seconds for state in states]
        seconds += [price(row, served, context).seconds for context in case.contexts[1:]]
    except MemwallError:
        return None
    return _Point(row, case, tuple(doubts), np.array(seconds))


# --- fitting on some, predicting others ---------------------------------------------------------------------------------
def _fit(trained: Sequence[_Point], state: int) -> HostTimes:
    return fit_host_times(
        [HostRow(p.row.step_s - float(p.passes_s[state]), p.row.batch, p.row.gamma, p.row.source) for p in trained]
    )


def _step_s(times: HostTimes, points: Sequence[_Point], state: int = 0) -> FloatArray:
    return np.array([float(p.passes_s[state]) + times.seconds(p.row.batch, p.row.gamma) for p in points])


def _predicted_s(trained: Sequence[_Point], points: Sequence[_Point]) -> FloatArray:
    """Time of a step or round [points]."""
    return _step_s(_fit(trained, 0), points)


def _log_sd(trained: Sequence[_Point], points: Sequence[_Point]) -> FloatArray:
    """Standard deviation of ln(truth/prediction) [points]: what training rows pin down no longer counts as uncertain."""
    base = _predicted_s(trained, points)
    doubts = len(points[0].doubts)
    moved = [np.log(_step_s(_fit(trained, state), points, state) / base) for state in range(1, 1 + doubts)]
    factor = math.exp(_host_sd(points[0]))
    passes = np.array([float(p.passes_s[0]) for p in points])
    moved.append(np.log((passes + factor * (base - passes)) / base))
    short, long = (_step_s(_fit(trained, state), points, state) for state in (1 + doubts, 2 + doubts))
    # The ends of what is plausible are taken for an interval of the usual level.
    moved.append(np.log(long / short) / (2.0 * math.log(interval_factor(1.0, LEVEL))))
    return np.asarray(np.sqrt(np.sum(np.square(moved), axis=0)))


def _host_sd(point: _Point) -> float:
    return point.case.deployment.target.efficiency.log_sd("host")


def _host_factor(machine: _Machine) -> float:
    return _host_sd(machine.base[0])


def _default(machine: _Machine) -> tuple[_Point, ...]:
    plain, *drafted = machine.base
    return plain, drafted[0], drafted[-1]


def _sweeps(machine: _Machine) -> list[Sweep]:
    trained = _default(machine)
    said = f"batch {machine.batch}, γ = {', '.join(str(p.row.gamma) for p in trained)}"
    found = []
    for batch in (machine.batch, *machine.larger):
        points = machine.at(batch)
        tokens = _tokens(points)
        found.append(
            Sweep(
                f"{machine.name}, batch {batch}", said, batch, _gammas(points), tokens,
                _measured_s(points) / tokens, _predicted_s(trained, points) / tokens, _log_sd(trained, points),
                np.array([p in trained for p in points]),
                "held out by γ" if batch == machine.batch else "held out by batch",
            )
        )  # fmt: skip
    return found


def _gammas(points: Sequence[_Point]) -> NDArray[np.int64]:
    return np.array([p.row.gamma for p in points])


def _tokens(points: Sequence[_Point]) -> FloatArray:
    return np.array([p.row.tokens for p in points])


def _measured_s(points: Sequence[_Point]) -> FloatArray:
    """Time of a step or round [points]."""
    return np.array([p.row.step_s for p in points])


def _described(points: Sequence[_Point]) -> str:
    gammas = [f"γ = {p.row.gamma}" for p in points if p.row.gamma]
    return " and ".join([", ".join(["plain decoding", *gammas[:-1]]), gammas[-1]]) if gammas else "plain decoding"


def _named(points: Sequence[_Point]) -> str:
    return f"{_described(points)} at batch {points[0].row.batch} ({', '.join(p.row.id for p in points)})"


# --- other choices ------------------------------------------------------------------------------------------------------
def _choices(machine: _Machine, machines: Sequence[_Machine]) -> list[Choices]:
    plain, *drafted = machine.base
    singles = [(plain, p) for p in drafted]
    pairs = [(plain, *two) for two in combinations(drafted, 2)]
    others = [
        tuple(other.base) for other in machines
        if other is not machine and _kind(other.base[0]) == _kind(plain)
        and other.base[0].case.deployment.target.decoder.name == plain.case.deployment.target.decoder.name
    ]  # fmt: skip
    found = []
    for batch in (machine.batch, *machine.larger):
        points = machine.at(batch)
        own = batch == machine.batch
        ways: list[tuple[str, list[tuple[_Point, ...]]]] = [
            ("plain decoding and one γ", [*singles]),
            ("plain decoding and two γ", [*pairs]),
            ("plain decoding and the two smallest γ", [(plain, *drafted[:2])]),
            ("all but one γ" if own else f"all of batch {machine.batch}",
             [tuple(p for p in machine.base if p is not out) for out in drafted] if own else [machine.base]),
            ("all of batch 1 of another source" if machine.batch == 1 else "another source", others),
        ]  # fmt: skip
        what = f"{machine.name}, batch {batch}"
        found.append(_tried("nothing: passes alone", what, points, [(np.array([p.passes_s[0] for p in points]), ())]))
        for name, sets in ways:
            if sets:
                found.append(_tried(name, what, points, [(_predicted_s(s, points), s) for s in sets]))
        if own:
            lines = [(_line_s(two, points), two) for two in pairs]
            found.append(_tried("no model: a line through plain decoding's and two γ's steps", what, points, lines))
        else:
            same = {p.row.gamma: p for p in machine.base}
            if all(p.row.gamma in same for p in points):
                twins = [same[p.row.gamma] for p in points]
                grown = np.array([p.passes_s[0] for p in points]) - np.array([p.passes_s[0] for p in twins])
                measured = _measured_s(twins)
                smaller = f"batch {machine.batch}"
                found.append(_tried(f"each row's own γ at {smaller}", what, points, [(measured + grown, ())]))
                found.append(_tried(f"no model: as long as at {smaller}", what, points, [(measured, ())]))
    return found


def _line_s(trained: Sequence[_Point], points: Sequence[_Point]) -> FloatArray:
    """Plain decoding as measured, rounds on the line through two of them."""
    plain, low, high = trained
    slope = (high.row.step_s - low.row.step_s) / (high.row.gamma - low.row.gamma)
    line = low.row.step_s + slope * (_gammas(points) - low.row.gamma)
    return np.where(_gammas(points) == 0, plain.row.step_s, line)


def _tried(
    name: str, what: str, points: Sequence[_Point], predictions: Iterable[tuple[FloatArray, Sequence[_Point]]]
) -> Choices:
    mapes, worst, right = [], 0.0, 0
    tokens, measured = _tokens(points), _measured_s(points)
    for predicted, trained in predictions:
        errors = (predicted / measured - 1.0)[[p not in trained for p in points]]
        mapes.append(float(np.abs(errors).mean()))
        worst = max((worst, *(float(e) for e in errors)), key=abs)
        right += int(np.argmin(predicted / tokens) == np.argmin(measured / tokens))
    return Choices(name, what, tuple(mapes), worst, right if len(points) > LEAST_DRAFTS else None)


# --- a draft pass by itself ----------------------------------------------------------------------------------------------
def _slope(machine: _Machine, batch: int) -> DraftSlope | None:
    points = [p for p in machine.at(batch) if p.row.gamma]
    draft = points[0].case.deployment.draft if points else None
    if len(points) < LEAST_DRAFTS or draft is None:
        return None
    gamma, seconds = _gammas(points).astype(float), _measured_s(points)
    away = gamma - gamma.mean()
    slope = float(away @ seconds / (away @ away))
    left = seconds - seconds.mean() - slope * away
    error = math.sqrt(float(left @ left) / (len(points) - 2) / float(away @ away))
    passes = float(away @ np.array([p.passes_s[0] for p in points]) / (away @ away))
    cost = draft.pass_cost(Batch.decode(batch, points[0].case.contexts[0]))
    weight_bytes = sum(o.repeat * o.weight_bytes for o in cost.operators)
    return DraftSlope(
        f"{machine.name}, batch {batch}", batch, slope, error, passes, weight_bytes,
        weight_bytes / draft.gpu.hbm_bytes_per_s,
    )  # fmt: skip


def _constants(machine: _Machine) -> str:
    times, engine = _fit(_default(machine), 0), machine.base[0].case.deployment.engine
    pairs = [
        (name, getattr(times, field), getattr(engine, field))
        for name, field in (("step", "host_step_s"), ("round", "host_speculative_round_s"), ("draft pass", "host_draft_pass_s"),
                            ("sequence", "host_per_sequence_s"))
    ]  # fmt: skip
    said = ", ".join(f"{name} {1e3 * ours:.3f} ({1e3 * theirs:g})" for name, ours, theirs in pairs)
    return f"{machine.name}: fitted host times in ms, and in brackets the {engine.name} profile's: {said}"
