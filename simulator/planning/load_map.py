"""Where speculation pays: speed-up and goodput over load, ways to draft, and context, in closed form.

Speed-up is a ratio of mean times per output token, plain decoding over speculation, at the same load. Where either side has
no room for the load (the KV cache is full, or the queue only grows) its batch is a smaller one, and quicker for that; there the
speed-up is the ratio of requests per second, with over without. A load is a number of users who ask again at once (which is
the batch, as long as the KV cache holds it) or a rate of Poisson arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment
from simulator.errors import DoesNotFit, InputError
from simulator.operators import FloatArray
from simulator.planning.steady_state import Curve, Load, closed_loop, curve, open_loop
from simulator.planning.step_prices import PLAIN_DECODING, DeploymentTables, Drafting
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import MAX_GAMMA, Acceptance
from simulator.uncertainty import interval_factor, slowed, spreads

Kind = Literal["users", "rate"]
Measure = Literal["speed", "goodput"]
MOST_LOAD = 1 << 16
"""More users, or requests per second, than any replica meets."""
WAVERING = 0.07
"""Share of a load within which a step may go up and down with the number of tokens (tiles of kernels, sizes of CUDA graphs)."""
LEAST_GAIN = 1.02
"""What is at most this much faster does not pay: repeats of a measurement differ as much, and under a load that is mostly prompts, or beyond what
either side carries, curves run along 1."""
_BETWEEN = 8
"""Rates between two of the map at which a crossing is looked for."""


@dataclass(frozen=True)
class LoadAxis:
    """Loads of a map, rising."""

    kind: Kind
    """``users`` of a closed loop without think time, or Poisson arrivals at a ``rate`` per second."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, kind: Kind, values: Sequence[float]) -> LoadAxis:
        """Sorted, each once. Raises InputError."""
        name = "load" if kind == "users" else "rate"
        if not values:
            raise InputError(name, "(empty)", "name at least one value")
        for value in values:
            if not (math.isfinite(value) and 0 < value <= MOST_LOAD) or (kind == "users" and value != int(value)):
                rule = (
                    f"be a whole number from 1 to {MOST_LOAD}"
                    if kind == "users"
                    else f"be above 0 and at most {MOST_LOAD} /s"
                )
                raise InputError(name, value, rule)
        return cls(kind, tuple(sorted({float(v) for v in values})))

    def text(self, value: float) -> str:
        """A load in words."""
        return (
            f"{value:,.0f} user{'s' if value != 1 else ''}"
            if self.kind == "users"
            else f"{value:.3g} request{'s' if value != 1 else ''}/s"
        )

    @cached_property
    def fine(self) -> FloatArray:
        """Loads among which crossings are looked for: every number of users, or `_BETWEEN` rates between neighbours."""
        if self.kind == "users":
            return np.arange(1.0, self.values[-1] + 1.0)
        ends = np.array(self.values)
        steps = [np.geomspace(a, b, _BETWEEN, endpoint=False) for a, b in pairwise(ends)]
        return np.concatenate([*steps, ends[-1:]])

    def states(self, of: Curve, values: FloatArray, slo: Slo) -> Load:
        """Steady states of `of` at these loads."""
        return closed_loop(of, values, slo) if self.kind == "users" else open_loop(of, values, slo)


@dataclass(frozen=True)
class Crossing:
    """Where one way to draft stops paying, by one measure."""

    load: float | None
    """The last load at which it pays, 0 where it never does, None where it pays up to the map's end."""
    low: float | None
    """The same where all times are off by a 90 % interval to its disadvantage."""
    high: float | None
    """And to its advantage."""


