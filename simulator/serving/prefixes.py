"""What prompts have in common: which tokens at their beginning are the same in several requests."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from simulator.randomness import STREAM_PREFIX_GROUP, STREAM_PREFIX_TOKENS, uniform_array
from simulator.records import Record
from simulator.serving.lengths import Distribution, FloatArray, IntArray, whole

MOST_GROUPS = 10**6
"""System prompts of one class: a table of their weights is kept."""


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """Prompts as chains of pieces, in compressed sparse rows.

    Prompt i begins with pieces ``first_piece[i]`` to ``first_piece[i + 1]``, the latter not included. Two prompts that
    have the same source at the same place are equal in all tokens up to that piece's end: a source stands for its whole
    prefix, like a chained block hash. What follows a prompt's last piece is its session's own.
    """

    first_piece: IntArray
    """[n + 1] rises from 0 to m."""
    source: IntArray
    """[m] whose tokens these are, at least 0."""
    end_tokens: IntArray
    """[m] tokens of the prompt up to this piece's end, rising within a prompt, at most the prompt's length."""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def take(self, index: IntArray) -> SharedPrefixes:
        """The pieces of the prompts `index`, in that order; a prompt may be taken several times."""
        counts = self.first_piece[index + 1] - self.first_piece[index]
        first_piece = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
        piece = np.arange(first_piece[-1]) + np.repeat(self.first_piece[index] - first_piece[:-1], counts)
        return SharedPrefixes(first_piece, self.source[piece], self.end_tokens[piece])

    def common(self) -> SharedPrefixes:
        """The same without the pieces that only one prompt has: what is left is shared for certain."""
        prompts = np.bincount(self.source, minlength=1)
        keep = prompts[self.source] > 1
        kept = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)))
        return SharedPrefixes(kept[self.first_piece], self.source[keep], self.end_tokens[keep])

    @staticmethod
    def joined(parts: Sequence[SharedPrefixes]) -> SharedPrefixes:
        """The prompts of all parts, one after the other; sources keep their numbers."""
        offsets = np.cumsum([0, *(part.first_piece[-1] for part in parts)])
        starts = [part.first_piece[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        return SharedPrefixes(
            np.concatenate([*starts, offsets[-1:]]),
            np.concatenate([part.source for part in parts]),
            np.concatenate([part.end_tokens for part in parts]),
        )


def _tokens_only(value: Any) -> Any:
    # `system_prompt: 1200` is what people write first.
    return {"tokens": value} if isinstance(value, int) and not isinstance(value, bool) else value


class _SystemPrompt(Record):
    tokens: Distribution
    """Tokens of a system prompt: one number, or a distribution over the different ones."""
    groups: int = Field(default=1, ge=1, le=MOST_GROUPS)
    """How many different system prompts there are (applications, tenants). Each conversation has one of them; of named
    clients each keeps the same one."""
    zipf: float = Field(default=0.0, ge=0, le=10)
    """Popularity of the k-th is proportional to 1/k to this power, no unit; 0: all alike."""
    weights: tuple[Annotated[float, Field(ge=0, le=1e9)], ...] | None = Field(default=None, min_length=1)
    """Instead of `groups` and `zipf`: the popularity of each, relative to each other, no unit."""

    @model_validator(mode="after")
    def _one_popularity(self) -> _SystemPrompt:
        if self.weights is not None:
            if self.groups != 1 or self.zipf != 0:
                raise ValueError("have either weights or groups with zipf, not both")
            if not any(self.weights):
                raise ValueError("have a weight above 0")
        return self

    @property
    def count(self) -> int:
        """Different system prompts."""
        return self.groups if self.weights is None else len(self.weights)

    def cumulative(self) -> FloatArray:
        """[count] popularity of the first k groups, 1 at the last that has any."""
        popularity = np.arange(1.0, self.groups + 1) ** -self.zipf if self.weights is None else np.array(self.weights)
        return cumulative_shares(popularity)

    def draw_groups(self, seed: int, identity: IntArray) -> IntArray:
        """Which of the system prompts the conversations (or clients) with these counters have."""
        if self.count == 1:
            return np.zeros(len(identity), dtype=np.int64)
        return pick(self.cumulative(), uniform_array(seed, identity, STREAM_PREFIX_GROUP, 0))

    def draw_tokens(self, seed: int, first_source: int) -> IntArray:
        """[count] tokens of each system prompt; `first_source` is the number of the first."""
        source = first_source + np.arange(self.count, dtype=np.int64)
        return whole(self.tokens.quantile(uniform_array(seed, source, STREAM_PREFIX_TOKENS, 0)))


SystemPrompt = Annotated[_SystemPrompt, BeforeValidator(_tokens_only)]
"""Text that begins many prompts; a bare whole number stands for one prompt of so many tokens."""


def cumulative_shares(weights: FloatArray) -> FloatArray:
    """Running sums of `weights` as shares of their total, exactly 1 from the last positive one on."""
    shares = np.cumsum(weights) / np.sum(weights)
    shares[np.flatnonzero(weights)[-1] :] = 1.0
    return shares


def pick(cumulative: FloatArray, u: FloatArray) -> IntArray:
    """Index of the share into which each uniform number in [0, 1) falls."""
    return np.searchsorted(cumulative, u, side="right").astype(np.int64)


class Chains:
    """Lists of block ids coming in, `SharedPrefixes` going out.

    A source is a place in the tree of prefixes: the same block after the same blocks, ending at the same token. An id
    that stands for one block alone, whatever is before it, is therefore as good as an id that stands for its prefix.
    """

    def __init__(self, block_tokens: int):
        self.block_tokens = block_tokens
        self._tree: dict[tuple[int, Hashable, int], int] = {}
        self._place: dict[Hashable, int] = {}
        self._several: set[Hashable] = set()
        self._first_piece, self._source, self._end_tokens = array("q", [0]), array("q"), array("q")
        self.unreadable = 0

    def add(self, ids: Any, prompt_tokens: int) -> None:
        """One prompt's block ids; what is no list of numbers or texts, or longer than the prompt, is left off, counted."""
        blocks = -(-prompt_tokens // self.block_tokens)
        if ids is None:
            ids = ()
        elif not isinstance(ids, list) or len(ids) > blocks:
            self.unreadable += 1
            ids = ids[:blocks] if isinstance(ids, list) else ()
        above = -1
        for place, block in enumerate(ids):
            if not isinstance(block, int | str) or isinstance(block, bool):
                self.unreadable += 1
                break
            end_tokens = min((place + 1) * self.block_tokens, prompt_tokens)
            source = self._tree.setdefault((above, block, end_tokens), len(self._tree))
            if self._place.setdefault(block, source) != source:
                self._several.add(block)
            self._source.append(source)
            self._end_tokens.append(end_tokens)
            above = source
        self._first_piece.append(len(self._source))

    @property
    def ambiguous(self) -> int:
        """Block ids that stand for more than one prefix."""
        return len(self._several)

    def finished(self) -> SharedPrefixes:
        """All prompts so far."""
        return SharedPrefixes(
            *(np.array(part, np.int64) for part in (self._first_piece, self._source, self._end_tokens))
        )
