"""What the replicas of a cluster are and what reaches them, as arrays: the input of the compiled loop and of the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cost.forward import FastTables
from simulator.serving import state
from simulator.speculation.policies import DraftPlan

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ROUTERS = ("round-robin", "least-outstanding", "least-kv", "prefix-aware", "power-of-two")
"""By number, as the loop knows them."""


class PlanTables(NamedTuple):
    """`speculation.policies.DraftPlan` as the loop reads it."""

    shapes: Any
    """NODES, DEPTH, PASSES, COLUMN of each shape [shapes, 4]; the first drafts nothing."""
    pass_tokens: Any
    """Tokens of one sequence in each pass [shapes, passes]."""
    batches: Any
    """Rising, the first is 1."""
    contexts: Any
    """Rising, the first is 0, tokens."""
    choice: Any
    """Shape from so many sequences with so many tokens on average on [batches, contexts]."""


def plan_tables(plan: DraftPlan, columns: Sequence[int]) -> PlanTables:
    """`plan` with the rates of shape i from column `columns[i]` on."""
    passes = max(1, *(shape.passes for shape in plan.shapes))
    shapes = [(s.nodes, s.depth, s.passes, column) for s, column in zip(plan.shapes, columns, strict=True)]
    tokens = [[*s.pass_tokens, *[0] * (passes - s.passes)] for s in plan.shapes]
    return PlanTables(np.array(shapes), np.array(tokens), plan.batches, plan.contexts, plan.choice)


@dataclass(frozen=True)
class StepModel:
    """All that a replica's step depends on besides its state; shared by the replicas of one kind."""

    config: Any
    """One record of `state.CONFIG`."""
    target: FastTables
    draft: FastTables
    """The target's again where no model drafts."""
    plan: PlanTables
    """Which round is next."""
    acceptance: FloatArray
    """Conditional acceptance rates by depth, shape after shape (`COLUMN`), in each state of a stretch [rows, states, columns]."""
    row_of: IntArray
    """Row of each request [requests]."""
    stretch_bounds: FloatArray = field(default_factory=lambda: np.ones(1))
    """Upper ends of the states' shares of [0, 1) [states]."""
    stretch_renewal: FloatArray = field(default_factory=lambda: np.zeros(1))
    """Probability that an output position begins a new stretch of text, by the state of the position before [states]."""
    proposes: IntArray = field(default_factory=lambda: np.ones(1, dtype=np.int64))
    """Whether anything is drafted in a state [states]."""
    draft_intake: FloatArray = field(default_factory=lambda: np.zeros((3, 2)))
    """What the drafter's first pass of a round costs beside the others: seconds, bytes, FLOP [3, tokens that are new to it + 1]."""
    first_round: IntArray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """Where each row's recorded rounds begin, and the end of the last [rows + 1]; one zero where nothing is replayed."""
    rounds: Any = field(default_factory=lambda: state.records(state.RECORDED, 0))
    """Recorded rounds, row after row."""


@dataclass(frozen=True)
class Workload:
    """The requests of a simulation, which the loop fills in, and what ties them together."""

    requests: Any
    """Records of `state.REQUEST` [n]."""
    admitted: IntArray
    """Indices of requests that are neither rejected outright nor later turns, in order of arrival."""
    source: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Content of each shared piece [pieces]; a request's are first_piece … first_piece + pieces − 1."""
    end_tokens: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Token of the prompt at which each shared piece ends [pieces]."""
    next_turn: IntArray | None = None
    """Index of the request that waits for the end of each one, −1 for none [n]; None where nobody waits for anybody."""
    think_s: FloatArray | None = None
    """Time between that end and its arrival, s [n], by the index of the one that waits."""
    users: int = 0
    """Closed loop: whenever a request ends, the next one of `backlog` arrives after its think time."""
    backlog: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Closed loop: indices not yet asked, in order."""


@dataclass(frozen=True)
class Fleet:
    """Replicas behind a router."""

    models: Sequence[StepModel]
    model_of: IntArray
    """Which of `models` each replica runs [replicas]."""
    router: int = 1
    """Index into `ROUTERS`."""
    slack: int = 4
    """Prefix-aware: how many more outstanding requests than the least loaded replica a candidate may have."""
    seed: int = 0
