"""Engines on a test bench: step times given by hand instead of by a GPU, so that trajectories can be written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.cost.roofline import AttentionRates
from simulator.cost.tables import AttentionKind, FastTables
from simulator.serving import model, plain, state
from simulator.speculation.policies import always
from simulator.speculation.shape import chain

MOST_TOKENS = 4096


def tables(
    step_s: float = 1.0, token_s: float = 0.0, *, prompt_s: float = 0.0, pipeline: int = 1, **more
) -> FastTables:
    """A pass that takes `step_s` and `token_s` per token, `prompt_s` more with prompts among them; attention is free, each token
    costs one FLOP, each row of logits one byte."""
    tokens = np.arange(MOST_TOKENS + 1, dtype=float)
    linear_s = np.where(tokens > 0, step_s + token_s * tokens, 0.0)
    zero = np.zeros_like(tokens)
    plane = np.stack([linear_s, zero, tokens])
    with_prompts = np.stack([np.where(tokens > 0, linear_s + prompt_s, 0.0), zero, tokens])
    settings = {
        "kinds": (AttentionKind(0.0, np.inf, 0.0, 0.0, 0.0),),
        "decode_rates": AttentionRates(*[1.0] * len(AttentionRates._fields)),
        "prefill_rates": AttentionRates(*[1.0] * len(AttentionRates._fields)),
        "extra_host_s": np.zeros((2, MOST_TOKENS + 1)),
        **more,
    }
    return FastTables(
        linear=np.stack([plane, with_prompts]), head=np.stack([zero, tokens, zero]), pipeline=pipeline, **settings
    )


def config(**settings):
    """One `state.CONFIG` record; without a word: 8 sequences, 512 tokens, plenty of blocks of 4, mixed batches, no host time."""
    row = state.records(state.CONFIG, 1)
    plenty = {
        "max_sequences": 8, "max_batched_tokens": 512, "queue_timeout_s": np.inf, "block_tokens": 4, "total_blocks": 1000,
        "prefix_caching": 1, "prompts_per_pass": 1_000, "prefill_chunk_tokens": 1_000_000, "match_probability": 1.0,
        "draft_reads": 1, "draft_share": 1.0,
    }  # fmt: skip
    for name, value in {**plenty, **settings}.items():
        row[0][name] = value
    return row


def workload(
    arrival_s,
    prompt_tokens,
    output_tokens,
    *,
    users=0,
    think_s=None,
    follows=None,
    pieces=None,
    patience_s=np.inf,
    **fields,
) -> model.Workload:
    """Requests by hand. `fields` are columns of `state.REQUEST`; `pieces` are (source, end) by request; `follows` is the index
    of the turn before, −1 for first turns; with `users` all after the first `users` wait in the backlog."""
    n = len(arrival_s)
    requests = state.records(state.REQUEST, n)
    requests["arrival_s"] = requests["ready_s"] = arrival_s
    requests["prompt_tokens"], requests["output_tokens"] = prompt_tokens, output_tokens
    requests["session"] = requests["number"] = np.arange(n)
    requests["measured"], requests["replica"] = 1, -1
    patience = np.broadcast_to(np.asarray(patience_s, float), n)
    for name, values in fields.items():
        requests[name] = values
    first = np.ones(n, dtype=bool)
    next_turn = None
    if follows is not None:
        next_turn = np.full(n, -1, dtype=np.int64)
        for later, earlier in enumerate(follows):
            if earlier >= 0:
                next_turn[earlier] = later
        first = np.asarray(follows) < 0
    backlog = np.zeros(0, dtype=np.int64)
    if users:
        backlog = np.flatnonzero(first)[users:]
        first[backlog] = False
    # Who follows has a patience; its time of giving up is known when it arrives.
    requests["cancel_s"] = np.where(first, requests["ready_s"] + patience, patience)
    flat = [piece for row in pieces or [] for piece in row]
    if pieces:
        requests["pieces"] = [len(row) for row in pieces]
        requests["first_piece"] = np.cumsum([0, *(len(row) for row in pieces[:-1])])
    order = np.argsort(requests["ready_s"], kind="stable")
    return model.Workload(
        requests,
        admitted=np.asarray([i for i in order.tolist() if first[i] and requests["status"][i] != state.REJECTED], dtype=np.int64),
        source=np.array([source for source, _ in flat], dtype=np.int64),
        end_tokens=np.array([end for _, end in flat], dtype=np.int64),
        next_turn=next_turn,
        think_s=None if think_s is None else np.broadcast_to(np.asarray(think_s, float), n).copy(),
        users=users,
        backlog=backlog,
    )  # fmt: skip


def step_model(
    n,
    *,
    target=None,
    draft=None,
    gamma=0,
    plan=None,
    columns=None,
    rates=None,
    states=None,
    renewal=(0.0,),
    recorded=None,
    intake=None,
    **settings,
) -> model.StepModel:
    """A model of `n` requests: γ drafts, or those of a `plan` (all its shapes with the rates from column 0 on, unless `columns` says
    otherwise), conditional acceptance `rates` (one row, or one per request), maybe in `states` of a stretch, which is a list of (share, factor
    on the rates, whether anything is proposed), with a `renewal` probability in each, or `recorded` rounds of (drafted, accepted) per request. `intake`: seconds by tokens that are new
    to the drafter."""
    row = config(**settings)
    plan = plan or always(chain(gamma, gamma if draft else 0))
    gamma = plan.most_nodes
    if gamma and "drafter" not in settings:
        row[0].drafter = state.MODEL_DRAFTER if draft else state.NGRAM_DRAFTER
    row[0].policy = plan.mode
    columns = columns or [0] * len(plan.shapes)
    acceptance = np.ones((1, max(1, gamma))) if rates is None else np.atleast_2d(np.asarray(rates, float))
    missing = max(0, max(s.depth + c for s, c in zip(plan.shapes, columns, strict=True)) - acceptance.shape[1])
    acceptance = np.pad(acceptance, ((0, 0), (0, missing)), mode="edge")[:, None, :]
    states = states or [(1.0, 1.0, True)]
    shares, factors, proposes = (np.array(values, float) for values in zip(*states, strict=True))
    acceptance = np.ascontiguousarray(np.minimum(1.0, acceptance * factors[None, :, None]))
    target = target or tables()
    more = {}
    rows = len(acceptance)
    if recorded:
        rows = len(recorded)
        row[0].replays = 1
        rounds = state.records(state.RECORDED, sum(map(len, recorded)))
        rounds["drafted"], rounds["accepted"] = np.array([r for rows in recorded for r in rows]).T
        more = {"first_round": np.cumsum([0, *map(len, recorded)]), "rounds": rounds}
    if intake is not None:
        seconds = np.asarray(intake, float)
        more["draft_intake"] = np.stack([seconds, np.zeros_like(seconds), np.arange(len(seconds), dtype=float)])
    return model.StepModel(
        row, target, draft or target, model.plan_tables(plan, columns), acceptance, np.arange(n, dtype=np.int64) % rows,
        stretch_bounds=np.cumsum(shares), stretch_renewal=np.broadcast_to(np.array(renewal, float), len(shares)).copy(),
        proposes=proposes.astype(np.int64), **more,
    )  # fmt: skip


def fleet(n, *, replicas=1, router="least-outstanding", slack=4, seed=0, **model_settings) -> model.Fleet:
    """Equal replicas for `n` requests."""
    of = np.zeros(replicas, dtype=np.int64)
    one = step_model(n, seed=seed, **model_settings)
    return model.Fleet([one], of, router=model.ROUTERS.index(router), slack=slack, seed=seed)


def run(work: model.Workload, **settings) -> tuple[np.recarray, list]:
    """Simulates `work`, which stays as it is, by the plain version; returns (request records, replicas)."""
    work = replace(work, requests=work.requests.copy())
    result = plain.simulate(fleet(len(work.requests), **settings), work)
    return result.requests, result.replicas


def story(
    replica, kinds=(state.ADMITTED, state.PREEMPTED_, state.EMITTED, state.LEFT)
) -> list[tuple[float, int, int, int]]:
    """The events of these kinds as (time, kind, request, value)."""
    return [tuple(event) for event in replica.events if event.kind in kinds]
