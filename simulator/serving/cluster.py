"""Replicas, a router and arrivals: the request clock, in SimPy.

One SimPy event per arrival (and, in closed loop, per finished request) or none at all where nothing depends on state;
between events each replica advances by its compiled step loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cost.forward import AttentionKind, FastTables
from simulator.cost.roofline import AttentionRates
from simulator.serving import state
from simulator.serving.compiled import interrupted_afterwards
from simulator.serving.traffic import Requests

Progress = Callable[[int, int], None]
"""Called now and then with requests finished and requests in all."""

_CHUNK = 20_000
"""Requests between two calls of `Progress` where the simulation would otherwise be one call."""


@dataclass(frozen=True)
class StepModel:
    """All that a replica's step depends on besides its state; shared by the replicas of a cluster."""

    config: Any
    """One record of `state.CONFIG`."""
    target: FastTables
    draft: FastTables
    """The target's again where no model drafts."""
    acceptance: NDArray[np.float64]
    """Conditional acceptance rates [rows, γ]."""
    row_of: NDArray[np.int64]
    """Row of each request [requests]."""
    first_round: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """Where each row's recorded rounds begin, and the end of the last [rows + 1]; one zero where nothing is replayed."""
    rounds: Any = field(default_factory=lambda: state.records(state.RECORDED, 0))
    """Recorded rounds, row after row."""


class Replica:
    """One engine instance and its arrays."""

    def __init__(self, model: StepModel, requests: Any):
        from simulator.serving.replica import advance, scratch_for

        n, slots = len(requests), int(model.config[0].max_sequences)
        self.state = state.records(state.REPLICA, 1)
        self.state[0].bucket_s = state.FIRST_BUCKET_S
        self.queue = np.zeros(n, dtype=np.int64)
        self.done = np.zeros(n, dtype=np.int64)
        self.answered = 0
        """Finished requests that the router has heard of; the loop is ahead of it by the step that is running."""
        self._finish_s = requests["finish_s"]
        self.gaps = np.zeros(state.GAP_BINS, dtype=np.int64)
        self.series = np.zeros((len(state.SERIES), state.BUCKETS))
        self._advance = advance
        self._arguments = (
            model.config, self.state, requests, state.records(state.SLOT, slots), self.queue,
            state.records(state.PREEMPTED, slots), self.done, _packed(model.target), _packed(model.draft),
            (model.acceptance, model.row_of, model.first_round, model.rounds), self.gaps, self.series, scratch_for(len(model.target.kinds), len(model.draft.kinds)),
        )  # fmt: skip

    def submit(self, indices: NDArray[np.int64] | int) -> None:
        """Requests join the queue; arrivals must not go back in time."""
        row = self.state[0]
        count = 1 if isinstance(indices, int) else len(indices)
        self.queue[row.submitted : row.submitted + count] = indices
        row.submitted += count

    def advance(self, until_s: float, *, stop_on_finish: bool = False) -> int:
        """Runs every step that starts before `until_s`; returns how many requests finished."""
        return int(self._advance(until_s, stop_on_finish, *self._arguments))

    def hear(self, now_s: float) -> None:
        """The router learns of the answers that are complete by `now_s`."""
        finished = int(self.state[0].finished)
        while self.answered < finished and self._finish_s[self.done[self.answered]] <= now_s:
            self.answered += 1

    @property
    def outstanding(self) -> int:
        """Requests submitted whose answers the router has not heard of."""
        return int(self.state[0].submitted) - self.answered

    @property
    def clock_s(self) -> float:
        """End of the last step."""
        return float(self.state[0].clock_s)


def compile_step_loop() -> None:
    """Compiles the step loop, or reads it from the cache: some ten seconds once, a fraction of one afterwards.

    The first simulation would do it anyway; whoever shows progress or measures speed does it apart.
    """
    one = np.ones(2)
    rates = AttentionRates(*[1.0] * len(AttentionRates._fields))
    kinds = (AttentionKind(*[1.0] * len(AttentionKind._fields)),)
    tables = FastTables(one, one, one, one, one, one, kinds, rates, rates)
    config = state.records(state.CONFIG, 1)
    config[0].max_sequences = 1
    model = StepModel(config, tables, tables, np.ones((1, 1)), np.zeros(1, dtype=np.int64))
    with interrupted_afterwards():
        Replica(model, state.records(state.REQUEST, 1)).advance(0.0)


