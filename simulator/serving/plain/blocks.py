"""Paged KV: blocks with names, one queue of free ones, and a table of what is in them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

Key = Hashable
"""The content of a block: what its tokens and all tokens before it are."""


def blocks_for(settings: Any, tokens: int) -> int:
    """Blocks that hold `tokens` of one sequence: ⌈t/block⌉, with `hybrid_kv` ⌈(w + (t − w)(1 − share))/block⌉ beyond the window w."""
    if settings.window_tokens > 0 and tokens > settings.window_tokens:
        kept: float = settings.window_tokens + (tokens - settings.window_tokens) * (1.0 - settings.windowed_share)
        return math.ceil(kept / float(settings.block_tokens))
    return -(-tokens // int(settings.block_tokens))


class BlockPool:
    """The KV cache of one replica.

    A free block keeps its content, and its place in the table, until it is taken: that is all there is to the prefix cache.
    """

    def __init__(self, total_blocks: int):
        self.total_blocks = total_blocks
        self.queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(total_blocks))
        """Free blocks, the next one to be taken first."""
        self.users = [0] * total_blocks
        """Running sequences that hold each block."""
        self.block_of: dict[Key, int] = {}
        """The table: where content is found."""
        self.key_of: dict[int, Key] = {}
        """The table read backwards."""

    @property
    def free_blocks(self) -> int:
        """Blocks that no running sequence holds."""
        return len(self.queue)

    @property
    def used_blocks(self) -> int:
        """Blocks that running sequences hold."""
        return self.total_blocks - len(self.queue)

    def leading(self, keys: Sequence[Key]) -> list[int]:
        """Blocks with the contents `keys`, up to the first that is not in the table."""
        found = []
        for key in keys:
            if key not in self.block_of:
                break
            found.append(self.block_of[key])
        return found

    def take(self, count: int) -> list[int]:
        """`count` blocks from the head of the queue; what was in them is lost."""
        taken = []
        for _ in range(count):
            block, _ = self.queue.popitem(last=False)
            self.forget(block)
            self.users[block] = 1
            taken.append(block)
        return taken

    def hold(self, blocks: Sequence[int]) -> None:
        """One sequence more uses these blocks; those that were free leave the queue."""
        for block in blocks:
            if self.users[block] == 0:
                del self.queue[block]
            self.users[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """A sequence lets go of its blocks: its last joins the queue first, so that its first is overwritten last."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.queue[block] = None

    def enter(self, block: int, key: Key) -> None:
        """Puts a block into the table, unless it is there, or its content is."""
        if block not in self.key_of and key not in self.block_of:
            self.block_of[key] = block
            self.key_of[block] = key

    def forget(self, block: int) -> None:
        """Takes a block out of the table."""
        if block in self.key_of:
            del self.block_of[self.key_of.pop(block)]
