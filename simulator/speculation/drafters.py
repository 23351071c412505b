"""Drafters: what proposes tokens, what a proposal costs, and whether it fits its target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simulator import catalog
from simulator.architecture import Decoder, load_decoder
from simulator.errors import InputError, UnknownName
from simulator.hardware import Source
from simulator.quantization import Quantization
from simulator.records import Record, read_record
from simulator.speculation.acceptance import AcceptanceConfig

Kind = Literal["model", "eagle", "ngram"]


class DrafterFile(Record):
    """The layout of ``workloads/drafters/*.yaml``."""

    name: str
    """Equals the file's name."""
    title: str
    """Name for people."""
    kind: Kind
    """``model``: an independent model, γ passes with its own KV and prefill. ``eagle``: a head of one layer on the
    target's features, γ passes. ``ngram``: looked up in the text so far, no pass at all."""
    model: str | None = None
    """Decoder that drafts (a bundled name or a path); not for n-gram."""
    tp: int | None = None
    """GPUs that share the drafter; left out, those of the target where the drafter's heads allow, else each its own."""
    quantization: Quantization = Quantization()
    """Number formats of the drafter."""
    targets: tuple[str, ...] = ()
    """Models the figures below were measured with; others are possible."""
    acceptance: AcceptanceConfig | None = None
    """Acceptance where it has been published; a scenario's own figure goes first."""
    sources: dict[str, Source] = {}
    """Where the figures come from."""


@dataclass(frozen=True)
class Drafter:
    """One drafter, resolved."""

    name: str
    title: str
    kind: Kind
    decoder: Decoder | None
    tp: int | None
    quantization: Quantization
    acceptance: AcceptanceConfig | None
    targets: tuple[str, ...]

    def tensor_parallel(self, target_tp: int) -> int:
        """GPUs that share each draft pass on a group of `target_tp`."""
        if self.tp is not None:
            if self.tp not in (1, target_tp):
                raise InputError("drafter.tp", self.tp, f"be 1 or the target's {target_tp}")
            return self.tp
        return target_tp if self.decoder is None or self.decoder.attention.heads % target_tp == 0 else 1


def load_drafter(name: str, *, base: Path | None = None) -> Drafter:
    """A bundled drafter, a drafter file, or any model by name or path (which then drafts independently)."""
    try:
        path = catalog.locate("drafter", name, base=base)
    except UnknownName:
        try:
            decoder = load_decoder(name, base=base)
        except UnknownName:
            known = [*catalog.names("drafter"), *catalog.names("model")]
            raise UnknownName("draft", name, known, kind="drafter or model") from None
        return Drafter(name, decoder.name, "model", decoder, None, Quantization(), None, ())
    if path.suffix == ".json":
        decoder = load_decoder(name, base=base)
        return Drafter(name, decoder.name, "model", decoder, None, Quantization(), None, ())
    file = read_record(DrafterFile, path)
    if (file.model is None) != (file.kind == "ngram"):
        raise InputError("model", file.model, "be given for every kind of drafter but ngram", where=str(path))
    decoder_ = load_decoder(file.model, base=path.parent) if file.model else None
    return Drafter(
        file.name, file.title, file.kind, decoder_, file.tp, file.quantization, file.acceptance, file.targets
    )


def check_pair(target: Decoder, drafter: Drafter) -> None:
    """Raises InputError unless `drafter` can draft for `target`: same vocabulary, and an EAGLE head of its width."""
    draft = drafter.decoder
    if draft is None:
        return
    if drafter.kind == "model" and draft.vocab_size != target.vocab_size:
        raise InputError(
            "draft",
            drafter.name,
            f"share the target's vocabulary, but has {draft.vocab_size} tokens where {target.name} has {target.vocab_size}",
        )
    if drafter.kind == "eagle":
        if draft.hidden_size != target.hidden_size:
            raise InputError(
                "draft",
                drafter.name,
                f"have the hidden size {target.hidden_size} of {target.name}, not {draft.hidden_size}",
            )
        if draft.vocab_size > target.vocab_size:
            raise InputError("draft", drafter.name, f"have at most the {target.vocab_size} tokens of {target.name}")
