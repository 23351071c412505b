"""Continuous batching as one would write it with SimPy: one event per engine step, plain objects, no compilation.

The yardstick beside which `simulate` is timed (peers.py). Steps take the same seconds, from the same `ForwardCost`; queues and
batches are lists of requests. It covers what the stock case needs: mixed batches with chunked prompts under a token budget, a
sequence limit, and scheduling beside the step before. It has no KV cache that can fill up, no preemption, no speculation and no
router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.deployment import Deployment
from simulator.serving.traffic import Requests


@dataclass(slots=True)
class Request:
    """One user's question and what became of it."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    submitted_s: float = float("nan")
    computed_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: float = float("nan")
    finish_s: float = float("nan")


class StepTime:
    """Seconds of an engine step: the pass as `ForwardCost` prices it, and the engine's host time."""

    def __init__(self, deployment: Deployment):
        self.engine, self.target = deployment.engine, deployment.target
        most = self.engine.settings.max_batched_tokens
        tables = deployment.target_tables(most, most)
        self.linear_s = [
            (plane[0] + extra).tolist() for plane, extra in zip(tables.linear, tables.extra_host_s, strict=True)
        ]
        self.head_s = tables.head[0].tolist()

    def __call__(self, batch: Sequence[tuple[Request, int]], follows: bool) -> float:
        """Of one step in which each request of `batch` gets so many tokens; `follows`: another step has just ended."""
        new = [tokens for _, tokens in batch]
        cached = [request.computed_tokens for request, _ in batch]
        prompts = any(request.computed_tokens < request.prompt_tokens for request, _ in batch)
        rows = sum(request.computed_tokens + tokens >= request.prompt_tokens for request, tokens in batch)
        pass_s: float = self.linear_s[prompts][sum(new)] + self.head_s[rows] + self.target.attention(new, cached)
        # An overlapping host was busy beside the step before, hence waits for nothing but what outlasts the pass.
        return pass_s + self.engine.host_s(len(batch), gpu_s=pass_s if follows else 0.0)


class Server:
    """One engine: a process that schedules, waits for the step to pass, and hands out its tokens."""

    def __init__(self, env: simpy.Environment, deployment: Deployment):
        self.env, self.step_s = env, StepTime(deployment)
        self.settings = deployment.engine.settings
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.woken = env.event()
        env.process(self.serve())

    def submit(self, request: Request) -> None:
        """A request joins the queue; an idle engine wakes up."""
        request.submitted_s = self.env.now  # its arrival, as the clock's additions round it
        self.waiting.append(request)
        if not self.woken.triggered:
            self.woken.succeed()

    def serve(self) -> Generator[Any, Any, None]:
        """Steps, one event each, as long as there is work."""
        follows, heard_s = False, 0.0
        while True:
            if not self.running and not self.waiting:
                self.woken = self.env.event()
                yield self.woken
                follows = False
            # An overlapping host made this schedule while the step before ran, and knows of nobody who came since.
            batch = self.schedule(heard_s if follows and self.settings.overlap else self.env.now)
            if not batch:
                follows = False
                continue
            heard_s = self.env.now
            yield self.env.timeout(self.step_s(batch, follows))
            self.emit(batch)
            follows = True

    def schedule(self, heard_s: float) -> list[tuple[Request, int]]:
        """Tokens of the next step: a token for all who decode, then prompts that have begun, then who waited by `heard_s`."""
        budget = self.settings.max_batched_tokens
        batch = []
        for request in sorted(self.running, key=lambda r: r.computed_tokens < r.prompt_tokens):
            tokens = min(max(1, request.prompt_tokens - request.computed_tokens), budget)
            if tokens:
                batch.append((request, tokens))
                budget -= tokens
        while self.waiting and budget and len(self.running) < self.settings.max_sequences:
            if self.waiting[0].submitted_s > heard_s:
                break
            request = self.waiting.popleft()
            tokens = min(request.prompt_tokens, budget)
            self.running.append(request)
            batch.append((request, tokens))
            budget -= tokens
        return batch

    def emit(self, batch: Sequence[tuple[Request, int]]) -> None:
        """Whoever has computed its prompt gets a token; whoever has its answer leaves."""
        for request, tokens in batch:
            request.computed_tokens += tokens
            if request.computed_tokens < request.prompt_tokens:
                continue
            request.generated_tokens += 1
            if request.generated_tokens == 1:
                request.first_token_s = self.env.now
            if request.generated_tokens == request.output_tokens:
                request.finish_s = self.env.now
        self.running = [request for request in self.running if request.generated_tokens < request.output_tokens]


def arrivals(env: simpy.Environment, server: Server, requests: Sequence[Request]) -> Generator[Any, Any, None]:
    """Open loop: each request is submitted at its time."""
    for request in requests:
        yield env.timeout(max(0.0, request.arrival_s - env.now))
        server.submit(request)


def simulate_steps(deployment: Deployment, traffic: Requests) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """TTFT and TPOT of every request [requests], s."""
    requests = [
        Request(*row)
        for row in zip(
            traffic.arrival_s.tolist(), traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist(), strict=True
        )
    ]
    env = simpy.Environment()
    env.process(arrivals(env, Server(env, deployment), requests))
    env.run()
    first_s, finish_s = (np.array([getattr(r, name) for r in requests]) for name in ("first_token_s", "finish_s"))
    return first_s - traffic.arrival_s, (finish_s - first_s) / (traffic.output_tokens - 1)
