"""Drafters: what proposes tokens, what a proposal costs, and whether it fits its target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from simulator import catalog
from simulator.architecture import Decoder, load_decoder
from simulator.errors import InputError, UnknownName
from simulator.hardware import Source
from simulator.quantization import Quantization
from simulator.records import Record, read_named
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.shape import MAX_NODES, PLAIN, DraftShape, chain

Kind = Literal[
    "model", "eagle", "eagle3", "medusa", "mtp", "ngram", "suffix", "early-exit", "lookahead", "sparse-kv",
]  # fmt: skip
CatchesUp = Literal["later", "each-step"]
_READS_PROMPTS = ("model", "eagle", "eagle3", "mtp")
_OWN_MODEL = ("model", "eagle", "eagle3")
_LOOKS_UP = ("ngram", "suffix", "lookahead")
SHARES_LAYERS = ("early-exit", "sparse-kv")
"""Kinds that draft with the target's own layers, and its KV cache."""
_NEEDS = {"medusa": "heads", "early-exit": "exit_layer", "sparse-kv": "kv_budget_tokens"}
_KINDS_OF: dict[str, tuple[str, ...]] = {
    "heads": ("medusa",),
    "head_layers": ("medusa",),
    "modules": ("mtp",),
    "exit_layer": ("early-exit",),
    "kv_budget_tokens": ("sparse-kv", "model"),
    "window": ("lookahead",),
    "guesses": ("lookahead",),
    "parallel": ("model",),
}
_MOST = 1_000_000


class Parallel(Record):
    """A draft model on GPUs of its own, drafting the next round while the target verifies this one (PEARL, arXiv:2408.11850)."""

    gpus: int = Field(default=1, ge=1)
    """GPUs that hold the draft model and nothing else."""
    hit: float = Field(ge=0.0, le=1.0)
    """Share of rounds whose drafts, made ahead, can be used; in the others the target waits for new ones."""


