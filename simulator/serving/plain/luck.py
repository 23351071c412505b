"""How many drafts a sequence verifies, and how many the target keeps: drawn by counter, or as recorded.

The fate of a request depends on the request alone, never on who else is in the batch.
"""

from __future__ import annotations

from typing import Any

from simulator.randomness import uniform
from simulator.serving.model import StepModel
from simulator.serving.plain.sequence import Sequence
from simulator.serving.state import NO_DRAFTER


class Luck:
    """Drafts and their acceptance under one model."""

    def __init__(self, model: StepModel, settings: Any):
        self.model, self.settings = model, settings

    def drafts(self, sequence: Sequence) -> int:
        """Drafts that a sequence past its prompt verifies in its next round."""
        settings = self.settings
        if settings.drafter == NO_DRAFTER:
            return 0
        if settings.replays:
            return min(int(settings.gamma), int(self._recorded(sequence).drafted))
        if settings.match_probability < 1.0:
            drawn = uniform(settings.seed, sequence.index, sequence.generated_tokens, 0)
            if drawn >= settings.match_probability:
                return 0
        return int(settings.gamma)

    def accepted(self, sequence: Sequence) -> int:
        """How many of the drafts in this round the target keeps: the first one refused ends it."""
        if self.settings.replays:
            # Of fewer drafts the target keeps those it kept of more: they are the first ones.
            return min(sequence.drafts, int(self._recorded(sequence).accepted))
        rates = self.model.acceptance[self.model.row_of[sequence.index]]
        for depth in range(sequence.drafts):
            drawn = uniform(self.settings.seed, sequence.index, sequence.generated_tokens, depth + 1)
            if drawn >= rates[depth]:
                return depth
        return sequence.drafts

    def _recorded(self, sequence: Sequence) -> Any:
        # After the last recorded round the first comes again.
        row = self.model.row_of[sequence.index]
        first, end = int(self.model.first_round[row]), int(self.model.first_round[row + 1])
        return self.model.rounds[first + sequence.decode_rounds % (end - first)]
