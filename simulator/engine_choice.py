"""An engine by name with some of its settings changed: what a scenario says of its engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from simulator.engine import (
    Engine,
    EngineSettings,
    Graphs,
    GraphSizesOf,
    Order,
    Preemption,
    SwapSpace,
    Timeout,
    UtilizationOf,
    Verify,
    load_engine,
)
from simulator.hardware import Gpu
from simulator.records import Record, read_mapping, validate


class EngineChoice(Record):
    """An engine by name or path, with any of its settings changed."""

    name: str = "vllm"
    """Bundled name or path of the profile."""
    block_tokens: int | None = None
    """Overrides the engine's setting of the same name; so do all that follow."""
    max_sequences: int | None = None
    """Sequences in one batch at most."""
    max_batched_tokens: int | None = None
    """Token budget of one step."""
    memory_utilization: float | None = None
    """Share of HBM the engine may fill."""
    utilization_of: UtilizationOf | None = None
    """What that share holds: all, weights and cache (static), or the cache of what is left free."""
    watermark: float | None = None
    """Share of KV blocks kept free on admission."""
    prefix_caching: bool | None = None
    """Whether requests find again what nobody has overwritten."""
    prefill: Literal["mixed", "first"] | None = None
    """Whether prompts share steps with decoding or run first, in passes of their own."""
    prompts_per_pass: int | None = None
    """Prompts in one such pass at most; 0: as many as the budget holds."""
    prefill_chunk_tokens: int | None = None
    """Tokens of one prompt in one such pass at most; 0: as many as the budget holds."""
    draft: Literal["after", "before"] | None = None
    """Whether a model drafts after a step, for the next one, or before the verification of the same."""
    order: Order | None = None
    """Who is admitted first."""
    max_waiting: int | None = None
    """Requests that may wait; 0: no limit."""
    queue_timeout_s: Timeout | None = None
    """Longest wait of a request that was never started, s or text such as "10 s"."""
    preemption: Preemption | None = None
    """Whether preempted sequences are computed again or swapped to the host."""
    swap_space_bytes: SwapSpace | None = None
    """Host memory for swapped KV cache per GPU, bytes or text such as "4 GB"."""
    draft_batch: Verify | None = None
    """Whether a drafting model reads γ + 1 tokens of every sequence after a round, or what was accepted."""
    verify: Verify | None = None
    """Whether sequences without drafts are padded to those with drafts."""
    overlap: bool | None = None
    """Whether host work runs beside the GPU's."""
    hybrid_kv: bool | None = None
    """Whether layers with a sliding window keep only their window."""
    graph_capture_sizes: tuple[int, ...] | None = None
    """Token counts of captured CUDA graphs; an empty list: of every size."""
    graph_sizes_of: GraphSizesOf | None = None
    """Whether those sizes count tokens or sequences."""
    graphs: Graphs | None = None
    """Steps that a graph may serve."""

    def load(self, base: Path | None = None, gpu: Gpu | None = None) -> Engine:
        """The engine with the changed settings, checked; as measured on `gpu` where that has a profile of its own."""
        own = read_mapping(gpu.profile).get("engine") if gpu is not None and gpu.profile is not None else None
        if gpu is not None and isinstance(own, dict) and own.get("name") == self.name:
            engine = load_engine(str(gpu.profile))
        else:
            engine = load_engine(self.name, base=base)
        given = {k: v for k, v in self.model_dump(exclude={"name"}).items() if v is not None}
        if given.get("preemption") == "recompute":  # nothing is swapped: the profile's space is not wanted
            given.setdefault("swap_space_bytes", 0.0)
        settings = validate(EngineSettings, {**engine.settings.model_dump(), **given}, "engine")
        return replace(engine, settings=settings)
