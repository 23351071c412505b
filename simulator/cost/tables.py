"""What a compiled step loop needs to price passes: arrays by number of tokens and of rows, and the rates of attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class FastTables:
    """Everything a serving loop needs to time a step; arrays are indexed by token or row count."""

    linear: FloatArray
    """[2, 3, tokens + 1]: step without prompt tokens, step with; seconds, bytes, FLOP of all but attention and LM head, padding
    to captured graphs included. With a pipeline: of one micro-batch."""
    head: FloatArray
    """[3, rows + 1]: seconds, bytes, FLOP of LM head and sampler."""
    extra_host_s: FloatArray
    """[2, tokens + 1]: host time that a step without graph adds, s; first axis as `linear`'s."""
    kinds: tuple[AttentionKind, ...]
    """Layers that share a window, and their attention."""
    decode_rates: AttentionRates
    """Of the decode attention kernel."""
    prefill_rates: AttentionRates
    """Of the prefill attention kernel."""
    pipeline: int = 1
    """Stages of the pipeline; 1: none."""


@cache
def sample_points(most: int) -> FloatArray:
    """Token counts up to `most` at which passes are priced where a percent does not matter: the first 16, both sides of every
    multiple of 8 up to 512 and of 64 beyond, where tiles of matrix kernels end. Not to be written to."""
    edges = np.concatenate([np.arange(16, 512, 8), np.arange(512, most + 1, 64)])
    points = np.unique(np.concatenate([np.arange(16), edges, edges + 1, [most]]))
    found = points[points <= most].astype(float)
    found.setflags(write=False)
    return found


def sampled_up_to(work: Callable[[FloatArray], FloatArray], most: int) -> FloatArray:
    """`work` (tokens [points] to [quantities, points]) at 0..most tokens, interpolated between `sample_points`."""
    points = sample_points(most)
    known = work(points)
    return np.stack([np.interp(np.arange(most + 1.0), points, row) for row in known])
