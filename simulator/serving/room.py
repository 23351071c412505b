"""What speculation costs in KV cache: how many requests of this traffic fit at once, with it and without."""

from __future__ import annotations

from simulator.memory import Concurrency
from simulator.serving.simulation import SimulationResult


def kv_room(result: SimulationResult) -> Concurrency | None:
    """In the last kind of replica, at the mean length of a finished request at its end, prompt and answer; None where nothing
    speculates or finished."""
    summary = result.main.summary
    finished = summary.requests["finished"]
    if result.main.drafts is None or not finished:
        return None
    tokens = sum(c.prompt_tokens + c.output_tokens for c in summary.classes)
    deployment = result.main.kinds[-1].deployment
    return deployment.concurrency(context_tokens=max(1, round(tokens / finished)), gamma=result.main.drafts.nodes)
