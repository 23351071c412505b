"""Serving engines: what the software adds to the hardware, read from ``hardware_profiles/engines/``.

Host time is what the GPU waits for between its kernels: scheduling, input preparation, sampling, detokenising. It
belongs to the engine, not to the GPU, and decides small-batch speculation as much as bandwidth does (DESIGN §3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from simulator import catalog
from simulator.errors import InputError
from simulator.hardware import Figure, Provenance, Source, read_figures
from simulator.records import Record, read_record

_FIGURES = {
    "host_step": "s",
    "host_per_sequence": "s",
    "host_draft_pass": "s",
    "host_speculative_round": "s",
    "host_ngram_per_sequence": "s",
    "reserved": "bytes",
}


class EngineSettings(Record):
    """Knobs of the engine, as its own command line has them; a scenario may override each."""

    block_tokens: int = 16
    """Tokens per KV block."""
    max_sequences: int = 256
    """Sequences in one batch at most."""
    max_batched_tokens: int = 8192
    """Token budget of one step: decode, verification and prompt chunks together."""
    memory_utilization: float = 0.9
    """Share of HBM the engine may fill."""
    watermark: float = 0.0
    """Share of KV blocks kept free when a waiting request is admitted beside running ones; vLLM V1 keeps none."""
    prefix_caching: bool = True
    """A preempted request finds again those of its blocks that nobody has overwritten; vLLM V1's default."""
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
    host_speculative_round_s: float
    """Added per speculative round: rejection sampling, rolling the KV back."""
    host_ngram_per_sequence_s: float
    """CPU time of one n-gram look-up."""
    reserved_bytes: float
    """Per GPU, beyond weights, KV and activations: CUDA context, graphs, communication buffers."""
    settings: EngineSettings
    provenance: dict[str, Provenance]

    def host_s(self, sequences: float, draft_passes: int = 0, speculating: bool = False, ngram: bool = False) -> float:
        """Host time of one step: h + s·B, with speculation + r + d·passes, with n-gram look-up + n·B."""
        host_s = self.host_step_s + self.host_per_sequence_s * sequences
        if speculating:
            host_s += self.host_speculative_round_s + self.host_draft_pass_s * draft_passes
        if ngram:
            host_s += self.host_ngram_per_sequence_s * sequences
        return host_s


def load_engine(name: str, *, base: Path | None = None) -> Engine:
    """The engine of a bundled name or a profile's path. Raises UnknownName or InputError."""
    path = catalog.locate("engine", name, base=base)
    return engine_from(read_record(EngineFile, path, "engine"), str(path))


def engine_from(file: EngineFile, where: str = "engine") -> Engine:
    """`file` in SI units; `where` names it in errors. Raises InputError."""
    si, provenance = read_figures(file.figures, _FIGURES, file.sources, where)
    for key in _FIGURES:
        if key not in si:
            raise InputError(f"figures.{key}", "(absent)", "be given", where=where)
        if si[key] < 0:
            raise InputError(f"figures.{key}", file.figures[key].value, "be at least 0", where=where)
    return Engine(
        name=file.name,
        title=file.title,
        host_step_s=si["host_step"],
        host_per_sequence_s=si["host_per_sequence"],
        host_draft_pass_s=si["host_draft_pass"],
        host_speculative_round_s=si["host_speculative_round"],
        host_ngram_per_sequence_s=si["host_ngram_per_sequence"],
        reserved_bytes=si["reserved"],
        settings=file.settings,
        provenance=provenance,
    )
