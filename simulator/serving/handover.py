"""KV caches on their way from prefill to decode replicas: a queue per link, first come, first served."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Wire:
    """A link between a prefill replica and the decode pool."""

    bytes_per_s: float
    """One direction, all its GPUs together."""
    latency_s: float

    def seconds(self, size_bytes: float) -> float:
        """latency + bytes / bandwidth, s; the link is taken for all of it."""
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Links:
    """The links of a cluster."""

    wires: Sequence[Wire]
    link_of: Sequence[int]
    """Which of `wires` each prefill replica sends over."""
    bytes_per_token: float
    """KV cache of one token, all layers and ranks."""


@dataclass(frozen=True)
class Transfers:
    """What became of the transfers; NaN where a request had none."""

    handed_over_s: FloatArray
    """When each request's first token was there and its transfer could begin [requests]."""
    wait_s: FloatArray
    """How long the link was taken by others [requests]."""
    transfer_s: FloatArray
    """How long it took from there [requests]."""
    prefill_replica: IntArray
    """Who computed the prompt, −1 where nobody handed over [requests]; `replica` in the records is who decoded."""
    busy_s: FloatArray
    """Time each link was taken [links]."""
    sent_bytes: float

    @property
    def mean_wait_s(self) -> float:
        """Mean wait for a link, s; 0 where nothing was sent."""
        waits_s = self.wait_s[~np.isnan(self.wait_s)]
        return float(waits_s.mean()) if len(waits_s) else 0.0


class TransferQueue:
    """Requests that prefill replicas have handed over, until they reach the decode pool."""

    def __init__(self, links: Links, requests: Any):
        n = len(requests)
        self.links, self.requests = links, requests.view(np.ndarray)  # fields of records are slow to look at
        self.free_s = [0.0] * len(links.wires)
        self.busy_s = [0.0] * len(links.wires)
        self.sent_tokens = 0
        self.handed_over_s, self.wait_s, self.transfer_s = (np.full(n, np.nan) for _ in range(3))
        self.prefill_replica = np.full(n, -1, dtype=np.int64)
        self._pending: list[tuple[float, int, int]] = []
        """Heap of (hand-over, request, prefill replica)."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def next_s(self) -> float:
        """When the next of those known is handed over, infinity for none."""
        return self._pending[0][0] if self._pending else np.inf

    def offer(self, indices: IntArray) -> None:
        """Requests have been handed over, each at its last token, in whatever order."""
        times, replicas = self.requests["last_token_s"][indices], self.requests["replica"][indices]
        for entry in zip(times.tolist(), indices.tolist(), replicas.tolist(), strict=True):
            heapq.heappush(self._pending, entry)
        # On the link they belong to no replica: none can lose them, and whoever gives up is noticed on arrival.
        self.requests["replica"][indices] = -1
        self.requests["status"][indices] = state.WAITING

    def send(self, before_s: float) -> IntArray:
        """Puts those handed over before `before_s` on their links, in order of (time, index); all of them must be known.

        Each is then a request that will be ready in the decode pool, its prompt's KV carried along.
        """
        sent = []
        requests, links = self.requests, self.links
        while self._pending and self._pending[0][0] < before_s:
            handed_s, index, replica = heapq.heappop(self._pending)
            link = links.link_of[replica]
            tokens = int(requests["prompt_tokens"][index])
            start_s = max(handed_s, self.free_s[link])
            seconds = links.wires[link].seconds(tokens * links.bytes_per_token)
            self.free_s[link] = start_s + seconds
            self.busy_s[link] += seconds
            self.sent_tokens += tokens
            self.handed_over_s[index], self.prefill_replica[index] = handed_s, replica
            self.wait_s[index], self.transfer_s[index] = start_s - handed_s, seconds
            requests["ready_s"][index] = start_s + seconds
            requests["carried_tokens"][index] = tokens
            sent.append(index)
        return np.array(sent, dtype=np.int64)

    def outcome(self) -> Transfers:
        """Everything so far."""
        size = self.sent_tokens * self.links.bytes_per_token
        return Transfers(
            self.handed_over_s, self.wait_s, self.transfer_s, self.prefill_replica, np.array(self.busy_s), size
        )
