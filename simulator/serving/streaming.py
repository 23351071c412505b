"""A simulation in whose memory a request stays only as long as it is under way: traffic comes in chunks, records go out as rows.

The pool holds the requests that have not left and the next chunk. When the first arrival of the chunk after it is due, whoever
has left is handed to the metrics and to the rows, the others move together and the chunk joins (`relocation`). The loop's results
do not depend on how time is cut, so they are those of `simulation.simulate`, to the last bit; per request remain the 40 bytes
that metrics need (`outcomes`).

Where the queue only grows, or somebody waits for ever, nearly everybody stays: that takes more memory than keeping all.

Every chunk is drawn once to be counted (warm-up is a share of all requests) and once per variant; a trace is read once and
stays in memory, some 50 bytes per request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.scenario import Scenario
from simulator.serving import state
from simulator.serving.clients import ClientTraffic
from simulator.serving.cluster import INTERRUPTED, SLICE_STEPS, ClusterRun, interruptible
from simulator.serving.fleets import Plan, line_of, longest_of, plan
from simulator.serving.model import FloatArray, IntArray
from simulator.serving.outcomes import Outcomes
from simulator.serving.pool import Pool
from simulator.serving.relocation import relocate
from simulator.serving.requests import Requests
from simulator.serving.simulation import (
    Progress,
    Run,
    SimulationResult,
    Variant,
    context_limit,
    judged,
    variants_of,
)
from simulator.serving.stages import Breath, Single
from simulator.serving.traffic import ClosedLoop, Trace, generate, generate_chunks
from simulator.serving.workload import fates_of, has_common, nothing_fits, workload_of
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance

CHUNK = 2**16
"""Requests that join at a time: of a million, four times as many take 165 MB more and a tenth longer."""
_NONE = np.zeros(0, dtype=np.int64)


class Rows(Protocol):
    """Where records of requests go that have ended, such as `output.columns.row_stream`."""

    def write(self, variant: str, requests: Any, rows: IntArray) -> None:
        """Takes records of `state.REQUEST`, which may be overwritten afterwards, and their indices in trace or generator."""


@dataclass(frozen=True, eq=False)
class Counted(Requests):
    """What is known of requests that nobody keeps: all but their arrays."""

    total: int = 0

    def __len__(self) -> int:
        return self.total


def refusal(scenario: Scenario) -> InputError | None:
    """Why `scenario` cannot be streamed; None: it can."""
    traffic, cluster = scenario.traffic, scenario.cluster
    if isinstance(traffic, ClosedLoop):
        return InputError("traffic", traffic.kind, "be an open loop to be streamed: here ends cause arrivals")
    if not isinstance(traffic, Trace):
        contents = traffic.clients if isinstance(traffic, ClientTraffic) else traffic.contents
        if any(content.conversation for content in contents):
            return InputError(
                "conversation", "(given)", "be left out to be streamed: later turns wait for earlier ones"
            )
    if cluster is not None:
        alone = all(pool.role == "both" and pool.autoscaler is None for pool in cluster.pools)
        if not alone or cluster.failures or cluster.autoscaler is not None:
            rule = "have one pool without failures and autoscaler to be streamed"
            return InputError("cluster", "(given)", rule)
    return None


@dataclass(frozen=True)
class Stream:
    """A scenario ready to be streamed; its requests have been counted."""

    scenario: Scenario
    deployment: Deployment
    traffic: Counted
    variants: tuple[Variant, ...]
    chunk_requests: int
    shortest: int
    """Prompt and answer of the shortest request, tokens."""
    longest: int
    first_arrival_s: float
    common: bool
    """Whether any two prompts begin alike."""
    whole: Requests | None
    """All of a trace; None: chunks are drawn again whenever they are needed."""

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        *,
        requests: Requests | None = None,
        deployment: Deployment | None = None,
        acceptance: Acceptance | None = None,
        chunk_requests: int = CHUNK,
    ) -> Stream:
        """Counts the requests of `scenario`; keywords as in `simulate`. Raises MemwallError, also where it cannot be streamed."""
        found = refusal(scenario)
        if found is not None and (requests is None or found.field == "cluster"):
            raise found
        if chunk_requests < 1:
            raise InputError("chunk_requests", chunk_requests, "be at least 1")
        deployment = deployment or scenario.deployment()
        whole = requests
        if whole is None and isinstance(scenario.traffic, Trace):
            limit = context_limit(scenario, deployment)
            whole = generate(scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit)
        heads: list[Requests] = []
        total, shortest, longest, first_arrival_s, common = 0, 1 << 62, 0, math.inf, False
        for chunk in _chunks(scenario, deployment, whole, chunk_requests):
            if chunk.users or chunk.follows is not None:
                raise InputError("traffic", chunk.source, "have no request that waits for another to be streamed")
            heads.append(replace(chunk.take(_NONE), shared=None, rows_read=chunk.rows_read))
            total += len(chunk)
            if len(chunk):
                tokens = chunk.prompt_tokens + chunk.output_tokens
                shortest, longest = min(shortest, int(tokens.min())), max(longest, int(tokens.max()))
                first_arrival_s = min(first_arrival_s, float(chunk.arrival_s[0]))
            common = common or (whole is None and has_common(chunk))
        if whole is not None:
            # Its chunks count every time what was dropped from all of it.
            heads = [replace(whole.take(_NONE), shared=None)]
            common = has_common(whole)
        head = Requests.joined(heads)
        if whole is None:
            head = replace(head, source=f"{head.rows_read} requests, {head.source}")
        traffic = Counted(**{field.name: getattr(head, field.name) for field in fields(Requests)}, total=total)
        variants = tuple(variants_of(scenario, deployment, acceptance))
        return cls(
            scenario, deployment, traffic, variants, chunk_requests, shortest, longest, first_arrival_s, common, whole
        )

    def chunks(self) -> Iterator[Requests]:
        """The requests, in order, none of the chunks empty."""
        for chunk in _chunks(self.scenario, self.deployment, self.whole, self.chunk_requests):
            if len(chunk):
                yield chunk

    def run(
        self, rows: Rows | None = None, progress: Progress | None = None, *, partial: bool = False
    ) -> SimulationResult:
        """Simulates as `simulate` does. The runs have no records of requests: these go to `rows` in order of their index, each
        as soon as it and all before it have ended."""
        runs: list[Run] = []
        for variant in self.variants:
            runs.append(_Pass(self, variant, rows, progress).run(partial=partial))
            if runs[-1].interrupted_s is not None:
                break
        return SimulationResult(self.scenario, self.deployment, self.traffic, tuple(runs))


def simulate_streamed(
    scenario: Scenario,
    *,
    rows: Rows | None = None,
    progress: Progress | None = None,
    requests: Requests | None = None,
    deployment: Deployment | None = None,
    acceptance: Acceptance | None = None,
    partial: bool = False,
    chunk_requests: int = CHUNK,
) -> SimulationResult:
    """`simulate` without keeping requests: the same summaries, for open loops on one pool of replicas.

    `rows` gets the record of every request; `chunk_requests` join at a time. Raises MemwallError, also for traffic in which
    requests wait for others.
    """
    stream = Stream.of(
        scenario, requests=requests, deployment=deployment, acceptance=acceptance, chunk_requests=chunk_requests
    )
    return stream.run(rows, progress, partial=partial)


def _chunks(scenario: Scenario, deployment: Deployment, whole: Requests | None, size: int) -> Iterator[Requests]:
    if whole is None:
        limit = context_limit(scenario, deployment)
        yield from generate_chunks(
            scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit, size=size
        )
        return
    for first in range(0, len(whole), size):
        yield whole.take(np.arange(first, min(first + size, len(whole)), dtype=np.int64))


class _Pass:
    """One variant, from the first request to the last."""

    def __init__(self, stream: Stream, variant: Variant, rows: Rows | None, progress: Progress | None):
        self.stream, self.variant = stream, variant
        scenario, total = stream.scenario, len(stream.traffic)
        self._chunks = stream.chunks()
        chunk = next(self._chunks)
        self.planned: Plan = plan(
            scenario, chunk, variant.deployment, variant.drafts, total=total, common=stream.common
        )
        self._most_tokens = longest_of(self.planned.kinds) or 0
        if stream.shortest > self._most_tokens:
            raise nothing_fits(stream.traffic, self._most_tokens)
        self._fates = _Fates(scenario, variant, chunk)
        self._number = len(chunk)
        self._rows_of = chunk.row
        self.pool = Pool(self.planned.fleets[0], self.planned.workload, longest=stream.longest)
        self.pool.arrays = self.pool.arrays._replace(
            luck=self.pool.arrays.luck._replace(rates=self._fates.rates, row_of=self._fates.row_of)
        )
        self.outcomes = Outcomes(total)
        self._rows = None if rows is None else _InOrder(rows, variant.name)
        self._left, self._end_s = 0, 0.0
        tell = progress or (lambda name, done, of: None)
        self._breath = Breath(lambda: tell(variant.name, self._left + self.pool.ended, total))

    def run(self, *, partial: bool) -> Run:
        """Simulates. Raises KeyboardInterrupt on Ctrl-C unless what there is by then is wanted."""
        with interruptible(self._breath):
            done = self._to_the_end()
        if done.interrupted == INTERRUPTED and not partial:
            raise KeyboardInterrupt
        none = state.records(state.REQUEST, 0)
        stream = self.stream
        return judged(
            stream.scenario, stream.traffic, self.variant, self.planned, done, self.outcomes, requests=none, rows=_NONE
        )

    def _to_the_end(self) -> ClusterRun:
        following = next(self._chunks, None)
        while True:
            until_s = math.inf if following is None else float(following.arrival_s[0])
            if not Single(self.pool, SLICE_STEPS).advance(until_s, self._breath):
                break
            gone = self.pool.arrays.requests["status"] > state.RUNNING
            if following is not None:
                gone[self._held()] = False
            self._hand_out(gone)
            if following is None:
                break
            self._join(following, ~gone)
            following = next(self._chunks, None)
        if self._breath.reason:
            self._end_s = self._give_up(following)
        elif self._left < len(self.stream.traffic):
            raise RuntimeError("the simulation has ended and some requests have not")
        else:
            self._breath.tell()
        held = np.full(len(self.pool.replicas), self._end_s - min(self.stream.first_arrival_s, self._end_s))
        return ClusterRun((self.pool,), None, (), held, self._end_s, self._breath.reason)

    def _held(self) -> IntArray:
        """Requests that have finished and whose blocks are held for one schedule more."""
        arrays = self.pool.arrays
        running = [slots[: r.running] for slots, r in zip(arrays.slots, arrays.replicas, strict=True)]
        return np.concatenate([slots["request"][slots["held"] > 0] for slots in running])

    def _workload(self, chunk: Requests) -> Any:
        settings = line_of(self.planned.kinds)
        total = len(self.stream.traffic)
        return workload_of(
            chunk, settings, self.stream.scenario.warmup, self._most_tokens, first=self._number, total=total
        )

    def _join(self, chunk: Requests, kept: Any) -> None:
        self._fates.join(chunk, self._number, kept)
        relocate(self.pool, kept, self._workload(chunk), self._fates.rates, self._fates.row_of)
        self._rows_of = np.concatenate([self._rows_of[kept], chunk.row])
        self._number += len(chunk)

    def _hand_out(self, gone: Any) -> None:
        """Those `gone` leave for good."""
        requests = self.pool.arrays.requests
        numbers = requests["number"]
        records = requests[gone]
        self._end_s = max(self._end_s, float(records["finish_s"].max(initial=0.0)))
        self._account(records, self._rows_of[gone], int(numbers[~gone][0]) if not gone.all() else self._number)
        self._left += len(records)
        self.pool.arrays.pool[0].ended = 0

    def _account(self, records: Any, rows: IntArray, before: int) -> None:
        self.outcomes.scatter(records, records["number"])
        if self._rows is not None:
            self._rows.add(records, rows, before)

    def _give_up(self, following: Requests | None) -> float:
        """Everybody leaves as they are, those included who have not come; returns the time reached."""
        self.pool.store_running()
        reached_s = Single(self.pool, SLICE_STEPS).reached_s
        self._account(self.pool.arrays.requests, self._rows_of, self._number)
        while following is not None:
            requests = self._workload(following).requests
            self._number += len(requests)
            self._account(requests, following.row, self._number)
            following = next(self._chunks, None)
        return reached_s


class _Fates:
    """Acceptance of the requests that are there: a row each where they differ, else a few rows for all."""

    def __init__(self, scenario: Scenario, variant: Variant, chunk: Requests):
        self._scenario, self._variant = scenario, variant
        self._differ = False
        if variant.drafts is not None:
            kind = variant.deployment.drafter.kind if variant.deployment.drafter else None
            laws = [
                variant.drafts.law,
                *(c.acceptance.law(scenario.base, kind) for c in chunk.classes if c.acceptance is not None),
            ]
            self._differ = any(not law.alike and not isinstance(law, RecordedAcceptance) for law in laws)
        self.rates, self.row_of = self._of(chunk, 0)

    def join(self, chunk: Requests, first: int, kept: Any) -> None:
        """Those `kept` stay, followed by `chunk`, whose first request has the number `first`."""
        rates, row_of = self._of(chunk, first)
        if not self._differ:
            self.row_of = np.concatenate([self.row_of[kept], row_of])
            return
        self.rates = np.concatenate([self.rates[kept], rates])
        self.row_of = np.arange(len(self.rates))

    def _of(self, chunk: Requests, first: int) -> tuple[FloatArray, IntArray]:
        drafts, drafter = self._variant.drafts, self._variant.deployment.drafter
        if drafts is None:
            return np.ones((1, 1, 1)), np.zeros(len(chunk), dtype=np.int64)
        rates, row_of = fates_of(chunk, drafts, self._scenario, first, drafter.kind if drafter else None)
        return (rates[row_of], np.arange(len(chunk))) if self._differ else (rates, row_of)


class _InOrder:
    """Rows wait here until all before them have ended."""

    def __init__(self, rows: Rows, variant: str):
        self._sink, self._variant = rows, variant
        self._records, self._rows = state.records(state.REQUEST, 0), _NONE

    def add(self, records: Any, rows: IntArray, before: int) -> None:
        """Records that have ended, by number; all requests with numbers smaller than `before` have."""
        if len(self._records):
            records, rows = np.concatenate([self._records, records]), np.concatenate([self._rows, rows])
            order = np.argsort(records["number"], kind="stable")
            records, rows = records[order], rows[order]
        ready = int(np.searchsorted(records["number"], before))
        self._sink.write(self._variant, records[:ready], rows[:ready])
        self._records, self._rows = records[ready:].copy(), rows[ready:].copy()
