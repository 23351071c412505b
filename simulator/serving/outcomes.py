"""What metrics need to know of each request, in a quarter of its record: finished records come in chunks, whole or streamed.

A request's times are taken once, here, so that a simulation which keeps its records and one that writes them away and
forgets them have the same metrics to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

TIMES = ("ttft_s", "tpot_s", "e2e_s", "queue_s")
"""The times of a finished request."""

_BLOCK = 4096
"""Records read at once: their fields lie apart in memory, and what one field has fetched is still there for the next."""

_SLICE = 1 << 16

TOTALS = ("prompt_tokens", "output_tokens", "cached_tokens", "recomputed_tokens", "preemptions", "retries")
"""Fields of a record that are summed over the finished requests of a class."""

ENDED = (state.FINISHED, state.REJECTED, state.REFUSED, state.TIMED_OUT, state.CANCELLED)
"""How a request that did arrive can end."""
HAS_ENDED = np.isin(np.arange(len(state.STATUS)), ENDED)
"""By status, whether it is one of `ENDED`."""


class Outcomes:
    """How `n` requests fared, by index (which is the order of arrival but for later turns): 40 bytes each.

    NaN in a time means that the request has none. A request nobody told about has status `state.WAITING`.
    """

    def __init__(self, n: int):
        self.arrival_s: FloatArray = np.full(n, np.nan)
        self.queue_s: FloatArray = np.full(n, np.nan)
        """First time in a batch − arrival, of finished requests."""
        self.ttft_s: FloatArray = np.full(n, np.nan)
        """First token − arrival, of finished requests."""
        self.stay_s: FloatArray = np.full(n, np.nan)
        """End − arrival of whoever ended, however (0 if rejected); for finished requests this is E2E."""
        self.output_tokens: NDArray[np.int32] = np.zeros(n, dtype=np.int32)
        self.status: NDArray[np.int8] = np.zeros(n, dtype=np.int8)
        self.class_of: NDArray[np.int16] = np.zeros(n, dtype=np.int16)
        self.measured: BoolArray = np.zeros(n, dtype=np.bool_)
        """Outside warm-up."""
        self.totals: dict[str, NDArray[np.int64]] = {name: np.zeros(1, dtype=np.int64) for name in TOTALS}
        """`TOTALS` of the finished requests, warm-up included, by class."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def of(cls, requests: Any) -> Outcomes:
        """Of all records of `state.REQUEST` at once, by index."""
        found = cls(len(requests))
        found.add(requests, 0)
        return found

    def add(self, requests: Any, first: int) -> None:
        """Records of requests `first`, `first` + 1, … as they stand; every request is to be added exactly once."""
        plain = np.asarray(requests).view(np.ndarray)
        for start in range(0, len(plain), _BLOCK):
            block = plain[start : start + _BLOCK]
            self._fill(block, slice(first + start, first + start + len(block)))

    def scatter(self, requests: Any, index: NDArray[np.int64]) -> None:
        """`add` of requests whose indices are not consecutive."""
        plain = np.asarray(requests).view(np.ndarray)
        for start in range(0, len(plain), _BLOCK):
            self._fill(plain[start : start + _BLOCK], index[start : start + _BLOCK])

    def _fill(self, block: NDArray[Any], place: slice | NDArray[np.int64]) -> None:
        status, class_of = block["status"], block["class_of"]
        arrival_s, stay_s = block["arrival_s"].copy(), block["finish_s"] - block["arrival_s"]
        ttft_s, queue_s = block["first_token_s"] - arrival_s, block["scheduled_s"] - arrival_s
        # Whoever is rejected leaves as it comes, and its record has no time of that.
        stay_s[status == state.REJECTED] *= 0.0
        finished = status == state.FINISHED
        done = block if finished.all() else block[finished]
        if len(done) < len(block):
            stay_s[~HAS_ENDED[status]] = np.nan
            ttft_s[~finished] = np.nan
            queue_s[~finished] = np.nan
        self.arrival_s[place], self.stay_s[place] = arrival_s, stay_s
        self.ttft_s[place], self.queue_s[place] = ttft_s, queue_s
        self.output_tokens[place] = block["output_tokens"]
        self.status[place] = status
        self.class_of[place] = class_of
        self.measured[place] = block["measured"] == 1
        classes = max(int(class_of.max()) + 1, len(self.totals["retries"]))
        for name, total in self.totals.items():
            if classes == 1:
                total += done[name].sum(dtype=np.int64)
                continue
            # Weights are doubles: exact up to 2^53 tokens in one block.
            found = np.bincount(done["class_of"], done[name], minlength=classes).astype(np.int64)
            self.totals[name] = found + np.pad(total, (0, classes - len(total)))

    @property
    def finished(self) -> BoolArray:
        """Which requests got their whole answer."""
        return np.asarray(self.status == state.FINISHED)

    def time_s(self, name: str, which: BoolArray) -> FloatArray:
        """A fresh array of one of `TIMES` of the finished requests `which`, in order, seconds.

        A request of one output token has no TPOT and is missing from it.
        """
        if name != "tpot_s":
            return np.asarray({"ttft_s": self.ttft_s, "e2e_s": self.stay_s, "queue_s": self.queue_s}[name][which])
        several = which & (self.output_tokens > 1)
        found = np.empty(int(np.count_nonzero(several)))
        filled = 0
        for start in range(0, len(self), _SLICE):  # without copies of all three columns beside the result
            here = slice(start, start + _SLICE)
            part = self.tpot_s(here)[several[here]]
            found[filled : filled + len(part)] = part
            filled += len(part)
        return found

    def tpot_s(self, here: slice) -> FloatArray:
        """(E2E − TTFT)/(n − 1) of the requests `here`; 0 for one output token, NaN for whoever did not finish."""
        after = self.output_tokens[here] - 1
        return np.asarray((self.stay_s[here] - self.ttft_s[here]) / np.maximum(after, 1))
