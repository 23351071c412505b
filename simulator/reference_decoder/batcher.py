"""A simple continuous batcher over the real decoder: requests arrive, are prefilled at once, and decode together.

As simple as can be, so that a simulator can be held against it: whenever rows are free, those who wait are admitted, one
prefill pass each; then all running rows take one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.reference_decoder.speculative import Decoding, Row


@dataclass(frozen=True)
class Request:
    """One user's request."""

    arrival_s: float
    prompt: Sequence[int]
    output_tokens: int


@dataclass(frozen=True)
class Served:
    """What became of it; times since the run began."""

    arrival_s: float
    first_token_s: float
    finished_s: float
    row: Row

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; NaN for a single token."""
        tokens = len(self.row.output)
        return (self.finished_s - self.first_token_s) / (tokens - 1) if tokens > 1 else float("nan")


@dataclass
class ServingRun:
    """All requests in order of arrival, and every pass that served them."""

    served: list[Served] = field(default_factory=list)
    prefill_tokens: list[int] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    """Of each prefill pass."""
    round_rows: list[int] = field(default_factory=list)
    round_tokens: list[int] = field(default_factory=list)
    """Emitted by each round, over all rows."""
    round_s: list[float] = field(default_factory=list)


def poisson_requests(
    rate_per_s: float, count: int, prompt_tokens: int, output_tokens: int, vocab: int, seed: int
) -> list[Request]:
    """Open loop; outputs uniform between a half and one and a half of `output_tokens`."""
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1.0 / rate_per_s, count))
    outputs = random.integers(max(1, output_tokens // 2), output_tokens + output_tokens // 2 + 1, count)
    prompts = random.integers(0, vocab, (count, prompt_tokens)).tolist()
    return [Request(float(a), p, int(n)) for a, p, n in zip(arrivals, prompts, outputs, strict=True)]


def serve(
    decoding: Decoding,
    requests: Sequence[Request],
    *,
    now_s: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> ServingRun:
    """Serve all requests in real time."""
    waiting = sorted(enumerate(requests), key=lambda item: item[1].arrival_s)
    waiting.reverse()
    run, begin_s = ServingRun(), now_s()
    first_token_s: dict[int, float] = {}
    served: dict[int, Served] = {}

    def finish() -> None:
        stop_s = now_s() - begin_s
        for row in decoding.retire():
            arrival_s = requests[row.request].arrival_s
            served[row.request] = Served(arrival_s, first_token_s[row.request], stop_s, row)

    while waiting or decoding.rows:
        while waiting and len(decoding.rows) < decoding.batch:
            number, request = waiting[-1]
            start_s = now_s() - begin_s
            if request.arrival_s > start_s:
                break
            waiting.pop()
            decoding.admit([request.prompt], request.output_tokens, first_request=number)
            first_token_s[number] = now_s() - begin_s
            run.prefill_tokens.append(len(request.prompt))
            run.prefill_s.append(first_token_s[number] - start_s)
            finish()
        if not decoding.rows:
            if waiting:
                sleep(max(0.0, waiting[-1][1].arrival_s - (now_s() - begin_s)))
            continue
        start_s = now_s()
        round_ = decoding.step()
        run.round_s.append(now_s() - start_s)
        run.round_rows.append(len(round_.requests))
        run.round_tokens.append(sum(round_.emitted))
        finish()
    run.served = [served[number] for number in range(len(requests))]
    return run
