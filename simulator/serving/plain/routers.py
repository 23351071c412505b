"""Which replica a request goes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator.randomness import uniform
from simulator.serving.model import ROUTERS, Fleet

if TYPE_CHECKING:
    from simulator.serving.plain.replica import Replica
    from simulator.serving.plain.sequence import Sequence

STREAM_ROUTING = (1 << 40) + 64


class Router:
    """Places one request after the other; replicas are as they are when the step that runs has ended, the first of equals wins."""

    def __init__(self, fleet: Fleet):
        self.fleet = fleet
        self.routed = 0
        """Requests placed so far."""

    def choose(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        """The replica that gets `sequence`, which arrives at `now_s`."""
        rules: dict[str, Callable[[list[Replica], Sequence, float], Replica]] = {
            "round-robin": self._round_robin,
            "least-outstanding": self._least_outstanding,
            "least-kv": self._least_kv,
            "prefix-aware": self._prefix_aware,
            "power-of-two": self._power_of_two,
        }
        chosen = rules[ROUTERS[self.fleet.router]](pool, sequence, now_s)
        self.routed += 1
        return chosen

    def _round_robin(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        return pool[self.routed % len(pool)]

    def _least_outstanding(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        return min(pool, key=lambda replica: replica.outstanding(now_s))

    def _least_kv(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        return min(pool, key=lambda replica: replica.pool.used_blocks / replica.pool.total_blocks)

    def _prefix_aware(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        """Longest cached prefix among those not much busier than the least loaded; then the least loaded of these."""
        outstanding = {replica.number: replica.outstanding(now_s) for replica in pool}
        most = min(outstanding.values()) + self.fleet.slack
        near = [replica for replica in pool if outstanding[replica.number] <= most]

        def rank(replica: Replica) -> tuple[int, int]:
            return -len(replica.found(sequence, sequence.prompt_tokens)), outstanding[replica.number]

        return min(near, key=rank)

    def _power_of_two(self, pool: list[Replica], sequence: Sequence, now_s: float) -> Replica:
        """The less loaded of two different ones, drawn by counter."""
        if len(pool) == 1:
            return pool[0]
        first = int(uniform(self.fleet.seed, self.routed, STREAM_ROUTING, 0) * len(pool))
        second = int(uniform(self.fleet.seed, self.routed, STREAM_ROUTING, 1) * (len(pool) - 1))
        if second >= first:
            second += 1
        return min((pool[number] for number in sorted((first, second))), key=lambda replica: replica.outstanding(now_s))
