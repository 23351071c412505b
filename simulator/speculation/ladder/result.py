"""A log fitted: held-out judgement where there are requests enough, and the law that a scenario can take over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulator.errors import InputError, UnknownName
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.ladder.counters import PositionCounts
from simulator.speculation.ladder.held_out import HeldOut, chosen, held_out
from simulator.speculation.ladder.rungs import (
    FITS,
    LEAST_REQUESTS,
    ConstantRate,
    RateByDepth,
    Replayed,
    Rung,
    rungs_for,
)
from simulator.speculation.recording import Recording, Replay

KEYS = tuple(kind.key for kind in FITS)
"""Names of the rungs."""
MOST_STEPS = 100_000
"""Steps that are fitted and judged; of a longer log whole requests are drawn. A fit takes time in proportion to them."""


@dataclass(frozen=True)
class LogFit:
    """What a log taught."""

    log: Recording | PositionCounts
    path: str
    chosen: Rung
    """The rung for a scenario, fitted on the whole log."""
    judged: HeldOut | None
    """None where the log only counts, or has too few requests."""
    sample: Recording | None = None
    """The requests that were fitted and judged, drawn at random, where the log is too long for all."""

    @property
    def config(self) -> AcceptanceConfig:
        """The law as a scenario has it, its source included."""
        if isinstance(self.chosen, Replayed):
            return AcceptanceConfig(replay=Replay(path=self.path))
        log = self.log
        size = f"{len(log.accepted):,} requests" if isinstance(log, Recording) else f"{log.rounds:,.0f} rounds"
        if self.sample is not None:
            size = f"{len(self.sample.accepted):,} of {size}"
        source = f"{self.path}: {self.chosen.name}, fitted on {size} of up to {log.gamma} drafts"
        return self.chosen.settings.model_copy(update={"source": source})


def fit_log(
    log: Recording | PositionCounts,
    path: str,
    *,
    folds: int = 5,
    seed: int = 0,
    rung: str | None = None,
    depths: bool = True,
    tell: Callable[[int, int], None] | None = None,
) -> LogFit:
    """`log`, read from `path`, fitted by every rung that it allows. `rung`: which one a scenario gets; left out, the lowest that
    meets the bars on held-out requests, else the one that comes nearest. `depths` and `tell` are those of `held_out`.

    Raises InputError for a rung that the log cannot fit, or for more folds than it has requests for.
    """
    if rung is not None and rung not in KEYS:
        raise UnknownName("rung", rung, KEYS, kind="rung")
    if log.gamma > MAX_GAMMA:
        raise InputError("drafts per step", log.gamma, f"be at most {MAX_GAMMA}", where=path)
    if isinstance(log, PositionCounts):
        kinds: dict[str, type[Rung]] = {kind.key: kind for kind in (ConstantRate, RateByDepth)}
        if rung is not None and rung not in kinds:
            rule = f"be {' or '.join(kinds)}: counts by position do not tell one request from another"
            raise InputError("rung", rung, rule, where=path)
        chosen = (ConstantRate if rung == ConstantRate.key else RateByDepth).of(log.conditional)
        return LogFit(log, path, chosen, None)
    kinds = {kind.key: kind for kind in rungs_for(log)}
    if rung is not None and rung not in kinds:
        rule = f"be one that this log can fit ({', '.join(kinds)})"
        raise InputError("rung", rung, rule, where=path)
    judged, sample = None, _sample(log, folds, seed)
    mine = log if sample is None else sample
    if len(log.accepted) >= 2 * LEAST_REQUESTS:
        judged = held_out(mine, folds, seed, depths=depths, tell=tell)
    best = kinds[rung] if rung is not None else judged.best.kind if judged is not None else RateByDepth
    return LogFit(log, path, FITS[best](mine), judged, sample)


def _sample(log: Recording, folds: int, seed: int) -> Recording | None:
    # Requests in random order, as many as have `MOST_STEPS` together; enough to hold some out in any case.
    steps = np.diff(log.first_round)
    if steps.sum() <= MOST_STEPS:
        return None
    order = np.random.default_rng(seed).permutation(len(steps))
    enough = int(np.searchsorted(np.cumsum(steps[order]), MOST_STEPS, side="right"))
    wanted = max(enough, LEAST_REQUESTS * max(2, folds))
    return None if wanted >= len(steps) else chosen(log, np.sort(order[:wanted]))
