"""Which replica a request goes to. Rules: docs/engine-rules.md; the routers' numbers are places in `model.ROUTERS`."""

from __future__ import annotations

from typing import Any

from simulator.serving.arrays import one_of
from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.kv_cache import found_blocks
from simulator.serving.luck import absorbed, number_of
from simulator.serving.model import ROUTERS

ROUND_ROBIN, LEAST_OUTSTANDING, LEAST_KV, PREFIX_AWARE, POWER_OF_TWO = range(len(ROUTERS))
STREAM_ROUTING = (1 << 40) + 64
"""Second word of the counter of power-of-two's draws; arrivals and lengths have smaller ones (`randomness`)."""


@compiled
def outstanding(replica: Any, now_s: float) -> int:
    """Requests submitted whose ends have been heard of by `now_s`; the step that runs ends later."""
    unheard = replica.left_last if replica.clock_s > now_s else 0
    return int(replica.submitted - replica.left + unheard)


@compiled_apart
def least_outstanding(replicas: Any, now_s: float) -> int:
    """The open replica with the fewest outstanding requests, the first of equals; -1 where none is open."""
    best, fewest = -1, 0
    for r in range(replicas.shape[0]):
        if replicas[r].open == 1:
            here = outstanding(replicas[r], now_s)
            if best < 0 or here < fewest:
                best, fewest = r, here
    return best


@compiled_apart
def chosen(
    pool: Any, configs: Any, replicas: Any, requests: Any, blocks: Any, pieces: Any, index: int, now_s: float
) -> int:
    """The replica for request `index`, -1 where none is open."""
    count = replicas.shape[0]
    if pool.router == ROUND_ROBIN:
        for _ in range(count):
            r = pool.turn
            pool.turn = (pool.turn + 1) % count
            if replicas[r].open == 1:
                return int(r)
        return -1
    best: int = least_outstanding(replicas, now_s)
    if best < 0 or pool.router == LEAST_OUTSTANDING:
        return best
    if pool.router == LEAST_KV:
        least = 2.0
        for r in range(count):
            share = replicas[r].used_blocks / configs[replicas[r].model].total_blocks
            if replicas[r].open == 1 and share < least:
                best, least = r, share
        return best
    if pool.router == POWER_OF_TWO:
        if count == 1:
            return best
        state = absorbed(absorbed(absorbed(0, pool.seed), pool.routed), STREAM_ROUTING)
        i = int(number_of(absorbed(state, 0)) * count)
        j = int(number_of(absorbed(state, 1)) * (count - 1))
        j += 1 if j >= i else 0
        i, j = min(i, j), max(i, j)
        if replicas[i].open == 0 or replicas[j].open == 0:
            i, j = (
                (best, best)
                if replicas[i].open + replicas[j].open == 0
                else (i, i)
                if replicas[i].open == 1
                else (j, j)
            )
        return j if outstanding(replicas[j], now_s) < outstanding(replicas[i], now_s) else i
    most, fewest = -1, 0
    limit = outstanding(replicas[best], now_s) + pool.slack
    for r in range(count):
        here = outstanding(replicas[r], now_s)
        if replicas[r].open == 0 or here > limit:
            continue
        found, _ = found_blocks(
            configs[replicas[r].model], one_of(blocks, r), requests[index], pieces, requests[index].prompt_tokens
        )
        if found > most or (found == most and here < fewest):
            best, most, fewest = r, found, here
    return best
