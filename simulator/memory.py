"""What fills the HBM of one GPU: weights, drafter, activations, the engine's reserve, and the KV cache in what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator import catalog, units
from simulator.cost.forward import ForwardCost
from simulator.engine import Engine
from simulator.errors import DoesNotFit, InputError
from simulator.hardware import load_gpu
from simulator.operators import (
    embedding_weight_bytes,
    head_weight_bytes,
    stored_weight_bytes,
)
from simulator.pipeline import PipelineStage
from simulator.speculation.draft_cost import DraftCost


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one GPU; of a pipeline, one of the stage that holds the fewest tokens.

    A token is charged in every layer, as engines without a hybrid allocator do; `window_tokens` and `windowed_share` say what
    one with it gives back: tokens further back than the window keep 1 − `windowed_share` of their bytes.
    """

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
    window_tokens: int = 0
    """Smallest sliding window of the model; 0: every layer attends to the whole context."""
    windowed_share: float = 0.0
    """Share of `kv_bytes_per_token` that is in layers of that window. Wider ones count as if they kept everything."""

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

    def held_bytes(self, context_tokens: float, *, hybrid: bool = False) -> float:
        """KV bytes of one sequence: b·c, with a hybrid allocator b·(c − share·max(0, c − window))."""
        beyond = max(0.0, context_tokens - self.window_tokens) if hybrid else 0.0
        return self.kv_bytes_per_token * (context_tokens - self.windowed_share * beyond)


@dataclass(frozen=True)
class Concurrency:
    """Sequences of one length that the KV cache holds at once, and what speculation takes of them, one part after the other.

    With prefixes shared, or sequences of unlike length, more fit; `max_sequences` of the engine may allow fewer.
    """

    context_tokens: int
    gamma: int
    plain: int
    """Without a drafter."""
    beside_draft_weights: int
    """With its weights, and the logits of γ drafts per sequence, in HBM."""
    with_draft_kv: int
    """With its KV cache as well."""
    speculative: int
    """With γ + 1 look-ahead slots per sequence as well: what is left."""

    @property
    def lost_share(self) -> float:
        """Share of the plain concurrency that speculation costs; 0 where nothing fits anyway."""
        return 1.0 - self.speculative / self.plain if self.plain else 0.0


def weights_on_gpu(cost: ForwardCost) -> float:
    """Bytes of weights on one rank; of a pipeline, in its fullest stage."""
    return max(_stage_weights(cost, stage) for stage in cost.stages)


def _stage_weights(cost: ForwardCost, stage: PipelineStage) -> float:
    return stored_weight_bytes(cost.decoder, cost.formats, cost.tp, cost.experts, stage)


def draft_weights_on_gpu(draft: ForwardCost, target: ForwardCost) -> float:
    """Bytes that a drafter adds to one rank of its target, embedding and LM head that it borrows left out.

    A feature head (EAGLE, MTP) reads the target's embedding, and its LM head where it has no smaller vocabulary (EAGLE-3 has).
    Borrowing needs the same shards, hence the same TP, and the same GPU: in a pipeline the drafter is with the LM head, away
    from the embedding (vLLM: `EagleProposer.load_model`). Medusa heads have an LM head each and nothing else; the target's own
    layers cost nothing again; a drafter on GPUs of its own is not here.
    """
    if isinstance(draft, DraftCost):
        if draft.apart or draft.borrows_layers:
            return 0.0
        if draft.heads:
            return draft.heads_bytes
    total, head = weights_on_gpu(draft), draft.decoder
    if not (head.extra_input_size or head.feature_size):
        return total
    edges = embedding_weight_bytes(head, draft.formats, draft.tp), head_weight_bytes(head, draft.formats, draft.tp)
    modules = draft.modules if isinstance(draft, DraftCost) else 1
    total = modules * (total - sum(edges))
    if draft.tp != target.tp:
        return total + sum(edges)
    total += edges[0] if target.pp > 1 else 0.0
    return total + (edges[1] if head.head_vocab_size != target.decoder.vocab_size else 0.0)


