"""What serves: a model, maybe its drafter, on GPUs of one kind, under one engine; from names to costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simulator.architecture import Decoder, load_decoder
from simulator.cost.forward import FastTables, ForwardCost
from simulator.cost.graphs import GraphCapture
from simulator.cost.tables import SECONDS
from simulator.engine import Engine
from simulator.engine_choice import EngineChoice
from simulator.errors import InputError
from simulator.experts import ExpertPlacement
from simulator.hardware import Gpu, Link, load_gpu, load_link
from simulator.memory import Concurrency, MemoryBudget, concurrency, require_fit
from simulator.operators import FloatArray
from simulator.quantization import Quantization
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.drafters import Drafter, check_pair, load_drafter

__all__ = ["Deployment", "EngineChoice", "deploy"]


@dataclass(frozen=True)
class Deployment:
    """One copy of the model, on a tensor-parallel group or a pipeline of them, with all its costs; replicas are copies of it."""

    target: ForwardCost
    engine: Engine
    drafter: Drafter | None
    draft: ForwardCost | None
    """Cost of the drafter's passes; None without drafter or where it has no model (n-gram)."""

    @property
    def gpu(self) -> Gpu:
        """The GPU it runs on."""
        return self.target.gpu

    @property
    def gpus(self) -> int:
        """GPUs of one replica, those that only draft included."""
        return self.target.gpus + (self.drafter.draft_gpus if self.drafter else 0)

    @property
    def host_link(self) -> Link:
        """What joins each GPU with its host: KV cache is swapped at `bytes_per_s` of it, one way."""
        return load_link(self.gpu.host_link)

    def plain(self) -> Deployment:
        """The same without a drafter; its memory becomes KV cache."""
        return replace(self, drafter=None, draft=None)

    def beside(self, drafter: Drafter) -> Deployment:
        """The same target and engine, which have no drafter yet, with `drafter`. Raises InputError where they do not match."""
        check_pair(self.target.decoder, drafter)
        if drafter.looks_up:
            return replace(self, drafter=drafter)
        cost = DraftCost(drafter, self.target)
        engine = self.engine.beside(cost.decoder.head_vocab_size, self.target.decoder.vocab_size)
        return replace(self, engine=engine, drafter=drafter, draft=cost)

    def fit(self, *, context_tokens: int = 1, sequences: int = 1, gamma: int = 0) -> MemoryBudget:
        """Memory of one GPU, with room for the logits of `gamma` drafts per sequence. Raises DoesNotFit."""
        return require_fit(
            self.target, self.engine, self.draft, context_tokens=context_tokens, sequences=sequences, gamma=gamma
        )

    def concurrency(self, *, context_tokens: int, gamma: int) -> Concurrency:
        """Sequences of so many tokens that the KV cache holds, without and with this drafter's `gamma` drafts."""
        return concurrency(self.target, self.engine, self.draft, context_tokens=context_tokens, gamma=gamma)

    def target_tables(
        self, max_tokens: int, max_rows: int, per_sequence: int = 1, *, sampled: bool = False
    ) -> FastTables:
        """The target's passes on the graphs that the engine captured, for `per_sequence` tokens (γ + 1) of each sequence.
        `sampled` as in `ForwardCost.tables`."""
        capture = self._capture(self.target, per_sequence)
        return _waits(self.target.tables(max_tokens, max_rows, capture, sampled=sampled))

    def draft_tables(self, max_tokens: int, max_rows: int, *, sampled: bool = False) -> FastTables | None:
        """The drafter's passes on the same graphs; None where it has no model."""
        draft = self.draft
        return _waits(draft.tables(max_tokens, max_rows, self._capture(draft), sampled=sampled)) if draft else None

    def draft_intake(self, max_tokens: int) -> FloatArray:
        """What the drafter's first pass of a round costs beside `draft_tables` with 0..max_tokens tokens that are new to it
        (EAGLE-3's features): seconds, bytes, FLOP [3, tokens + 1]; zeros for every other drafter."""
        tokens = np.arange(max_tokens + 1, dtype=float)
        return self.draft.intake(tokens) if isinstance(self.draft, DraftCost) else np.zeros((3, len(tokens)))

    def _capture(self, cost: ForwardCost, per_sequence: int = 1) -> GraphCapture:
        settings = self.engine.settings
        return GraphCapture(
            settings.captured_tokens(per_sequence), settings.graphs, self.engine.eager_s(cost.decoder.layers)
        )


def _waits(tables: FastTables) -> FastTables:
    """`tables` with what the GPU waits for launches: they run ahead of it, so only what outlasts its matrix kernels. Without
    prompts every token has logits, so that the LM head is among them; beside prompts few have."""
    matrices_s = tables.linear[:, SECONDS].copy()
    rows = min(matrices_s.shape[1], tables.head.shape[1])
    matrices_s[0, :rows] += tables.head[SECONDS, :rows]
    return replace(tables, extra_host_s=np.maximum(0.0, tables.extra_host_s - matrices_s))


def deploy(
    model: str | Decoder,
    gpu: str | Gpu,
    *,
    tp: int = 1,
    pp: int = 1,
    ep: int | None = None,
    expert_skew: float = 1.0,
    expert_exponent: float = 0.0,
    quantization: Quantization | None = None,
    engine: str | EngineChoice | Engine = "vllm",
    draft: str | None = None,
    draft_tp: int | None = None,
    draft_quantization: Quantization | None = None,
    link: str | Link | None = None,
    network: str | Link | None = None,
    base: Path | None = None,
) -> Deployment:
    """Builds a deployment from names or paths (relative ones from `base`).

    `tp` GPUs of one node share every layer, `pp` such groups are a pipeline. `ep` GPUs have whole experts each (tp of them is
    vLLM's ``--enable-expert-parallel``; left out, experts are split like any matrix), the busiest of them `expert_skew` times
    the mean of their tokens; `expert_exponent` is the Zipf exponent of their popularity. `link` joins the GPUs of a node
    and `network` nodes, the GPU's own where left out. A drafter is on the GPUs that have the LM head; `draft_tp` of them share it,
    in the formats of `draft_quantization`, each left out as its own file says.

    Raises InputError or UnknownName; whether it fits the memory is asked with `Deployment.fit`.
    """
    decoder = load_decoder(model, base=base) if isinstance(model, str) else model
    device = load_gpu(gpu, base=base) if isinstance(gpu, str) else gpu
    if tp > device.gpus_per_node:
        raise InputError(
            "tp", tp, f"be at most the {device.gpus_per_node} GPUs that {device.node_link} joins in one node"
        )
    if pp < 1:
        raise InputError("pp", pp, "be at least 1")
    experts = ExpertPlacement(ep if ep is not None else 1, expert_skew, expert_exponent)
    wire = load_link(link, base=base) if isinstance(link, str) else link
    between = load_link(network, base=base) if isinstance(network, str) else network
    if isinstance(engine, str):
        engine = EngineChoice(name=engine)
    if isinstance(engine, EngineChoice):
        engine = engine.load(base, device)
    target = ForwardCost(
        decoder, device, tp=tp, pp=pp, experts=experts, quantization=quantization, link=wire, network=between
    )
    drafter = load_drafter(draft, base=base) if draft else None
    if drafter is not None and draft_tp is not None:
        drafter = replace(drafter, tp=draft_tp)
    if drafter is not None and draft_quantization is not None:
        drafter = replace(drafter, quantization=draft_quantization)
    plain = Deployment(target, engine, None, None)
    return plain if drafter is None else plain.beside(drafter)