@dataclass(frozen=True)
class LoadMap:
    """Speed-up over ways to draft (first axis), works (second) and loads (third)."""

    deployment: Deployment
    axis: LoadAxis
    slo: Slo
    draftings: tuple[Drafting, ...]
    works: tuple[Work, ...]
    plain: tuple[Curve, ...]
    """Plain decoding, by work."""
    curves: tuple[tuple[Curve | None, ...], ...]
    """[draftings][works]; None where not even one sequence fits."""
    log_sd: FloatArray
    """Standard deviation of ln(truth / speed-up) [draftings, works, loads]; NaN where there is no speed-up, 0 where none was
    asked for."""

    @cached_property
    def loads(self) -> FloatArray:
        """[loads]."""
        return np.array(self.axis.values)

    @cached_property
    def plain_states(self) -> tuple[Load, ...]:
        """Plain decoding at the map's loads, by work."""
        return tuple(self.axis.states(c, self.loads, self.slo) for c in self.plain)

    @cached_property
    def states(self) -> tuple[tuple[Load | None, ...], ...]:
        """The ways to draft at the map's loads [draftings][works]."""
        return tuple(
            tuple(self.axis.states(c, self.loads, self.slo) if c else None for c in line) for line in self.curves
        )

    @cached_property
    def speedup(self) -> FloatArray:
        """Speed-up [draftings, works, loads] as the module says; NaN where nothing fits."""
        shape = (len(self.draftings), len(self.works), len(self.loads))
        found = np.full(shape, np.nan)
        for i, line in enumerate(self.states):
            for j, state in enumerate(line):
                if state is not None:
                    found[i, j] = speed_ratio(state, self.plain_states[j])
        return found

    @cached_property
    def throughput(self) -> FloatArray:
        """Requests per second with over without [draftings, works, loads]."""
        return self._ratio("requests_per_s")

    @cached_property
    def goodput(self) -> FloatArray:
        """Requests per second that meet the objectives, with over without [draftings, works, loads]; infinite where only
        speculation meets them, NaN where neither does."""
        return self._ratio("goodput_per_s")

    @cached_property
    def carried(self) -> NDArray[np.bool_]:
        """Whether the load finds room with speculation [draftings, works, loads]."""
        shape = (len(self.draftings), len(self.works), len(self.loads))
        found = np.zeros(shape, dtype=bool)
        for i, line in enumerate(self.states):
            for j, state in enumerate(line):
                if state is not None:
                    found[i, j] = state.carried
        return found

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """Way to draft with the highest speed-up [works, loads]; −1 where none pays."""
        speed = np.where(np.isnan(self.speedup), 0.0, self.speedup)
        best = speed.argmax(axis=0)
        return np.where(speed.max(axis=0) > LEAST_GAIN, best, -1)

    def _ratio(self, field: str) -> FloatArray:
        found = np.full((len(self.draftings), len(self.works), len(self.loads)), np.nan)
        for i, line in enumerate(self.states):
            for j, state in enumerate(line):
                if state is not None:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        found[i, j] = getattr(state, field) / getattr(self.plain_states[j], field)
        return found

    def crossing(self, drafting: int, work: int, measure: Measure = "speed") -> Crossing:
        """The last load at which the drafting pays. Between loads of the map the curves are evaluated, not interpolated; where
        one wavers (tile edges), it pays as far as it does at most of the loads around (`WAVERING`)."""
        key = (drafting, work, measure)
        if key not in self._crossings:
            self._crossings[key] = self._search(drafting, work, measure)
        return self._crossings[key]

    @cached_property
    def _crossings(self) -> dict[tuple[int, int, str], Crossing]:
        return {}

    def _search(self, drafting: int, work: int, measure: Measure) -> Crossing:
        of, fine = self.curves[drafting][work], self.axis.fine
        if of is None:
            return Crossing(0.0, 0.0, 0.0)
        with_, without = (self.axis.states(c, fine, self.slo) for c in (of, self.plain[work]))
        if measure == "speed":
            ratio = speed_ratio(with_, without)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = with_.goodput_per_s / without.goodput_per_s
            # Where both serve all there is, more cannot be had: speculation pays as long as it loses nothing.
            ratio = np.where(ratio > 2.0 - LEAST_GAIN, np.maximum(ratio, LEAST_GAIN * (1.0 + 1e-9)), ratio)
        sd = np.interp(fine, self.loads, np.nan_to_num(self.log_sd[drafting, work]))
        factor = interval_factor(sd)
        return Crossing(*(last_paying_load(fine, ratio * f) for f in (1.0, 1.0 / factor, factor)))

    def last_paying(self, work: int, measure: Measure = "speed") -> float | None:
        """The largest load at which any way to draft pays; None where one pays up to the map's end."""
        ends = [self.crossing(i, work, measure).load for i in range(len(self.draftings))]
        return None if any(end is None for end in ends) else max(end for end in ends if end is not None)


def speed_ratio(with_: Load, without: Load) -> FloatArray:
    """TPOT without over with speculation [loads], or requests per second with over without where a load is not carried."""
    carried = with_.carried & without.carried
    return np.where(carried, without.tpot_s / with_.tpot_s, with_.requests_per_s / without.requests_per_s)


def last_paying_load(loads: FloatArray, ratio: FloatArray) -> float | None:
    """The last of `loads` at which `ratio` pays, single ones aside (`WAVERING`); 0 where none does, None where all do to the end."""
    pays = ratio > LEAST_GAIN
    at, end = np.arange(len(loads)), len(loads) - 1
    beside = np.searchsorted(loads, loads * (1.0 + WAVERING), side="right") - 1 - at
    beside = np.minimum(beside, np.minimum(at, end - at))  # as many on either side: one crossing stays where it is
    before = np.concatenate([[0], np.cumsum(pays)])
    mostly = np.flatnonzero(2 * (before[at + beside + 1] - before[at - beside]) > 2 * beside + 1)
    if not len(mostly):
        return 0.0
    last = int(np.flatnonzero(pays[: mostly[-1] + 1])[-1])
    return None if last == end else float(loads[last])


def chains(deployment: Deployment, law: Acceptance, gammas: Sequence[int]) -> tuple[Drafting, ...]:
    """One drafting per γ > 0 of `gammas`, rising. Raises InputError."""
    drafter = deployment.drafter
    if drafter is None:
        raise InputError("draft", "(absent)", "be given")
    for gamma in gammas:
        if not 0 <= gamma <= MAX_GAMMA:
            raise InputError("gamma", gamma, f"be between 0 and {MAX_GAMMA}")
    chosen = sorted({g for g in gammas if g})
    if not chosen:
        raise InputError("gamma", list(gammas), "name at least one number of drafts above 0")
    return tuple(Drafting(f"γ = {g}", drafter.shape(g), law) for g in chosen)