def kv_bytes_per_token(cost: ForwardCost) -> float:
    """KV bytes of one token on one rank, all layers; of a pipeline, in the stage with the most layers; of a drafter, those of a
    cache of its own."""
    if isinstance(cost, DraftCost):
        return cost.own_kv_bytes_per_token
    return cost.shape.kv_bytes_per_token * max(stage.layers for stage in cost.stages)


def windowed_kv_bytes(cost: ForwardCost, stage: PipelineStage, window_tokens: int) -> float:
    """KV bytes of one token on one rank in the layers of `stage` that attend to `window_tokens` or fewer."""
    kinds = zip(stage.counts, cost.decoder.layer_kinds, strict=True)
    layers = sum(n for n, kind in kinds if kind.window_tokens is not None and kind.window_tokens <= window_tokens)
    return cost.shape.kv_bytes_per_token * layers


def activation_bytes(cost: ForwardCost, tokens: int, rows: int) -> float:
    """Peak of intermediate tensors in one pass on one rank: residual stream and its copy, the widest pair of MLP
    tensors, and the logits in fp32 with one copy for sampling. bytes."""
    width = max(kind.mlp.width * (getattr(kind.mlp, "experts_per_token", 1)) for kind in cost.decoder.layer_kinds)
    per_token = (2 * cost.decoder.hidden_size + 3 * width / cost.tp) * cost.formats.model_bytes
    return tokens * per_token + rows * cost.decoder.vocab_size * 2 * 4.0


def budget(target: ForwardCost, engine: Engine, draft: ForwardCost | None = None, gamma: int = 0) -> MemoryBudget:
    """The budget of one GPU that verifies up to `gamma` drafts at once; it may be negative, see `require_fit`.

    Of a pipeline, that of the stage whose cache is full first: all stages hold the same tokens. So does a drafter on GPUs of its
    own.
    """
    settings = engine.settings
    if not 0.0 < settings.memory_utilization <= 1.0:
        raise InputError("memory_utilization", settings.memory_utilization, "be above 0 and at most 1")
    apart = isinstance(draft, DraftCost) and draft.apart
    found = [_stage_budget(target, engine, None if apart else draft, gamma, stage) for stage in target.stages]
    if draft is not None and apart:  # its GPUs hold the same sequences
        found += [_stage_budget(draft, engine, None, 0, stage) for stage in draft.stages]
    return min(found, key=lambda b: b.kv_bytes / b.kv_bytes_per_token)


def _stage_budget(
    target: ForwardCost, engine: Engine, draft: ForwardCost | None, gamma: int, stage: PipelineStage
) -> MemoryBudget:
    settings, drafting = engine.settings, draft if stage.last else None  # the drafter reads what the LM head reads
    rows = min(settings.max_batched_tokens, settings.max_sequences * (gamma + 1)) if stage.last else 0
    draft_kv = kv_bytes_per_token(drafting) if drafting else 0.0
    caching = drafting if draft_kv else None  # drafting in the target's own cache changes nothing about it
    per_token = target.shape.kv_bytes_per_token * stage.layers + draft_kv
    served = [(target, stage), *((caching, s) for s in (caching.stages if caching else ()))]
    window = min(_windows(target) or (_windows(caching) if caching else []), default=0)
    windowed = sum(windowed_kv_bytes(cost, s, window) for cost, s in served if cost)
    weights, draft_weights = _stage_weights(target, stage), draft_weights_on_gpu(drafting, target) if drafting else 0.0
    activations, hbm = activation_bytes(target, settings.max_batched_tokens, rows), target.gpu.hbm_bytes
    # What the share does not count comes on top of it; of the cache alone, the share's complement of all else.
    outside = {"all": 0.0, "static": activations + engine.reserved_bytes}.get(
        settings.utilization_of,
        (1.0 - settings.memory_utilization) * (weights + draft_weights + activations + engine.reserved_bytes),
    )
    return MemoryBudget(
        hbm_bytes=hbm,
        usable_bytes=min(hbm, hbm * settings.memory_utilization + outside),
        weight_bytes=weights,
        draft_weight_bytes=draft_weights,
        activation_bytes=activations,
        reserved_bytes=engine.reserved_bytes,
        kv_bytes_per_token=per_token,
        draft_kv_bytes_per_token=draft_kv,
        window_tokens=window,
        windowed_share=windowed / per_token,
    )


