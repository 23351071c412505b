"""Objectives that nothing meets: the nearest ones that something would."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from simulator.planning.capacity import Capacity, Level, least_objective
from simulator.slo import Slo

Objective = Literal["ttft_s", "tpot_s"]
_TRIED = 6
"""What comes nearest by means is tried exactly; luck and queues change their order little."""


@dataclass(frozen=True)
class Relaxation:
    """Objectives to ask for instead."""

    slo: Slo
    relaxed: tuple[Objective, ...]
    """Which of them are looser than what was asked for."""
    capacity: Capacity
    """What would meet them, and still misses those asked for."""

    @property
    def level(self) -> Level:
        """With the same share of requests."""
        return Level(self.slo, self.capacity.level.share)


def relaxations(missed: Iterable[Capacity]) -> tuple[Relaxation, ...]:
    """The tightest TPOT that any of `missed` meets unloaded with TTFT as it is, the tightest TTFT with TPOT as it is; where
    there is neither, both at once, by factors of which the larger one is smallest. Rounded up to three digits."""
    everything = list(missed)
    found = []
    for objective in ("tpot_s", "ttft_s"):
        if (one := _alone(everything, objective)) is not None:
            found.append(one)
    if not found and (both := _both(everything)) is not None:
        found.append(both)
    return tuple(found)


def _alone(missed: list[Capacity], objective: Objective) -> Relaxation | None:
    best: Relaxation | None = None
    for one in sorted(missed, key=lambda c: _mean(c, objective))[:_TRIED]:
        if getattr(one.level.slo, objective) is None:
            continue
        limit = least_objective(one.curve, one.level, objective)
        if limit is not None and (best is None or limit < getattr(best.slo, objective)):
            best = Relaxation(one.level.slo.model_copy(update={objective: rounded_up(limit)}), (objective,), one)
    return best


def _both(missed: list[Capacity]) -> Relaxation | None:
    best: Relaxation | None = None
    least = math.inf
    asked = [c for c in missed if c.level.slo.ttft_s is not None and c.level.slo.tpot_s is not None]
    for one in sorted(asked, key=_furthest)[:_TRIED]:
        slo = one.level.slo
        free = Level(slo.model_copy(update={"ttft_s": None}), one.level.share)
        tpot_s = least_objective(one.curve, free, "tpot_s")
        if tpot_s is None or slo.tpot_s is None or slo.ttft_s is None:
            continue
        # A little room for TPOT, or hardly any request would be left that may miss TTFT.
        tpot_s = rounded_up(max(1.02 * tpot_s, slo.tpot_s))
        given = Level(slo.model_copy(update={"tpot_s": tpot_s}), one.level.share)
        ttft_s = least_objective(one.curve, given, "ttft_s")
        if ttft_s is None:
            continue
        factor = max(tpot_s / slo.tpot_s, ttft_s / slo.ttft_s)
        if factor < least:
            least = factor
            best = Relaxation(Slo(ttft_s=rounded_up(ttft_s), tpot_s=tpot_s), ("ttft_s", "tpot_s"), one)
    return best


def _mean(one: Capacity, objective: Objective) -> float:
    return float(getattr(one.unloaded, objective)[0])


def _furthest(one: Capacity) -> float:
    slo = one.level.slo
    return max(_mean(one, "tpot_s") / (slo.tpot_s or math.inf), _mean(one, "ttft_s") / (slo.ttft_s or math.inf))


def rounded_up(value: float, digits: int = 3) -> float:
    """`value` to so many digits, never less."""
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.{digits + 3}g}")
