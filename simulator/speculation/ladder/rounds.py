"""Rounds of many requests, recorded or drawn: the tokens each yielded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.speculation.recording import Recording

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Rounds:
    """What each round of each request yielded, request after request.

    The last round of a request is taken to be cut off by the end of its answer: it kept its tokens, and whether it would have
    kept one more is not known. (Engines drop what follows the last token of an answer; where one does not, a single refusal
    per request is left out.)
    """

    tokens: IntArray
    """Tokens of each round, the target's own included [rounds]."""
    drafted: IntArray
    """Drafts that each verified; 0 where nothing was proposed [rounds]."""
    first: IntArray
    """Where each request begins, and the end of the last [requests + 1]."""

    @classmethod
    def of(cls, recording: Recording, gamma: int | None = None) -> Rounds:
        """Recorded rounds, cut at `gamma` drafts: of fewer drafts the target keeps the first ones that it kept of more."""
        drafted, accepted = np.minimum(recording.rounds, recording.gamma if gamma is None else gamma).T
        return cls(accepted + 1, np.ascontiguousarray(drafted), recording.first_round)

    @classmethod
    def joined(cls, parts: Iterable[Rounds]) -> Rounds:
        """The requests of all parts, one after the other."""
        every = list(parts)
        steps = np.concatenate([part.steps for part in every])
        return cls(
            np.concatenate([part.tokens for part in every]),
            np.concatenate([part.drafted for part in every]),
            np.concatenate([[0], np.cumsum(steps)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.first) - 1

    @cached_property
    def steps(self) -> IntArray:
        """Rounds of each request [requests]."""
        return np.diff(self.first)

    @cached_property
    def answer_tokens(self) -> IntArray:
        """Tokens of each request's answer that its rounds yielded [requests]."""
        return np.asarray(np.add.reduceat(self.tokens, self.first[:-1]))

    @cached_property
    def request_of(self) -> IntArray:
        """Number of each round's request [rounds]."""
        return np.repeat(np.arange(len(self)), self.steps)

    @cached_property
    def is_last(self) -> NDArray[np.bool_]:
        """Whether a round is its request's last [rounds]."""
        last = np.zeros(len(self.tokens), dtype=bool)
        last[self.first[1:] - 1] = True
        return last

    def chosen(self, requests: IntArray) -> Rounds:
        """These requests only, in this order."""
        rows = np.concatenate([np.arange(self.first[r], self.first[r + 1]) for r in requests])
        first = np.concatenate([[0], np.cumsum(self.steps[requests])]).astype(np.int64)
        return Rounds(self.tokens[rows], self.drafted[rows], first)
