"""Conversations: a first question, then others that each begin with everything said so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.randomness import STREAM_THINK_TIME, STREAM_TURNS, uniform_array
from simulator.records import Record
from simulator.serving.lengths import Distribution, FloatArray, IntArray, whole
from simulator.serving.quantities import ThinkTime


class Conversation(Record):
    """How a conversation goes on; lengths of its class are those of one turn's new text and of its answer."""

    turns: Distribution
    """Requests of one conversation, at least 1; a distribution as for lengths, or a whole number."""
    think_time_s: ThinkTime
    """Mean of the exponential time between an answer's end and the next turn, s; text such as "30 s" too."""

    def draw_turns(self, seed: int, identity: IntArray) -> IntArray:
        """Turns of the conversations with these counters."""
        return whole(self.turns.quantile(uniform_array(seed, identity, STREAM_TURNS, 0)))


@dataclass(frozen=True)
class Turns:
    """Conversations laid out turn by turn: all turns of the first, then all of the second, and so on."""

    start: IntArray
    """[conversations] index of the first turn."""
    conversation: IntArray
    """[turns] whose it is."""
    number: IntArray
    """[turns] 0 for the first of its conversation."""

    @classmethod
    def of(cls, counts: IntArray) -> Turns:
        """`counts` turns, each at least 1."""
        start = np.cumsum(counts) - counts
        conversation = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return cls(start, conversation, np.arange(len(conversation), dtype=np.int64) - start[conversation])

    def history_tokens(self, new_tokens: IntArray) -> IntArray:
        """[turns] sum of `new_tokens` (question and answer) over the earlier turns of the same conversation."""
        before = np.cumsum(new_tokens) - new_tokens
        return before - before[self.start][self.conversation]

    def think_s(self, seed: int, identity: IntArray, mean_s: FloatArray) -> FloatArray:
        """[turns] exponential think times, 0 before first turns; `identity` and `mean_s` are per turn."""
        think_s = -mean_s * np.log1p(-uniform_array(seed, identity, STREAM_THINK_TIME, self.number))
        think_s[self.start] = 0.0
        return think_s
