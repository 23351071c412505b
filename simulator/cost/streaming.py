"""The memory wall itself: tiles hauled from HBM to the desk (SRAM), multiplied by the SMs, wiped, one after the other.

Two implementations of one pipeline. `stream` is a closed max-plus recurrence over tiles; `stream_events` runs the same
rules as SimPy processes for the HBM channel, the desk and the SMs. A property test holds them equal to 1e-9.

The rules, for tile i with load time l, compute time c, b bytes and (on an operator's first tile) a gap g:

1. HBM carries one tile at a time, in order: load_start_i ≥ load_end_{i−1}.
2. The desk holds `desk_bytes`; a tile keeps its place until it has been multiplied.
3. The SMs multiply one tile at a time, in order: compute_start_i ≥ compute_end_{i−1} (+ g when loads may run ahead).
4. ``stream``   a tile is multiplied while it arrives and is done no earlier than its last byte; an operator's loads
                begin g after the operator before it ended (kernels on today's GPUs).
   ``wipe``     the article's desk: one desk-full is loaded, then multiplied, then wiped, then the next is loaded.
   ``prefetch`` like ``stream``, but loads run ahead into the next operators as far as the desk has room.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from simulator.errors import InputError

Overlap = Literal["stream", "wipe", "prefetch"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One operator on the pipeline."""

    name: str
    layer: int
    """Layer index; −1 before and after the layers."""
    gap_s: float
    """Launch, latency, communication: time in which neither HBM nor SMs work for it."""
    load_s: float
    """Time its bytes occupy the HBM channel."""
    compute_s: float
    """Time it occupies the SMs."""
    bytes_: int
    """What it moves over the HBM channel."""
    arithmetic_s: float | None = None
    """Of `compute_s` the part in which they really multiply, at the end of each tile's; None: all of it."""

    @property
    def multiply_s(self) -> float:
        """`arithmetic_s`, given or not."""
        return self.compute_s if self.arithmetic_s is None else self.arithmetic_s


class Tile(NamedTuple):
    """When one tile of one stage was loaded and multiplied, seconds from the start of the pass. The SMs may have been occupied
    by it since before `compute_start_s`: in what they need beyond arithmetic."""

    stage: int
    bytes_: int
    load_start_s: float
    load_end_s: float
    compute_start_s: float
    compute_end_s: float


class _Cut(NamedTuple):
    stage: int
    first: bool
    gap_s: float
    bytes_: int
    load_s: float
    compute_s: float
    multiply_s: float


def cut_into_tiles(stages: Sequence[Stage], desk_bytes: int, overlap: Overlap) -> list[_Cut]:
    """Stages cut into equal tiles: two fit the desk at once, so that one loads while the other is multiplied.

    Under ``wipe`` a tile is a whole desk-full. Byte counts are integers and add up to the stage's bytes.
    """
    if desk_bytes < 2:
        raise InputError("desk_bytes", desk_bytes, "be at least 2")
    largest = desk_bytes if overlap == "wipe" else desk_bytes // 2
    cuts: list[_Cut] = []
    for index, stage in enumerate(stages):
        count = max(1, -(-stage.bytes_ // largest))
        for i in range(count):
            size = (i + 1) * stage.bytes_ // count - i * stage.bytes_ // count
            gap_s = stage.gap_s if i == 0 else 0.0
            times_s = (stage.load_s / count, stage.compute_s / count, stage.multiply_s / count)
            cuts.append(_Cut(index, i == 0, gap_s, size, *times_s))
    return cuts


def stream(stages: Sequence[Stage], desk_bytes: float, overlap: Overlap = "stream") -> list[Tile]:
    """The pipeline's schedule by recurrence; O(tiles). The pass lasts until the last tile's ``compute_end_s``.

    `desk_bytes` is the SRAM that tiles share; raises InputError when it is below 2 bytes.
    """
    desk = math.floor(desk_bytes)
    cuts = cut_into_tiles(stages, desk, overlap)
    tiles: list[Tile] = []
    load_end = compute_end = 0.0
    oldest, held = 0, 0  # tiles[oldest:] are still on the desk and hold `held` bytes
    for cut in cuts:
        load_start = load_end
        held += cut.bytes_
        while held > desk:
            held -= cuts[oldest].bytes_
            load_start = max(load_start, tiles[oldest].compute_end_s)
            oldest += 1
        gap = cut.gap_s
        if overlap == "wipe" or (overlap == "stream" and cut.first):
            load_start = max(load_start, compute_end + gap)
            gap = 0.0
        load_end = load_start + cut.load_s
        ready = load_end if overlap == "wipe" else max(load_start, load_end - cut.compute_s)
        compute_start = max(compute_end + gap, ready)
        compute_end = compute_start + cut.compute_s
        tiles.append(Tile(cut.stage, cut.bytes_, load_start, load_end, compute_end - cut.multiply_s, compute_end))
    return tiles


def stream_events(stages: Sequence[Stage], desk_bytes: float, overlap: Overlap = "stream") -> list[Tile]:
    """The same schedule from SimPy processes; same arguments, errors and result as `stream`, some 50 times slower."""
    import simpy

    desk_capacity = math.floor(desk_bytes)
    cuts = cut_into_tiles(stages, desk_capacity, overlap)
    env = simpy.Environment()
    desk = simpy.Container(env, capacity=desk_capacity, init=desk_capacity)
    load_started = [env.event() for _ in cuts]
    load_ended = [env.event() for _ in cuts]
    computed = [env.event() for _ in cuts]
    load_span: list[tuple[float, float]] = []
    compute_span: list[tuple[float, float]] = []

    def hbm() -> Generator[Any, Any, None]:
        for i, cut in enumerate(cuts):
            if overlap == "wipe" or (overlap == "stream" and cut.first):
                if i > 0:
                    yield computed[i - 1]
                yield env.timeout(cut.gap_s)
            if cut.bytes_:
                yield desk.get(cut.bytes_)
            start = env.now
            load_started[i].succeed(start)
            yield env.timeout(cut.load_s)
            load_span.append((start, env.now))
            load_ended[i].succeed()

    def sms() -> Generator[Any, Any, None]:
        for i, cut in enumerate(cuts):
            if overlap == "prefetch":
                yield env.timeout(cut.gap_s)
            if overlap == "wipe":
                yield load_ended[i]
            else:
                start = yield load_started[i]
                yield env.timeout(max(0.0, start + max(0.0, cut.load_s - cut.compute_s) - env.now))
            yield env.timeout(cut.compute_s)
            compute_span.append((env.now - cut.multiply_s, env.now))
            if cut.bytes_:
                yield desk.put(cut.bytes_)
            computed[i].succeed()

    env.process(hbm())
    env.process(sms())
    env.run()
    return [
        Tile(cut.stage, cut.bytes_, *load, *compute)
        for cut, load, compute in zip(cuts, load_span, compute_span, strict=True)
    ]


def busy_share(tiles: Sequence[Tile]) -> tuple[float, float]:
    """Shares of the pass in which the HBM channel and the SMs were busy."""
    total_s = tiles[-1].compute_end_s if tiles else 0.0
    if total_s <= 0:
        return 0.0, 0.0
    load_s = sum(t.load_end_s - t.load_start_s for t in tiles)
    compute_s = sum(t.compute_end_s - t.compute_start_s for t in tiles)
    return load_s / total_s, compute_s / total_s
