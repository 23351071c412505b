"""When does speculation stop paying? Speed-up over batch and γ in closed form, and the batch at which it crosses 1."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import budget
from simulator.speculation.acceptance import MAX_GAMMA, Acceptance
from simulator.speculation.round import Ask, RoundCost, expected, round_costs, with_work
from simulator.uncertainty import Interval, intervals

LARGEST_BATCH = 1 << 16
"""Where the search for a crossover gives up: more sequences than any engine batches."""
_HALVINGS = 3
"""Steps of bisection whose every outcome is priced at once: a few dozen batches take little longer than one."""

Pair = tuple[int, int]
"""γ and batch."""


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

        pairs = [(gamma, batch) for batch, gamma in chosen.items()]

        def speedups(deployment: Deployment) -> dict[str, float]:
            known = deployment is self.deployment
            rounds = {pair: self.cells[pair] for pair in pairs} if known else self._rounds.cells(pairs, deployment)
            return {str(batch): rounds[gamma, batch].speedup for gamma, batch in pairs}

        found = intervals(self.deployment, speedups)
        return {batch: found[str(batch)] for batch in self.batches}

    def at_each_batch(self, gamma: int | None = None) -> list[Cell]:
        """The cells of one γ (left out: of `shown_gamma`) at rising batches, with the work of their rounds (bytes, FLOP), which is
        computed for all of them at once."""
        return with_their_work([self.cells[gamma or self.shown_gamma(batch), batch] for batch in self.batches])

    def shown_gamma(self, batch: int) -> int:
        """The best γ at `batch`, or where none pays the one that loses least."""
        return self.best_gamma(batch) or max(self.gammas, key=lambda g: (self.cells[g, batch].speedup, -g))

    def crossover(self, gamma: int) -> int | None:
        """The largest batch at which γ still pays (0: never); None when it pays as far as the search goes.

        Bisection between neighbouring batches of the grid and beyond it; where the curve wavers around 1 (tile edges)
        it is the last crossing found. The first call searches for all γ of the grid.
        """
        return self._crossovers[gamma]

    @cached_property
    def _crossovers(self) -> dict[int, int | None]:
        """Of every γ; their searches go on together, so that each step of all of them is priced at once."""
        found: dict[int, int | None] = {}
        searches = {gamma: self._search(gamma) for gamma in self.gammas}
        answers: dict[int, Mapping[int, bool] | None] = dict.fromkeys(searches)
        while searches:
            wanted: list[Pair] = []
            for gamma, search in list(searches.items()):
                try:
                    answer = answers[gamma]
                    batches = next(search) if answer is None else search.send(answer)
                    wanted += [(gamma, batch) for batch in batches]
                except StopIteration as end:
                    found[gamma] = end.value
                    del searches[gamma]
            cells = self._rounds.cells(wanted)
            answers = {g: {b: cells[g, b].speedup > 1.0 for of, b in wanted if of == g} for g in searches}
        return found

    @cached_property
    def _rounds(self) -> _Rounds:
        return _Rounds(self.deployment, self.acceptance, self.context_tokens)

    def _search(self, gamma: int) -> Generator[list[int], Mapping[int, bool], int | None]:
        """Yields batches, is told which of them pay, and returns `crossover`."""
        paying = [b for b in self.batches if self.cells[gamma, b].speedup > 1.0]
        low = max(paying, default=0)
        if low == 0:
            if self.batches[0] == 1 or not (yield [1])[1]:
                return 0
            low = 1
        high = next((b for b in self.batches if b > low), None)
        if high is None:
            doubled: list[int] = []
            while low << len(doubled) < LARGEST_BATCH:
                doubled.append(2 * low << len(doubled))
            pays = yield doubled
            high = next((batch for batch in doubled if not pays[batch]), None)
            if high is None:
                return None
            low = high // 2
        while high - low > 1:
            pays = yield _middles(low, high, _HALVINGS)
            while high - low > 1 and (middle := (low + high) // 2) in pays:
                low, high = (middle, high) if pays[middle] else (low, middle)
        return low

    def room(self, gamma: int) -> int:
        """Sequences of this context that the KV cache holds beside the drafter, with slots for `gamma` drafts of each."""
        return self._rounds.room_of(gamma) // (self.context_tokens + gamma + 1)

    def pays_up_to(self, gamma: int) -> int:
        """`crossover` as far as the KV cache goes: the largest batch that fits and at which γ still pays (0: none)."""
        end, room = self.crossover(gamma), self.room(gamma)
        return room if end is None else min(end, room)

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
    pairs = [(g, b) for g in gammas for b in batches]
    cells = _Rounds(deployment, acceptance, context_tokens).cells(pairs)
    return SpeculateResult(deployment, acceptance, context_tokens, gammas, batches, cells)


def with_their_work(cells: Sequence[Cell]) -> list[Cell]:
    """`cells` of one deployment, the work of their rounds (bytes, FLOP) computed for all of them at once."""
    done = with_work([*(cell.round for cell in cells), *(cell.plain for cell in cells)])
    return [
        Cell(round_, plain, cell.fits)
        for cell, round_, plain in zip(cells, done[: len(cells)], done[len(cells) :], strict=True)
    ]


class _Rounds:
    """Prices many rounds of a deployment at once, and of others that differ from it in their times only."""

    def __init__(self, deployment: Deployment, acceptance: Acceptance, context_tokens: int):
        self.deployment, self.acceptance, self.context_tokens = deployment, acceptance, context_tokens
        self._asked: dict[int, Ask] = {}
        self._room: dict[int, int] = {}

    def cells(self, pairs: Sequence[Pair], deployment: Deployment | None = None) -> dict[Pair, Cell]:
        """Each of `pairs`, on `deployment` (left out: the one it was made for)."""
        on, batches = deployment or self.deployment, sorted({batch for _, batch in pairs})
        asks = [self._ask(gamma)._replace(sequences=batch) for gamma, batch in pairs]
        plain = [Ask(batch, self.context_tokens, drafter=False) for batch in batches]
        costs = round_costs(on.target, on.engine, [*plain, *asks], draft=on.draft, drafter=on.drafter)
        plain_costs = dict(zip(batches, costs, strict=False))
        return {
            (gamma, batch): Cell(
                cost, plain_costs[batch], batch * (self.context_tokens + gamma + 1) <= self.room_of(gamma)
            )
            for (gamma, batch), cost in zip(pairs, costs[len(batches) :], strict=True)
        }

    def _ask(self, gamma: int) -> Ask:
        if gamma not in self._asked:
            drafter = self.deployment.drafter
            assert drafter is not None
            shape = drafter.shape(gamma)
            self._asked[gamma] = Ask(1, self.context_tokens, shape, *expected(self.acceptance, shape.depth))
        return self._asked[gamma]

    def room_of(self, gamma: int) -> int:
        """Tokens that the KV cache holds beside the drafter."""
        if gamma not in self._room:
            of = self.deployment
            self._room[gamma] = budget(of.target, of.engine, of.draft, gamma).kv_tokens
        return self._room[gamma]


def _middles(low: int, high: int, levels: int) -> list[int]:
    """Batches that the next `levels` steps of a bisection may ask for, whichever way they go."""
    if levels == 0 or high - low <= 1:
        return []
    middle = (low + high) // 2
    return [middle, *_middles(low, middle, levels - 1), *_middles(middle, high, levels - 1)]
