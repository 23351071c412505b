"""One decode step taken apart: how long, where the time goes, what binds, how long the SMs idle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from simulator import units
from simulator.cost.forward import Batch, OperatorCost, PassCost
from simulator.cost.roofline import effective_bytes_per_s
from simulator.cost.streaming import Overlap, Stage, Tile, busy_share, stream
from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import MemoryBudget, weights_on_gpu
from simulator.operators import embedding_weight_bytes, head_weight_bytes
from simulator.uncertainty import Interval, step_log_sd

MOST_TILES = 1_000_000
"""A timeline of more is refused: no one looks at it, and it takes seconds and gigabytes."""

_BINDING = {
    "weights": "reading the weights from HBM",
    "kv_cache": "reading the KV cache from HBM",
    "activations": "moving activations through HBM",
    "compute": "arithmetic on the SMs",
    "launch": "launching and filling kernels",
    "communication": "waiting for other GPUs",
    "host": "the engine's host time",
}


@dataclass(frozen=True)
class DecodeResult:
    """A step in which `batch` sequences with `context_tokens` each pass `new_tokens` through the model; a pipeline works on them
    in `micro_batches` parts, and `pass_cost` is that of the largest."""

    deployment: Deployment
    batch: int
    context_tokens: int
    new_tokens: int
    pass_cost: PassCost
    host_s: float
    budget: MemoryBudget

    @property
    def step_s(self) -> float:
        """The whole step; for plain decoding the time per token of every user (TPOT)."""
        return self.pass_cost.seconds + self.host_s

    @property
    def micro_batches(self) -> int:
        """Parts of the batch that a pipeline works on at a time; 1 without a pipeline."""
        return self.deployment.target.micro_batches(self.batch)

    @property
    def _working_share(self) -> float:
        # A pass moves and multiplies what is in all stages; a GPU has one of them, and works where there is a micro-batch for it.
        return self.micro_batches / self.deployment.target.pp

    @cached_property
    def interval(self) -> Interval:
        """Where the step's time lies with 90 %, given what the calibration missed elsewhere, s."""
        batch = Batch.decode(-(-self.batch // self.micro_batches), self.context_tokens, self.new_tokens)
        return Interval.around(self.step_s, step_log_sd(self.deployment, batch))

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences per second, plain decoding (one token per sequence and step)."""
        return self.batch / self.step_s

    @cached_property
    def by_cause(self) -> dict[str, float]:
        """Seconds by cause (`cost.forward.CAUSES`); they add up to `step_s`."""
        return {**self.pass_cost.by_cause(), "host": self.host_s}

    @cached_property
    def by_operator(self) -> tuple[tuple[OperatorCost, float], ...]:
        """Operators with the seconds of all their occurrences, longest first; layer kinds with equal names merged."""
        seconds: dict[str, float] = {}
        example: dict[str, OperatorCost] = {}
        for o in self.pass_cost.operators:
            seconds[o.name] = seconds.get(o.name, 0.0) + o.repeat * o.total_s
            example.setdefault(o.name, o)
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        return tuple((example[name], total_s) for name, total_s in ordered)

    @property
    def bytes_per_s(self) -> float:
        """HBM bytes of one GPU over the step."""
        return self._working_share * self.pass_cost.total("bytes_") / self.step_s

    @property
    def flop_per_s(self) -> float:
        """FLOP of one GPU over the step."""
        return self._working_share * self.pass_cost.total("flop") / self.step_s

    @property
    def bandwidth_share(self) -> float:
        """`bytes_per_s` as a share of the datasheet's peak."""
        return self.bytes_per_s / self.deployment.gpu.hbm_bytes_per_s

    @property
    def flop_share(self) -> float:
        """`flop_per_s` as a share of the datasheet's dense peak."""
        target = self.deployment.target
        return self.flop_per_s / target.gpu.peak_flop_per_s(target.formats.activations)

    @property
    def sm_busy_share(self) -> float:
        """Share of the step in which the SMs multiply, at the rate that large tiles reach (see `OperatorCost`)."""
        return self._working_share * self.pass_cost.total("arithmetic_s") / self.step_s

    @property
    def sm_arithmetic_share(self) -> float:
        """Share of the step that the FLOP would take at the dense datasheet peak: the article's busy SMs."""
        return self.flop_share

    @property
    def desk_loads(self) -> float:
        """How many times the desk is filled and wiped per step on one GPU."""
        return self._working_share * self.pass_cost.total("weight_bytes") / self.deployment.gpu.desk_bytes

    @property
    def binding(self) -> str:
        """The cause with the largest share."""
        return max(self.by_cause, key=lambda cause: self.by_cause[cause])

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        share = self.by_cause[self.binding] / self.step_s
        return (
            f"{units.show(self.step_s, 's')} per step: {_BINDING[self.binding]} takes {share:.0%} of it; the arithmetic "
            f"itself would take {self.sm_arithmetic_share:.1%} at the datasheet's peak, so the SMs mostly "
            f"{'wait' if self.sm_arithmetic_share < 0.5 else 'work'}."
        )

    def weights_kept(self, desk_bytes: float) -> float:
        """Share of the weights that would never leave a desk of `desk_bytes`: what of it is beyond today's desk, which tiles on
        their way go on needing."""
        # What a pass may read: all experts, though one pass wakes only some, but not the embedding, of which it reads rows.
        target = self.deployment.target
        matrices = weights_on_gpu(target)
        if head_weight_bytes(target.decoder, target.formats, target.tp):  # else the embedding is the LM head
            matrices -= embedding_weight_bytes(target.decoder, target.formats, target.tp)
        return min(1.0, max(0.0, desk_bytes - self.deployment.gpu.desk_bytes) / matrices)

    @property
    def needed_desk_bytes(self) -> float:
        """What must be under way to reach the bandwidth that large matrices do: bandwidth times latency (Little's law)."""
        gpu = self.deployment.gpu
        return self.deployment.target.efficiency.matmul.bandwidth * gpu.hbm_bytes_per_s * gpu.hbm_latency_s

    def timeline(self, overlap: Overlap = "stream", desk_bytes: float | None = None) -> Timeline:
        """The pass on the layer clock. A larger `desk_bytes` than the GPU's keeps what it can hold of the weights for
        good (what if the desk were 10 GB?); where it is what covers HBM's latency, its size is the pace of the loads (Little's law).

        Raises InputError where the pass would be cut into more than `MOST_TILES` tiles.
        """
        gpu = self.deployment.gpu
        desk = gpu.desk_bytes if desk_bytes is None else desk_bytes
        least = 2 * self.pass_cost.total("bytes_") / MOST_TILES
        if desk < least:
            rule = f"be at least {units.show(least, 'bytes')} for a pass that moves so much"
            raise InputError("desk", units.show(desk, "bytes"), rule)
        share = self.deployment.target.efficiency.matmul.bandwidth
        slower = effective_bytes_per_s(gpu, share) / effective_bytes_per_s(gpu, share, desk)
        stages = self.pass_cost.stages(self.weights_kept(desk), slower, ahead=overlap == "prefetch")
        return Timeline(tuple(stages), tuple(stream(stages, desk, overlap)), overlap, desk)


@dataclass(frozen=True)
class Timeline:
    """A pass as the layer pipeline's schedule."""

    stages: tuple[Stage, ...]
    tiles: tuple[Tile, ...]
    overlap: Overlap
    desk_bytes: float

    @property
    def seconds(self) -> float:
        """End of the last tile."""
        return self.tiles[-1].compute_end_s

    @property
    def busy(self) -> tuple[float, float]:
        """Shares of the pass in which HBM and SMs are busy."""
        return busy_share(self.tiles)

    @cached_property
    def layers(self) -> int:
        """Layers of the pass."""
        return 1 + max((stage.layer for stage in self.stages), default=-1)

    def spans(self, detail: str = "tile", layers: range | None = None) -> list[Span]:
        """What HBM and SMs do when, by ``tile``, ``operator`` or ``layer``, in order of time; of the whole pass, or of `layers`
        (from 0) only, with what is before the first layer and after the last one where these are among them.
        """
        if detail not in ("tile", "operator", "layer"):
            raise InputError("detail", detail, "be tile, operator or layer")
        spans: list[Span] = []
        first, done, previous = 0, 0, None
        for index, stage in enumerate(self.stages):
            first, done = done, self._ends[index]
            if layers is not None and self._near(index) not in layers:
                continue
            name = stage.name if stage.layer < 0 else f"layer {stage.layer + 1}"
            if stage.layer >= 0 and detail != "layer":
                name = f"{name} {stage.name}"
            if detail == "tile":
                for tile in self.tiles[first:done]:
                    spans += _pair(name, tile, tile)
                continue
            # Tiles of a stage are alike, so that its own times are their sums.
            busy = (stage.load_s, stage.multiply_s)
            pair = _pair(name, self.tiles[first], self.tiles[done - 1], busy, stage.bytes_)
            if detail == "layer" and stage.layer >= 0 and stage.layer == previous:
                pair = [old.until(new) for old, new in zip(spans[-2:], pair, strict=True)]
                del spans[-2:]
            spans += pair
            previous = stage.layer
        return [span for span in spans if span.end_s > span.start_s]

    @cached_property
    def _ends(self) -> list[int]:
        """Tiles up to the end of each stage [stages]."""
        counts = [0] * len(self.stages)
        for tile in self.tiles:
            counts[tile.stage] += 1
        return list(accumulate(counts))

    def _near(self, index: int) -> int:
        """The layer of a stage; of one outside of the layers the first or the last, whichever it is next to."""
        layer = self.stages[index].layer
        if layer >= 0:
            return layer
        return 0 if index < self._first_inside else self.layers - 1

    @cached_property
    def _first_inside(self) -> int:
        return next((i for i, stage in enumerate(self.stages) if stage.layer >= 0), len(self.stages))


@dataclass(frozen=True, slots=True)
class Span:
    """One bar on a track of the timeline; `busy_s` is below its length where work inside it has gaps."""

    track: str
    name: str
    start_s: float
    end_s: float
    bytes_: int
    busy_s: float

    def until(self, other: Span) -> Span:
        """This one and a later one of its track as one."""
        if other.end_s <= other.start_s:
            return self
        start_s = self.start_s if self.end_s > self.start_s else other.start_s
        return Span(self.track, self.name, start_s, other.end_s, self.bytes_ + other.bytes_, self.busy_s + other.busy_s)


def _pair(
    name: str, first: Tile, last: Tile, busy_s: tuple[float, float] | None = None, bytes_: int | None = None
) -> list[Span]:
    """What both tracks do from the first tile to the last one."""
    load_s, compute_s = busy_s or (first.load_end_s - first.load_start_s, first.compute_end_s - first.compute_start_s)
    return [
        Span("HBM load", name, first.load_start_s, last.load_end_s, first.bytes_ if bytes_ is None else bytes_, load_s),
        Span("SM compute", name, first.compute_start_s, last.compute_end_s, 0, compute_s),
    ]


def decode(deployment: Deployment, *, batch: int = 1, context_tokens: int = 1024, new_tokens: int = 1) -> DecodeResult:
    """Takes one decode step of `deployment` apart.

    Raises InputError for a batch or context below 1 or beyond the model's context, DoesNotFit when memory is short.
    """
    for name, value in (("batch", batch), ("context", context_tokens), ("new_tokens", new_tokens)):
        if value < 1:
            raise InputError(name, value, "be at least 1")
    if batch > 1_000_000:
        raise InputError("batch", batch, "be at most 1000000")
    limit = deployment.target.decoder.max_context_tokens
    if limit is not None and context_tokens + new_tokens > limit:
        raise InputError("context", context_tokens, f"leave room for the new token in the model's context of {limit}")
    budget = deployment.fit(context_tokens=context_tokens + new_tokens, sequences=batch)
    part = -(-batch // deployment.target.micro_batches(batch))
    cost = deployment.target.pass_cost(Batch.decode(part, context_tokens, new_tokens))
    engine, layers = deployment.engine, deployment.target.decoder.layers
    host_s = engine.host_s(batch, gpu_s=cost.seconds) + engine.launch_gap_s(batch, new_tokens, layers, cost.seconds)
    return DecodeResult(deployment, batch, context_tokens, new_tokens, cost, host_s, budget)


def what_if_sentence(today: DecodeResult, then: DecodeResult, timeline: Timeline) -> str:
    """What another HBM and another desk would change: the pass of `today` on a GPU that exists against `timeline`, a schedule
    of `then`, the same step on a what-if of that GPU (`hardware.what_if`) or on itself. Empty where nothing differs.
    """
    gpu, made_up, desk = today.deployment.gpu, then.deployment.gpu, timeline.desk_bytes
    wishes = []
    if made_up.what_if is not None:
        wishes.append(f"{made_up.what_if} ({units.show(made_up.hbm_bytes_per_s, 'bytes_per_s')})")
    if desk != gpu.desk_bytes:
        each = " on each GPU" if today.deployment.target.gpus > 1 else ""
        wishes.append(f"a desk of {units.show(desk, 'bytes')}{each} (today {units.show(gpu.desk_bytes, 'bytes')})")
    if not wishes:
        return ""
    before_s = today.timeline(timeline.overlap).seconds
    after_s = timeline.seconds
    said = f"With {' and '.join(wishes)} the pass would "
    if abs(after_s / before_s - 1.0) < 0.005:
        said += f"take as long as it does, {units.show(before_s, 's')}"
    else:
        said += f"take {units.show(after_s, 's')} instead of {units.show(before_s, 's')}"
    kept = then.weights_kept(desk)
    needed = then.needed_desk_bytes
    if kept >= 1.0:
        said += ": all weights would stay on the desk"
    elif kept > 0.0:
        said += f": {kept:.0%} of the weights would never leave the desk" if kept >= 0.01 else ""
    elif desk < needed:
        said += f": keeping this HBM busy takes {units.show(needed, 'bytes')} under way (Little's law), more than the desk holds"
    return said + "."
