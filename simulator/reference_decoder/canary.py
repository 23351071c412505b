"""Canary: a fixed piece of work that tells whether the machine is as quiet as it has been at its best.

A processor shared with strangers slows down by tens of percent for seconds at a time, and a measurement cannot tell that
from being slow. The canary can: it does a bit of decoding and of verification, always the same, before and after every point. A point
whose canary sang late is measured again, and what remains is written down with it as `disturbance`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import cycle
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional

QUIET = 1.06
"""Canary time over its best from which the machine counts as disturbed; its own median wavers by 3 %."""
ATTEMPTS = 3
"""Most times that a point is measured for the sake of quiet."""
PATIENCE_S = 3.0
"""Longest wait for quiet before a point."""
_SINGS = 7
_OUTPUTS, _INPUTS, _MATRICES, _ROWS = 4096, 1280, 16, (1, 1, 16)
"""Matrices of 10 MB take turns, so that each is cold; one token at a time, and many."""

T = TypeVar("T")


class Canary:
    """For a CPU; a song takes some 25 ms."""

    def __init__(
        self, now_s: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._now_s, self._sleep = now_s, sleep
        # Work like that which is measured: reading memory alone wavers by a third where a last cache is shared.
        self._weights = cycle([torch.randn(_OUTPUTS, _INPUTS).bfloat16() for _ in range(_MATRICES)])
        self._inputs = [torch.randn(rows, _INPUTS).bfloat16() for rows in _ROWS]
        self.best_s = math.inf
        """The shortest song so far, each the median of several, so that no lucky one counts."""
        self.disturbance()

    def disturbance(self) -> float:
        """Time of a song over the best, at least 1."""
        song_s = float(np.median([self._once_s() for _ in range(_SINGS)]))
        self.best_s = min(self.best_s, song_s)
        return song_s / self.best_s

    def quietly(self, measure: Callable[[], T], attempts: int = ATTEMPTS) -> tuple[T, float, int]:
        """The quietest of a few attempts to `measure`: its result, its disturbance, and how many were made."""
        before, made = self._wait_for_quiet(), 0
        best: T
        quietest = float("inf")
        while made < attempts and quietest > QUIET:
            result = measure()
            after = self.disturbance()
            made += 1
            if max(before, after) < quietest:
                best, quietest = result, max(before, after)
            before = after
        return best, quietest, made

    def _wait_for_quiet(self) -> float:
        end_s = self._now_s() + PATIENCE_S
        disturbance = self.disturbance()
        while disturbance > QUIET and self._now_s() < end_s:
            self._sleep(0.1)
            disturbance = self.disturbance()
        return disturbance

    def _once_s(self) -> float:
        start_s = self._now_s()
        for x in self._inputs:
            functional.linear(x, next(self._weights))
        return self._now_s() - start_s
