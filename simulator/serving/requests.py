"""Requests as arrays: what traffic becomes and what the serving loop reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.serving.classes import EVERYTHING, RequestClass
from simulator.serving.lengths import FloatArray, IntArray
from simulator.serving.prefixes import SharedPrefixes

TOO_LONG = "longer than the context"
"""Reason under which requests are counted whose prompt and output together exceed the context."""


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order of their index, one entry per request in every array."""

    arrival_s: FloatArray
    """[n] s, at least 0, non-decreasing where known. NaN until simulated: closed loop, all after the first `users`; sessions,
    all later turns."""
    prompt_tokens: IntArray
    """[n] at least 1."""
    output_tokens: IntArray
    """[n] at least 1, the first token included."""
    row: IntArray
    """[n] index of the trace's row, header and blank lines not counted; of the generated request otherwise."""
    think_s: FloatArray | None
    """[n] time the user thinks before this request, s: closed loops (0 for the first `users`) and later turns of a session
    (0 for first ones); None elsewhere."""
    users: int
    """Users of a closed loop, 0 for an open one."""
    rows_read: int
    """Rows read or requests generated: n plus all of `dropped`. Of a trace played again or drawn from, every use of a row."""
    dropped: Mapping[str, int]
    """Reason → rows left out for it."""
    source: str
    """One line for people: where these requests come from."""
    class_of: IntArray | None = None
    """[n] index into `classes`; None: all of class 0."""
    classes: tuple[RequestClass, ...] = EVERYTHING
    """What requests of a class have in common."""
    follows: IntArray | None = None
    """[n] index of the request whose end this one waits for, smaller than its own, -1: none. A follower's arrival is that
    end plus its `think_s`, NaN until simulated. None: no request waits for another."""
    session: IntArray | None = None
    """[n] requests with the same number share one growing conversation: a later turn's prompt begins with everything
    (prompt and answer) of the turns before it. None: every request is its own session."""
    shared: SharedPrefixes | None = None
    """What prompts have in common beyond that; None: nothing."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, index: IntArray) -> Requests:
        """The requests `index`, in that order. `follows` keeps its numbers, and the counts stay those of the whole."""
        given = {name: getattr(self, name) for name in _ARRAYS}
        taken: dict[str, Any] = {name: array[index] for name, array in given.items() if array is not None}
        return replace(self, **taken, shared=None if self.shared is None else self.shared.take(index))

    def fitting(self, max_context_tokens: int | None, first: int = 0, first_kept: int = 0) -> Requests:
        """Those whose prompt and output fit the context, the others counted in `dropped`.

        Requests of a chunk: `first` is the index of its first one, `first_kept` how many were kept before. A turn that
        does not fit takes all later ones with it, since every prompt contains the one before.
        """
        if max_context_tokens is None:
            return self
        fits = self.prompt_tokens + self.output_tokens <= max_context_tokens
        left_out = int(np.count_nonzero(~fits))
        if left_out == 0 and first == first_kept:
            return self
        kept = replace(self.take(np.flatnonzero(fits)), dropped=_more(self.dropped, TOO_LONG, left_out))
        if kept.users:
            # The users stay the same people: the first `users` requests that remain start at 0.
            starts = first_kept + np.arange(len(kept)) < kept.users
            think_s = None if kept.think_s is None else np.where(starts, 0.0, kept.think_s)
            kept = replace(kept, arrival_s=np.where(starts, 0.0, np.nan), think_s=think_s)
        if kept.follows is not None:
            # Generated turns lie side by side, so one that precedes a chunk is the last that was kept before it.
            place = first_kept - 1 + np.concatenate((np.zeros(1, np.int64), np.cumsum(fits)))
            follows = np.where(kept.follows < 0, -1, place[np.maximum(kept.follows - first, -1) + 1])
            kept = replace(kept, follows=follows)
        return kept

    @staticmethod
    def joined(parts: Sequence[Requests]) -> Requests:
        """The chunks of one stream as a whole."""
        if len(parts) == 1:
            return parts[0]
        dropped: Mapping[str, int] = {}
        for part in parts:
            for reason, count in part.dropped.items():
                dropped = _more(dropped, reason, count)
        joined: dict[str, Any] = {name: _joined([getattr(part, name) for part in parts]) for name in _ARRAYS}
        shared = [part.shared for part in parts if part.shared is not None]
        return replace(
            parts[0],
            **joined,
            shared=SharedPrefixes.joined(shared) if shared else None,
            rows_read=sum(part.rows_read for part in parts),
            dropped=dropped,
        )


_ARRAYS = (
    "arrival_s", "prompt_tokens", "output_tokens", "row", "think_s", "class_of", "follows", "session",
)  # fmt: skip


def _joined(arrays: list[Any]) -> Any:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None


def _more(counts: Mapping[str, int], reason: str, count: int) -> Mapping[str, int]:
    return {**counts, reason: counts.get(reason, 0) + count} if count else counts
