"""Captured CUDA graphs: which steps one covers, the size each is padded to, and what launching kernel by kernel adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.operators import FloatArray

Covers = Literal["all", "decode", "none"]


@dataclass(frozen=True)
class GraphCapture:
    """The graphs an engine recorded at start-up. A step that one covers runs at the next captured size; past the last size,
    or where none may serve, it runs at its own size and pays `eager_s` of launches more (the cliff)."""

    sizes: tuple[int, ...] = ()
    """Numbers of tokens that were captured, in any order; none: graphs of every size, hence no padding and no cliff."""
    covers: Covers = "all"
    """Steps that a graph may serve: all, those without prompt tokens, none."""
    eager_s: float = 0.0
    """Host time that a step without graph adds, s."""

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sizes):
            raise InputError("graph_capture_sizes", min(self.sizes), "be at least 1 token")
        if self.covers not in ("all", "decode", "none"):
            raise InputError("graphs", self.covers, "be all, decode or none")
        if not 0.0 <= self.eager_s < np.inf:
            raise InputError("host_eager_step", self.eager_s, "be at least 0 s")

    def padded(self, max_tokens: int, prompts: bool) -> NDArray[np.int64]:
        """Tokens that pass through the model in a step of 0..max_tokens tokens, with or without prompt tokens."""
        tokens = np.arange(max_tokens + 1)
        if not self.sizes or not self._may_serve(prompts):
            return tokens
        sizes = np.unique(self.sizes)
        at = np.searchsorted(sizes, tokens)
        padded = np.where(at < sizes.size, sizes[np.minimum(at, sizes.size - 1)], tokens)
        padded[0] = 0  # nothing to do is not launched
        return padded

    def extra_host_s(self, max_tokens: int, prompts: bool) -> FloatArray:
        """Host time [0..max_tokens] that steps of so many tokens pay for having no graph, s."""
        tokens = np.arange(max_tokens + 1)
        largest = max(self.sizes, default=max_tokens) if self._may_serve(prompts) else 0
        return np.where(tokens > largest, self.eager_s, 0.0)

    def _may_serve(self, prompts: bool) -> bool:
        return self.covers == "all" or (self.covers == "decode" and not prompts)


EVERY_SIZE = GraphCapture()
"""Graphs of every size for every step: no padding and no launch gaps beyond those of the calibration."""
