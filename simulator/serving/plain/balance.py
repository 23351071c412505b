"""What must hold of final request records and a replica's totals, whichever loop made them.

Every function returns the numbers that contradict it; an empty dictionary where nothing does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from simulator.serving.state import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    HANDED_OVER,
    REFUSED,
    REJECTED,
    RUNNING,
    TIMED_OUT,
    WAITING,
)

Numbers = dict[str, float]

ROUNDING = 1e-9
"""Relative difference of two sums of the same numbers in another order (some 10⁶ of them, double precision)."""


def causality(request: Any) -> Numbers:
    """arrival ≤ ready; arrival ≤ scheduled ≤ first token ≤ last token, which is the end of who finishes; nobody leaves before
    he came, gave up, or had his turn."""
    if request.arrival_s > request.ready_s:
        return {"arrival_s": request.arrival_s, "ready_s": request.ready_s}
    if request.generated_tokens > 0:
        times = (request.arrival_s, request.scheduled_s, request.first_token_s, request.last_token_s)
        if not all(one <= other for one, other in pairwise(times)):
            return dict(zip(("arrival_s", "scheduled_s", "first_token_s", "last_token_s"), times, strict=True))
        if request.status == FINISHED and request.last_token_s != request.finish_s:
            return {"last_token_s": request.last_token_s, "finish_s": request.finish_s}
    if request.status in (FINISHED, REFUSED, TIMED_OUT, CANCELLED) and request.finish_s < request.ready_s:
        return {"ready_s": request.ready_s, "finish_s": request.finish_s}
    if request.status == CANCELLED and request.finish_s < request.cancel_s:
        return {"cancel_s": request.cancel_s, "finish_s": request.finish_s}
    return {}


def every_request_has_an_end(requests: Iterable[Any]) -> Numbers:
    """At the end of a whole simulation nobody waits, runs or is on the way."""
    left = sum(request.status in (WAITING, RUNNING, HANDED_OVER) for request in requests)
    return {"without end": left} if left else {}


def token_balance(requests: Iterable[Any], replicas: Iterable[Any]) -> Numbers:
    """Σ emitted = Σ generated ≤ output, equal where finished; drafts, rounds, preemptions and cache hits add up alike."""
    requests, replicas = list(requests), list(replicas)
    for index, request in enumerate(requests):
        generated, output = int(request.generated_tokens), int(request.output_tokens)
        if generated > output or (request.status == FINISHED and generated != output):
            return {"request": index, "generated": generated, "output": output}
        if not 0 <= request.accepted_tokens <= request.drafted_tokens:
            return {"request": index, "accepted": request.accepted_tokens, "drafted": request.drafted_tokens}
    for total, part in (
        ("emitted_tokens", "generated_tokens"),
        ("drafted_tokens", "drafted_tokens"),
        ("accepted_tokens", "accepted_tokens"),
        ("sequence_rounds", "rounds"),
        ("preemptions", "preemptions"),
        ("cached_tokens", "cached_tokens"),
    ):
        of_replicas = sum(int(getattr(replica, total)) for replica in replicas)
        of_requests = sum(int(getattr(request, part)) for request in requests)
        if of_replicas != of_requests:
            return {total: of_replicas, part: of_requests}
    return {}


def computed_balance(requests: Iterable[Any], replicas: Iterable[Any]) -> Numbers:
    """Where all have finished without speculation: every token of prompt and answer but the last is computed once, less what
    was found in the cache, and once more what was preempted: Σ tokens of all steps = Σ (prompt + answer − 1 − cached + recomputed).
    """
    requests = [request for request in requests if request.status == FINISHED and request.output_tokens > 0]
    decoded = sum(int(request.decode_rounds) for request in requests)
    prefilled = sum(int(replica.prefill_tokens) for replica in replicas)
    expected = sum(
        int(r.prompt_tokens) + int(r.output_tokens) - 1 - int(r.cached_tokens) + int(r.recomputed_tokens)
        for r in requests
    )
    return {} if decoded + prefilled == expected else {"computed": decoded + prefilled, "expected": expected}


def littles_law(requests: Iterable[Any], request_seconds: float, *, unheard_s: float) -> Numbers:
    """Little's law, exact on a finite run: Σ over steps of (waiting + running) · seconds = Σ (finish − joined).

    A request joins at the first boundary after it is ready, which `unheard_s` bounds: the longest step, or two of them with
    overlapped scheduling. Reference: J. D. C. Little, Operations Research 9 (1961); S. Stidham, ibid. 22 (1974).
    """
    times_s = [float(r.finish_s) - float(r.ready_s) for r in requests if r.status in (FINISHED, CANCELLED, TIMED_OUT)]
    residence_s = math.fsum(times_s)
    least_s = math.fsum(max(0.0, time_s - unheard_s) for time_s in times_s)
    slack_s = ROUNDING * residence_s
    if least_s - slack_s <= request_seconds <= residence_s + slack_s:
        return {}
    return {"request_seconds": request_seconds, "residence_s": residence_s, "least_s": least_s}


def work_conservation(requests: Iterable[Any], busy_s: float, clock_s: float) -> Numbers:
    """One replica is busy exactly as long as there is somebody there: busy time = length of the union of [ready, end].

    `requests` are those of this replica; one that is still there ends at `clock_s`.
    """
    stays = []
    for request in requests:
        if request.status in (REJECTED, ABANDONED):
            continue
        end_s = float(request.finish_s)
        if request.status in (WAITING, RUNNING):
            end_s = clock_s
        elif request.status == HANDED_OVER:
            end_s = float(request.last_token_s)
        stays.append((float(request.ready_s), end_s))
    covered_s, parts = -math.inf, []
    for ready_s, end_s in sorted(stays):
        if end_s > covered_s:
            parts.append(end_s - max(ready_s, covered_s))
            covered_s = end_s
    present_s = math.fsum(parts)
    if abs(present_s - busy_s) <= ROUNDING * max(clock_s, busy_s):
        return {}
    return {"present_s": present_s, "busy_s": busy_s}