class DrafterFile(Record):
    """The layout of ``workloads/drafters/*.yaml``."""

    name: str
    """Equals the file's name, and is that where it is left out."""
    title: str | None = None
    """Name for people; left out, the name."""
    kind: Kind
    """How it drafts; see docs/drafters.md."""
    model: str | None = None
    """Decoder that drafts (a bundled name or a path): kinds model, eagle and eagle3; the others have none of their own."""
    heads: int | None = None
    """Medusa: heads, each of which guesses one token further ahead."""
    head_layers: int = 1
    """Medusa: residual blocks h → h in front of each head's own LM head."""
    modules: int | None = None
    """MTP: modules in memory, used in turn; left out, as many as the target's config says."""
    exit_layer: int | None = None
    """Early exit: how many of the target's first layers draft."""
    kv_budget_tokens: int | None = None
    """Tokens of KV that a draft pass reads of each sequence at most (sparse-kv, and independent models with a short memory)."""
    window: int = 15
    """Lookahead: parallel guesses W of the lookahead branch."""
    guesses: int = 15
    """Lookahead: n-grams G that are verified at once."""
    parallel: Parallel | None = None
    """Independent model on GPUs of its own."""
    tp: int | None = None
    """GPUs that share the drafter; left out, those of the target where the drafter's heads allow, else each its own."""
    quantization: Quantization = Quantization()
    """Number formats of the drafter."""
    targets: tuple[str, ...] = ()
    """Models it is made for, or was measured with; others are possible."""
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
    heads: int = 0
    head_layers: int = 1
    modules: int | None = None
    exit_layer: int = 0
    kv_budget_tokens: int | None = None
    window: int = 15
    guesses: int = 15
    parallel: Parallel | None = None

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts and accepted tokens pass through it, because it has a KV cache of its own."""
        return self.kind in _READS_PROMPTS

    @property
    def catches_up(self) -> CatchesUp:
        """What happens while a policy has speculation switched off. An independent model reads ``later`` what it missed; a
        feature drafter (EAGLE, MTP) reads the target's hidden states, which nobody keeps, hence along with ``each-step``.
        Without meaning unless `reads_prompts`."""
        return "each-step" if self.kind in ("eagle", "eagle3", "mtp") else "later"

    @property
    def looks_up(self) -> bool:
        """Whether drafts are found in text on the host, without any pass of a model (n-gram, suffix, lookahead)."""
        return self.kind in _LOOKS_UP

    @property
    def exposed_share(self) -> float:
        """Share of drafting that the target waits for: 1 − hit on GPUs of its own (DESIGN §4), else 1."""
        return 1.0 - self.parallel.hit if self.parallel else 1.0

    @property
    def draft_gpus(self) -> int:
        """GPUs beside the target's that do nothing but draft."""
        return self.parallel.gpus if self.parallel else 0

    @property
    def most_drafts(self) -> int:
        """Drafts in a row that it can make at most."""
        if self.kind == "lookahead":
            return min(MAX_GAMMA, MAX_NODES // (self.window + self.guesses))
        return self.heads if self.kind == "medusa" else MAX_GAMMA

    def shape(self, gamma: int) -> DraftShape:
        """A round of `gamma` drafts in a row; for lookahead decoding n-grams of `gamma` + 1 tokens, N − 1 = `gamma`.

        Raises InputError for more drafts than it can make.
        """
        if not 0 <= gamma <= MAX_GAMMA:
            raise InputError("gamma", gamma, f"be between 0 and {MAX_GAMMA}")
        if gamma == 0:
            return PLAIN
        if self.kind == "medusa":
            if gamma > self.heads:
                raise InputError("gamma", gamma, f"be at most the {self.heads} heads of {self.name}")
            return chain(gamma, passes=1)
        if self.kind == "lookahead":
            if gamma > self.most_drafts:
                rule = f"be at most {MAX_NODES}: so many tokens are verified at once for γ = {gamma}"
                raise InputError("(window + guesses)·γ", (self.window + self.guesses) * gamma, rule, where=self.name)
            return DraftShape((self.window + self.guesses) * gamma, gamma, ())
        return chain(gamma, passes=0 if self.looks_up else None)

    def tensor_parallel(self, target_tp: int) -> int:
        """GPUs that share each draft pass beside a group of `target_tp`: the drafter's own ones where it has any."""
        if self.parallel:
            return self.parallel.gpus
        if self.tp is not None:
            if self.kind in SHARES_LAYERS and self.tp != target_tp:
                raise InputError("drafter.tp", self.tp, f"be the target's {target_tp}, whose layers draft")
            if self.tp not in (1, target_tp):
                raise InputError("drafter.tp", self.tp, f"be 1 or the target's {target_tp}")
            return self.tp
        return target_tp if self.decoder is None or self.decoder.attention.heads % target_tp == 0 else 1

    def decoder_for(self, target: Decoder) -> Decoder | None:
        """The layers that a draft pass for `target` goes through: its own model's, or some of the target's; None where no model
        runs (n-gram, suffix, lookahead). For Medusa the target's shape without layers matters only (see `heads`)."""
        if self.looks_up:
            return None
        if self.decoder is not None:
            return windowed(self.decoder, self.kv_budget_tokens) if self.kv_budget_tokens else self.decoder
        if self.kind == "sparse-kv":
            return windowed(target, self.kv_budget_tokens or 0)
        if self.kind == "early-exit":
            return first_layers(target, self.exit_layer)
        return prediction_module(target) if self.kind == "mtp" else target


def windowed(decoder: Decoder, tokens: int) -> Decoder:
    """`decoder` with every layer attending to at most `tokens`."""
    narrow = tuple(
        replace(kind, window_tokens=min(tokens, kind.window_tokens or tokens)) for kind in decoder.layer_kinds
    )
    return replace(decoder, layer_kinds=narrow, name=f"{decoder.name} (KV of {tokens} tokens)")


def first_layers(decoder: Decoder, layers: int) -> Decoder:
    """The first `layers` of `decoder` under its own LM head. Raises InputError unless some layers are left out."""
    if not 1 <= layers < decoder.layers:
        raise InputError("exit_layer", layers, f"be at least 1 and below the {decoder.layers} layers of {decoder.name}")
    return _with_layers(decoder, decoder.layer_order[:layers], f"{decoder.name} (first {layers} layers)")


def prediction_module(decoder: Decoder) -> Decoder:
    """One multi-token-prediction module of `decoder`: a matrix 2·hidden → hidden that joins embedding and hidden state, and one
    layer like its last (DeepSeek-V3, arXiv:2412.19437 §2.2); embedding and LM head are the model's own."""
    module = _with_layers(decoder, decoder.layer_order[-1:], f"{decoder.name} (MTP module)")
    return replace(module, extra_input_size=2 * decoder.hidden_size)


def _with_layers(decoder: Decoder, order: tuple[int, ...], name: str) -> Decoder:
    kept = sorted(set(order))
    kinds = tuple(replace(decoder.layer_kinds[kind], count=order.count(kind)) for kind in kept)
    return replace(decoder, name=name, layer_kinds=kinds, layer_order=tuple(kept.index(kind) for kind in order))


def load_drafter(name: str, *, base: Path | None = None) -> Drafter:
    """A bundled drafter, a drafter file, or any model by name or path (which then drafts independently).

    Raises InputError or UnknownName.
    """
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
    file = read_named(DrafterFile, path)
    _check_fields(file, str(path))
    decoder_ = _head(load_decoder(file.model, base=path.parent), file.kind) if file.model else None
    return Drafter(
        file.name, file.title or file.name, file.kind, decoder_, file.tp, file.quantization, file.acceptance, file.targets,
        heads=file.heads or 0, head_layers=file.head_layers, modules=file.modules, exit_layer=file.exit_layer or 0,
        kv_budget_tokens=file.kv_budget_tokens, window=file.window, guesses=file.guesses, parallel=file.parallel,
    )  # fmt: skip


def _head(decoder: Decoder, kind: Kind) -> Decoder:
    """`decoder` as a head of this kind: what its config leaves unsaid about its inputs is as in the papers."""
    h = decoder.hidden_size
    if kind == "eagle" and not decoder.extra_input_size:
        return replace(decoder, extra_input_size=2 * h)
    if kind == "eagle3" and not (decoder.feature_size or decoder.extra_input_size):
        return replace(decoder, feature_size=3 * h, attention_input_size=2 * h)
    return decoder


def _check_fields(file: DrafterFile, where: str) -> None:
    """Raises InputError for a field that this kind of drafter needs and lacks, or has and does not know."""
    if (file.model is not None) != (file.kind in _OWN_MODEL):
        rule = "be given for model, eagle and eagle3, and for no other kind of drafter"
        raise InputError("model", file.model or "(absent)", rule, where=where)
    for kind, field in _NEEDS.items():
        if file.kind == kind and getattr(file, field) is None:
            raise InputError(field, "(absent)", f"be given for a drafter of kind {kind}", where=where)
    for field in sorted(file.model_fields_set & set(_KINDS_OF)):
        if file.kind not in _KINDS_OF[field]:
            raise InputError(field, getattr(file, field), f"be left out for a drafter of kind {file.kind}", where=where)
    for field in ("tp", "heads", "head_layers", "modules", "exit_layer", "kv_budget_tokens", "window", "guesses"):
        value = getattr(file, field)
        if value is not None and not 1 <= value <= _MOST:
            raise InputError(field, value, f"be between 1 and {_MOST}", where=where)
    if file.tp is not None and file.parallel is not None:
        raise InputError("tp", file.tp, "be left out where the drafter has GPUs of its own", where=where)


def check_pair(target: Decoder, drafter: Drafter) -> None:
    """Raises InputError unless `drafter` can draft for `target`: same vocabulary, a head on features of its width, MTP modules
    where the target has some, and fewer layers than the target for early exit."""
    if drafter.kind == "mtp" and not (drafter.modules or target.mtp_modules):
        rule = f"be for a model with multi-token-prediction modules; the config of {target.name} names none"
        raise InputError("draft", drafter.name, rule)
    if drafter.kind == "early-exit":
        first_layers(target, drafter.exit_layer)
    draft = drafter.decoder
    if draft is None:
        return
    if drafter.kind == "model" and draft.vocab_size != target.vocab_size:
        rule = f"share the target's vocabulary, but has {draft.vocab_size} tokens where {target.name} has {target.vocab_size}"
        raise InputError("draft", drafter.name, rule)
    if drafter.kind in ("eagle", "eagle3"):
        if draft.hidden_size != target.hidden_size:
            rule = f"have the hidden size {target.hidden_size} of {target.name}, not {draft.hidden_size}"
            raise InputError("draft", drafter.name, rule)
        if draft.vocab_size > target.vocab_size:
            raise InputError("draft", drafter.name, f"have at most the {target.vocab_size} tokens of {target.name}")
