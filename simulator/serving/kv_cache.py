"""Paged KV: blocks taken from the head of one queue of free ones, given back to its tail, and found again by content.

Where requests share nothing, blocks need no names: two counters per preempted sequence tell how many of its blocks nobody
has taken since. Where they share prefixes, every block has its content's key, its users and its place in the queue.
Rules: docs/engine-rules.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from simulator.serving.compiled import compiled

PLACES = 1 << 24
"""Blocks of one sequence that a key can tell apart."""
FIRST_SESSION = 1 << 38
"""Sessions' keys begin behind those of shared pieces."""
NO_KEY = -1
_SCATTER = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio, odd


class Blocks(NamedTuple):
    """Named blocks of one replica, or arrays of length 1 where blocks have no names."""

    key: Any
    """Content of each block, NO_KEY where it is in no table [blocks]."""
    users: Any
    """Running sequences that hold it [blocks]."""
    after: Any
    """Next in the queue of free blocks; the last entry is both its ends [blocks + 1]."""
    before: Any
    bucket: Any
    """First block of each bucket of keys, -1 for none [a power of two]."""
    chain: Any
    """Next block of the same bucket [blocks]."""
    table: Any
    """Blocks of each running sequence, by slot.row [sequences, blocks of the longest]."""
    rows: Any
    """Stack of the free rows of `table` [sequences]."""


