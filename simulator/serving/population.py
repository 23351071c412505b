"""Who asks and what: arrivals in, requests with class, lengths, turns and shared prefixes out.

Everything drawn belongs to an arrival's counter (its *identity*) and the number of the turn, so a conversation is the
same whatever the others are like, however many there are and in whatever pieces they are built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from simulator.randomness import STREAM_CLASS, STREAM_OUTPUT_TOKENS, STREAM_PROMPT_TOKENS, uniform_array
from simulator.serving.classes import EVERYTHING, Content
from simulator.serving.lengths import ABSURD_TOKENS, FloatArray, IntArray
from simulator.serving.prefixes import SharedPrefixes, cumulative_shares, pick
from simulator.serving.requests import Requests
from simulator.serving.sessions import Turns


class Arrivals(Protocol):
    """A stream of arrivals, read from its beginning."""

    def look(self, first: int, count: int) -> tuple[IntArray, IntArray | None]:
        """Counters of the arrivals `first` to `first + count`, and their classes where the stream decides them."""

    def times(self, first: int, count: int) -> FloatArray:
        """Times of the next `count` arrivals, s; fewer where the stream ends."""


@dataclass(frozen=True)
class Population:
    """Classes of requests and the luck of each request."""

    contents: tuple[Content, ...]
    """One per class."""
    seed: int
    """Seed of all draws."""
    shares: tuple[float, ...] = ()
    """Share of the arrivals per class; empty where the arrivals know their class."""
    source: str = ""
    """What `Requests.source` says."""
    stretch: tuple[FloatArray, FloatArray] | None = None
    """Factors of prompt and output lengths by client, the upper half of an identity."""
    by_client: bool = False
    """Whether system prompts belong to clients, not to conversations."""
    _system: tuple[IntArray, IntArray] = field(init=False)
    """Number of each class's first system prompt, one more for the end; tokens of every system prompt."""

    def __post_init__(self) -> None:
        counts = [content.system_prompt.count if content.system_prompt else 0 for content in self.contents]
        first = np.cumsum([0, *counts])
        tokens = [
            content.system_prompt.draw_tokens(self.seed, int(begin))
            for content, begin in zip(self.contents, first, strict=False)
            if content.system_prompt
        ]
        object.__setattr__(self, "_system", (first, np.concatenate(tokens) if tokens else np.zeros(0, np.int64)))

    @property
    def talks(self) -> bool:
        """Whether any class has conversations."""
        return any(content.conversation for content in self.contents)

    def classes(self, identity: IntArray) -> IntArray | None:
        """The class of each arrival; None where there is one."""
        if len(self.shares) < 2:
            return None
        return pick(cumulative_shares(np.array(self.shares)), uniform_array(self.seed, identity, STREAM_CLASS, 0))

    def turn_counts(self, identity: IntArray, class_of: IntArray | None) -> IntArray | None:
        """Turns of each arrival's conversation; None where every one is a single request."""
        if not self.talks:
            return None
        turns = np.ones(len(identity), dtype=np.int64)
        for content, mine in self._by_class(class_of, len(identity)):
            if content.conversation:
                turns[mine] = content.conversation.draw_turns(self.seed, identity[mine])
        return turns

    def build(
        self,
        identity: IntArray,
        class_of: IntArray | None,
        counts: IntArray | None,
        arrival_s: FloatArray,
        first_arrival: int,
        first_request: int,
    ) -> Requests:
        """The requests of these arrivals; `counts` are their turns, the two firsts number the first of each."""
        starts, groups = arrival_s, self._groups(identity, class_of)
        think_s = follows = session = number = None
        if counts is not None:
            turns = Turns.of(counts)
            number, owner = turns.number, turns.conversation
            identity, class_of = identity[owner], None if class_of is None else class_of[owner]
            groups = None if groups is None else groups[owner]
            think_s = turns.think_s(self.seed, identity, self._mean_think_s(class_of, len(identity)))
            starts = np.where(number == 0, arrival_s[owner], np.nan)
            index = first_request + np.arange(len(owner), dtype=np.int64)
            follows = np.where(number == 0, -1, index - 1)
            session = first_arrival + owner
        own_prompt, output = self._lengths(identity, class_of, 0 if number is None else number)
        prompt, shared = own_prompt, None
        if groups is not None:
            system, shared = self._system_prompts(groups)
            prompt = prompt + system
        if counts is not None:
            prompt = prompt + turns.history_tokens(own_prompt + output)
        n = len(prompt)
        return Requests(
            starts, prompt, output, first_request + np.arange(n, dtype=np.int64), think_s, 0, n, {}, self.source,
            class_of, tuple(c.request_class for c in self.contents) if self._named else EVERYTHING,
            follows, session, shared,
        )  # fmt: skip

    @property
    def _named(self) -> bool:
        return len(self.contents) > 1 or self.contents[0].request_class != EVERYTHING[0]

    def _by_class(self, class_of: IntArray | None, n: int) -> list[tuple[Content, slice | IntArray]]:
        if class_of is None:
            return [(self.contents[0], slice(0, n))]
        return [(content, np.flatnonzero(class_of == number)) for number, content in enumerate(self.contents)]

    def _lengths(
        self, identity: IntArray, class_of: IntArray | None, turn: IntArray | int
    ) -> tuple[IntArray, IntArray]:
        u_prompt = uniform_array(self.seed, identity, STREAM_PROMPT_TOKENS, turn)
        u_output = uniform_array(self.seed, identity, STREAM_OUTPUT_TOKENS, turn)
        if class_of is None:
            prompt, output = self.contents[0].lengths.draw(u_prompt, u_output)
        else:
            prompt, output = np.empty(len(identity), np.int64), np.empty(len(identity), np.int64)
            for content, mine in self._by_class(class_of, len(identity)):
                prompt[mine], output[mine] = content.lengths.draw(u_prompt[mine], u_output[mine])
        if self.stretch is not None:
            client = (identity >> 32) - 1
            prompt, output = (
                _times(n, factor[client]) for n, factor in zip((prompt, output), self.stretch, strict=True)
            )
        return prompt, output

    def _mean_think_s(self, class_of: IntArray | None, n: int) -> FloatArray:
        means_s = np.array([c.conversation.think_time_s if c.conversation else 0.0 for c in self.contents])
        return np.full(n, means_s[0]) if class_of is None else means_s[class_of]

    def _groups(self, identity: IntArray, class_of: IntArray | None) -> IntArray | None:
        """[arrivals] number of the system prompt, -1 for none; None where no class has any."""
        first, tokens = self._system
        if not len(tokens):
            return None
        owner = identity >> 32 if self.by_client else identity
        groups = np.full(len(identity), -1, dtype=np.int64)
        for number, (content, mine) in enumerate(self._by_class(class_of, len(identity))):
            if content.system_prompt:
                groups[mine] = first[number] + content.system_prompt.draw_groups(self.seed, owner[mine])
        return groups

    def _system_prompts(self, groups: IntArray) -> tuple[IntArray, SharedPrefixes]:
        has = groups >= 0
        system = np.zeros(len(groups), dtype=np.int64)
        system[has] = self._system[1][groups[has]]
        first_piece = np.concatenate((np.zeros(1, np.int64), np.cumsum(has, dtype=np.int64)))
        return system, SharedPrefixes(first_piece, groups[has], system[has])


