"""Replicas that fail: when, and what becomes of the requests they held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from simulator.randomness import uniform
from simulator.serving import state
from simulator.serving.cluster_config import Failure, exponential_s
from simulator.serving.kv_cache import NO_KEY
from simulator.serving.pool import Pool

IntArray = NDArray[np.int64]

STREAM_FAILURES = (1 << 40) + 65
"""Second word of the counter of random outages (`randomness`)."""


def outages(failure: Failure, replica: int, seed: int) -> Iterator[tuple[float, float]]:
    """(time from coming up to failing, time from then to serving again) of one replica, without end, s.

    The k-th pair of a replica is the same whatever else happens.
    """
    if failure.mtbf_s is None or failure.mttr_s is None:
        raise ValueError("a planned outage has no draws")
    k = 0
    while True:
        up_s = exponential_s(failure.mtbf_s, uniform(seed, replica, STREAM_FAILURES, 2 * k))
        yield up_s, exponential_s(failure.mttr_s, uniform(seed, replica, STREAM_FAILURES, 2 * k + 1))
        k += 1


def evict(pool: Pool, r: int, back_s: float) -> IntArray:
    """Replica `r` of `pool` loses all it holds; returns the requests, which will be at the router at `back_s`.

    Their KV is lost, tokens already sent are not: whoever takes them next computes prompt and answer so far again. The
    replica keeps its counters and is as empty as a new one. The pool's steps before now must have been run.
    """
    arrays = pool.arrays
    replica, requests = arrays.replicas[r], arrays.requests
    pool.store_running()
    # A request is here from when it was routed until it left: `submit` sets the number, and whoever left has ended.
    held: IntArray = np.flatnonzero((requests["replica"] == replica.number) & (requests["status"] <= state.RUNNING))
    _charge_lost_tokens(pool, r, held)
    never_started = held[(requests["status"][held] == state.WAITING) & (requests["retries"][held] == 0)]
    never_started = never_started[requests["generated_tokens"][never_started] == 0]
    requests["scheduled_s"][never_started] = -1.0  # which admission takes for "not yet", retry or not
    requests["status"][held] = state.WAITING
    requests["retries"][held] += 1
    requests["ready_s"][held] = back_s
    requests["replica"][held] = -1

    replica.left = replica.submitted
    for name in (
        "running", "prompts", "held", "fresh", "stacked", "in_flight", "left_last", "finishing", "used_blocks", "swapped_blocks",
        "freed_blocks",
    ):  # fmt: skip
        replica[name] = 0
    for name in ("tail", "unjoined", "first", "overdue", "ranks", "cancels"):
        replica[name] = -1
    replica.free_rows = arrays.configs["max_sequences"][replica.model]
    if arrays.configs["shares"].any():
        _empty_cache(pool, r)
    return held


def _charge_lost_tokens(pool: Pool, r: int, held: IntArray) -> None:
    """KV that was there and has to be computed again: of running sequences, of swapped ones, of what came over a link."""
    arrays = pool.arrays
    replica, requests = arrays.replicas[r], arrays.requests
    slots, stack = arrays.slots[r, : replica.running], arrays.stacks[r, : replica.stacked]
    slots = slots[slots["held"] == 0]  # the others have finished
    requests["recomputed_tokens"][slots["request"]] += slots["computed_tokens"]
    requests["recomputed_tokens"][stack["request"]] += stack["swapped_tokens"]
    requests["recomputed_tokens"][held] += requests["carried_tokens"][held]
    requests["carried_tokens"][held] = 0


def _empty_cache(pool: Pool, r: int) -> None:
    """All blocks free, in the order of their numbers, and nothing to be found."""
    blocks, replica = pool.arrays.blocks, pool.arrays.replicas[r]
    total = int(pool.arrays.configs["total_blocks"][replica.model])
    blocks.key[r], blocks.users[r] = NO_KEY, 0
    blocks.bucket[r], blocks.chain[r] = -1, 0
    blocks.after[r, : total + 1] = np.roll(np.arange(total + 1), -1)
    blocks.before[r, : total + 1] = np.roll(np.arange(total + 1), 1)
    blocks.rows[r] = np.arange(blocks.rows.shape[1])
