"""From requests and scenario to the arrays that replicas work on: records, who follows whom, what is found in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine import EngineSettings
from simulator.errors import InputError
from simulator.scenario import Scenario
from simulator.serving import state
from simulator.serving.drafts import Drafts
from simulator.serving.model import Workload
from simulator.serving.requests import Requests
from simulator.serving.step_model import Fates
from simulator.speculation.acceptance import RecordedAcceptance

IntArray = NDArray[np.int64]
_AT_ONCE = 4096
"""Records that a processor's second-level cache holds."""


def workload_of(
    traffic: Requests,
    settings: EngineSettings,
    warmup: float,
    most_tokens: int,
    most_prompt_tokens: int | None = None,
    *,
    first: int = 0,
    total: int | None = None,
) -> Workload:
    """`traffic` as a workload for engines with `settings` that can hold sequences of `most_tokens`, look-ahead included, and on
    prefill replicas `most_prompt_tokens`, the first token of the answer included.

    Longer requests are rejected; later turns of a session whose earlier one is rejected are abandoned. Of requests that are
    a part of `total`, `first` is the number of the first. Raises InputError where no request of a whole is left.
    """
    n = len(traffic)
    number = first + np.arange(n)
    class_of = np.zeros(n, dtype=np.int64) if traffic.class_of is None else traffic.class_of
    patience_s = np.array([np.inf if c.patience_s is None else c.patience_s for c in traffic.classes])[class_of]
    status = np.full(n, state.WAITING, dtype=np.int32)
    status[traffic.prompt_tokens + traffic.output_tokens > most_tokens] = state.REJECTED
    if most_prompt_tokens is not None:
        status[traffic.prompt_tokens + 1 > most_prompt_tokens] = state.REJECTED
    next_turn = None if traffic.follows is None else _next_turns(traffic.follows, status)
    asked = status == state.WAITING
    if total is None and not asked.any():
        raise nothing_fits(traffic, most_tokens)
    arrival_s, known = traffic.arrival_s, ~np.isnan(traffic.arrival_s)
    # Of an arrival that is not known yet the patience alone: the loop adds the arrival.
    cancel_s = patience_s + np.where(known, arrival_s, 0.0)
    come = np.flatnonzero(asked & known)
    backlog = np.zeros(0, dtype=np.int64)
    if traffic.users:
        # The users stay the same people: the first ones that can be served start at 0.
        line = np.flatnonzero(asked)
        come, backlog = line[: traffic.users], line[traffic.users :]
        arrival_s = arrival_s.copy()
        arrival_s[come], cancel_s = 0.0, patience_s
    columns: dict[str, Any] = {
        "arrival_s": arrival_s, "ready_s": arrival_s, "cancel_s": cancel_s, "prompt_tokens": traffic.prompt_tokens,
        "output_tokens": traffic.output_tokens, "rank": _ranks(traffic, settings), "class_of": class_of,
        "session": number if traffic.session is None else traffic.session, "number": number, "status": status,
        "measured": number >= int(warmup * (n if total is None else total)), "replica": np.full(n, -1),
    }  # fmt: skip
    source = end_tokens = np.zeros(0, dtype=np.int64)
    if traffic.shared is not None:
        columns |= {"first_piece": traffic.shared.first_piece[:-1], "pieces": np.diff(traffic.shared.first_piece)}
        source = np.ascontiguousarray(traffic.shared.source, dtype=np.int64)
        end_tokens = np.ascontiguousarray(traffic.shared.end_tokens, dtype=np.int64)
    requests = state.records(state.REQUEST, n)
    for start in range(0, n, _AT_ONCE):  # so that each record is in the cache while its fields are written
        part = slice(start, start + _AT_ONCE)
        for name, column in columns.items():
            requests[name][part] = column[part]
    admitted = come[np.argsort(arrival_s[come], kind="stable")]
    return Workload(requests, admitted, source, end_tokens, next_turn, traffic.think_s, traffic.users, backlog)


def nothing_fits(traffic: Requests, most_tokens: int) -> InputError:
    """What is said where no request of `traffic` can be served."""
    rule = f"fit the KV cache of {most_tokens} tokens, its look-ahead slots included"
    return InputError("traffic", f"shortest of {len(traffic)} requests", rule, where=traffic.source)


def has_common(traffic: Requests) -> bool:
    """Whether any two prompts may begin alike."""
    if traffic.shared is not None and len(traffic.shared.source) > 0:
        return True
    return traffic.session is not None and len(np.unique(traffic.session)) < len(traffic)


def fates_of(
    traffic: Requests,
    drafts: Drafts,
    scenario: Scenario,
    first: int = 0,
    drafter: str | None = None,
) -> Fates:
    """Acceptance of each request, classes with a law of their own included.

    `first`: number of the first request, where `traffic` is a part of a whole. `drafter`: its kind.
    Raises InputError where classes differ in what the whole engine has in common.
    """
    n, law = len(traffic), drafts.law
    rates, row_of = drafts.rates(law, scenario.seed, traffic.output_tokens, first)
    for number, kind in enumerate(traffic.classes):
        if kind.acceptance is None:
            continue
        own = kind.acceptance.law(scenario.base, drafter)
        where = f"class {kind.name}"
        if isinstance(own, RecordedAcceptance) or isinstance(law, RecordedAcceptance):
            raise InputError("acceptance", "replay", "be the scenario's, for all classes", where=where)
        for name in ("match_probability", "match_tokens", "mean_stretch_tokens"):
            ours, theirs = getattr(law, name), getattr(own, name)
            if theirs != ours:
                shown = "left out" if ours is None else f"{ours:g}"
                raise InputError(
                    name.removeprefix("mean_"), theirs, f"be {shown}, as the scenario has it for all", where=where
                )
        if own.repetition != law.repetition:
            raise InputError("repetition", own.repetition, "be the scenario's, for all classes", where=where)
        own_rates, own_rows = drafts.rates(own, scenario.seed, traffic.output_tokens, first)
        if own_rates.shape[1] != rates.shape[1]:
            rule = "be above 0 in all classes, or in none"
            raise InputError("stretch_icc", own.stretch_icc, rule, where=where)
        members = np.flatnonzero(traffic.class_of == number) if traffic.class_of is not None else np.arange(n)
        row_of = row_of.copy()
        row_of[members] = len(rates) + own_rows[members]
        rates = np.concatenate([rates, own_rates])
    return Fates(np.ascontiguousarray(rates), row_of)


def _ranks(traffic: Requests, settings: EngineSettings) -> IntArray:
    if settings.order == "shortest":
        return traffic.prompt_tokens
    if settings.order == "priority" and traffic.class_of is not None:
        return np.array([c.priority for c in traffic.classes], dtype=np.int64)[traffic.class_of]
    return np.zeros(len(traffic), dtype=np.int64)


def _next_turns(follows: IntArray, status: NDArray[np.int32]) -> IntArray:
    """The request that waits for each one; what waits for a request that is rejected is abandoned."""
    next_turn = np.full(len(follows), -1, dtype=np.int64)
    later = np.flatnonzero(follows >= 0)
    next_turn[follows[later]] = later
    gone = np.flatnonzero(status == state.REJECTED)
    while len(gone):
        before = follows[gone]
        next_turn[before[before >= 0]] = -1
        gone = next_turn[gone]
        gone = gone[gone >= 0]
        status[gone] = np.where(status[gone] == state.WAITING, state.ABANDONED, status[gone])
    return next_turn