def _windows(cost: ForwardCost) -> list[int]:
    return [kind.window_tokens for kind in cost.decoder.layer_kinds if kind.window_tokens is not None]


def concurrency(
    target: ForwardCost, engine: Engine, draft: ForwardCost | None, *, context_tokens: int, gamma: int
) -> Concurrency:
    """How many sequences of `context_tokens` the KV cache holds in whole blocks, without and with speculation."""
    hybrid, block = engine.settings.hybrid_kv, engine.settings.block_tokens

    def sequences(bytes_: float, per: MemoryBudget, tokens: int) -> int:
        held = per.held_bytes(-(-tokens // block) * block, hybrid=hybrid)
        return max(0, int(bytes_ // held))

    alone, beside = budget(target, engine), budget(target, engine, draft, gamma)
    return Concurrency(
        context_tokens=context_tokens,
        gamma=gamma,
        plain=sequences(alone.kv_bytes, alone, context_tokens),
        beside_draft_weights=sequences(beside.kv_bytes, alone, context_tokens),
        with_draft_kv=sequences(beside.kv_bytes, beside, context_tokens),
        speculative=sequences(beside.kv_bytes, beside, context_tokens + gamma + 1),
    )


def require_fit(
    target: ForwardCost,
    engine: Engine,
    draft: ForwardCost | None = None,
    *,
    context_tokens: int = 1,
    sequences: int = 1,
    gamma: int = 0,
) -> MemoryBudget:
    """The budget, or DoesNotFit with the missing bytes and the nearest TP or GPU that would do."""
    found = budget(target, engine, draft, gamma)
    needed = sequences * context_tokens * found.kv_bytes_per_token
    missing = needed - found.kv_bytes
    if missing <= 0:
        return found
    what = target.decoder.name + (f" with {draft.decoder.name}" if draft else "")
    size = units.show(found.usable_bytes - found.kv_bytes + needed, "bytes")
    raise DoesNotFit(
        f"{what} on {target.gpus} x {target.gpu.name} needs {size} on each GPU "
        f"({units.show(found.weight_bytes + found.draft_weight_bytes, 'bytes')} of it weights, "
        f"{units.show(needed, 'bytes')} KV cache for {sequences} x {context_tokens} tokens), which is "
        f"{units.show(missing, 'bytes')} more than the {units.show(found.usable_bytes, 'bytes')} the engine may use; "
        + _what_would_fit(target, engine, draft, context_tokens, sequences, gamma)
    )


def _what_would_fit(
    target: ForwardCost,
    engine: Engine,
    draft: ForwardCost | None,
    context: int,
    sequences: int,
    gamma: int,
) -> str:
    def fits(gpu_name: str, tp: int, pp: int = target.pp) -> bool:
        gpu = load_gpu(gpu_name) if gpu_name != target.gpu.name else target.gpu
        # Experts that are spread over the group are spread over the larger one.
        experts = replace(target.experts, ep=tp) if target.experts.ep == target.tp > 1 else target.experts
        try:
            moved = ForwardCost(target.decoder, gpu, tp=tp, pp=pp, experts=experts, quantization=target.quantization)
            helper = draft
            if isinstance(draft, DraftCost):
                helper = draft.beside(moved)
            elif draft:
                helper = ForwardCost(draft.decoder, gpu, tp=draft.tp, quantization=draft.quantization)
            found = budget(moved, engine, helper, gamma)
        except InputError:
            return False
        return tp <= gpu.gpus_per_node and found.kv_bytes >= sequences * context * found.kv_bytes_per_token

    options = []
    larger = next((tp for tp in (2, 4, 8, 16) if tp > target.tp and fits(target.gpu.name, tp)), None)
    if larger:
        options.append(f"--tp {larger}")
    elif deeper := next((pp for pp in (2, 4, 8) if pp > target.pp and fits(target.gpu.name, target.tp, pp)), None):
        options.append(f"--pp {deeper}")
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
