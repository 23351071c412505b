"""A replica on a test bench: step times given by hand instead of by a GPU, so that trajectories can be written down."""

from __future__ import annotations

import numpy as np

from simulator.cost.forward import AttentionKind, FastTables
from simulator.cost.roofline import AttentionRates
from simulator.serving import cluster, state
from simulator.serving.simulation import replayed
from simulator.serving.traffic import Requests
from simulator.speculation.acceptance import RecordedAcceptance
from simulator.speculation.recording import Recording

MOST_TOKENS = 4096


def tables(step_s: float = 1.0, token_s: float = 0.0) -> FastTables:
    """A pass that takes `step_s` and `token_s` per token; attention is free, each token costs one FLOP."""
    tokens = np.arange(MOST_TOKENS + 1, dtype=float)
    linear_s = np.where(tokens > 0, step_s + token_s * tokens, 0.0)
    zero = np.zeros_like(tokens)
    rates = AttentionRates(*[1.0] * len(AttentionRates._fields))
    plane, kinds = np.stack([linear_s, zero, tokens]), (AttentionKind(0.0, np.inf, 0.0, 0.0, 0.0),)
    return FastTables(
        np.stack([plane, plane]), np.stack([zero, zero, zero]), np.stack([zero, zero]), kinds, rates, rates
    )


def traffic(arrival_s, prompt_tokens, output_tokens, *, users=0, think_s=None) -> Requests:
    n = len(arrival_s)
    return Requests(
        np.asarray(arrival_s, float), np.asarray(prompt_tokens), np.asarray(output_tokens), np.arange(n),
        None if think_s is None else np.asarray(think_s, float), users, n, {}, "by hand",
    )  # fmt: skip


def recording(accepted, gamma, drafted=None) -> Recording:
    """Rounds as if they had been recorded: drafts kept (and verified, else γ) by request and round."""
    drafted = drafted or [[gamma] * len(row) for row in accepted]
    return Recording(tuple(map(tuple, accepted)), tuple(map(tuple, drafted)), gamma, "by hand")


def run(
    requests: Requests, *, target=None, draft=None, gamma=0, rates=None, recorded=None, replicas=1, warmup=0, match=1.0,
    **config,
):  # fmt: skip
    """Simulates `requests`; returns (request records, replicas)."""
    settings = {
        "seed": 0, "max_sequences": 8, "max_batched_tokens": 512, "block_tokens": 4, "total_blocks": 1000,
        "watermark_blocks": 0, "prefix_caching": 1, "prompts_per_pass": 1_000, "prefill_chunk_tokens": 1_000_000, **config,
    }  # fmt: skip
    row = state.records(state.CONFIG, 1)
    for name, value in settings.items():
        row[0][name] = value
    row[0].gamma, row[0].match_probability = gamma, match
    if gamma:
        row[0].drafter = state.MODEL_DRAFTER if draft else state.NGRAM_DRAFTER
    n = len(requests)
    conditional = np.ones((1, 1)) if rates is None else np.atleast_2d(np.asarray(rates, float))
    missing = max(0, gamma - conditional.shape[1])
    conditional = np.pad(conditional, ((0, 0), (0, missing)), mode="edge")
    row_of = np.arange(n) if len(conditional) > 1 else np.zeros(n, dtype=np.int64)
    target = target or tables()
    if recorded:
        conditional, row_of = RecordedAcceptance.of(recorded).per_request(0, n, gamma)
    model = cluster.StepModel(row, target, draft or target, conditional, row_of)
    if recorded:
        model = replayed(model, recorded)
    records = state.records(state.REQUEST, n)
    records["arrival_s"] = requests.arrival_s
    records["prompt_tokens"] = requests.prompt_tokens
    records["output_tokens"] = requests.output_tokens
    records["measured"] = np.arange(n) >= warmup
    return records, cluster.run(model, records, requests, replicas, np.arange(n))
