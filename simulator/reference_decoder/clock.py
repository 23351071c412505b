"""Clock: how long work takes. Device events on a GPU, the host's clock on a CPU; medians with their spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Work = Callable[[], object]

COLD_FACTOR = 4
"""Buffers that take turns fill the last cache so many times: what was read in the last turn has been evicted."""
LAST_CACHE_BYTES = 32 * 2**20
"""Assumed where the system does not say."""
SLEEP_CYCLES = 10_000_000
"""About five milliseconds: the head start that the host gets to queue short kernels without gaps between them."""

TOGETHER = 8
"""Single kernels between two device events, whose own cost is of the size of a short kernel."""


@dataclass(frozen=True)
class Timing:
    """Of repeated work, seconds each: never a number without its spread and count."""

    median_s: float
    min_s: float
    q1_s: float
    q3_s: float
    max_s: float
    n: int

    @staticmethod
    def of(samples_s: Sequence[float]) -> Timing:
        """From single durations."""
        low, q1, median, q3, high = (float(x) for x in np.quantile(samples_s, (0.0, 0.25, 0.5, 0.75, 1.0)))
        return Timing(median, low, q1, q3, high, len(samples_s))

    def scaled(self, factor: float) -> Timing:
        """Of a part, when several equal parts were timed together."""
        return Timing(
            factor * self.median_s,
            factor * self.min_s,
            factor * self.q1_s,
            factor * self.q3_s,
            factor * self.max_s,
            self.n,
        )

    def fields(self) -> dict[str, float | int]:
        """As they stand in a measurement file."""
        return asdict(self)


class Rotation:
    """Clones of a tensor that take turns, so many that each is cold when its turn comes; only itself if resident."""

    def __init__(self, first: Tensor, clock: Clock, *, resident: bool = False) -> None:
        copies = 1 if resident else clock.turns(first.nbytes)
        self._turns = cycle([first, *(first.clone() for _ in range(copies - 1))])

    def next(self) -> Tensor:
        """Whose turn it is."""
        return next(self._turns)


class Clock:
    """Times work on one device, within a time limit per measurement."""

    def __init__(self, device: torch.device, within_s: float = 1.0) -> None:
        self.device, self.within_s = device, within_s
        self.last_cache_bytes = _last_cache_bytes(device)
        self._cuda: Any = torch.cuda

    def turns(self, size_bytes: int) -> int:
        """How many buffers of a size must take turns for each to be cold."""
        return min(4096, max(2, math.ceil(COLD_FACTOR * self.last_cache_bytes / max(size_bytes, 1)) + 1))

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            self._cuda.synchronize(self.device)

    def time(self, work: Work, *, warmup: int = 2, least: int = 3, most: int = 50, queued: bool = False) -> Timing:
        """Device time of `work`. `queued`: single kernels, launched ahead so that the host's pace does not show."""
        if self.device.type != "cuda":
            return self.wall(work, warmup=warmup, least=least, most=most)
        self._warm_up(work, warmup)
        samples: list[float] = []
        together = TOGETHER if queued else 1
        end_s = time.perf_counter() + self.within_s
        while len(samples) < least or (len(samples) < most and time.perf_counter() < end_s):
            events = [(self._event(), self._event()) for _ in range(max(least, 5))]
            if queued:
                self._cuda._sleep(SLEEP_CYCLES)
            for start, stop in events:
                start.record()
                for _ in range(together):
                    work()
                stop.record()
            self.synchronize()
            samples += [start.elapsed_time(stop) * 1e-3 / together for start, stop in events]  # which CUDA gives in ms
        return Timing.of(samples)

    def wall(self, work: Work, *, warmup: int = 2, least: int = 3, most: int = 50, settle: bool = True) -> Timing:
        """Host time of `work`, until the device is done with it; without `settle`, until the host is."""
        self._warm_up(work, warmup)
        samples: list[float] = []
        end_s = time.perf_counter() + self.within_s
        while len(samples) < least or (len(samples) < most and time.perf_counter() < end_s):
            start_s = time.perf_counter()
            work()
            if settle:
                self.synchronize()
            samples.append(time.perf_counter() - start_s)
            if not settle:
                self.synchronize()
        return Timing.of(samples)

    def _warm_up(self, work: Work, times: int) -> None:
        # First calls load code, choose kernels and touch pages. On a slow device one call is warm-up enough.
        end_s = time.perf_counter() + self.within_s / 4
        for _ in range(times):
            work()
            self.synchronize()
            if time.perf_counter() > end_s:
                break

    def _event(self) -> Any:
        return self._cuda.Event(enable_timing=True)


def _last_cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", LAST_CACHE_BYTES))
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes), default=LAST_CACHE_BYTES)
    except (OSError, ValueError):
        return LAST_CACHE_BYTES
