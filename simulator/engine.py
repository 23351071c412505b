"""Serving engines: what the software adds to the hardware, read from ``hardware_profiles/engines/``.

Host time is what the GPU waits for between its kernels: scheduling, input preparation, sampling, detokenising. It
belongs to the engine, not to the GPU, and decides small-batch speculation as much as bandwidth does (DESIGN §3). It comes
in three parts, and a step takes

    exposed + max(gpu, hidden)    with overlapped scheduling, right after another step
    exposed + gpu + hidden        else

``exposed`` is what total step times show beyond the passes (`host_step` and its kin); ``hidden`` is the rest of the host's
loop, of which overlapped scheduling hides what fits beside the GPU's work. A step that no CUDA graph covers is launched
kernel by kernel (``host_eager_*``); the launches run ahead of the GPU, which waits only for what outlasts its own work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from simulator import catalog, units
from simulator.errors import InputError
from simulator.hardware import Figure, Provenance, Source, read_figures
from simulator.records import Record, read_record

_FIGURES = {
    "host_step": "s",
    "host_per_sequence": "s",
    "host_draft_pass": "s",
    "host_reduced_vocabulary": "s",
    "host_speculative_round": "s",
    "host_ngram_per_sequence": "s",
    "host_hidden_step": "s",
    "host_hidden_per_sequence": "s",
    "host_eager_step": "s",
    "host_eager_layer": "s",
    "reserved": "bytes",
}
# What a profile may leave out, and what is then assumed: those written before there were such figures have none.
_NOT_GIVEN = Provenance(
    "0 s", Source(title="Not in the profile: taken to be 0", date="2026-11-24", kind="estimate"), ""
)
_OPTIONAL = (
    "host_reduced_vocabulary", "host_hidden_step", "host_hidden_per_sequence", "host_eager_step", "host_eager_layer",
)  # fmt: skip
_MOST = 1_000_000
"""Tokens, sequences and requests in one setting at most."""


def _seconds(value: Any) -> Any:
    return units.parse(value, "s", field="queue_timeout_s") if isinstance(value, str) else value


def _bytes(value: Any) -> Any:
    return units.parse(value, "bytes", field="swap_space_bytes") if isinstance(value, str) else value


Timeout = Annotated[float, BeforeValidator(_seconds)]
SwapSpace = Annotated[float, BeforeValidator(_bytes)]
Order = Literal["fcfs", "priority", "shortest"]
Preemption = Literal["recompute", "swap"]
Verify = Literal["ragged", "padded"]
GraphSizesOf = Literal["tokens", "sequences"]
UtilizationOf = Literal["all", "static", "free"]
Graphs = Literal["all", "decode", "none"]


class EngineSettings(Record):
    """Knobs of the engine, as its own command line has them; a scenario may override each."""

    block_tokens: int = 16
    """Tokens per KV block."""
    max_sequences: int = 256
    """Sequences in one batch at most."""
    max_batched_tokens: int = 8192
    """Token budget of one step: decode, verification and prompt chunks together."""
    memory_utilization: float = 0.9
    """Share of HBM the engine may fill, as `utilization_of` counts it."""
    utilization_of: UtilizationOf = "all"
    """What that share holds: ``all`` weights, KV cache, activations and reserved memory (vLLM); ``static`` weights and KV
    cache alone (SGLang); ``free`` the KV cache alone, a share of what all else leaves (TensorRT-LLM)."""
    watermark: float = 0.0
    """Share of KV blocks kept free when a waiting request is admitted beside running ones; vLLM V1 keeps none."""
    prefix_caching: bool = True
    """Blocks that nobody has overwritten are found again: a preempted request's own, those of earlier turns of a conversation,
    those of shared beginnings; vLLM V1's default."""
    prefill: Literal["mixed", "first"] = "mixed"
    """``mixed``: prompts share a step with sequences that decode (vLLM V1). ``first``: prompts run in passes of their own
    as long as any fits, and only then do all others decode (vLLM V0, SGLang, the reference decoder)."""
    prompts_per_pass: int = Field(default=0, ge=0)
    """Prompts in one pass at most; 0: as many as the token budget holds."""
    prefill_chunk_tokens: int = Field(default=0, ge=0)
    """Tokens of one prompt in one pass at most; 0: as many as the token budget holds."""
    draft: Literal["after", "before"] = "after"
    """When a model drafts: ``after`` a step, for the next one, so that a request's first drafts are part of its TTFT
    (vLLM); or at the start of the round that verifies them, ``before`` verification (the reference decoder)."""
    order: Order = "fcfs"
    """Who is admitted first and preempted last: first come, smallest priority of its class, or shortest prompt."""
    max_waiting: int = 0
    """Requests that may wait without having been started by this replica (handed-over ones included); further ones are refused on
    arrival. 0: no limit."""
    queue_timeout_s: Timeout | None = None
    """A request that has waited longer at a replica without having been started by it is dropped, s (or text such as "10 s"). None: never."""
    preemption: Preemption = "recompute"
    """What happens to the KV cache of a preempted sequence: computed again, or moved to the host and back over PCIe."""
    swap_space_bytes: SwapSpace = 0.0
    """Host memory for swapped KV cache, bytes per GPU (or text such as "4 GB"); needed with ``preemption: swap``."""
    draft_batch: Verify = "ragged"
    """``ragged``: after a round a drafting model reads what each sequence accepted. ``padded``: γ + 1 tokens of every one, as
    vLLM does since it prepares its batches on the GPU."""
    verify: Verify = "ragged"
    """``padded``: as soon as one sequence has drafts, γ + 1 tokens of every sequence pass through the target. ``ragged``:
    each sequence's own number of tokens does."""
    overlap: bool = False
    """Asynchronous scheduling: the host prepares a step while the GPU computes the one before; its hidden part is waited
    for only where it takes longer."""
    hybrid_kv: bool = False
    """Layers with a sliding window keep only their window in the KV pool; else they are charged the full context."""
    graph_capture_sizes: tuple[int, ...] = ()
    """Token counts of the captured CUDA graphs, rising; a step runs at the next one, past the last without graph. None
    given: graphs of every size."""
    graph_sizes_of: GraphSizesOf = "tokens"
    """What those sizes count: tokens (vLLM), or sequences of which each has one token or 1 + γ (SGLang, TensorRT-LLM)."""
    graphs: Graphs = "all"
    """Steps that a graph may serve: all, ``decode`` those without prompt tokens, none."""

    def captured_tokens(self, per_sequence: int = 1) -> tuple[int, ...]:
        """Token counts of the captured graphs where each decoding sequence has `per_sequence` tokens."""
        factor = per_sequence if self.graph_sizes_of == "sequences" else 1
        return tuple(factor * size for size in self.graph_capture_sizes)

    def captured(self, tokens: int, *, per_sequence: int = 1, prompts: bool = False) -> bool:
        """Whether a CUDA graph covers a step of so many tokens, `per_sequence` of each sequence, some of them a prompt's."""
        may_serve = self.graphs == "all" or (self.graphs == "decode" and not prompts)
        return may_serve and tokens <= max(self.captured_tokens(per_sequence), default=tokens)

    @model_validator(mode="after")
    def _check(self) -> EngineSettings:
        for field in ("block_tokens", "max_sequences", "max_batched_tokens"):
            _between(field, getattr(self, field), 1, _MOST)
        _between("max_waiting", self.max_waiting, 0, _MOST)
        if not 0.0 < self.memory_utilization <= 1.0:
            raise InputError("memory_utilization", self.memory_utilization, "be above 0 and at most 1")
        if not 0.0 <= self.watermark < 1.0:
            raise InputError("watermark", self.watermark, "be at least 0 and below 1")
        if self.queue_timeout_s is not None and self.queue_timeout_s <= 0:
            raise InputError("queue_timeout_s", self.queue_timeout_s, "be above 0 s; leave it out for no time-out")
        if self.swap_space_bytes < 0:
            raise InputError("swap_space_bytes", self.swap_space_bytes, "be at least 0 bytes")
        if self.preemption == "swap" and self.swap_space_bytes == 0:
            raise InputError("swap_space_bytes", 0, "be above 0 where preemption is swap")
        if self.preemption != "swap" and self.swap_space_bytes > 0:
            raise InputError("swap_space_bytes", self.swap_space_bytes, f"be 0 where preemption is {self.preemption}")
        sizes = self.graph_capture_sizes
        if any(size < 1 or size > _MOST for size in sizes):
            raise InputError("graph_capture_sizes", list(sizes), f"be token counts between 1 and {_MOST}")
        if any(after <= before for before, after in pairwise(sizes)):
            raise InputError("graph_capture_sizes", list(sizes), "rise from each to the next")
        return self


