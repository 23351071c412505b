"""Small models for the tests, and one whose logits are a script."""

from __future__ import annotations

from functools import cache

import torch

from simulator.reference_decoder.model import Decoder, KvCache
from simulator.reference_decoder.pair import Pair, train_pair
from simulator.reference_decoder.shapes import Shape

TARGET_SHAPE = Shape(layers=3, hidden=48, heads=4, kv_heads=2, head_dim=12, width=96, vocab=61)
DRAFT_SHAPE = Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, width=64, vocab=61)
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 11, 12, 13], [4, 4, 4, 4, 60]]


def target() -> Decoder:
    return Decoder(TARGET_SHAPE, seed=1)


def draft() -> Decoder:
    return Decoder(DRAFT_SHAPE, seed=2)


@cache
def toy_pair(dtype: torch.dtype = torch.float32) -> Pair:
    """Trained once for all tests."""
    return train_pair("toy", dtype=dtype)


class Scripted:
    """After token t the distribution is softmax(table[t]), whatever came before; needs no weights and no cache."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.vocab, self.device = table.shape[1], torch.device("cpu")

    def new_cache(self, batch, max_len):
        return KvCache(torch.zeros(1, 2, batch, 1, max_len, 2))

    def forward(self, tokens, positions, cache, live, *, tree=None, slots=None, layers=None, last=None):
        slots = positions if slots is None else slots
        assert tokens.shape == positions.shape == slots.shape
        assert int(slots.max()) < min(live, cache.max_len)
        logits = self.table[tokens]
        return logits if last is None else logits[torch.arange(len(last)), last][:, None]


def successor(vocab: int, step: int = 1) -> Scripted:
    """Always continues t with t + step."""
    return Scripted(10.0 * torch.eye(vocab).roll(step, dims=1))
