"""Rounds drawn from a law, for answers of given lengths, as the serving loop would draw them.

Draws are ``randomness.uniform(seed, request, position, word)``: the fate of a request depends on nothing but itself, and two
laws drawn with one seed have the same luck, so that their difference is not noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from simulator.randomness import uniform
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.ladder.rounds import FloatArray, IntArray, Rounds
from simulator.speculation.stretches import STRETCH_BEGINS, STRETCH_STATE


def sampled_rounds(law: Acceptance, gamma: int, answer_tokens: ArrayLike, seed: int) -> Rounds:
    """Rounds of one request for each of `answer_tokens` [requests], γ drafts each; the last is cut off where its answer ends."""
    tokens = np.asarray(answer_tokens, dtype=np.int64)
    if isinstance(law, RecordedAcceptance):
        return _replayed(law, gamma, tokens)
    rates, row_of = law.stretch_rates(seed, len(tokens), gamma, answer_tokens=tokens)
    return drawn_rounds(
        rates, row_of, tokens, seed, law.stretch_weights, law.stretch_proposes, law.stretch_tokens, law.match_probability
    )  # fmt: skip


def drawn_rounds(
    rates: FloatArray, row_of: IntArray, answer_tokens: IntArray, seed: int, weights: FloatArray, proposes: Any,
    stretch_tokens: FloatArray, match_probability: float,
) -> Rounds:  # fmt: skip
    """Rounds under `rates` by row, state and depth [rows, S, γ]; the others are what `Acceptance` calls so."""
    total = int(answer_tokens.sum())
    yielded, drafted = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    first = np.empty(len(answer_tokens) + 1, dtype=np.int64)
    found = match_probability if proposes.all() else 1.0
    count = _compiled()(
        seed, answer_tokens, np.ascontiguousarray(rates), row_of, np.cumsum(weights), proposes,
        1.0 / stretch_tokens, found,
        yielded, drafted, first,
    )  # fmt: skip
    return Rounds(yielded[:count], drafted[:count], first)


@cache
def _compiled() -> Callable[..., int]:
    # Here, not at the top: numba takes a second to load. No cache on disk: numba's would not notice a changed `uniform`.
    import numba

    compiled: Any = numba.njit
    luck: Any = compiled(uniform)

    def draw(
        seed: int, answers: Any, rates: Any, row_of: Any, reach: Any, proposes: Any, begins: Any, found: float, yielded: Any,
        drafted: Any, first: Any,
    ) -> int:  # fmt: skip
        gamma, states, count = rates.shape[2], rates.shape[1], 0
        for request in range(len(answers)):
            first[request] = count
            own, position, looked, state = rates[row_of[request]], 0, 0, 0
            while position < answers[request]:
                while states > 1 and looked <= position:
                    if looked == 0 or luck(seed, request, looked, STRETCH_BEGINS) < begins[state]:
                        drawn, state = luck(seed, request, looked, STRETCH_STATE), 0
                        while state < states - 1 and drawn >= reach[state]:
                            state += 1
                    looked += 1
                drafts = gamma if proposes[state] else 0
                if found < 1.0 and luck(seed, request, position, 0) >= found:
                    drafts = 0
                kept = 0
                while kept < drafts and luck(seed, request, position, kept + 1) < own[state, kept]:
                    kept += 1
                yielded[count] = min(kept + 1, answers[request] - position)
                drafted[count] = drafts
                position += kept + 1
                count += 1
        first[len(answers)] = count
        return count

    kernel: Callable[..., int] = compiled(draw)
    return kernel


def _replayed(law: RecordedAcceptance, gamma: int, answer_tokens: IntArray) -> Rounds:
    """Request r repeats recorded request r modulo their number, from its first round again when they are used up."""
    recorded = Rounds.of(law.recording, gamma)
    parts_tokens, parts_drafted, steps = [], [], []
    for request, answer in enumerate(answer_tokens):
        row = request % len(recorded)
        part = slice(recorded.first[row], recorded.first[row + 1])
        times = int(-(-answer // recorded.tokens[part].sum()))
        tokens = np.tile(recorded.tokens[part], times)
        reached = np.cumsum(tokens)
        last = int(np.searchsorted(reached, answer))
        tokens = tokens[: last + 1].copy()
        tokens[last] -= reached[last] - answer
        parts_tokens.append(tokens)
        parts_drafted.append(np.tile(recorded.drafted[part], times)[: last + 1])
        steps.append(last + 1)
    first = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    return Rounds(np.concatenate(parts_tokens), np.concatenate(parts_drafted), first)
