"""One pool, or a prefill and a decode pool, advanced up to a time. See `cluster` for the rule and docs/engine-rules.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state
from simulator.serving.handover import Links, TransferQueue, Transfers
from simulator.serving.model import Workload
from simulator.serving.pool import Pool

WINDOW_ARRIVALS = 20_000
"""Arrivals after which all replicas are brought to the same time, so that what an interruption leaves is of one time."""


class Breath:
    """Between two slices: progress is told, and somebody may want the simulation to end."""

    def __init__(self, tell: Callable[[], None], stopped: Callable[[], str] = str):
        """`stopped` is asked at every breath why it is to end there; empty: it is not."""
        self.tell, self.stopped = tell, stopped
        self.reason = ""
        """Why it ends here; empty: it goes on."""

    def take(self) -> bool:
        """Whether to go on."""
        self.tell()
        self.reason = self.reason or self.stopped()
        return not self.reason


class Sight:
    """What is to be seen of a pool from outside: field by field, as records are slow to look at."""

    def __init__(self, pool: Pool):
        arrays = pool.arrays
        replicas, row = arrays.replicas.view(np.ndarray), arrays.pool.view(np.ndarray)
        self._fields = {name: replicas[name] for name in ("running", "stacked", "fresh", "clock_s", "unjoined", "open")}
        self._submitted, self._left = replicas["submitted"], replicas["left"]
        self._ready_s = arrays.requests.view(np.ndarray)["ready_s"]
        self._next, self._later, self._opened_s = row["next"], row["later"], row["opened_s"]
        self._admitted = arrays.admitted

    def next_boundary_s(self) -> float:
        """When the next step begins as far as is known, or the next request arrives; infinity for never."""
        see, ready_s = self._fields, self._ready_s
        clock_s, unjoined = see["clock_s"], see["unjoined"]
        due_s = np.where(unjoined >= 0, np.maximum(clock_s, ready_s[unjoined]), np.inf)
        first_s = float(np.where(see["running"] + see["stacked"] + see["fresh"] > 0, clock_s, due_s).min())
        if see["open"].any():
            for index in self._next_arrivals():
                first_s = min(first_s, max(float(ready_s[index]), float(self._opened_s[0])))
        return first_s

    @property
    def pending(self) -> bool:
        """Whether requests are to come or have not left."""
        return bool(self._next_arrivals()) or bool((self._submitted > self._left).any())

    def _next_arrivals(self) -> list[int]:
        """The next of the arrivals known beforehand and the next of the others, if any."""
        later, place = int(self._later[0]), int(self._next[0])
        found = [later] if later >= 0 else []
        return [*found, int(self._admitted[place])] if place < len(self._admitted) else found


class Single:
    """One pool."""

    transfers: Transfers | None = None

    def __init__(self, pool: Pool, slice_steps: int):
        self.pool, self.slice_steps = pool, slice_steps
        self.pools = (pool,)
        self._sight = Sight(pool)
        self._windows = _Windows(pool)

    @property
    def ended(self) -> int:
        """Requests that have left for good."""
        return self.pool.ended

    @property
    def pending(self) -> bool:
        """Whether any request has no end yet."""
        return self._sight.pending

    @property
    def reached_s(self) -> float:
        """Everything that begins before has been simulated."""
        return _reached_s(self._sight, self.pool)

    def advance(self, until_s: float, breath: Breath) -> bool:
        """Everything that begins before `until_s`; False where it was to end before."""
        return all(_served(self.pool, end_s, self.slice_steps, breath) for end_s in self._windows.until(until_s))


class Joined:
    """Prefill replicas that hand over to decode replicas."""

    def __init__(self, prefill: Pool, decode: Pool, workload: Workload, links: Links, slice_steps: int):
        self.prefill, self.decode, self.workload = prefill, decode, workload
        self.pools = (prefill, decode)
        self.slice_steps = slice_steps
        self.queue = TransferQueue(links, workload.requests)
        self._status = workload.requests.view(np.ndarray)["status"]
        self.handed = 0
        """Requests handed over so far."""
        self._seen = [0, 0]
        self._sights = (Sight(prefill), Sight(decode))
        self._windows = _Windows(prefill)
        self.in_turn = bool(prefill.arrays.pool[0].feedback)
        """Whether ends cause arrivals, so that the pools must take turns."""
        if self.in_turn:
            for pool in self.pools:
                pool.arrays.pool[0].feedback = pool.arrays.pool[0].stops = 1

    @property
    def ended(self) -> int:
        """Requests that have left for good."""
        return self.prefill.ended - self.handed + self.decode.ended

    @property
    def pending(self) -> bool:
        """Whether any request has no end yet."""
        return len(self.queue) > 0 or any(sight.pending for sight in self._sights)

    @property
    def reached_s(self) -> float:
        """Everything that begins before has been simulated."""
        reached = [_reached_s(sight, pool) for sight, pool in zip(self._sights, self.pools, strict=True)]
        return min(*reached, self.queue.next_s)

    @property
    def transfers(self) -> Transfers:
        """What went over the links."""
        return self.queue.outcome()

    def advance(self, until_s: float, breath: Breath) -> bool:
        """Everything that begins before `until_s`; False where it was to end before."""
        if self.in_turn:
            return self._take_turns(until_s, breath)
        for end_s in self._windows.until(until_s):
            if not _served(self.prefill, end_s, self.slice_steps, breath):
                return False
            self._hear(0, self.prefill)
            self._send(end_s)
            if not _served(self.decode, end_s, self.slice_steps, breath):
                return False
        return True

    def _take_turns(self, until_s: float, breath: Breath) -> bool:
        steps = 0
        due_s = [sight.next_boundary_s() for sight in self._sights]
        while True:
            handed_s = self.queue.next_s
            first_s = min(*due_s, handed_s)
            if first_s >= until_s:
                return True
            later_s = math.nextafter(first_s, math.inf)
            if handed_s == first_s:
                self._send(later_s)
                due_s[1] = self._sights[1].next_boundary_s()
                continue
            # Whoever is first goes as far as nothing of the others can touch it; at the same instant, prompts first.
            number = 0 if due_s[0] == first_s else 1
            pool = self.pools[number]
            pool.serve(max(min(until_s, handed_s, due_s[1 - number]), later_s), self.slice_steps)
            due_s[number] = self._sights[number].next_boundary_s()
            if self._hear(number, pool):
                due_s[0] = self._sights[0].next_boundary_s()
            steps += int(pool.arrays.pool["steps"][0])
            if steps >= self.slice_steps:
                steps = 0
                if not breath.take():
                    return False

    def _send(self, before_s: float) -> None:
        sent = self.queue.send(before_s)
        if len(sent):
            self.decode.add_arrivals(sent)

    def _hear(self, number: int, pool: Pool) -> bool:
        """What has left a pool since the last time is handed over, or its followers arrive; returns whether any left."""
        ended = pool.ended
        if ended == self._seen[number]:
            return False
        left = pool.arrays.links.ended[self._seen[number] : ended]
        self._seen[number] = ended
        if number == 0:
            handed = left[self._status[left] == state.HANDED_OVER]
            self.handed += len(handed)
            self.queue.offer(handed)
        elif self.in_turn:
            for index in left.tolist():
                self._follow(index)
        return True

    def _follow(self, index: int) -> None:
        """A request has ended in the decode pool: what `record.leave` does for ends in the prefill pool."""
        workload, pool = self.workload, self.prefill.arrays.pool[0]
        request = workload.requests[index]
        if workload.next_turn is not None:
            turn = int(workload.next_turn[index])
            if request.status == state.FINISHED and turn >= 0:
                self._arrives(turn, float(request.finish_s))
            while request.status != state.FINISHED and turn >= 0:
                workload.requests[turn].status = state.ABANDONED
                workload.requests[turn].finish_s = request.finish_s
                turn = int(workload.next_turn[turn])
        if pool.backlog < len(workload.backlog):
            turn = int(workload.backlog[pool.backlog])
            pool.backlog += 1
            self._arrives(turn, float(request.finish_s))

    def _arrives(self, index: int, end_s: float) -> None:
        """A request whose arrival was not known; until now `cancel_s` held its user's patience."""
        request = self.workload.requests[index]
        think_s = float(self.workload.think_s[index]) if self.workload.think_s is not None else 0.0
        request.arrival_s = request.ready_s = end_s + think_s
        request.cancel_s = request.arrival_s + request.cancel_s
        self.prefill.add_arrivals(np.array([index]))


class _Windows:
    """Times at which the replicas of an open loop are brought together."""

    def __init__(self, pool: Pool):
        workload = pool.workload
        starts: NDArray[np.float64] = np.zeros(0)
        if not pool.arrays.pool[0].feedback:
            starts = workload.requests["ready_s"][workload.admitted][WINDOW_ARRIVALS::WINDOW_ARRIVALS]
        self._starts_s = starts.tolist()
        self._next = 0

    def until(self, until_s: float) -> Iterator[float]:
        """Those before `until_s` that have not been, and `until_s` itself."""
        while self._next < len(self._starts_s) and self._starts_s[self._next] < until_s:
            yield self._starts_s[self._next]
            self._next += 1
        yield until_s


def _served(pool: Pool, until_s: float, slice_steps: int, breath: Breath) -> bool:
    while not pool.serve(until_s, slice_steps):
        if not breath.take():
            return False
    return breath.take()


def _reached_s(sight: Sight, pool: Pool) -> float:
    """The next thing that happens in `pool`, or where it is when nothing is to come."""
    first_s = sight.next_boundary_s()
    return first_s if math.isfinite(first_s) else float(pool.replicas["clock_s"].max())
