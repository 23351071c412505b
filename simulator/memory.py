"""What fills the HBM of one GPU: weights, drafter, activations, the engine's reserve, and the KV cache in what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator import catalog, units
from simulator.cost.forward import ForwardCost
from simulator.engine import Engine
from simulator.errors import DoesNotFit, InputError
from simulator.hardware import load_gpu
from simulator.operators import (
    attention_shape,
    check_tensor_parallel,
    embedding_weight_bytes,
    head_weight_bytes,
    stored_weight_bytes,
)


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one GPU. The KV pool charges every layer for its full context, as engines without a hybrid allocator do."""

    hbm_bytes: float
    usable_bytes: float
    """What the engine may fill."""
    weight_bytes: float
    draft_weight_bytes: float
    activation_bytes: float
    reserved_bytes: float
    kv_bytes_per_token: float
    """Target and drafter together."""
    draft_kv_bytes_per_token: float

    @property
    def kv_bytes(self) -> float:
        """What is left for the KV cache; negative when the model does not fit."""
        used = self.weight_bytes + self.draft_weight_bytes + self.activation_bytes + self.reserved_bytes
        return self.usable_bytes - used

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that all running sequences together may hold."""
        return max(0, int(self.kv_bytes // self.kv_bytes_per_token))

    def kv_blocks(self, block_tokens: int) -> int:
        """Whole KV blocks in the pool."""
        return max(0, int(self.kv_bytes // (self.kv_bytes_per_token * block_tokens)))


def weights_on_gpu(cost: ForwardCost) -> float:
    """Bytes of weights on one rank."""
    return stored_weight_bytes(cost.decoder, cost.formats, cost.tp)


def draft_weights_on_gpu(draft: ForwardCost, target: ForwardCost) -> float:
    """Bytes of the drafter's own weights on one rank: an EAGLE head reads the target's embedding, and its LM head where
    it has no smaller vocabulary (EAGLE-3 has). Borrowing needs the same shards, hence the same TP."""
    total, head = weights_on_gpu(draft), draft.decoder
    if not head.extra_input_size or draft.tp != target.tp:
        return total
    total -= embedding_weight_bytes(head, draft.formats, draft.tp)
    if head.vocab_size == target.decoder.vocab_size:
        total -= head_weight_bytes(head, draft.formats, draft.tp)
    return total


def kv_bytes_per_token(cost: ForwardCost) -> float:
    """KV bytes of one token on one rank, all layers."""
    return attention_shape(cost.decoder, cost.formats, cost.tp).kv_bytes_per_token * cost.decoder.layers


def activation_bytes(cost: ForwardCost, tokens: int, rows: int) -> float:
    """Peak of intermediate tensors in one pass on one rank: residual stream and its copy, the widest pair of MLP
    tensors, and the logits in fp32 with one copy for sampling. bytes."""
    width = max(kind.mlp.width * (getattr(kind.mlp, "experts_per_token", 1)) for kind in cost.decoder.layer_kinds)
    per_token = (2 * cost.decoder.hidden_size + 3 * width / cost.tp) * cost.formats.model_bytes
    return tokens * per_token + rows * cost.decoder.vocab_size * 2 * 4.0


def budget(target: ForwardCost, engine: Engine, draft: ForwardCost | None = None, gamma: int = 0) -> MemoryBudget:
    """The budget of one GPU that verifies up to `gamma` drafts at once; it may be negative, see `require_fit`."""
    settings = engine.settings
    if not 0.0 < settings.memory_utilization <= 1.0:
        raise InputError("memory_utilization", settings.memory_utilization, "be above 0 and at most 1")
    draft_kv = kv_bytes_per_token(draft) if draft else 0.0
    return MemoryBudget(
        hbm_bytes=target.gpu.hbm_bytes,
        usable_bytes=target.gpu.hbm_bytes * settings.memory_utilization,
        weight_bytes=weights_on_gpu(target),
        draft_weight_bytes=draft_weights_on_gpu(draft, target) if draft else 0.0,
        activation_bytes=activation_bytes(
            target, settings.max_batched_tokens, min(settings.max_batched_tokens, settings.max_sequences * (gamma + 1))
        ),
        reserved_bytes=engine.reserved_bytes,
        kv_bytes_per_token=kv_bytes_per_token(target) + draft_kv,
        draft_kv_bytes_per_token=draft_kv,
    )


def require_fit(
    target: ForwardCost,
    engine: Engine,
    draft: ForwardCost | None = None,
    *,
    context_tokens: int = 1,
    sequences: int = 1,
    gamma: int = 0,
    draft_tp: Callable[[int], int] | None = None,
) -> MemoryBudget:
    """The budget, or DoesNotFit with the missing bytes and the nearest TP or GPU that would do.

    `draft_tp` tells how many GPUs share the drafter where the target has so many; left out, it stays on as many as now.
    """
    found = budget(target, engine, draft, gamma)
    needed = sequences * context_tokens * found.kv_bytes_per_token
    missing = needed - found.kv_bytes
    if missing <= 0:
        return found
    what = target.decoder.name + (f" with {draft.decoder.name}" if draft else "")
    size = units.show(found.usable_bytes - found.kv_bytes + needed, "bytes")
    raise DoesNotFit(
        f"{what} on {target.tp} x {target.gpu.name} needs {size} on each GPU "
        f"({units.show(found.weight_bytes + found.draft_weight_bytes, 'bytes')} of it weights, "
        f"{units.show(needed, 'bytes')} KV cache for {sequences} x {context_tokens} tokens), which is "
        f"{units.show(missing, 'bytes')} more than the {units.show(found.usable_bytes, 'bytes')} the engine may use; "
        + _what_would_fit(target, engine, draft, context_tokens, sequences, gamma, draft_tp)
    )


def _what_would_fit(
    target: ForwardCost,
    engine: Engine,
    draft: ForwardCost | None,
    context: int,
    sequences: int,
    gamma: int,
    draft_tp: Callable[[int], int] | None,
) -> str:
    def fits(gpu_name: str, tp: int) -> bool:
        gpu = load_gpu(gpu_name) if gpu_name != target.gpu.name else target.gpu
        try:
            check_tensor_parallel(target.decoder, tp)
            moved = ForwardCost(target.decoder, gpu, tp=tp, quantization=target.quantization)
            helper = None
            if draft:
                sharing = draft_tp(tp) if draft_tp else draft.tp
                helper = ForwardCost(draft.decoder, gpu, tp=sharing, quantization=draft.quantization)
            found = budget(moved, engine, helper, gamma)
        except InputError:
            return False
        return tp <= gpu.gpus_per_node and found.kv_bytes >= sequences * context * found.kv_bytes_per_token

    options = []
    larger = next((tp for tp in (2, 4, 8, 16) if tp > target.tp and fits(target.gpu.name, tp)), None)
    if larger:
        options.append(f"--tp {larger}")
    others = [n for n in catalog.names("gpu") if n not in (target.gpu.name, "cpu-generic") and fits(n, target.tp)]
    if others:
        smallest = min(others, key=lambda n: load_gpu(n).hbm_bytes)
        options.append(f"--gpu {smallest}")
    if not options:
        both = ((tp, n) for tp in (2, 4, 8, 16) if tp > target.tp for n in catalog.names("gpu") if fits(n, tp))
        tp, gpu = min(both, key=lambda found: (found[0], load_gpu(found[1]).hbm_bytes, found[1]), default=(0, ""))
        options += [f"--tp {tp} with --gpu {gpu}"] if tp else []
    if not options:
        return "no TP degree of one node and no bundled GPU would hold it at these number formats"
    return f"{' or '.join(options)} would fit"