def _times(tokens: IntArray, factor: FloatArray) -> IntArray:
    return np.clip(np.rint(tokens * factor), 1, ABSURD_TOKENS).astype(np.int64)


def chunks(arrivals: Arrivals, population: Population, requests: int | None, size: int) -> Iterator[Requests]:
    """The first `requests` requests of the stream (None: all of them), at most `size` at once unless one conversation
    is longer; joined, they are the same whatever the size."""
    first_arrival = first_request = 0
    while requests is None or first_request < requests:
        room = size if requests is None else min(size, requests - first_request)
        identity, class_of = arrivals.look(first_arrival, room)
        class_of = population.classes(identity) if class_of is None else class_of
        counts = population.turn_counts(identity, class_of)
        if counts is not None:
            ends = np.cumsum(counts)
            taken = max(1, int(np.searchsorted(ends, room, side="right")))
            identity, counts = identity[:taken], counts[:taken]
        arrival_s = arrivals.times(first_arrival, len(identity))
        come = len(arrival_s)
        if come:
            if counts is not None and requests is not None and first_request + ends[come - 1] > requests:
                counts[come - 1] -= first_request + ends[come - 1] - requests
            chunk = population.build(
                identity[:come],
                None if class_of is None else class_of[:come],
                None if counts is None else counts[:come],
                arrival_s,
                first_arrival,
                first_request,
            )
            yield chunk
            first_arrival += come
            first_request += len(chunk)
        if come < len(identity):
            return
