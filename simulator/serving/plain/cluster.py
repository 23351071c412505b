"""Replicas, a router and the people who ask: the request clock, in SimPy. Rules: docs/engine-rules.md, "A cluster".

One process per replica, which wakes once per step, and one per arrival. A step is worked out when it begins, so its ends are
known then, and so are the arrivals that follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy
from simpy.events import EventPriority

from simulator.serving import state
from simulator.serving.model import Fleet, Workload
from simulator.serving.plain import invariants as named
from simulator.serving.plain.replica import Replica
from simulator.serving.plain.routers import Router
from simulator.serving.plain.sequence import Sequence


@dataclass(frozen=True)
class PlainResult:
    """What became of a workload; its request records are filled in."""

    replicas: list[Replica]
    """With their counters, events and steps."""
    requests: Any
    """One record of `state.REQUEST` per request."""


class Instant(simpy.Event):
    """A time, to the last bit; of events at the same time those of lower order come first."""

    def __init__(self, env: simpy.Environment, at_s: float, order: int):
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority=EventPriority(order), delay=at_s - env.now)


class Cluster:
    """A fleet at work on a workload."""

    def __init__(self, fleet: Fleet, workload: Workload, until_s: float, *, invariants: bool):
        self.env = simpy.Environment()
        self.workload, self.until_s, self.check = workload, until_s, invariants
        self.pool = [Replica(number, fleet.models[int(of)]) for number, of in enumerate(fleet.model_of)]
        self.router = Router(fleet)
        self.sequences: list[Sequence] = []
        """In order of submission."""
        self.backlog = [int(index) for index in workload.backlog]
        self.wake = {replica.number: self.env.event() for replica in self.pool}
        for index in workload.admitted.tolist():
            self._arrives(index)
        for replica in self.pool:
            self.env.process(self._serve(replica))

    def run(self) -> None:
        """Runs until nothing happens any more, or what happens lies at or beyond the horizon."""
        self.env.run()
        for sequence in self.sequences:
            sequence.write(self.workload.requests[sequence.index])

    # --- arrivals ------------------------------------------------------------------------------------------------------
    def _arrives(self, index: int) -> None:
        self.env.process(self._arrival(index, float(self.workload.requests[index].ready_s)))

    def _arrival(self, index: int, ready_s: float) -> Generator[Any, Any, None]:
        if ready_s >= self.until_s:
            return
        yield from self._reach(ready_s, index)
        workload = self.workload
        sequence = Sequence(index, len(self.sequences), workload.requests[index], workload.source, workload.end_tokens)
        self.sequences.append(sequence)
        replica = self.router.choose(self.pool, sequence, ready_s)
        sequence.replica = replica.number
        replica.submit(sequence)
        if not self.wake[replica.number].triggered:
            self.wake[replica.number].succeed()

    def _follows(self, index: int, end_s: float) -> None:
        """A request that waited for an end at `end_s`: until now `cancel_s` held its user's patience."""
        request = self.workload.requests[index]
        think_s = float(self.workload.think_s[index]) if self.workload.think_s is not None else 0.0
        request.arrival_s = request.ready_s = end_s + think_s
        request.cancel_s = request.arrival_s + request.cancel_s
        self._arrives(index)

    def _ended(self, sequence: Sequence) -> None:
        """Whoever waited for this end arrives, or never will."""
        workload = self.workload
        if sequence.status == state.HANDED_OVER:
            return
        turn = -1 if workload.next_turn is None else int(workload.next_turn[sequence.index])
        if sequence.status == state.FINISHED and turn >= 0:
            self._follows(turn, sequence.finish_s)
        while sequence.status != state.FINISHED and turn >= 0 and workload.next_turn is not None:
            workload.requests[turn].status = state.ABANDONED
            workload.requests[turn].finish_s = sequence.finish_s
            turn = int(workload.next_turn[turn])
        if workload.users and self.backlog:
            self._follows(self.backlog.pop(0), sequence.finish_s)

    # --- replicas ------------------------------------------------------------------------------------------------------
    def _serve(self, replica: Replica) -> Generator[Any, Any, None]:
        while True:
            if math.isinf(replica.next_boundary_s()):
                self.wake[replica.number] = self.env.event()
                yield self.wake[replica.number]
                continue
            at_s = replica.next_boundary_s()
            if at_s >= self.until_s:
                return
            yield from self._reach(at_s, len(self.workload.requests) + replica.number)
            for sequence in replica.boundary():
                self._ended(sequence)
            if self.check:
                named.check(replica)

    # --- time ------------------------------------------------------------------------------------------------------------
    def _reach(self, at_s: float, order: int) -> Generator[Any, Any, None]:
        """Waits for an instant. `now + (at_s − now)` is `at_s` exactly if they differ by less than a factor of two."""
        while self.env.now < at_s / 2:
            yield Instant(self.env, 0.75 * at_s, order)
        # Also where the instant is now: whatever goes before in the order must have had its turn.
        yield Instant(self.env, at_s, _FIRST + order)


_FIRST = 2
"""Priorities below are SimPy's own: processes that begin, and wake-ups."""


def simulate(fleet: Fleet, workload: Workload, *, until_s: float = math.inf, invariants: bool = True) -> PlainResult:
    """Simulates until every request has left, or to the horizon `until_s`; fills in `workload.requests`.

    With `invariants` every replica is checked after every step (InvariantViolation).
    """
    cluster = Cluster(fleet, workload, until_s, invariants=invariants)
    cluster.run()
    return PlainResult(cluster.pool, workload.requests)