def _packed(tables: FastTables) -> tuple[Any, ...]:
    kinds = np.array([tuple(AttentionKind(*k)) for k in tables.kinds], dtype=np.float64)
    linear = np.stack([tables.linear_s, tables.linear_bytes, tables.linear_flop])
    head = np.stack([tables.head_s, tables.head_bytes, tables.head_flop])
    return linear, head, kinds, tables.decode_rates, tables.prefill_rates


def run(
    model: StepModel,
    requests: Any,
    traffic: Requests,
    replicas: int,
    admitted: NDArray[np.int64],
    progress: Progress | None = None,
) -> list[Replica]:
    """Simulates until every admitted request has finished; fills `requests` in place and returns the replicas.

    `admitted` are the indices of the requests that are not rejected outright, in order of arrival.
    """
    if model.acceptance.shape[1] < model.config[0].gamma:  # compiled code would read past the end
        raise ValueError(f"acceptance has {model.acceptance.shape[1]} depths, γ is {model.config[0].gamma}")
    pool = [Replica(model, requests) for _ in range(replicas)]
    tell = progress or (lambda done, of: None)
    if traffic.users:
        _closed_loop(pool, requests, traffic, admitted, tell)
    elif replicas == 1:
        _alone(pool[0], requests, admitted, tell)
    else:
        _routed(pool, requests, admitted, tell)
    for replica in pool:
        replica.advance(np.inf)
    tell(len(admitted), len(admitted))
    return pool


def least_loaded(pool: list[Replica]) -> int:
    """The replica with the fewest outstanding requests; the first of equals."""
    return min(range(len(pool)), key=lambda i: (pool[i].outstanding, i))


def _alone(replica: Replica, requests: Any, admitted: NDArray[np.int64], tell: Progress) -> None:
    # Nothing to decide, so no events: the whole trace is one call of the compiled loop (cut only to show progress).
    replica.submit(admitted)
    requests["replica"][admitted] = 0
    for start in range(_CHUNK, len(admitted), _CHUNK):
        replica.advance(float(requests["arrival_s"][admitted[start]]))
        tell(start, len(admitted))


def _routed(pool: list[Replica], requests: Any, admitted: NDArray[np.int64], tell: Progress) -> None:
    import simpy

    env = simpy.Environment()

    def arrivals() -> Generator[Any, Any, None]:
        # Absolute times: a sum of differences would drift from the trace's own clock.
        for number, index in enumerate(admitted.tolist()):
            arrival_s = float(requests["arrival_s"][index])
            yield env.timeout(max(0.0, arrival_s - env.now))
            for replica in pool:
                replica.advance(arrival_s)
                replica.hear(arrival_s)
            _submit(pool, requests, index)
            if number % _CHUNK == 0:
                tell(number, len(admitted))

    env.process(arrivals())
    env.run()


def _submit(pool: list[Replica], requests: Any, index: int) -> None:
    chosen = least_loaded(pool)
    requests["replica"][index] = chosen
    pool[chosen].submit(index)


def _closed_loop(
    pool: list[Replica], requests: Any, traffic: Requests, admitted: NDArray[np.int64], tell: Progress
) -> None:
    """N users who think, ask, wait for the whole answer, and think again until the requests are used up."""
    import simpy

    env = simpy.Environment()
    think_s = traffic.think_s if traffic.think_s is not None else np.zeros(len(requests))
    remaining = iter(admitted.tolist())
    wake = [env.event() for _ in pool]

    def ask(index: int, delay_s: float) -> Generator[Any, Any, None]:
        yield env.timeout(delay_s)
        requests["arrival_s"][index] = env.now
        _submit(pool, requests, index)
        chosen = int(requests["replica"][index])
        if not wake[chosen].triggered:
            wake[chosen].succeed()

    def next_question() -> None:
        index = next(remaining, None)
        if index is not None:
            env.process(ask(index, float(think_s[index])))

    def serve(number: int) -> Generator[Any, Any, None]:
        replica = pool[number]
        while True:
            if replica.outstanding == 0:
                wake[number] = env.event()
                yield wake[number]
            # Whoever asks at this very instant is heard before the next step is scheduled.
            yield env.timeout(0)
            replica.advance(max(env.peek(), np.nextafter(env.now, np.inf)), stop_on_finish=True)
            if replica.clock_s > env.now:
                yield env.timeout(replica.clock_s - env.now)
            seen, replica.answered = replica.answered, int(replica.state[0].finished)
            for _ in range(seen, replica.answered):
                next_question()
            if replica.answered // _CHUNK > seen // _CHUNK:
                tell(replica.answered, len(admitted))

    for number in range(len(pool)):
        env.process(serve(number))
    for _ in range(traffic.users):
        next_question()
    env.run()
