"""What a compiled step loop needs to price passes: arrays by number of tokens and of rows, and the rates of attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simulator.cost.roofline import AttentionRates
from simulator.operators import FloatArray

SECONDS, BYTES, FLOP = 0, 1, 2
"""Rows of `FastTables.linear` (second axis) and `FastTables.head` (first)."""


class AttentionKind(NamedTuple):
    """Layers that share a window, as the serving loop needs them; floats only."""

    layers: float
    window_tokens: float
    kv_bytes_per_token: float
    decode_flop_per_pair: float
    prefill_flop_per_pair: float


def _unset() -> FloatArray:
    return np.zeros(0)


@dataclass(frozen=True)
class FastTables:
    """Everything a serving loop needs to time a step; arrays are indexed by token or row count."""

    linear_s: FloatArray
    linear_bytes: FloatArray
    linear_flop: FloatArray
    head_s: FloatArray
    head_bytes: FloatArray
    head_flop: FloatArray
    kinds: tuple[AttentionKind, ...]
    decode_rates: AttentionRates
    prefill_rates: AttentionRates
    linear: FloatArray = field(default_factory=_unset)
    """[2, 3, tokens + 1]: step without prompt tokens, step with; seconds, bytes, FLOP of all but attention and LM head, padding
    to captured graphs included. With a pipeline: of one micro-batch."""
    head: FloatArray = field(default_factory=_unset)
    """[3, rows + 1]: seconds, bytes, FLOP of LM head and sampler."""
    extra_host_s: FloatArray = field(default_factory=_unset)
    """[2, tokens + 1]: host time that a step without graph adds, s; first axis as `linear`'s."""
    pipeline: int = 1
    """Stages of the pipeline; 1: none."""

    def __post_init__(self) -> None:
        if not self.linear.size:  # given by their rows alone
            plane = np.stack([self.linear_s, self.linear_bytes, self.linear_flop])
            object.__setattr__(self, "linear", np.stack([plane, plane]))
            object.__setattr__(self, "head", np.stack([self.head_s, self.head_bytes, self.head_flop]))
        if not self.extra_host_s.size:
            object.__setattr__(self, "extra_host_s", np.zeros((2, self.linear.shape[2])))
