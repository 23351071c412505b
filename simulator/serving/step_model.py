"""From a deployment to what a replica's step depends on: the engine's settings in blocks and tokens, and tables of times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import MemoryBudget
from simulator.serving import state
from simulator.serving.model import FloatArray, IntArray, StepModel
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.recording import Recording

_HOST_TIMES = (
    "host_step_s", "host_per_sequence_s", "host_hidden_step_s", "host_hidden_per_sequence_s", "host_speculative_round_s",
    "host_draft_pass_s", "host_ngram_per_sequence_s",
)  # fmt: skip


def step_model(
    deployment: Deployment,
    budget: MemoryBudget,
    *,
    gamma: int,
    law: Acceptance | None,
    fates: tuple[FloatArray, IntArray],
    seed: int,
    shares: bool,
    prefill_only: bool = False,
) -> StepModel:
    """One kind of replica. `fates`: acceptance rates [rows, γ] and the row of each request; `shares`: blocks have names.

    Raises InputError where a round does not fit the token budget.
    """
    engine, settings = deployment.engine, deployment.engine.settings
    if gamma + 1 > settings.max_batched_tokens:
        raise InputError(
            "max_batched_tokens", settings.max_batched_tokens, f"be at least γ + 1 = {gamma + 1}", where="engine"
        )
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
    row.gamma = gamma
    row.match_probability = law.match_probability if law else 1.0
    if gamma:
        row.drafter = state.MODEL_DRAFTER if deployment.draft else state.NGRAM_DRAFTER
    # Padding is charged beyond the token budget: γ more for every sequence at most.
    most = settings.max_batched_tokens
    if row.padded or row.draft_padded:
        most += settings.max_sequences * gamma
    target = deployment.target_tables(most, most, gamma + 1)
    draft = (deployment.draft_tables(most, most) if gamma else None) or target
    model = StepModel(config, target, draft, *fates)
    return replayed(model, law.recording) if isinstance(law, RecordedAcceptance) else model


def replayed(model: StepModel, recording: Recording) -> StepModel:
    """`model` with the fate of every round as recorded instead of drawn."""
    model.config[0].replays = 1
    rounds = state.records(state.RECORDED, len(recording.rounds))
    rounds["drafted"], rounds["accepted"] = recording.rounds.T
    return replace(model, first_round=recording.first_round, rounds=rounds)


def most_tokens(deployment: Deployment, budget: MemoryBudget, gamma: int) -> int:
    """Prompt and answer of the longest sequence that the KV cache holds alone, with its look-ahead slots."""
    settings = deployment.engine.settings
    tokens = budget.kv_blocks(settings.block_tokens) * settings.block_tokens
    if settings.hybrid_kv and budget.window_tokens and tokens > budget.window_tokens:
        kept = max(1e-9, 1.0 - budget.windowed_share)
        tokens = int(budget.window_tokens + (tokens - budget.window_tokens) / kept)
    return tokens - gamma - 1