def _between(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(field, value, f"be between {least} and {most}")


class EngineFile(Record):
    """The layout of ``hardware_profiles/engines/*.yaml``."""

    name: str
    """Equals the file's name."""
    title: str
    """Name and version for people."""
    sources: dict[str, Source]
    """Documents and measurements the figures come from."""
    figures: dict[str, Figure]
    """Host times and reserved memory."""
    settings: EngineSettings = EngineSettings()
    """Defaults of the engine."""


@dataclass(frozen=True)
class Engine:
    """One engine in SI units."""

    name: str
    title: str
    host_step_s: float
    """GPU idle per step, whatever the batch."""
    host_per_sequence_s: float
    """Added per scheduled sequence."""
    host_draft_pass_s: float
    """GPU idle per pass of a drafter that runs on the GPU."""
    host_reduced_vocabulary_s: float
    """Added per pass of a drafter with fewer tokens in its LM head than its target has (EAGLE-3), whose logits an engine may
    spread over the target's vocabulary."""
    host_speculative_round_s: float
    """Added per speculative round: rejection sampling, rolling the KV back."""
    host_ngram_per_sequence_s: float
    """CPU time of one n-gram look-up."""
    host_hidden_step_s: float
    """CPU time of the engine's loop per step that overlapped scheduling hides beside the GPU."""
    host_hidden_per_sequence_s: float
    """The same, added per scheduled sequence."""
    host_eager_step_s: float
    """CPU time to launch the kernels of a step that no CUDA graph covers, whatever the model."""
    host_eager_layer_s: float
    """The same per decoder layer."""
    reserved_bytes: float
    """Per GPU, beyond weights, KV and activations: CUDA context, graphs, communication buffers."""
    settings: EngineSettings
    provenance: dict[str, Provenance]

    def beside(self, draft_vocabulary: int, vocabulary: int) -> Engine:
        """The same with what a drafter of `draft_vocabulary` adds to its passes beside a target of `vocabulary` tokens."""
        if draft_vocabulary >= vocabulary:
            return self
        return replace(
            self,
            host_draft_pass_s=self.host_draft_pass_s + self.host_reduced_vocabulary_s,
            host_reduced_vocabulary_s=0.0,
        )

    def eager_s(self, layers: int) -> float:
        """CPU time to launch a step of `layers` decoder layers kernel by kernel: e + l·layers, s."""
        return self.host_eager_step_s + self.host_eager_layer_s * layers

    def hidden_s(self, sequences: float) -> float:
        """The part of the host's loop that overlapped scheduling hides: o + p·B, s."""
        return self.host_hidden_step_s + self.host_hidden_per_sequence_s * sequences

    def host_s(
        self, sequences: float, draft_passes: int = 0, speculating: bool = False, ngram: bool = False,
        gpu_s: float = math.inf,
    ) -> float:  # fmt: skip
        """Time of one step in which the GPU waits for the host: h + s·B, with speculation + r + d·passes, with n-gram
        look-up + n·B; and o + p·B, with overlapped scheduling only as far as that outlasts the GPU's own `gpu_s`. s."""
        host_s = self.host_step_s + self.host_per_sequence_s * sequences
        if speculating:
            host_s += self.host_speculative_round_s + self.host_draft_pass_s * draft_passes
        if ngram:
            host_s += self.host_ngram_per_sequence_s * sequences
        return host_s + max(0.0, self.hidden_s(sequences) - (gpu_s if self.settings.overlap else 0.0))

    def launch_gap_s(self, sequences: int, per_sequence: int, layers: int, gpu_s: float) -> float:
        """How long the GPU waits for launches in a pass of `per_sequence` tokens of each sequence and `gpu_s` of own work, s."""
        if self.settings.captured(sequences * per_sequence, per_sequence=per_sequence):
            return 0.0
        return max(0.0, self.eager_s(layers) - gpu_s)


def load_engine(name: str, *, base: Path | None = None) -> Engine:
    """The engine of a bundled name or a profile's path. Raises UnknownName or InputError."""
    path = catalog.locate("engine", name, base=base)
    return engine_from(read_record(EngineFile, path, "engine"), str(path))


def engine_from(file: EngineFile, where: str = "engine") -> Engine:
    """`file` in SI units; `where` names it in errors. Raises InputError."""
    si, provenance = read_figures(file.figures, _FIGURES, file.sources, where)
    for key in _FIGURES:
        if key not in si:
            if key in _OPTIONAL:
                si[key], provenance[key] = 0.0, _NOT_GIVEN
                continue
            raise InputError(f"figures.{key}", "(absent)", "be given", where=where)
        if si[key] < 0:
            raise InputError(f"figures.{key}", file.figures[key].value, "be at least 0", where=where)
    return Engine(
        name=file.name,
        title=file.title,
        host_step_s=si["host_step"],
        host_per_sequence_s=si["host_per_sequence"],
        host_draft_pass_s=si["host_draft_pass"],
        host_reduced_vocabulary_s=si["host_reduced_vocabulary"],
        host_speculative_round_s=si["host_speculative_round"],
        host_ngram_per_sequence_s=si["host_ngram_per_sequence"],
        host_hidden_step_s=si["host_hidden_step"],
        host_hidden_per_sequence_s=si["host_hidden_per_sequence"],
        host_eager_step_s=si["host_eager_step"],
        host_eager_layer_s=si["host_eager_layer"],
        reserved_bytes=si["reserved"],
        settings=file.settings,
        provenance=provenance,
    )