@compiled
def blocks_for(config: Any, tokens: int) -> int:
    """KV blocks that hold `tokens` of one sequence."""
    if config.window_tokens > 0 and tokens > config.window_tokens:
        kept = config.window_tokens + (tokens - config.window_tokens) * (1.0 - config.windowed_share)
        return math.ceil(kept / config.block_tokens)
    return int((tokens + config.block_tokens - 1) // config.block_tokens)


@compiled
def free_blocks(config: Any, replica: Any) -> int:
    """Blocks that no running sequence holds."""
    return int(config.total_blocks - replica.used_blocks)


@compiled
def bucket_of(key: int, buckets: int) -> int:
    """Bucket of `key`; `buckets` is a power of two."""
    scattered = (np.uint64(key) * np.uint64(_SCATTER)) >> np.uint64(32)
    return int(scattered & np.uint64(buckets - 1))


@compiled
def find(blocks: Any, key: int) -> int:
    """The block whose content has this key, -1 for none."""
    block = blocks.bucket[bucket_of(key, blocks.bucket.shape[0])]
    while block >= 0 and blocks.key[block] != key:
        block = blocks.chain[block]
    return int(block)


@compiled
def enter(blocks: Any, block: int, key: int) -> None:
    """Puts a block into the table, unless its content is there already."""
    if blocks.key[block] != NO_KEY or find(blocks, key) >= 0:
        return
    place = bucket_of(key, blocks.bucket.shape[0])
    blocks.key[block] = key
    blocks.chain[block] = blocks.bucket[place]
    blocks.bucket[place] = block


@compiled
def forget(blocks: Any, block: int) -> None:
    """Takes a block out of the table."""
    key = blocks.key[block]
    if key == NO_KEY:
        return
    place = bucket_of(key, blocks.bucket.shape[0])
    other = blocks.bucket[place]
    if other == block:
        blocks.bucket[place] = blocks.chain[block]
    else:
        while blocks.chain[other] != block:
            other = blocks.chain[other]
        blocks.chain[other] = blocks.chain[block]
    blocks.key[block] = NO_KEY


@compiled
def unlink(blocks: Any, block: int) -> None:
    """Takes a block out of the queue of free ones."""
    after, before = blocks.after[block], blocks.before[block]
    blocks.after[before] = after
    blocks.before[after] = before


@compiled
def key_of(request: Any, pieces: Any, place: int, block_tokens: int) -> int:
    """Key of the block at `place` of a request's sequence: the piece in which it ends, else its session."""
    source, end_tokens = pieces
    low, high = request.first_piece, request.first_piece + request.pieces
    end = (place + 1) * block_tokens
    while low < high:  # the first piece that reaches the block's end
        middle = (low + high) // 2
        if end_tokens[middle] < end:
            low = middle + 1
        else:
            high = middle
    if low < request.first_piece + request.pieces:
        return int(source[low] * PLACES + place)
    return int((FIRST_SESSION + request.session) * PLACES + place)


@compiled
def found_blocks(config: Any, blocks: Any, request: Any, pieces: Any, goal: int) -> tuple[int, int]:
    """Leading blocks of a request that are in the table, and how many of them nobody uses."""
    found = idle = 0
    if config.shares == 0 or config.prefix_caching == 0:
        return 0, 0
    while found < (goal - 1) // config.block_tokens:
        block = find(blocks, key_of(request, pieces, found, config.block_tokens))
        if block < 0:
            break
        idle += 1 if blocks.users[block] == 0 else 0
        found += 1
    return found, idle


@compiled
def hold_found(config: Any, replica: Any, blocks: Any, slot: Any, request: Any, pieces: Any, found: int) -> None:
    """The leading `found` blocks of the table become the sequence's too."""
    row = blocks.table[slot.row]
    for place in range(found):
        block = find(blocks, key_of(request, pieces, place, config.block_tokens))
        if blocks.users[block] == 0:
            unlink(blocks, block)
            replica.used_blocks += 1
        blocks.users[block] += 1
        row[place] = block
    slot.blocks = slot.keyed = found


@compiled
def take(config: Any, replica: Any, blocks: Any, slot: Any, wanted: int) -> None:
    """The sequence gets blocks from the head of the queue until it has `wanted`."""
    if wanted <= slot.blocks:
        return
    replica.used_blocks += wanted - slot.blocks
    if config.shares == 1:
        row = blocks.table[slot.row]
        head = config.total_blocks
        for place in range(slot.blocks, wanted):
            block = blocks.after[head]
            unlink(blocks, block)
            forget(blocks, block)
            blocks.users[block] = 1
            row[place] = block
    slot.blocks = wanted


@compiled
def enter_full(config: Any, blocks: Any, slot: Any, request: Any, pieces: Any, known: int) -> None:
    """Enters those blocks that are full of `known` tokens and have not been entered."""
    if config.shares == 0 or config.prefix_caching == 0:
        return
    row = blocks.table[slot.row]
    full = known // config.block_tokens
    for place in range(slot.keyed, full):
        enter(blocks, row[place], key_of(request, pieces, place, config.block_tokens))
    slot.keyed = max(slot.keyed, full)


@compiled
def give_back(config: Any, replica: Any, blocks: Any, slot: Any, request: Any, pieces: Any) -> None:
    """The sequence's blocks join the tail of the queue, the last one first; those that others use stay with them."""
    # Accepted drafts may have filled blocks since the last schedule.
    enter_full(config, blocks, slot, request, pieces, slot.computed_tokens)
    replica.freed_blocks += slot.blocks
    if config.shares == 0:
        replica.used_blocks -= slot.blocks
    else:
        row = blocks.table[slot.row]
        # What was entered for this step and will not be computed is not there to be found.
        for place in range(slot.computed_tokens // config.block_tokens, slot.keyed):
            if blocks.users[row[place]] == 1:
                forget(blocks, row[place])
        tail = config.total_blocks
        for place in range(slot.blocks - 1, -1, -1):
            block = row[place]
            blocks.users[block] -= 1
            if blocks.users[block] == 0:
                replica.used_blocks -= 1
                last = blocks.before[tail]
                blocks.after[last] = block
                blocks.before[block] = last
                blocks.after[block] = tail
                blocks.before[tail] = block
        blocks.rows[replica.free_rows] = slot.row
        replica.free_rows += 1
    slot.blocks = 0


@compiled
def blocks_left(config: Any, replica: Any, preempted: Any) -> int:
    """Blocks of a preempted sequence that nobody has taken since, where blocks have no names.

    Free blocks are taken first in, first out. `freed_blocks` counts those that ever joined that queue; all but the last
    total − used of them were taken again.
    """
    taken = replica.freed_blocks - free_blocks(config, replica)
    return int(min(preempted.full_blocks, max(0, preempted.freed_blocks - taken)))


def blocks_by_name(replicas: int, total_blocks: int, sequences: int, longest: int, *, shares: bool) -> Blocks:
    """Arrays of `replicas` with all blocks free, in order of their numbers."""
    if not shares:
        one = np.zeros((replicas, 1), dtype=np.int32)
        return Blocks(one.astype(np.int64), one, one, one, one, one, one[:, None, :], one)
    buckets = 1 << max(1, int(total_blocks).bit_length())

    def each(values: Any, dtype: Any = np.int32) -> Any:
        return np.repeat(np.asarray(values, dtype=dtype)[None, :], replicas, axis=0)

    ends = np.arange(total_blocks + 1)
    return Blocks(
        key=np.full((replicas, total_blocks), NO_KEY, dtype=np.int64),
        users=np.zeros((replicas, total_blocks), dtype=np.int32),
        after=each(np.roll(ends, -1)),
        before=each(np.roll(ends, 1)),
        bucket=np.full((replicas, buckets), -1, dtype=np.int32),
        chain=np.zeros((replicas, total_blocks), dtype=np.int32),
        table=np.zeros((replicas, sequences, longest), dtype=np.int32),
        rows=each(np.arange(sequences)),
    )
