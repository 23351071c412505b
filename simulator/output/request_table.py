"""Single requests as a table for people: those that took longest, or all of them in columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import units
from simulator.output.columns import request_columns
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.serving.metrics import request_metrics
from simulator.serving.simulation import SimulationResult

MOST = 25


def slowest_section(result: SimulationResult, most: int = MOST) -> Section | None:
    """The requests of the variant asked for that waited longest for their last token, the slowest first; beside them the same
    requests without speculation. None where none finished."""
    run = result.main
    found = request_metrics(run.requests)
    others = request_metrics(result.plain.requests)["e2e_s"] if len(result.runs) > 1 else None
    done = np.flatnonzero(~np.isnan(found["e2e_s"]))
    if not len(done):
        return None
    slowest = done[np.argsort(-found["e2e_s"][done], kind="stable")][:most]
    body = []
    for i in slowest.tolist():
        request = run.requests[i]
        body.append((
            f"{run.rows[i]:,}", units.show(float(request["arrival_s"]), "s"), f"{request['prompt_tokens']:,}",
            f"{request['output_tokens']:,}", *(_seconds(found[name][i]) for name in ("queue_s", "ttft_s", "tpot_s", "e2e_s")),
            *(() if others is None else (_seconds(others[i]),)), f"{request['replica']}", f"{request['preemptions']}",
        ))  # fmt: skip
    headers = (
        "row", "arrival", "prompt", "output", "queue", "TTFT", "TPOT", "E2E", *(() if others is None else ("E2E off",)),
        "replica", "preempted",
    )  # fmt: skip
    return Section(
        f"The {len(body)} slowest requests", Table(headers, body), "lengths in tokens; the files hold all requests"
    )


GRID = (
    "variant", "row", "class", "status", "arrival_s", "prompt_tokens", "output_tokens", "queue_s", "ttft_s", "tpot_s", "e2e_s",
    "cached_tokens", "rounds", "drafted_tokens", "accepted_tokens", "preemptions", "retries", "replica", "measured",
)  # fmt: skip


def request_grid(result: SimulationResult) -> Mapping[str, NDArray[Any]]:
    """Columns of all requests and variants, fewer than a file has: what a page lists. NaN in a time: the request has none."""
    columns = request_columns(result)
    return {name: columns[name] for name in GRID}


def _seconds(value: float) -> str:
    return NONE if np.isnan(value) else units.show(float(value), "s")
