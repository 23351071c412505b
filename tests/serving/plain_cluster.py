"""A cluster with failures and hand-overs, one event after the other in plain Python: what `run_cluster` must equal.

Replicas are those of the plain specification. What happens next is the earliest of all that is known; at one instant failures
and recoveries go first, then arrivals, hand-overs and steps, prefill before decode and lower numbers first.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from simulator.randomness import uniform
from simulator.serving import state
from simulator.serving.model import ROUTERS
from simulator.serving.plain.blocks import BlockPool
from simulator.serving.plain.line import Line
from simulator.serving.plain.replica import Replica
from simulator.serving.plain.routers import STREAM_ROUTING, Router
from simulator.serving.plain.sequence import Sequence

CONTROL, STUCK, ARRIVAL, SEND, RECEIVE, PREFILL, DECODE = range(7)


class PlainPool:
    """Replicas behind a router that knows which are open."""

    def __init__(self, fleet, first_number):
        self.router = Router(fleet)
        self.router_name = ROUTERS[fleet.router]
        self.replicas = [Replica(first_number + r, fleet.models[int(m)]) for r, m in enumerate(fleet.model_of)]
        self.open = [True] * len(self.replicas)
        self.turn = self.orders = 0
        self.opened_s = 0.0
        self.stuck = []
        """Requests that found no replica open."""

    def choose(self, sequence, now_s):
        """A replica that is open."""
        among = [replica for replica, is_open in zip(self.replicas, self.open, strict=True) if is_open]
        if self.router_name == "round-robin":
            while not self.open[self.turn % len(self.open)]:
                self.turn += 1
            self.turn += 1
            return self.replicas[(self.turn - 1) % len(self.open)]
        if self.router_name == "power-of-two" and len(self.replicas) > 1:
            seed, count = self.router.fleet.seed, len(self.replicas)
            first = int(uniform(seed, self.router.routed, STREAM_ROUTING, 0) * count)
            second = int(uniform(seed, self.router.routed, STREAM_ROUTING, 1) * (count - 1))
            second += second >= first
            drawn = [self.replicas[r] for r in sorted((first, second)) if self.open[r]]
            self.router.routed += 1
            return min(drawn or among, key=lambda replica: replica.outstanding(now_s))
        if self.router_name == "power-of-two":
            self.router.routed += 1
            return among[0]
        return self.router.choose(among, sequence, now_s)


class PlainCluster:
    """One pool, or prefill and decode pools with links between them."""

    def __init__(self, fleets, workload, *, failures=(), retry_delay_s=0.0, links=None):
        self.workload, self.requests, self.links = workload, workload.requests, links
        self.requests["replica"] = -1
        self.pools, number = [], 0
        for fleet in fleets:
            self.pools.append(PlainPool(fleet, number))
            number += len(fleet.model_of)
        self.retry_delay_s = retry_delay_s
        self.backlog = deque(workload.backlog.tolist())
        self.free_s = [0.0] * (len(links.wires) if links else 0)
        self.events = []
        """Heap of (time, kind, tie, what)."""
        self.down = set()
        for index in workload.admitted.tolist():
            self.arrive(0, index)
        # At one instant replicas that are back go first, then failures as they were given.
        for place, failure in enumerate(failures):
            self.push(failure.at_s, CONTROL, number + place, ("fail", failure.replica, failure.down_s))

    def push(self, at_s, kind, tie, what):
        heapq.heappush(self.events, (float(at_s), kind, tie, what))

    def arrive(self, stage, index):
        self.push(self.requests[index].ready_s, ARRIVAL if stage == 0 else RECEIVE, index, stage)

    def run(self):
        """Until nothing but failures is left."""
        while True:
            steps = [
                (replica.next_boundary_s(), PREFILL if stage == 0 else DECODE, replica.number, replica)
                for stage, pool in enumerate(self.pools)
                for replica in pool.replicas
            ]
            step = min(steps, key=lambda s: s[:3])
            waiting = any(pool.stuck for pool in self.pools)
            idle = math.isinf(step[0]) and not waiting and all(kind == CONTROL for _, kind, _, _ in self.events)
            if idle:
                return
            if self.events and self.events[0][:3] < step[:3]:
                self.handle(*heapq.heappop(self.events))
            else:
                stage = 0 if step[1] == PREFILL else 1
                for sequence in step[3].boundary():
                    self.left(stage, sequence)

    def handle(self, at_s, kind, tie, what):
        if kind == CONTROL:
            self.control(at_s, *what)
        elif kind == SEND:
            self.send(at_s, tie, what)
        else:
            stage, index = what if kind == STUCK else (what, tie)
            if any(self.pools[stage].open):
                self.route(stage, index, at_s)
            else:
                self.pools[stage].stuck.append((at_s, index))

    def route(self, stage, index, now_s):
        pool, request = self.pools[stage], self.requests[index]
        request.ready_s = now_s
        sequence = Sequence(index, pool.orders, request, self.workload.source, self.workload.end_tokens)
        pool.orders += 1
        replica = pool.choose(sequence, now_s)
        request.replica = sequence.replica = replica.number
        replica.submit(sequence)

    def left(self, stage, sequence):
        index = sequence.index
        request = self.requests[index]
        sequence.write(request)
        if sequence.status == state.HANDED_OVER:
            self.push(sequence.last_token_s, SEND, index, sequence.replica)
            return
        turn = -1 if self.workload.next_turn is None else int(self.workload.next_turn[index])
        if sequence.status == state.FINISHED and turn >= 0:
            self.follow(turn, sequence.finish_s)
        while sequence.status != state.FINISHED and turn >= 0:
            self.requests[turn].status, self.requests[turn].finish_s = state.ABANDONED, sequence.finish_s
            turn = int(self.workload.next_turn[turn])
        if self.backlog:
            self.follow(self.backlog.popleft(), sequence.finish_s)

    def follow(self, index, end_s):
        request = self.requests[index]
        request.arrival_s = request.ready_s = end_s + float(self.workload.think_s[index])
        request.cancel_s = request.arrival_s + request.cancel_s
        self.arrive(0, index)

    def send(self, handed_s, index, replica):
        request = self.requests[index]
        link = self.links.link_of[replica]
        start_s = max(handed_s, self.free_s[link])
        self.free_s[link] = start_s + self.links.wires[link].seconds(request.prompt_tokens * self.links.bytes_per_token)
        request.ready_s, request.carried_tokens = self.free_s[link], request.prompt_tokens
        request.status, request.replica = state.WAITING, -1
        self.arrive(1, index)

    def control(self, at_s, what, number, down_s=None):
        stage = next(s for s, pool in enumerate(self.pools) if number - pool.replicas[0].number < len(pool.replicas))
        pool = self.pools[stage]
        place = number - pool.replicas[0].number
        replica = pool.replicas[place]
        if what == "back":
            pool.open[place] = True
            self.down.discard(number)
            replica.clock_s = max(replica.clock_s, at_s)
            # They go before whoever arrives at this instant, and after whatever else becomes of replicas at it.
            for place, (_, index) in enumerate(sorted(pool.stuck)):
                self.push(at_s, STUCK, place, (stage, index))
            pool.stuck = []
            return
        if number in self.down:
            return
        self.down.add(number)
        pool.open[place] = False
        failed_s = max(at_s, replica.clock_s)
        running = [sequence for sequence in replica.running if not sequence.held]
        for sequence in [*running, *replica.line.waiting, *replica.line.unheard]:
            sequence.recomputed_tokens += sequence.computed_tokens + sequence.swapped_tokens + sequence.carried_tokens
            if not sequence.started and not sequence.retries and not sequence.generated_tokens:
                sequence.scheduled_s = -1.0
            sequence.carried_tokens, sequence.status, sequence.replica = 0, state.WAITING, -1
            sequence.retries += 1
            sequence.ready_s = failed_s + self.retry_delay_s
            sequence.write(self.requests[sequence.index])
            self.arrive(stage, sequence.index)
        replica.line, replica.running, replica.leaving = Line(replica.settings), [], []
        replica.pool = BlockPool(replica.settings.total_blocks)
        replica.swapped_blocks, replica.in_flight = 0, False
        self.push(failed_s + down_s, CONTROL, number, ("back", number))
