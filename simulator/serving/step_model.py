"""From a deployment to what a replica's step depends on: the engine's settings in blocks and tokens, and tables of times."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from simulator.cost.roofline import effective_bytes_per_s
from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import MemoryBudget
from simulator.serving import state
from simulator.serving.drafts import Drafts
from simulator.serving.goodput import goodput_plan
from simulator.serving.model import FloatArray, IntArray, StepModel, plan_tables
from simulator.speculation.acceptance import RecordedAcceptance
from simulator.speculation.policies import always
from simulator.speculation.recording import Recording
from simulator.speculation.shape import PLAIN
from simulator.speculation.tree_cost import MASKED_ATTENTION

_HOST_TIMES = (
    "host_step_s", "host_per_sequence_s", "host_hidden_step_s", "host_hidden_per_sequence_s", "host_speculative_round_s",
    "host_draft_pass_s", "host_ngram_per_sequence_s",
)  # fmt: skip


class Fates(NamedTuple):
    """Acceptance of all requests."""

    rates: FloatArray
    """Conditional rates [rows, states of a stretch, columns]."""
    row_of: IntArray
    """Row of each request [requests]."""


def step_model(
    deployment: Deployment,
    budget: MemoryBudget,
    *,
    drafts: Drafts | None,
    fates: Fates,
    seed: int,
    shares: bool,
    prefill_only: bool = False,
) -> StepModel:
    """One kind of replica. `shares`: blocks have names.

    Raises InputError where a round does not fit the token budget.
    """
    engine, settings = deployment.engine, deployment.engine.settings
    nodes = drafts.nodes if drafts else 0
    if nodes + 1 > settings.max_batched_tokens:
        raise InputError(
            "max_batched_tokens", settings.max_batched_tokens, f"be at least the {nodes + 1} tokens of a round",
            where="engine",
        )  # fmt: skip
    config = state.records(state.CONFIG, 1)
    row = config[0]
    for name in ("max_sequences", "max_batched_tokens", "block_tokens", "max_waiting"):
        row[name] = getattr(settings, name)
    for name in _HOST_TIMES:
        row[name] = getattr(engine, name)
    row.seed = seed
    row.queue_timeout_s = np.inf if settings.queue_timeout_s is None else settings.queue_timeout_s
    row.ranked = int(settings.order != "fcfs")
    row.total_blocks = budget.kv_blocks(settings.block_tokens)
    row.watermark_blocks = int(settings.watermark * row.total_blocks)
    if settings.hybrid_kv and budget.window_tokens:
        row.window_tokens, row.windowed_share = budget.window_tokens, budget.windowed_share
    row.prefix_caching = int(settings.prefix_caching and not row.window_tokens)
    row.shares = int(shares and row.prefix_caching)
    if settings.preemption == "swap":
        row.swap_blocks = int(settings.swap_space_bytes // (budget.kv_bytes_per_token * settings.block_tokens))
        row.swap_s_per_token = budget.kv_bytes_per_token / deployment.host_link.bytes_per_s
    row.prefill_first = int(settings.prefill == "first")
    row.prompts_per_pass = settings.prompts_per_pass or settings.max_sequences
    row.prefill_chunk_tokens = settings.prefill_chunk_tokens or settings.max_batched_tokens
    row.prefill_only = int(prefill_only)
    row.draft_first = int(settings.draft == "before")
    row.draft_padded = int(settings.draft_batch == "padded")
    row.padded = int(settings.verify == "padded")
    row.overlap = int(settings.overlap)
    row.graphs_of_sequences = int(settings.graph_sizes_of == "sequences")
    row.match_probability = row.draft_share = 1.0
    # Padding is charged beyond the token budget, and a pass of the drafter may be wider than a step.
    most = settings.max_batched_tokens
    if row.padded:
        most += settings.max_sequences * nodes
    target = deployment.target_tables(most, most, nodes + 1)
    model = StepModel(config, target, target, plan_tables(always(PLAIN), [0, 0]), *fates)
    if drafts is None or deployment.drafter is None:
        return model
    return _drafting(model, deployment, drafts, budget)


def _drafting(model: StepModel, deployment: Deployment, drafts: Drafts, budget: MemoryBudget) -> StepModel:
    """`model` with a drafter."""
    settings, drafter, law = deployment.engine.settings, deployment.drafter, drafts.law
    if drafter is None:
        return model
    row = model.config[0]
    row.policy = drafts.plan.mode
    row.drafter = state.MODEL_DRAFTER if deployment.draft else state.NGRAM_DRAFTER
    row.draft_reads, row.draft_share = int(drafter.reads_prompts), drafter.exposed_share
    row.draft_keeps_up = int(drafter.catches_up == "each-step")
    recorded = isinstance(law, RecordedAcceptance)
    row.match_probability = 1.0 if law.matches_in_stretches else law.match_probability
    widest = max(max(shape.pass_tokens, default=1) for shape in drafts.plan.shapes)
    padded = drafts.depth + 1 if settings.draft_batch == "padded" else 1
    most = max(settings.max_batched_tokens, settings.max_sequences * max(widest, padded))
    tables = deployment.draft_tables(most, most)
    changed = replace(
        model,
        draft=tables or model.target,
        plan=plan_tables(drafts.plan, drafts.columns),
        stretch_bounds=np.ones(1) if recorded else np.cumsum(law.stretch_weights),
        stretch_renewal=np.zeros(1) if recorded else 1.0 / law.stretch_tokens,
        proposes=np.ones(1, dtype=np.int64) if recorded else law.stretch_proposes.astype(np.int64),
        draft_intake=deployment.draft_intake(most),
    )
    if any(not shape.is_chain for shape in drafts.plan.shapes):
        _charge_trees(changed, deployment)
    if drafts.goodput:
        longest = min(most_tokens(deployment, budget, 0), deployment.target.decoder.max_context_tokens or 1 << 20)
        changed = replace(changed, plan=plan_tables(goodput_plan(changed, drafts, longest), drafts.columns))
    return replayed(changed, law.recording) if isinstance(law, RecordedAcceptance) else changed


def _charge_trees(model: StepModel, deployment: Deployment) -> None:
    """What trees cost beside chains, as `tree_cost.tree_extra_s` has it: of a step, of a pair in a mask, of a moved token, s."""
    target, row = deployment.target, model.config[0]
    # Micro-batches pass the stages of a pipeline side by side, each with its layers.
    layers, elementwise = target.decoder.layers / target.pp, target.efficiency.elementwise
    s_per_byte = 1.0 / effective_bytes_per_s(target.gpu, elementwise.bandwidth)
    row.tree_attention, row.tree_step_s = MASKED_ATTENTION - 1.0, elementwise.t0_s
    row.tree_mask_s = layers * s_per_byte
    row.tree_move_s = 2.0 * target.shape.kv_bytes_per_token * layers * s_per_byte


def replayed(model: StepModel, recording: Recording) -> StepModel:
    """`model` with the fate of every round as recorded instead of drawn."""
    model.config[0].replays = 1
    rounds = state.records(state.RECORDED, len(recording.rounds))
    rounds["drafted"], rounds["accepted"] = recording.rounds.T
    return replace(model, first_round=recording.first_round, rounds=rounds)


def most_tokens(deployment: Deployment, budget: MemoryBudget, nodes: int) -> int:
    """Prompt and answer of the longest sequence that the KV cache holds alone, with look-ahead slots for `nodes` drafts."""
    settings = deployment.engine.settings
    tokens = budget.kv_blocks(settings.block_tokens) * settings.block_tokens
    if settings.hybrid_kv and budget.window_tokens and tokens > budget.window_tokens:
        kept = max(1e-9, 1.0 - budget.windowed_share)
        tokens = int(budget.window_tokens + (tokens - budget.window_tokens) / kept)
    return tokens - nodes - 1
