"""Policies: how much is drafted in the next round, from who is in the batch.

    fixed         the scenario's γ or tree, always
    off-above     that, up to so many decoding sequences; beyond them nothing
    table         γ by decoding sequences and by the mean tokens each holds
    goodput       the table that gives most tokens per second by the cost model, at the mean acceptance of a live batch
    per-request   each sequence by its own past: 2 more after a round whose drafts were all accepted, 1 fewer after any
                  other, between 1 and γ (the "heuristic" schedule of Hugging Face's assisted generation)
    oracle        each sequence drafts and verifies just the tokens that will be accepted, up to γ: fewest rounds, and no token
                  wasted. All the same it waits for the passes of whoever drafts deepest; where those are slow a smaller γ is
                  faster, and the best of all γ, none included, is the bound

Nothing drafted is not nothing done: a drafter with a KV cache of its own has to read later what it missed (`DraftPlan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from simulator.errors import InputError
from simulator.records import Record
from simulator.speculation.shape import MAX_GAMMA, PLAIN, DraftShape

IntArray = NDArray[np.int64]
Kind = Literal["fixed", "off-above", "table", "goodput", "per-request", "oracle"]

BY_TABLE, BY_PAST, BY_ORACLE = range(3)
"""How a plan is read: its shape for everybody, or at most that by each sequence's own past, or by its own future."""


class PolicyTable(Record):
    """γ by batch and context: each entry holds from there up to the next."""

    batches: tuple[int, ...]
    """Decoding sequences, rising; the first is 1."""
    contexts: tuple[int, ...] = (0,)
    """Mean tokens that each of them holds, rising; the first is 0."""
    gamma: tuple[tuple[int, ...], ...]
    """Tokens drafted per round [batches, contexts]; 0: none. With one context a plain list will do."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("gamma"), list | tuple):
            rows = [[row] if isinstance(row, int) else row for row in data["gamma"]]
            return {**data, "gamma": rows}
        return data

    @model_validator(mode="after")
    def _check(self) -> PolicyTable:
        for name, values, first in (("batches", self.batches, 1), ("contexts", self.contexts, 0)):
            if not values or values[0] != first or any(b <= a for a, b in pairwise(values)):
                raise InputError(f"policy.table.{name}", list(values), f"begin with {first} and rise")
        if [len(row) for row in self.gamma] != [len(self.contexts)] * len(self.batches):
            rule = f"have {len(self.batches)} rows (batches) of {len(self.contexts)} (contexts)"
            raise InputError("policy.table.gamma", [list(row) for row in self.gamma], rule)
        for row in self.gamma:
            for gamma in row:
                if not 0 <= gamma <= MAX_GAMMA:
                    raise InputError("policy.table.gamma", gamma, f"be between 0 and {MAX_GAMMA}")
        return self


class PolicyConfig(Record):
    """A policy: its name, or ``{off_above: N}``, or ``{table: {…}}``."""

    kind: Kind = "fixed"
    """Which policy."""
    off_above: int | None = None
    """Most decoding sequences for which anything is drafted."""
    table: PolicyTable | None = None
    """γ by batch and context."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"kind": data}
        if not isinstance(data, dict | PolicyConfig):
            raise InputError("policy", data, "be a name, {off_above: N} or {table: {batches, gamma}}")
        if isinstance(data, dict) and "kind" not in data:
            named = [
                kind for kind, field in (("off-above", "off_above"), ("table", "table")) if data.get(field) is not None
            ]
            return {**data, "kind": named[0]} if named else data
        return data

    @model_validator(mode="after")
    def _check(self) -> PolicyConfig:
        for kind, name in (("off-above", "off_above"), ("table", "table")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                rule = f"be given with kind {kind} and with no other"
                raise InputError(f"policy.{name}", getattr(self, name) if self.kind != kind else "(absent)", rule)
        if self.off_above is not None and self.off_above < 1:
            raise InputError("policy.off_above", self.off_above, "be at least 1")
        return self

    @property
    def mode(self) -> int:
        """One of BY_TABLE, BY_PAST, BY_ORACLE."""
        return {"per-request": BY_PAST, "oracle": BY_ORACLE}.get(self.kind, BY_TABLE)


@dataclass(frozen=True)
class DraftPlan:
    """Which shape the next round has, by decoding sequences and the mean tokens they hold."""

    shapes: tuple[DraftShape, ...]
    """What there is to choose from; the first is `PLAIN`."""
    batches: IntArray
    """Rising, the first is 1: entry i holds for batches[i] sequences up to those of the next."""
    contexts: IntArray
    """Likewise of mean tokens, from 0."""
    choice: IntArray
    """Index into `shapes` [batches, contexts]."""
    mode: int = BY_TABLE

    def shape(self, sequences: int, mean_context_tokens: float) -> DraftShape:
        """The shape for so many sequences of so many tokens on average."""
        row = int(np.searchsorted(self.batches, max(1, sequences), side="right")) - 1
        column = int(np.searchsorted(self.contexts, mean_context_tokens, side="right")) - 1
        return self.shapes[int(self.choice[row, column])]

    @property
    def most_nodes(self) -> int:
        """Drafted tokens of one sequence at most."""
        return max(shape.nodes for shape in self.shapes)


def always(shape: DraftShape, mode: int = BY_TABLE) -> DraftPlan:
    """`shape` whatever the batch."""
    return by_table([PLAIN, shape], [1], [0], [[1]], mode)


def off_above(shape: DraftShape, sequences: int) -> DraftPlan:
    """`shape` up to so many sequences, plain decoding beyond."""
    return by_table([PLAIN, shape], [1, sequences + 1], [0], [[1], [0]])


def by_table(
    shapes: Sequence[DraftShape],
    batches: Sequence[int],
    contexts: Sequence[int],
    choice: Sequence[Sequence[int]],
    mode: int = BY_TABLE,
) -> DraftPlan:
    """A plan from plain lists; `shapes` begin with `PLAIN`."""
    as_array = [np.asarray(values, dtype=np.int64) for values in (batches, contexts, choice)]
    return DraftPlan(tuple(shapes), as_array[0], as_array[1], as_array[2], mode)
