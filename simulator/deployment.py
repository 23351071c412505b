"""What serves: a model, maybe its drafter, on GPUs of one kind, under one engine; from names to costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from simulator.architecture import Decoder, load_decoder
from simulator.cost.forward import ForwardCost
from simulator.engine import Engine
from simulator.engine_choice import EngineChoice
from simulator.errors import InputError
from simulator.hardware import Gpu, Link, load_gpu, load_link
from simulator.memory import MemoryBudget, require_fit
from simulator.quantization import Quantization
from simulator.speculation.drafters import Drafter, check_pair, load_drafter

__all__ = ["Deployment", "EngineChoice", "deploy"]


@dataclass(frozen=True)
class Deployment:
    """One tensor-parallel group with all its costs; replicas are copies of it."""

    target: ForwardCost
    engine: Engine
    drafter: Drafter | None
    draft: ForwardCost | None
    """Cost of the drafter's passes; None without drafter or where it has no model (n-gram)."""

    @property
    def gpu(self) -> Gpu:
        """The GPU it runs on."""
        return self.target.gpu

    def plain(self) -> Deployment:
        """The same without a drafter; its memory becomes KV cache."""
        return replace(self, drafter=None, draft=None)

    def fit(self, *, context_tokens: int = 1, sequences: int = 1, gamma: int = 0) -> MemoryBudget:
        """Memory of one GPU, with room for the logits of `gamma` drafts per sequence. Raises DoesNotFit."""
        return require_fit(
            self.target, self.engine, self.draft, context_tokens=context_tokens, sequences=sequences,
            gamma=gamma, draft_tp=self.drafter.tensor_parallel if self.drafter else None,
        )  # fmt: skip


def deploy(
    model: str | Decoder,
    gpu: str | Gpu,
    *,
    tp: int = 1,
    quantization: Quantization | None = None,
    engine: str | EngineChoice | Engine = "vllm",
    draft: str | None = None,
    link: str | Link | None = None,
    base: Path | None = None,
) -> Deployment:
    """Builds a deployment from names or paths (relative ones from `base`).

    Raises InputError or UnknownName; whether it fits the memory is asked with `Deployment.fit`.
    """
    decoder = load_decoder(model, base=base) if isinstance(model, str) else model
    device = load_gpu(gpu, base=base) if isinstance(gpu, str) else gpu
    if tp > device.gpus_per_node:
        raise InputError(
            "tp", tp, f"be at most the {device.gpus_per_node} GPUs that {device.node_link} joins in one node"
        )
    wire = load_link(link, base=base) if isinstance(link, str) else link
    if isinstance(engine, str):
        engine = EngineChoice(name=engine)
    if isinstance(engine, EngineChoice):
        engine = engine.load(base, device)
    target = ForwardCost(decoder, device, tp=tp, quantization=quantization, link=wire)
    drafter = load_drafter(draft, base=base) if draft else None
    cost = None
    if drafter is not None:
        check_pair(decoder, drafter)
        if drafter.decoder is not None:
            cost = ForwardCost(
                drafter.decoder, device, tp=drafter.tensor_parallel(tp), quantization=drafter.quantization,
                link=wire, efficiency=target.efficiency, back_to_back=True,
            )  # fmt: skip
    return Deployment(target, engine, drafter, cost)
