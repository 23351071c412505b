"""How much a sequence drafts, and how many of the drafts the target keeps: drawn by counter, or as recorded.

The fate of a request depends on the request alone, never on who else is in the batch.
"""

from __future__ import annotations

from typing import Any

from simulator.randomness import uniform
from simulator.serving.model import StepModel
from simulator.serving.plain.sequence import Sequence
from simulator.serving.state import COLUMN, DEPTH, NO_DRAFTER, NODES
from simulator.speculation.policies import BY_ORACLE, BY_PAST
from simulator.speculation.shape import MAX_GAMMA
from simulator.speculation.stretches import STRETCH_BEGINS, STRETCH_STATE


class Luck:
    """Drafts and their acceptance under one model."""

    def __init__(self, model: StepModel, settings: Any):
        self.model, self.settings = model, settings

    def shape_for(self, contexts: list[int]) -> int:
        """The plan's shape for a round of sequences that hold so many tokens each."""
        plan = self.model.plan
        sequences = max(1, len(contexts))
        mean = sum(contexts) / sequences
        row = max(i for i, batch in enumerate(plan.batches) if batch <= sequences)
        column = max(i for i, context in enumerate(plan.contexts) if context <= mean)
        return int(plan.choice[row, column])

    def drafts(self, sequence: Sequence, position: int, left_tokens: int) -> tuple[int, int]:
        """(drafts verified, those that can be accepted) in the round at output `position` with so much of the answer left."""
        settings = self.settings
        if settings.drafter == NO_DRAFTER:
            return 0, 0
        nodes, depth = (int(n) for n in self.model.plan.shapes[sequence.shape, [NODES, DEPTH]])
        if settings.replays:
            recorded = int(self._recorded(sequence).drafted)
            nodes, depth = min(nodes, recorded), min(depth, recorded)
        elif not self._proposes(sequence, position):
            return 0, 0
        if settings.policy == BY_PAST:
            depth = nodes = min(depth, sequence.own_gamma)
        elif settings.policy == BY_ORACLE:
            depth = nodes = min(self.accepted(sequence, position, depth), left_tokens - 1)
        return nodes, depth

    def accepted(self, sequence: Sequence, position: int, depth: int) -> int:
        """How many of up to `depth` drafts after output `position` the target keeps: the first one refused ends it."""
        if self.settings.replays:
            # Of fewer drafts the target keeps those it kept of more: they are the first ones.
            return min(depth, int(self._recorded(sequence).accepted))
        state = self._stretch(sequence, position)
        rates = self.model.acceptance[self.model.row_of[sequence.index], state]
        column = int(self.model.plan.shapes[sequence.shape, COLUMN])
        for place in range(depth):
            drawn = uniform(self.settings.seed, sequence.index, position, place + 1)
            if drawn >= rates[column + place]:
                return place
        return depth

    def learn(self, sequence: Sequence, kept: int) -> None:
        """What a round of `sequence.depth` drafts suggests for the next one."""
        grown, fewer = min(sequence.depth + 2, MAX_GAMMA), max(sequence.depth - 1, 1)
        sequence.own_gamma = grown if kept == sequence.depth else fewer

    def _proposes(self, sequence: Sequence, position: int) -> bool:
        if not self.model.proposes[self._stretch(sequence, position)]:
            return False
        settings = self.settings
        if settings.match_probability >= 1.0:
            return True
        drawn = uniform(settings.seed, sequence.index, position, 0)
        return bool(drawn < settings.match_probability)

    def _stretch(self, sequence: Sequence, position: int) -> int:
        """State of the stretch of text in which output `position` lies, from the first position on."""
        bounds = self.model.stretch_bounds
        if len(bounds) == 1:
            return 0
        seed, state = self.settings.seed, 0
        for place in range(position + 1):
            renewal = self.model.stretch_renewal[state]
            if place == 0 or uniform(seed, sequence.index, place, STRETCH_BEGINS) < renewal:
                drawn = uniform(seed, sequence.index, place, STRETCH_STATE)
                state = next((s for s, bound in enumerate(bounds) if drawn < bound), len(bounds) - 1)
        return state

    def _recorded(self, sequence: Sequence) -> Any:
        # After the last recorded round the first comes again.
        row = self.model.row_of[sequence.index]
        first, end = int(self.model.first_round[row]), int(self.model.first_round[row + 1])
        return self.model.rounds[first + sequence.decode_rounds % (end - first)]
