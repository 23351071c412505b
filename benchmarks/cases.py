"""The workloads that are timed: the stock case and its relatives, and a production trace repeated to a million requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator import load_scenario
from simulator.scenario import Scenario

CONVERSATIONS = "traces/azure2023/AzureLLMInferenceTrace_conv.csv"


@dataclass(frozen=True)
class Case:
    """A workload of any size and the speed it must reach."""

    title: str
    build: Callable[[int], Scenario]
    """Of n requests."""
    bar_per_s: float
    """Requests per second at least, one core, after compilation."""
    needs: Path | None = None
    """A file without which it cannot run."""


def data_folder() -> Path:
    """Published traces, which are no part of the project: $MEMWALL_DATA, else ../shared/data beside it."""
    given = os.environ.get("MEMWALL_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"


def stock(**changes: Any) -> Callable[[int], Scenario]:
    """Llama-3.1-8B on one H100, 512/256 tokens, Poisson arrivals at 8/s per replica."""

    def build(n: int) -> Scenario:
        rate_per_s = 8.0 * changes.get("replicas", 1)
        return load_scenario("stock-8b-h100", load={"requests": n, "rate_per_s": rate_per_s}, **changes)

    return build


def speculative(draft: str) -> dict[str, Any]:
    """A chain of four drafts; requests differ in their luck."""
    return {"draft": draft, "gamma": 4, "acceptance": {"alpha": 0.8, "request_icc": 0.1}}


def conversations(n: int) -> Scenario:
    """Azure's hour of conversations, at its own pace, over and over until there are n requests; eight replicas."""
    engine = {"name": "vllm", "prefix_caching": True, "max_batched_tokens": 2048}
    traffic = {"kind": "trace", "path": str(data_folder() / CONVERSATIONS), "requests": n}
    return load_scenario("stock-8b-h100", replicas=8, engine=engine, traffic=traffic)


CASES = {
    "plain": Case("stock case, plain decoding", stock(), 400_000),
    "speculation": Case(
        "stock case, γ = 4 by Llama-3.2-1B, α = 0.8, request ICC 0.1",
        stock(speculation=speculative("llama-3.2-1b")),
        200_000,
    ),
    "eagle": Case(
        "stock case, γ = 4 by an EAGLE head, α = 0.8, request ICC 0.1",
        stock(speculation=speculative("eagle-llama-3.1-8b")),
        200_000,
    ),
    "router": Case("stock case, 4 replicas at 32/s, least outstanding requests", stock(replicas=4), 100_000),
    "trace": Case(
        "Azure conversations repeated, 8 replicas, prefix cache, prompts in chunks",
        conversations,
        50_000,
        data_folder() / CONVERSATIONS,
    ),
}
