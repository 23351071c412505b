"""What happens to replicas while they serve: they fail and recover, are started and stopped. SimPy processes over pools.

A replica is in one of five states:

    off ──start──▶ starting ──ready──▶ serving ──close──▶ draining ──last request left──▶ off
                                          │                  │
                                        fails              fails
                                          ▼                  ▼
                                       failed ──back────▶ serving, or off where it was draining

Only a serving one gets requests. GPUs are held while a replica starts, serves or drains. Events at one instant go before
arrivals and steps at that instant; among themselves replicas that are ready or back go first, by number, then failures in the
order in which they were given, then autoscalers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import simpy
from simpy.events import EventPriority

from simulator.serving.autoscaler import Wanted
from simulator.serving.cluster_config import Autoscaler, Failure
from simulator.serving.failures import evict, outages
from simulator.serving.handover import Links
from simulator.serving.pool import Pool

MOST_RETRIES = 1000
"""A request that failures have thrown out so often will never be served: the simulation says so and stops."""


@dataclass(frozen=True)
class Scaled:
    """Replicas that an autoscaler starts and stops."""

    config: Autoscaler
    first: int
    """Number of the first of them, pools counted through."""
    replicas: int
    """How many serve at the start, the first ones; `config.max` of them there may be."""


@dataclass(frozen=True)
class Control:
    """What happens to a cluster from outside; nothing by default."""

    failures: Sequence[Failure] = ()
    retry_delay_s: float = 0.0
    scaled: Sequence[Scaled] = ()
    links: Links | None = None
    """Between prefill and decode replicas, where there are two pools."""
    seed: int = 0
    """Of random failures."""


class State(StrEnum):
    """Of a replica."""

    OFF = "off"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Happening:
    """One change of a replica's state."""

    time_s: float
    replica: int
    state: State
    """From then on."""
    requests: int = 0
    """Thrown out by a failure."""


@dataclass
class Member:
    """A replica and the times in which its GPUs were held."""

    pool: Pool
    place: int
    """In its pool."""
    number: int
    state: State = State.SERVING
    held: list[tuple[float, float]] = field(default_factory=list)
    """(from, until), s."""
    since_s: float = 0.0
    """When the present time of being held began."""

    @property
    def record(self) -> Any:
        """Of `state.REPLICA`."""
        return self.pool.arrays.replicas[self.place]

    @property
    def holding(self) -> bool:
        """Whether its GPUs are held."""
        return self.state in (State.STARTING, State.SERVING, State.DRAINING)

    @property
    def empty(self) -> bool:
        """Whether it has no request."""
        return bool(self.record.submitted == self.record.left)

    def held_until(self, end_s: float) -> list[tuple[float, float]]:
        """When its GPUs were held, until `end_s` at most."""
        periods = [*self.held, (self.since_s, end_s)] if self.holding else self.held
        return [(start, min(end, end_s)) for start, end in periods if start < end_s]


class _Instant(simpy.Event):
    """A time; of events at the same time those of lower order come first."""

    def __init__(self, env: simpy.Environment, at_s: float, order: int):
        super().__init__(env)
        self._ok = True
        self._value = None
        # Priorities below are SimPy's own: processes that begin, and wake-ups.
        env.schedule(self, priority=EventPriority(_FIRST + order), delay=at_s - env.now)


_FIRST = 2