def load_map(
    deployment: Deployment,
    draftings: Sequence[Drafting],
    works: Sequence[Work],
    axis: LoadAxis,
    *,
    slo: Slo | None = None,
    intervals: bool = True,
) -> LoadMap:
    """The map of `draftings` × `works` × loads. `intervals`: with 90 % intervals, some six maps more.

    Raises InputError for works of one output token or contexts beyond the model's, DoesNotFit where not even plain decoding
    fits, or no way to draft does.
    """
    _check(deployment, draftings, works)
    plain, curves = _curves(deployment, draftings, works)
    if not any(c for line in curves for c in line):
        deployment.fit(gamma=min(d.shape.nodes for d in draftings))  # says what is missing
        raise DoesNotFit("the KV cache has no room for one sequence beside the drafter")
    objectives = slo or Slo()
    shape = (len(draftings), len(works), len(axis.values))
    variance = np.zeros(shape)
    found = LoadMap(
        deployment, axis, objectives, tuple(draftings), tuple(works), plain, curves, np.zeros(shape)
    )  # fmt: skip
    if intervals:
        for source, log_sd in spreads(deployment).items():
            moved = slowed(deployment, source, log_sd)
            other = LoadMap(
                moved, axis, Slo(), tuple(draftings), tuple(works), *_curves(moved, draftings, works), np.zeros(shape)
            )  # fmt: skip
            variance += np.log(other.speedup / found.speedup) ** 2
    return LoadMap(
        deployment, axis, objectives, tuple(draftings), tuple(works), plain, curves, np.sqrt(variance)
    )  # fmt: skip


def _curves(
    deployment: Deployment, draftings: Sequence[Drafting], works: Sequence[Work]
) -> tuple[tuple[Curve, ...], tuple[tuple[Curve | None, ...], ...]]:
    settings = deployment.engine.settings
    widest = max((max([d.shape.depth, d.shape.nodes, *d.shape.pass_tokens]) for d in draftings), default=0) + 1
    most = settings.max_batched_tokens + settings.max_sequences * widest
    tables = DeploymentTables(deployment, most)
    without = DeploymentTables(deployment.plain(), settings.max_batched_tokens)
    if settings.graph_sizes_of == "tokens":  # the target's passes are the same with a drafter and without
        without.share(tables)
    plain = tuple(curve(without, PLAIN_DECODING, work) for work in works)
    return plain, tuple(tuple(_fitting(tables, drafting, work) for work in works) for drafting in draftings)


def _fitting(tables: DeploymentTables, drafting: Drafting, work: Work) -> Curve | None:
    try:
        return curve(tables, drafting, work)
    except DoesNotFit:
        return None


def _check(deployment: Deployment, draftings: Sequence[Drafting], works: Sequence[Work]) -> None:
    if not draftings or not works:
        raise InputError("map", "(empty)", "have at least one way to draft and one context")
    limit = deployment.target.decoder.max_context_tokens
    most = max(d.shape.nodes for d in draftings)
    for work in works:
        if work.output_tokens < 2.0:
            raise InputError("output", work.output_tokens, "be at least 2 tokens: a first one has no time per token")
        longest = work.prompt_tokens + work.output_tokens
        if limit is not None and longest + most > limit:
            rule = f"leave room for prompt, answer and a round in the model's context of {limit}"
            raise InputError("context", round(work.context_tokens), rule)


def trees(deployment: Deployment, law: Acceptance, nodes: Sequence[int], depth: int) -> tuple[Drafting, ...]:
    """The best tree of each number of `nodes` and at most `depth` levels, for the mean rates. Raises InputError."""
    from simulator.speculation.tree_config import TreeConfig

    drafter = deployment.drafter
    if drafter is None:
        raise InputError("draft", "(absent)", "be given")
    passes = {"medusa": 1}.get(drafter.kind, 0 if drafter.looks_up else None)
    found = []
    for n in sorted(set(nodes)):
        tree = TreeConfig(nodes=n, depth=min(n, depth)).resolve(law, passes=passes)
        found.append(Drafting(f"tree of {n}", tree.shape, tree.law))
    return tuple(found)


def default_rates(deployment: Deployment, works: Sequence[Work], points: int = 12) -> tuple[float, ...]:
    """Rates from a fiftieth of what plain decoding carries of the lightest of `works` to a fifth beyond it, in equal ratios, two
    digits each."""
    tables = DeploymentTables(deployment.plain(), deployment.engine.settings.max_batched_tokens)
    top = max(float(curve(tables, PLAIN_DECODING, work).requests_per_s.max()) for work in works)
    return tuple(float(f"{rate:.2g}") for rate in np.geomspace(top / 50.0, 1.2 * top, points))
