"""Seconds that a drafting model adds to a step: the pass in which it reads what is new to it, and those that draft."""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.model import PlanTables
from simulator.serving.plain.luck import Luck
from simulator.serving.plain.sequence import Sequence
from simulator.serving.plain.timing import PassTimer, Spent, Work
from simulator.serving.state import DEPTH, PASSES
from simulator.speculation.policies import BY_TABLE
from simulator.speculation.round import waited_draft_s


class Drafter:
    """A model that drafts in passes, each for all sequences that draft so deep."""

    def __init__(self, timer: PassTimer, luck: Luck, plan: PlanTables, intake: Any, settings: Any):
        self.timer, self.luck, self.plan, self.intake, self.settings = timer, luck, plan, intake, settings

    def seconds(self, batch: List[Sequence], verify_s: float, spent: Spent) -> float:
        """Seconds of the drafter's passes beside a step of `batch` that are waited for, host time between them included."""
        seconds = self._before(batch, spent) if self.settings.draft_first else self._after(batch, spent)
        return waited_draft_s(seconds, verify_s, float(self.settings.draft_share))

    def _after(self, batch: List[Sequence], spent: Spent) -> float:
        """It reads prompts and accepted tokens, and then drafts for the next step, for those whose answer goes on."""
        going_on = [s for s in batch if 0 < s.emitted_tokens < s.left_tokens]
        known = [s.prompt_tokens + s.generated_tokens + s.emitted_tokens for s in going_on]
        shape = self.luck.shape_for(known)
        drafts = bool(self.plan.shapes[shape, DEPTH] > 0)
        reads = bool(self.settings.draft_reads)
        now = reads and (drafts or bool(self.settings.draft_keeps_up))
        work: list[Work] = []
        prompts = False
        for sequence in batch:
            lag_tokens = sequence.lag_tokens
            if sequence.inside_prompt:
                new = sequence.step_tokens
                if now:
                    prompts = True
            elif sequence.emitted_tokens == sequence.left_tokens:
                continue
            elif now and self.settings.draft_padded:
                new = 1 + self._deepest(sequence)
            else:
                new = sequence.emitted_tokens
            if now:
                work.append((new + lag_tokens, sequence.computed_tokens - lag_tokens))
                sequence.lag_tokens = 0
            elif reads:
                sequence.lag_tokens += new
        for sequence in going_on:
            sequence.shape = shape
        if not drafts:
            if not work:
                return 0.0
            return self._first_pass_s(work, 0, prompts=prompts, spent=spent) + float(self.settings.host_draft_pass_s)
        positions = [(s, s.generated_tokens + s.emitted_tokens, s.left_tokens - s.emitted_tokens) for s in going_on]
        depths = [self._depth(sequence, position, left) for sequence, position, left in positions]
        if not reads:
            work = [(1, context - 1) for context, depth in zip(known, depths, strict=True) if depth > 0]
        return self._passes_s(work, known, depths, shape, prompts=prompts, spent=spent)

    def _before(self, batch: List[Sequence], spent: Spent) -> float:
        """It drafts for this very round, and reads the step's prompts in its first pass.

        That pass takes two tokens of every sequence: the last one in the cache, which was this drafter's own deepest draft
        and never went through it if all were accepted, and the one after it; and its lag, but no more than there are.
        """
        decoding = [s for s in batch if not s.inside_prompt]
        shape = decoding[0].shape if decoding else self.luck.shape_for([])
        drafts = bool(self.plan.shapes[shape, DEPTH] > 0)
        reads = bool(self.settings.draft_reads)
        work: list[Work] = []
        contexts, depths = [], []
        prompts = False
        for sequence in batch:
            lag_tokens = sequence.lag_tokens
            if sequence.inside_prompt:
                if reads and drafts:
                    prompts = True
                    work.append((sequence.step_tokens + lag_tokens, sequence.computed_tokens - lag_tokens))
                    sequence.lag_tokens = 0
                elif reads:
                    sequence.lag_tokens += sequence.step_tokens
            elif sequence.drafts > 0:
                if reads:
                    context = max(0, sequence.computed_tokens - 1 - lag_tokens)
                    work.append((sequence.computed_tokens + 1 - context, context))
                    sequence.lag_tokens = 0
                else:
                    work.append((1, sequence.computed_tokens))
                contexts.append(sequence.computed_tokens + 1)
                depths.append(self._deepest(sequence))
            elif reads:
                sequence.lag_tokens += sequence.emitted_tokens
        return self._passes_s(work, contexts, depths, shape, prompts=prompts, spent=spent)

    def _deepest(self, sequence: Sequence) -> int:
        """Drafts in a row of the present round, as many as the shape has where the policy is a table."""
        return int(self.plan.shapes[sequence.shape, DEPTH]) if self.settings.policy == BY_TABLE else sequence.depth

    def _depth(self, sequence: Sequence, position: int, left_tokens: int) -> int:
        """Drafts in a row of the round to come."""
        if self.settings.policy == BY_TABLE:
            return int(self.plan.shapes[sequence.shape, DEPTH])
        return self.luck.drafts(sequence, position, left_tokens)[1]

    def _passes_s(
        self, work: List[Work], contexts: List[int], depths: List[int], shape: int, *, prompts: bool, spent: Spent
    ) -> float:
        """The first pass, through `work`, and one more for each level of drafts after the first.

        `contexts` are the tokens that those who draft hold when the second pass begins, `depths` how far each goes.
        """
        drafting = sum(depth > 0 for depth in depths)
        seconds = self._first_pass_s(work, drafting, prompts=prompts, spent=spent) if work else 0.0
        if not work and not drafting:
            return 0.0
        if not drafting:
            return seconds + float(self.settings.host_draft_pass_s)
        passes = int(self.plan.shapes[shape, PASSES])
        deepest = max(depths) if self.settings.policy != BY_TABLE else passes
        made, drafted = min(passes, deepest), 0
        for i in range(1, made):
            here = [context for context, depth in zip(contexts, depths, strict=True) if depth > i]
            each = int(self.plan.pass_tokens[shape, i])
            tokens = len(here) * each
            seconds += self.timer.linear_s(len(here), tokens, tokens, prompts=False, spent=spent)
            seconds += self._launches_s(len(here), tokens, prompts=False)
            # Each pass sees the drafts of those before it (a full window stays as long).
            ahead = float(drafted * len(here))
            seconds += self.timer.equal_s(each, self.timer.cached(here), len(here), ahead, spent)
            drafted += each
        return seconds + float(self.settings.host_draft_pass_s * made)

    def _first_pass_s(self, work: List[Work], rows: int, *, prompts: bool, spent: Spent) -> float:
        tokens = sum(new for new, _ in work)
        seconds = self.timer.linear_s(len(work), tokens, rows, prompts=prompts, spent=spent)
        seconds += self._launches_s(len(work), tokens, prompts=prompts)
        seconds += self.timer.intake_s(self.intake, tokens, spent)
        new = work[0][0]
        alike = all(other == new for other, _ in work) and not self.timer.has_window
        padded = self.settings.draft_padded and self.settings.draft_reads and not self.settings.draft_first
        if padded and alike and not prompts and new <= DECODE_QUERY_LIMIT:
            contexts = self.timer.cached([context for _, context in work])
            return seconds + self.timer.alike_s(new, contexts, len(work), 0.0, spent)
        return seconds + self.timer.exact_s(work, spent)

    def _launches_s(self, sequences: int, tokens: int, *, prompts: bool) -> float:
        of_sequences = bool(self.settings.graphs_of_sequences)
        return self.timer.launches_s(sequences, tokens, prompts=prompts, of_sequences=of_sequences)
