"""Seconds that a drafting model adds to a step: the passes in which it reads what is new to it, and those that draft."""

from __future__ import annotations

import math
from collections.abc import Sequence as List
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.plain.sequence import Sequence
from simulator.serving.plain.timing import PassTimer, Spent, Work


class Drafter:
    """A model that drafts γ tokens one after the other, in one pass each of all sequences that draft."""

    def __init__(self, timer: PassTimer, settings: Any):
        self.timer, self.settings = timer, settings

    def seconds(self, batch: List[Sequence], spent: Spent) -> float:
        """Seconds of the drafter's passes beside a step of `batch`, host time between them included."""
        return self._before(batch, spent) if self.settings.draft_first else self._after(batch, spent)

    def _after(self, batch: List[Sequence], spent: Spent) -> float:
        """It reads prompts and accepted tokens, and then drafts for the next step, for those whose answer goes on."""
        work: list[Work] = []
        contexts = []
        prompts = False
        for sequence in batch:
            goes_on = sequence.emitted_tokens < sequence.left_tokens
            if sequence.inside_prompt:
                prompts = True
                work.append((sequence.step_tokens, sequence.computed_tokens))
            elif goes_on:
                new = self.settings.gamma + 1 if self.settings.draft_padded else sequence.emitted_tokens
                work.append((int(new), sequence.computed_tokens))
            if sequence.emitted_tokens > 0 and goes_on:
                contexts.append(sequence.prompt_tokens + sequence.generated_tokens + sequence.emitted_tokens)
        if not work:
            return 0.0
        seconds = self._first_pass_s(work, len(contexts), prompts=prompts, spent=spent)
        if not contexts:
            return seconds
        return self._further_passes_s(seconds, contexts, spent)

    def _before(self, batch: List[Sequence], spent: Spent) -> float:
        """It drafts for this very round, and reads the step's prompts in its first pass.

        That pass takes two tokens of every sequence: the last one in the cache, which was this drafter's own deepest draft
        and never went through it if all were accepted, and the one after it.
        """
        work: list[Work] = []
        contexts = []
        rows = 0
        prompts = False
        for sequence in batch:
            if sequence.inside_prompt:
                prompts = True
                work.append((sequence.step_tokens, sequence.computed_tokens))
                rows += sequence.emitted_tokens > 0
            elif sequence.drafts > 0:
                work.append((2, sequence.computed_tokens - 1))
                rows += 1
                contexts.append(sequence.computed_tokens + 1)
        if not work:
            return 0.0
        seconds = self._first_pass_s(work, rows, prompts=prompts, spent=spent)
        if not contexts:
            return seconds + float(self.settings.host_draft_pass_s)
        return self._further_passes_s(seconds, contexts, spent)

    def _first_pass_s(self, work: List[Work], rows: int, *, prompts: bool, spent: Spent) -> float:
        tokens = sum(new for new, _ in work)
        seconds = self.timer.linear_s(len(work), tokens, rows, prompts=prompts, spent=spent)
        new = work[0][0]
        windows = any(math.isfinite(kind.window_tokens) for kind in self.timer.tables.kinds)
        padded = self.settings.draft_padded and not self.settings.draft_first
        if padded and not prompts and new <= DECODE_QUERY_LIMIT and not windows:
            contexts = self.timer.cached([context for _, context in work])
            return seconds + self.timer.alike_s(new, contexts, len(work), 0.0, spent)
        return seconds + self.timer.exact_s(work, spent)

    def _further_passes_s(self, seconds: float, contexts: List[int], spent: Spent) -> float:
        """`seconds` and the γ − 1 passes after the first, one token of each sequence that drafts."""
        drafting = len(contexts)
        cached = self.timer.cached(contexts)
        for i in range(self.settings.gamma - 1):
            seconds += self.timer.linear_s(drafting, drafting, drafting, prompts=False, spent=spent)
            # Each pass sees one more token of every sequence (a full window stays as long).
            seconds += self.timer.alike_s(1, cached, drafting, float(i * drafting), spent)
        return seconds + float(self.settings.host_draft_pass_s * self.settings.gamma)
