"""What is drafted when, in words: the conditions of a speculative run."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from simulator.serving.drafts import Drafts
from simulator.serving.model import PlanTables
from simulator.serving.simulation import Run, SimulationResult
from simulator.serving.state import DEPTH, NODES
from simulator.speculation.policies import BY_ORACLE, BY_PAST

_MOST_RUNS = 4
"""Changes from batch to batch that are spelled out."""


def drafts_label(drafts: Drafts) -> str:
    """ "γ = 4", "tree of 60 nodes"; with several of them the largest."""
    largest = max(drafts.plan.shapes, key=lambda shape: shape.nodes)
    return (
        f"tree of {largest.nodes} nodes, depth {largest.depth}"
        if drafts.is_tree and largest.nodes > largest.depth
        else _shape_text(largest.nodes, largest.depth)
    )


def drafts_text(result: SimulationResult) -> str:
    """The policy of a speculative run, with what it chooses by batch at the mean context of its requests."""
    run, drafts = result.main, result.main.drafts
    if drafts is None or run.plan is None:
        return "none"
    if drafts.plan.mode == BY_ORACLE:
        return f"oracle: what will be accepted, up to {drafts_label(drafts)}"
    if drafts.plan.mode == BY_PAST:
        return f"each sequence by its own past, up to {drafts_label(drafts)}"
    summary = run.summary
    finished = summary.requests["finished"]
    tokens = sum(c.prompt_tokens + 0.5 * c.output_tokens for c in summary.classes)
    text = plan_text(run.plan, tokens / finished if finished else 0.0, goodput=drafts.goodput)
    speculation = result.scenario.speculation
    dynamic = speculation is not None and speculation.tree is not None and speculation.tree.kind == "dynamic"
    return f"{text}; trees are made anew each round" if dynamic else text


def plan_text(plan: PlanTables, context_tokens: float, *, goodput: bool) -> str:
    """What `plan` chooses by batch where each sequence holds so many tokens."""
    column = int(np.searchsorted(plan.contexts, context_tokens, side="right")) - 1
    chosen = [int(row[column]) for row in plan.choice]
    if len(set(map(int, plan.choice.ravel()))) == 1:
        text = _shape_text(*_size(plan, chosen[0])) + (" at every batch" if goodput else "")
        return f"{text} (most goodput)" if goodput else f"{text}, always"
    runs = [(shape, [i for i, _ in group]) for shape, group in groupby(enumerate(chosen), key=lambda pair: pair[1])]
    if len(runs) > _MOST_RUNS:  # sizes of captured graphs make it waver
        shown = [i for i, batch in enumerate(plan.batches) if batch in (1, 4, 16, 64, 256, 1024)]
        told = groupby(shown, key=lambda i: _shape_text(*_size(plan, chosen[i])))
        parts = [f"{text} for {_span([int(plan.batches[i]) for i in places])}" for text, places in told]
        return (
            f"{'most goodput: ' if goodput else ''}{', '.join(parts)} sequences, at {context_tokens:,.0f} tokens each"
        )
    parts = []
    for shape, places in runs:
        end = places[-1] + 1
        until = f"up to {int(plan.batches[end]) - 1} sequences" if end < len(plan.batches) else "beyond"
        parts.append(f"{_shape_text(*_size(plan, shape))} {until if len(runs) > 1 else 'at every batch'}")
    where = f" at {context_tokens:,.0f} tokens each" if len(plan.contexts) > 1 else ""
    return f"{'most goodput: ' if goodput else ''}{', '.join(parts)}{where}"


def _span(batches: list[int]) -> str:
    return str(batches[0]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"


def _size(plan: PlanTables, shape: int) -> tuple[int, int]:
    return int(plan.shapes[shape, NODES]), int(plan.shapes[shape, DEPTH])


def _shape_text(nodes: int, depth: int) -> str:
    if nodes == 0:
        return "none"
    return f"γ = {depth}" if nodes == depth else f"{nodes} nodes of depth {depth}"


def drafts_document(run: Run) -> dict[str, Any] | None:
    """The plan of a speculative run as JSON: its shapes, and which of them it takes by batch and context; None without drafts."""
    if run.drafts is None or run.plan is None:
        return None
    plan = run.plan
    return {
        "policy": {BY_ORACLE: "oracle", BY_PAST: "per-request"}.get(run.drafts.plan.mode, "table"),
        "shapes": [asdict(shape) for shape in run.drafts.plan.shapes],
        "batches": plan.batches.tolist(),
        "contexts": plan.contexts.tolist(),
        "choice": plan.choice.tolist(),
    }
