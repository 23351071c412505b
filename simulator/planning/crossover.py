"""When does speculation stop paying? Speed-up over batch and γ in closed form, and the batch at which it crosses 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import budget
from simulator.speculation.acceptance import MAX_GAMMA, Acceptance
from simulator.speculation.round import RoundCost, round_cost
from simulator.uncertainty import Interval, intervals

LARGEST_BATCH = 1 << 16
"""Where the search for a crossover gives up: more sequences than any engine batches."""


@dataclass(frozen=True)
class Cell:
    """One batch and γ."""

    round: RoundCost
    plain: RoundCost
    fits: bool
    """Whether the KV cache of so many sequences fits beside the drafter."""

    @property
    def speedup(self) -> float:
        """Tokens per second with speculation over without, τ·T(B,1) / T_round, a ratio of means."""
        return self.plain.tpot_s / self.round.tpot_s

    @property
    def verify_ratio(self) -> float:
        """Verifying γ + 1 tokens over decoding one."""
        return self.round.verify_s / self.plain.verify_s


@dataclass(frozen=True)
class SpeculateResult:
    """Speed-up over the grid of batches and γ at one context length."""

    deployment: Deployment
    acceptance: Acceptance
    context_tokens: int
    gammas: tuple[int, ...]
    batches: tuple[int, ...]
    cells: dict[tuple[int, int], Cell]
    """By (γ, batch)."""

    def best_gamma(self, batch: int) -> int:
        """The γ with the highest speed-up at `batch`; 0 where none beats plain decoding."""
        best = max(self.gammas, key=lambda g: (self.cells[g, batch].speedup, -g))
        return best if self.cells[best, batch].speedup > 1.0 else 0

    @cached_property
    def intervals(self) -> dict[int, Interval]:
        """Where the speed-up of the best γ (or of the one that loses least) lies with 90 %, by batch. What drafter and target
        have in common cancels; acceptance is taken as given."""
        chosen = {batch: self.shown_gamma(batch) for batch in self.batches}

        def speedups(deployment: Deployment) -> dict[str, float]:
            cells = {
                b: _cell(deployment, self.acceptance, self.context_tokens, gamma, b) for b, gamma in chosen.items()
            }
            return {str(batch): cell.speedup for batch, cell in cells.items()}

        found = intervals(self.deployment, speedups)
        return {batch: found[str(batch)] for batch in self.batches}

    def shown_gamma(self, batch: int) -> int:
        """The best γ at `batch`, or where none pays the one that loses least."""
        return self.best_gamma(batch) or max(self.gammas, key=lambda g: (self.cells[g, batch].speedup, -g))

    def crossover(self, gamma: int) -> int | None:
        """The largest batch at which γ still pays (0: never); None when it pays as far as the search goes.

        Bisection between neighbouring batches of the grid and beyond it; where the curve wavers around 1 (tile edges)
        it is the last crossing found.
        """
        if gamma not in self._crossovers:
            self._crossovers[gamma] = self._search(gamma)
        return self._crossovers[gamma]

    @cached_property
    def _crossovers(self) -> dict[int, int | None]:
        # A search prices batches of tens of thousands; a report asks for each several times.
        return {}

    def _search(self, gamma: int) -> int | None:
        def pays(batch: int) -> bool:
            return _cell(self.deployment, self.acceptance, self.context_tokens, gamma, batch).speedup > 1.0

        paying = [b for b in self.batches if self.cells[gamma, b].speedup > 1.0]
        low = max(paying, default=0)
        if low == 0:
            if self.batches[0] == 1 or not pays(1):
                return 0
            low = 1
        high = next((b for b in self.batches if b > low), None)
        while high is None:
            if low >= LARGEST_BATCH:
                return None
            if pays(2 * low):
                low *= 2
            else:
                high = 2 * low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if pays(middle) else (low, middle)
        return low

    @cached_property
    def last_paying_batch(self) -> int | None:
        """The largest batch at which any γ of the grid pays; None when one pays as far as the search goes."""
        ends = [self.crossover(gamma) for gamma in self.gammas]
        return None if any(end is None for end in ends) else max(end for end in ends if end is not None)


def speculate(
    deployment: Deployment,
    acceptance: Acceptance,
    *,
    gammas: Sequence[int],
    batches: Sequence[int],
    context_tokens: int = 1024,
) -> SpeculateResult:
    """Speed-up of every γ at every batch. Raises InputError for empty, repeated or impossible grids, DoesNotFit when not
    even one sequence fits."""
    for name, values, least, most in (("gamma", gammas, 1, MAX_GAMMA), ("batch", batches, 1, LARGEST_BATCH)):
        if not values:
            raise InputError(name, "(empty)", "name at least one value")
        for value in values:
            if not least <= value <= most:
                raise InputError(name, value, f"be between {least} and {most}")
    limit = deployment.target.decoder.max_context_tokens
    if context_tokens < 1 or (limit is not None and context_tokens + max(gammas) + 1 > limit):
        raise InputError(
            "context", context_tokens, f"be at least 1 and leave room for a round in the context of {limit}"
        )
    if deployment.drafter is None:
        raise InputError("draft", "(absent)", "be given")
    deployment.fit(context_tokens=context_tokens, sequences=1, gamma=min(gammas))
    gammas, batches = tuple(sorted(set(gammas))), tuple(sorted(set(batches)))
    plain = {b: _plain(deployment, context_tokens, b) for b in batches}
    cells = {(g, b): _cell(deployment, acceptance, context_tokens, g, b, plain[b]) for g in gammas for b in batches}
    return SpeculateResult(deployment, acceptance, context_tokens, gammas, batches, cells)


def _plain(deployment: Deployment, context_tokens: int, batch: int) -> RoundCost:
    return round_cost(deployment.target, deployment.engine, sequences=batch, context_tokens=context_tokens)


def _cell(
    deployment: Deployment,
    acceptance: Acceptance,
    context_tokens: int,
    gamma: int,
    batch: int,
    plain: RoundCost | None = None,
) -> Cell:
    target, engine = deployment.target, deployment.engine
    cost = round_cost(
        target, engine, sequences=batch, context_tokens=context_tokens, gamma=gamma, acceptance=acceptance,
        draft=deployment.draft, drafter=deployment.drafter,
    )  # fmt: skip
    room = budget(deployment.target, deployment.engine, deployment.draft, gamma).kv_tokens
    return Cell(cost, plain or _plain(deployment, context_tokens, batch), batch * (context_tokens + gamma + 1) <= room)
