"""Whole steps and rounds that somebody timed, as points under a roofline: FLOP per byte, and FLOP/s reached.

Only times are measured. What a pass moves and multiplies is known from the model's shape, and counted here as the simulator
counts it for its own passes, so that both stand at one place on the axis of FLOP per byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from simulator import catalog
from simulator.calibration.device_profile import conditions
from simulator.calibration.measured import read_measurements
from simulator.calibration.passes import Pass
from simulator.calibration.published_cases import case_of, price
from simulator.calibration.published_rows import Row, read_published
from simulator.cost.forward import Batch, ForwardCost
from simulator.errors import MemwallError
from simulator.hardware import Gpu, load_gpu


@dataclass(frozen=True)
class MeasuredPoint:
    """One whole step or round; amounts are of one GPU."""

    name: str
    """For people, e.g. "Llama-3.1-8B, batch 1"."""
    model: str
    """Its bundled model, or the name that a measurement file gives it."""
    source: str
    """Who measured it, with what."""
    seconds: float
    """Measured, whole: what the engine's host takes is part of it."""
    bytes_: float
    """Moved between HBM and SMs, counted."""
    flop: float
    """Counted."""
    note: str = ""
    """What had to be assumed."""
    stated: bool = True
    """Whether the source states the GPU; else it is implied or likely."""

    @property
    def flop_per_byte(self) -> float:
        """Where it stands on a roofline's horizontal axis, FLOP/byte."""
        return self.flop / self.bytes_

    @property
    def flop_per_s(self) -> float:
        """And on the vertical one, FLOP/s."""
        return self.flop / self.seconds


def measured_points(gpu: Gpu) -> tuple[MeasuredPoint, ...]:
    """All bundled measurements of whole steps and rounds on this very GPU: published speeds and measurement files.

    Empty where nobody measured it, for a GPU of a user's own profile and for a what-if. The first call prices all published
    rows (0.2 s).
    """
    if not _bundled(gpu):
        return ()
    folder = catalog.root() / "hardware_profiles" / "measurements"
    own = folder / f"{gpu.name}.jsonl"
    steps = _steps(own, gpu.name) if own.is_file() else ()
    return (*_published(folder / "published" / "speeds.csv").get(gpu.name, ()), *steps)


def _bundled(gpu: Gpu) -> bool:
    if gpu.name not in catalog.names("gpu"):  # a what-if has another name
        return False
    return gpu.profile is None or gpu.profile == catalog.locate("gpu", gpu.name)


@lru_cache(maxsize=4)
def _published(path: Path) -> dict[str, tuple[MeasuredPoint, ...]]:
    """By GPU; rows that cannot be priced are left out."""
    found: dict[str, list[MeasuredPoint]] = {}
    for row in read_published(path).rows:
        try:
            gpu, point = _point(row)
        except MemwallError:
            continue
        found.setdefault(gpu, []).append(point)
    return {gpu: tuple(points) for gpu, points in found.items()}


def _point(row: Row) -> tuple[str, MeasuredPoint]:
    case = case_of(row)
    work, gpus = price(row, case.deployment, case.contexts[0]).work, case.deployment.gpus
    draft = f", rounds of {row.draft} with {row.gamma} drafts in a row" if row.gamma else ""
    if row.tree:
        draft = f", rounds of {row.draft} with trees of {row.tree[1]} nodes, {row.gamma} levels deep"
    # The case's first note is the GPU, with what of it is a guess in brackets.
    guessed = case.notes[0].partition("(")[2].removesuffix(")")
    of = f" on {gpus} GPUs" if gpus > 1 else ""
    point = MeasuredPoint(
        name=f"{row.target}{of}, batch {row.batch}{draft}",
        model=case.deployment.target.decoder.name,
        source=f"{row.source}, {row.engine}",
        seconds=row.step_s,
        bytes_=(work.verify.bytes_ + work.draft.bytes_) / gpus,
        flop=(work.verify.flop + work.draft.flop) / gpus,
        note=f"{case.contexts[0]} tokens of context assumed" + (f"; GPU {guessed}" if guessed else ""),
        stated=row.states_gpu,
    )
    return case.deployment.gpu.name, point


@lru_cache(maxsize=4)
def _steps(path: Path, gpu_name: str) -> tuple[MeasuredPoint, ...]:
    """Whole steps of a measurement file of a bundled GPU, those through all layers."""
    measured, gpu = read_measurements(path), load_gpu(gpu_name)
    source, rows = conditions(measured), measured.passes("step")
    costs = {name: ForwardCost(decoder, gpu) for name, decoder in measured.models.items()}
    return tuple(
        _step(one, costs[one.model], float(seconds), source, f"median of {line['n']}")
        for line, one, seconds in zip(rows.lines, rows.passes, rows.measured_s, strict=True)
        if one.layers is None
    )


def _step(one: Pass, cost: ForwardCost, seconds: float, source: str, note: str) -> MeasuredPoint:
    work = cost.pass_cost(Batch.decode(one.sequences, one.cached_tokens, one.new_tokens))
    tokens = f" of {one.new_tokens} tokens each" if one.new_tokens > 1 else ""
    name = f"{one.model}, batch {one.sequences}{tokens}, context {one.cached_tokens:,}"
    return MeasuredPoint(name, one.model, source, seconds, work.total("bytes_"), work.total("flop"), note)
