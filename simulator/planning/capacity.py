"""What one replica carries: the largest rate of Poisson arrivals at which enough requests meet the objectives, in closed form.

The rates lie between `LEAST_BUSY` and `MOST_BUSY` of what a full batch serves: below, a replica stands idle, and what fails
there fails unloaded; above, queues hang on the burstiness of arrivals, of which the closed form knows only Poisson's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from simulator.cost.forward import Batch
from simulator.deployment import Deployment
from simulator.operators import FloatArray
from simulator.planning.steady_state import QUEUED, Curve, Load, open_loop
from simulator.slo import Slo

Limit = Literal["ttft", "tpot", "both", "kv", "sequences", "tokens", "saturation"]
"""What keeps a replica from more: an objective (``both``: each holds alone), or a full batch and what bounds it: KV cache
room, the engine's number of sequences, its token budget, or GPUs that serve no more with a larger batch either."""
LEAST_BUSY = 1e-3
MOST_BUSY = 0.98
_GROWTH = 1.1
"""A batch, or a step, twice as large that serves less than this many times as much stands for a saturated GPU."""
_GRIDS = (24, 24, 16)
"""Rates tried at once, each grid between two neighbours of the one before: the last two lie 0.08 % apart."""


@dataclass(frozen=True)
class Level:
    """Objectives, and the share of requests that must meet all of them."""

    slo: Slo
    share: float = 0.95

    def met(self, state: Load) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Whether the share is reached and no queue only grows [loads]."""
        good = state.goodput_per_s >= self.share * (1.0 - 1e-9) * state.requests_per_s
        return np.isfinite(state.ttft_s) & good

    def only(self, objective: Literal["ttft_s", "tpot_s", "e2e_s"]) -> Level:
        """The same without the other objectives."""
        return Level(Slo(**{objective: getattr(self.slo, objective)}), self.share)


@dataclass(frozen=True)
class Capacity:
    """Of one replica."""

    deployment: Deployment
    curve: Curve
    level: Level
    rate_per_s: float
    """Requests per second; 0 where the objectives are missed even unloaded."""

    @property
    def enough(self) -> bool:
        """Whether it serves anybody well."""
        return self.rate_per_s > 0.0

    @cached_property
    def unloaded(self) -> Load:
        """The steady state at `LEAST_BUSY`, one load."""
        return open_loop(self.curve, np.array([LEAST_BUSY * self.curve.requests_per_s[-1]]), self.level.slo)

    @cached_property
    def limit(self) -> Limit:
        """What fails just beyond `rate_per_s`."""
        curve, level = self.curve, self.level
        beyond = np.array([(self.rate_per_s or LEAST_BUSY * curve.requests_per_s[-1]) * 1.002])
        if beyond[0] >= MOST_BUSY * curve.requests_per_s[-1]:
            return _full(self.deployment, curve)
        late, slow = (
            getattr(level.slo, name) is not None and not level.only(name).met(open_loop(curve, beyond, level.only(name).slo))[0]
            for name in ("ttft_s", "tpot_s")
        )  # fmt: skip
        if slow and not late:
            return "tpot"
        if late and _reads_in_time(curve, level):  # whoever misses it has waited for a place in the batch
            return _full(self.deployment, curve)
        return "ttft" if late and not slow else "both"


def capacity(deployment: Deployment, curve: Curve, level: Level) -> Capacity:
    """The largest rate that `curve` of `deployment` carries at this `level`, to 0.1 %."""
    top = float(curve.requests_per_s[-1])
    low, high = LEAST_BUSY * top, MOST_BUSY * top
    found = 0.0
    for points in _GRIDS:
        rates = np.geomspace(low, high, points)
        good = np.flatnonzero(level.met(open_loop(curve, rates, level.slo)))
        if not len(good):
            break
        last = int(good[-1])
        found = float(rates[last])
        if last == points - 1:
            break
        low, high = found, float(rates[last + 1])
    return Capacity(deployment, curve, level, found)


def least_objective(curve: Curve, level: Level, objective: Literal["ttft_s", "tpot_s"]) -> float | None:
    """The tightest `objective` that `curve` meets unloaded, the others as they are, s; None where those fail already."""
    rates = np.array([LEAST_BUSY * curve.requests_per_s[-1]])

    def holds(limit: float | None) -> bool:
        slo = level.slo.model_copy(update={objective: limit})
        return bool(Level(slo, level.share).met(open_loop(curve, rates, slo))[0])

    if not holds(None):
        return None
    start = float(curve.tpot_s[0] if objective == "tpot_s" else curve.first_s[0] + curve.parts.seconds[0])
    low, high = 0.0, start
    while not holds(high):
        low, high = high, 2.0 * high
        if high > 1e6 * start:
            return None
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(middle) else (middle, high)
        if high - low < 1e-4 * high:
            break
    return high


def saturated_by(deployment: Deployment, curve: Curve) -> str:
    """What a step of a full batch, the prompts beside it included, spends most of its time on: a cause of
    `cost.breakdown.CAUSES`, ``host``, or ``draft``."""
    work, most, nodes = curve.work, curve.most, curve.drafting.shape.nodes
    step_s = float(curve.parts.seconds[-1])
    read = round(float(curve.requests_per_s[-1]) * step_s * work.prompt_tokens)  # prompt tokens per step
    context = max(1, round(work.context_tokens))
    parts = deployment.target.micro_batches(most)
    sequences = -(-most // parts)
    new, cached = (nodes + 1,) * sequences, (context,) * sequences
    if read // parts > 0:
        new, cached = (*new, read // parts), (*cached, 0)
    causes = dict(deployment.target.pass_cost(Batch(new, cached, sequences * (nodes + 1))).by_cause())
    causes["host"] = causes.get("host", 0.0) + float(curve.parts.host_s[-1])
    causes["draft"] = float(curve.parts.draft_s[-1])
    return max(causes, key=lambda cause: causes[cause])


def _reads_in_time(curve: Curve, level: Level) -> bool:
    """Whether a request that finds a place in the fullest batch at once meets the TTFT objective."""
    limit = level.slo.ttft_s
    needed: FloatArray = curve.first_s[-1:] + level.share * curve.parts.seconds[-1:]
    return limit is None or bool(needed[0] <= limit)


def _full(deployment: Deployment, curve: Curve) -> Limit:
    """What bounds the largest batch, where a larger one would serve more."""
    settings, served = deployment.engine.settings, curve.requests_per_s
    if float(curve.line_s[-1]) > QUEUED * float(curve.stay_s[-1]):  # prompts come faster than the budget reads them
        budget = float(settings.max_batched_tokens)
        half_s, whole_s = deployment.target.linear(np.array([0.5 * budget, budget])).tolist()
        return "saturation" if whole_s > 2.0 / _GROWTH * half_s else "tokens"
    half = (curve.most + 1) // 2
    if curve.most > 1 and float(served[-1] / served[half - 1]) < _GROWTH:
        return "saturation"
    if int(curve.room) <= curve.most:
        return "kv"
    return "sequences" if settings.max_sequences <= curve.most else "tokens"