class Controller:
    """The processes that act on the replicas of `pools`. Between two events the pools must be served up to the next."""

    def __init__(self, pools: Sequence[Pool], control: Control):
        self.env = simpy.Environment()
        self.control = control
        places = [(pool, place) for pool in pools for place in range(len(pool.replicas))]
        self.members = [Member(pool, place, number) for number, (pool, place) in enumerate(places)]
        self.happened: list[Happening] = []
        self.stopped = ""
        """Why the simulation cannot go on; empty: it can."""
        for scaled in control.scaled:
            for member in self._scaled(scaled)[scaled.replicas :]:
                member.state = State.OFF
                member.record.open = 0
        order = len(self.members)
        for failure in control.failures:
            for member in self.members:
                if failure.replica in (None, member.number):
                    fails = self._fails_often if failure.random else self._fails_once
                    self.env.process(fails(failure, member, order))
                    order += 1
        for scaled in control.scaled:
            self.env.process(self._scales(scaled, order))
            order += 1

    @property
    def next_s(self) -> float:
        """When the next event is due, infinity for none."""
        return float(self.env.peek())

    def act(self) -> None:
        """All events of the next instant; the pools have been served up to it."""
        now_s = self.next_s
        while self.next_s <= now_s:
            self.env.step()

    # --- failures ------------------------------------------------------------------------------------------------------
    def _fails_once(self, failure: Failure, member: Member, order: int) -> Generator[Any, Any, None]:
        yield from self._reach(failure.at_s or 0.0, order)
        yield from self._fail(member, failure.down_s or 0.0)

    def _fails_often(self, failure: Failure, member: Member, order: int) -> Generator[Any, Any, None]:
        for up_s, down_s in outages(failure, member.number, self.control.seed):
            yield from self._reach(self.env.now + up_s, order)
            yield from self._fail(member, down_s)

    def _fail(self, member: Member, down_s: float) -> Generator[Any, Any, None]:
        """The step that runs ends first, so failing is known to the router before it has happened."""
        before = member.state
        if before not in (State.SERVING, State.DRAINING) or self._has_drained(member):
            return
        failed_s = max(self.env.now, float(member.record.clock_s))
        lost = evict(member.pool, member.place, failed_s + self.control.retry_delay_s)
        self._let_go(member, State.FAILED, failed_s, len(lost))
        member.pool.add_arrivals(lost)
        if len(lost) and member.pool.arrays.requests["retries"][lost].max() > MOST_RETRIES:
            self.stopped = f"a request was thrown out {MOST_RETRIES} times by failing replicas"
        yield from self._reach(failed_s + down_s, member.number)
        if before == State.SERVING:
            member.since_s = self.env.now
            self._open(member)
        else:
            self._enter(member, State.OFF, self.env.now)

    # --- autoscaler -----------------------------------------------------------------------------------------------------
    def _scales(self, scaled: Scaled, order: int) -> Generator[Any, Any, None]:
        wanted = Wanted(scaled.config, scaled.replicas)
        look = 0
        while True:
            look += 1
            yield from self._reach(look * scaled.config.interval_s, order)
            members = self._scaled(scaled)
            for member in members:
                self._has_drained(member)
            serving = [member for member in members if member.state == State.SERVING]
            starting = sum(member.state == State.STARTING for member in members)
            at_least, at_most = wanted.at(self.env.now, sum(self._load(member) for member in serving))
            if len(serving) + starting < at_least:
                self._start(members, at_least - len(serving) - starting, scaled.config.startup_s)
            by_load = sorted(serving, key=lambda m: (self._load(m), -m.number))  # the emptiest go, of equals the last
            for member in by_load[: max(0, len(serving) - at_most)]:
                self._close(member)

    def _start(self, members: list[Member], count: int, startup_s: float) -> None:
        """Those that drain serve on; the rest are started."""
        for member in [m for m in members if m.state == State.DRAINING][:count]:
            self._open(member)
            count -= 1
        for member in [m for m in members if m.state == State.OFF][:count]:
            member.since_s = self.env.now
            self._enter(member, State.STARTING, self.env.now)
            self.env.process(self._starts(member, self.env.now + startup_s))

    def _starts(self, member: Member, ready_s: float) -> Generator[Any, Any, None]:
        yield from self._reach(ready_s, member.number)
        self._open(member)

    def _close(self, member: Member) -> None:
        member.record.open = 0
        self._enter(member, State.DRAINING, self.env.now)
        self._has_drained(member)

    def _has_drained(self, member: Member) -> bool:
        """Whether a draining replica's last request has left by now; it is off since then."""
        if member.state != State.DRAINING or not member.empty or member.record.clock_s > self.env.now:
            return False
        self._drained(member)
        return True

    def _drained(self, member: Member) -> None:
        closed_s = next(h.time_s for h in reversed(self.happened) if h.replica == member.number)
        self._let_go(member, State.OFF, max(closed_s, float(member.record.clock_s)))

    # --- replicas -------------------------------------------------------------------------------------------------------
    def _scaled(self, scaled: Scaled) -> list[Member]:
        return self.members[scaled.first : scaled.first + scaled.config.max]

    def _load(self, member: Member) -> int:
        """Outstanding requests as the router knows them: the step that runs has not ended (`routing.outstanding`)."""
        record = member.record
        unheard = record.left_last if record.clock_s > self.env.now else 0
        return int(record.submitted - record.left + unheard)

    def _open(self, member: Member) -> None:
        """From now on the router may choose it, and whoever waits for an open replica is routed."""
        member.record.open = 1
        member.pool.arrays.pool[0].opened_s = self.env.now
        self._enter(member, State.SERVING, self.env.now)

    def _let_go(self, member: Member, state: State, at_s: float, requests: int = 0) -> None:
        """Its GPUs are not held any more."""
        member.record.open = 0
        member.held.append((member.since_s, at_s))
        self._enter(member, state, at_s, requests)

    def _enter(self, member: Member, state: State, at_s: float, requests: int = 0) -> None:
        member.state = state
        self.happened.append(Happening(at_s, member.number, state, requests))

    def finish(self) -> None:
        """At the end: whoever was still draining has finished, maybe long ago."""
        for member in self.members:
            if member.state == State.DRAINING and member.empty:
                self._drained(member)

    def _reach(self, at_s: float, order: int) -> Generator[Any, Any, None]:
        """Waits for an instant, to the last bit: now + (at − now) is `at_s` where both are within a factor of two."""
        while self.env.now < at_s / 2:
            yield _Instant(self.env, 0.75 * at_s, order)
        yield _Instant(self.env, at_s, order)


def held_s(members: Sequence[Member], start_s: float, end_s: float) -> Any:
    """How long each replica's GPUs were held between two times, s [replicas]."""
    return np.array([sum(max(0.0, end - max(start, start_s)) for start, end in m.held_until(end_s)) for m in members])
