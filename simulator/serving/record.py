"""What a step leaves behind: gaps between chunks, the time series, events, and the records of requests that leave."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.heap import pushed
from simulator.serving.state import (
    ABANDONED,
    BUCKETS,
    FINISHED,
    GAP_BINS,
    GAP_BINS_PER_E,
    GAP_SHORTEST_S,
    HANDED_OVER,
)


class Record(NamedTuple):
    """Where one replica writes; of a pool's arrays its own rows."""

    gaps: Any
    """Histogram of gaps [GAP_BINS]."""
    edges_s: Any
    """Lower edges of its bins [GAP_BINS]."""
    series: Any
    """Sums by time bucket [state.SERIES, BUCKETS]."""
    events: Any
    """Room for events; none are kept where there is none."""


class Followers(NamedTuple):
    """Which requests wait for the end of which; arrays of length 0 where none does."""

    next_turn: Any
    """[requests] or nothing."""
    think_s: Any
    """[requests] or nothing."""
    backlog: Any
    """Closed loop: requests not asked yet, in order."""


@compiled
def note(record: Any, replica: Any, time_s: float, kind: int, request: int, value: int) -> None:
    """Keeps an event where there is room for events."""
    if replica.events < record.events.shape[0]:
        event = record.events[replica.events]
        event.time_s = time_s
        event.kind = kind
        event.request = request
        event.value = value
        replica.events += 1


@compiled
def step_s(config: Any, replica: Any, gpu_s: float, host_s: float, hidden_s: float) -> float:
    """Length of a step, s: with overlapped scheduling, right after another one, the hidden part of the host's work runs beside
    the GPU's."""
    if config.overlap == 1 and replica.in_flight == 1:
        return float(host_s + max(gpu_s, hidden_s))
    return float(host_s + (gpu_s + hidden_s))


@compiled_apart
def widen(replica: Any, series: Any, start_s: float) -> None:
    """Doubles the width of the buckets until `start_s` lies in one."""
    while start_s >= replica.bucket_s * BUCKETS:
        for row in range(series.shape[0]):
            for b in range(BUCKETS // 2):
                series[row, b] = series[row, 2 * b] + series[row, 2 * b + 1]
            series[row, BUCKETS // 2 :] = 0.0
        replica.bucket_s *= 2.0


@compiled
def series_add(
    replica: Any, series: Any, start_s: float, seconds: float, running: int, waiting: int, used_blocks: int, emitted: int,
    prompt_tokens: int,
) -> None:  # fmt: skip
    """Adds a step's figures to the bucket in which it began."""
    if start_s >= replica.bucket_s * BUCKETS:
        widen(replica, series, start_s)
    bucket = int(start_s / replica.bucket_s)
    series[0, bucket] += seconds
    series[1, bucket] += running * seconds
    series[2, bucket] += waiting * seconds
    series[3, bucket] += used_blocks * seconds
    series[4, bucket] += emitted
    series[5, bucket] += prompt_tokens
    series[6, bucket] += 1.0


@compiled
def count_gaps(replica: Any, record: Any, gap_s: float, times: int) -> None:
    """Counts `times` gaps of `gap_s` in the histogram."""
    edges_s = record.edges_s
    place = replica.gap_bin
    if not (edges_s[place] <= gap_s and (place + 1 == GAP_BINS or gap_s < edges_s[place + 1])):
        place = 0
        if gap_s > GAP_SHORTEST_S:
            place = min(GAP_BINS - 1, int(math.log(gap_s / GAP_SHORTEST_S) * GAP_BINS_PER_E))
        # The logarithm may be off by one where the gap lies on an edge.
        while place + 1 < GAP_BINS and gap_s >= edges_s[place + 1]:
            place += 1
        while place > 0 and gap_s < edges_s[place]:
            place -= 1
        replica.gap_bin = place
    record.gaps[place] += times


@compiled
def load_slot(slot: Any, request: Any) -> None:
    """The sequence takes up its request's record."""
    slot.generated_tokens = request.generated_tokens
    slot.left_tokens = request.output_tokens - request.generated_tokens
    slot.last_token_s = request.last_token_s
    slot.longest_gap_s = request.longest_gap_s
    slot.chunks = request.chunks
    slot.decode_rounds = request.decode_rounds
    slot.rounds = request.rounds
    slot.drafted_tokens = request.drafted_tokens
    slot.accepted_tokens = request.accepted_tokens
    slot.measured = request.measured


@compiled
def store_slot(slot: Any, request: Any) -> None:
    """The sequence's figures go back to its request's record."""
    request.generated_tokens = slot.generated_tokens
    request.last_token_s = slot.last_token_s
    request.longest_gap_s = slot.longest_gap_s
    request.chunks = slot.chunks
    request.decode_rounds = slot.decode_rounds
    request.rounds = slot.rounds
    request.drafted_tokens = slot.drafted_tokens
    request.accepted_tokens = slot.accepted_tokens


@compiled
def arrives_later(pool: Any, requests: Any, links: Any, index: int, at_s: float) -> None:
    """A request whose arrival was not known arrives at `at_s`; until now `cancel_s` held its user's patience."""
    request = requests[index]
    request.arrival_s = at_s
    request.ready_s = at_s
    request.cancel_s = at_s + request.cancel_s
    pool.later = pushed(pool.later, index, requests["ready_s"], links.index, links.arrival_left, links.arrival_right)


@compiled
def leave(
    pool: Any, replica: Any, requests: Any, links: Any, followers: Any, index: int, status: int, at_s: float
) -> None:
    """A request leaves the replica for good, or is handed over; whoever waited for its end arrives, or never will."""
    request = requests[index]
    request.status = status
    replica.left += 1
    links.ended[pool.ended] = index
    pool.ended += 1
    if status == HANDED_OVER:
        return
    request.finish_s = at_s
    if pool.feedback == 0:
        return
    if followers.next_turn.shape[0] > 0:
        turn = followers.next_turn[index]
        if status == FINISHED and turn >= 0:
            arrives_later(pool, requests, links, turn, at_s + followers.think_s[turn])
        while status != FINISHED and turn >= 0:
            requests[turn].status = ABANDONED
            requests[turn].finish_s = at_s
            turn = followers.next_turn[turn]
    if pool.backlog < followers.backlog.shape[0]:
        turn = followers.backlog[pool.backlog]
        pool.backlog += 1
        arrives_later(pool, requests, links, turn, at_s + followers.think_s[turn])
