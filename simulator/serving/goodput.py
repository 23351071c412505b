"""The goodput policy: for each batch and context the shape that gives most tokens per second, by the loop's own step times.

It prices steps of decoding alone, at the mean acceptance of a full batch: B·τ / T(B, context), with T the pass of the target
over B·(nodes + 1) tokens, the drafter's passes and the host's time (SmartSpec, arXiv:2406.14066 §4, whose goodput this is, estimates
both; here they are known). Prompts that share a step delay every shape alike, and are left out. It looks at one step: what a drafter
that is off has to read when it is on again does not enter, so where two shapes are nearly as good a change between them may cost
more than it gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from simulator.serving import state
from simulator.serving.drafts import Drafts
from simulator.serving.model import StepModel
from simulator.serving.plain.timing import PassTimer, Spent
from simulator.speculation.policies import DraftPlan, by_table
from simulator.speculation.round import verified_by, waited_draft_s
from simulator.speculation.shape import DraftShape

_STEPS_PER_DOUBLING = 4
"""Batches and contexts between which a choice holds are a quarter of a doubling apart."""


@dataclass(frozen=True)
class _Pricer:
    """Seconds of one step of decoding."""

    model: StepModel
    settings: Any
    """Its `state.CONFIG`, as plain numbers."""

    @classmethod
    def of(cls, model: StepModel) -> _Pricer:
        row = model.config[0]
        return cls(model, SimpleNamespace(**{name: row[name].item() for name in state.CONFIG.names or ()}))

    def seconds(self, shape: DraftShape, tokens: float, match: float, sequences: int, context: int) -> float:
        """A step of `sequences` with `context` tokens each that yields `tokens` of each, a share `match` of which have drafts."""
        settings = self.settings
        host_s = float(settings.host_step_s + settings.host_per_sequence_s * sequences)
        gpu_s = 0.0
        shares = verified_by(sequences, match, bool(settings.padded)) if shape.nodes else {0: 1.0}
        for matched, share in shares.items():
            verify_s, launch_s = self._verify_s(shape, matched, sequences, context)
            gpu_s += share * verify_s
            host_s += share * launch_s
        if shape.nodes:
            host_s += float(settings.host_speculative_round_s) * (1.0 - (1.0 - match) ** sequences)
        if not shape.is_chain:
            gpu_s += float(settings.tree_step_s + settings.tree_move_s * sequences * (tokens - 1.0))
        if settings.drafter == state.NGRAM_DRAFTER and shape.nodes:
            host_s += float(settings.host_ngram_per_sequence_s * sequences)
        if settings.drafter == state.MODEL_DRAFTER:
            gpu_s += waited_draft_s(
                self._draft_s(shape, tokens, sequences, context), gpu_s, float(settings.draft_share)
            )
        hidden_s = float(settings.host_hidden_step_s + settings.host_hidden_per_sequence_s * sequences)
        return host_s + (max(gpu_s, hidden_s) if settings.overlap else gpu_s + hidden_s)

    def _verify_s(self, shape: DraftShape, matched: int, sequences: int, context: int) -> tuple[float, float]:
        """The target's pass in which `matched` of the sequences have the shape's drafts, and what waits for its launches, s."""
        settings, timer, spent = self.settings, PassTimer(self.model.target), Spent()
        new, alone = shape.nodes + 1, sequences - matched
        total = matched * new + alone
        seconds = timer.linear_s(sequences, total, total, prompts=False, spent=spent)
        if matched == 0 or alone == 0:
            width = new if matched else 1
            seconds += timer.equal_s(width, _cached(timer, context, sequences), sequences, 0.0, spent)
        else:
            seconds += timer.grouped_s([(matched, (new, context)), (alone, (1, context))], spent)
        if matched and not shape.is_chain:
            masked_s = timer.equal_s(new, _cached(timer, context, matched), matched, 0.0, spent)
            seconds += float(settings.tree_attention * masked_s + settings.tree_mask_s * matched * new * new)
        return seconds, timer.extra_host_s(sequences, total, prompts=False)

    def _draft_s(self, shape: DraftShape, tokens: float, sequences: int, context: int) -> float:
        settings = self.settings
        keeps_up = settings.draft_keeps_up and settings.draft_reads and not settings.draft_first
        if not shape.nodes and not keeps_up:
            return 0.0
        timer, spent = PassTimer(self.model.draft), Spent()
        read = 1 + shape.depth if settings.draft_padded else tokens
        if settings.draft_first:
            read = 2
        new = round(sequences * (read if settings.draft_reads else 1.0))
        of_sequences = bool(settings.graphs_of_sequences)
        seconds = timer.linear_s(sequences, new, sequences if shape.nodes else 0, prompts=False, spent=spent)
        seconds += timer.launches_s(sequences, new, prompts=False, of_sequences=of_sequences)
        seconds += timer.equal_s(
            max(1, round(new / sequences)), _cached(timer, context, sequences), sequences, 0.0, spent
        )
        seconds += float(self.model.draft_intake[0, min(new, self.model.draft_intake.shape[1] - 1)])
        drafted = 0
        for each in shape.pass_tokens[1:]:
            wide = sequences * each
            seconds += timer.linear_s(sequences, wide, wide, prompts=False, spent=spent)
            seconds += timer.launches_s(sequences, wide, prompts=False, of_sequences=of_sequences)
            known = _cached(timer, context + 1, sequences)
            seconds += timer.equal_s(each, known, sequences, float(drafted * sequences), spent)
            drafted += each
        return seconds + float(settings.host_draft_pass_s * max(1, shape.passes))


def goodput_plan(model: StepModel, drafts: Drafts, longest_tokens: int) -> DraftPlan:
    """The best of the drafts' shapes by batch and context up to `longest_tokens`; of equals the one with fewer drafts."""
    settings = model.config[0]
    shapes, tokens, match = drafts.plan.shapes, drafts.tokens(), drafts.match_shares()
    batches = _grid(
        1, min(int(settings.max_sequences), int(settings.max_batched_tokens))
    )  # each decodes a token at least
    contexts = [0, *_grid(128, max(128, longest_tokens))]
    pricer = _Pricer.of(model)
    fits = [i for i, shape in enumerate(shapes) if shape.nodes + 1 <= settings.max_batched_tokens]

    def best(sequences: int, context: int) -> int:
        room = [i for i in fits if sequences * (shapes[i].nodes + 1) <= settings.max_batched_tokens] or [0]
        rate = {
            i: tokens[i] / pricer.seconds(shapes[i], float(tokens[i]), float(match[i]), sequences, context)
            for i in room
        }
        return max(room, key=lambda i: (rate[i], -shapes[i].nodes))

    choice = [[best(batch, _middle(contexts, j)) for j in range(len(contexts))] for batch in batches]
    return by_table(shapes, batches, contexts, choice, drafts.plan.mode)


def _cached(timer: PassTimer, context: int, sequences: int) -> list[float]:
    """`PassTimer.cached` of equal sequences."""
    return [sequences * tokens for tokens in timer.cached([context])]


def _grid(first: int, last: int) -> list[int]:
    """Whole numbers from `first` to `last`, a quarter of a doubling apart or 1."""
    doublings = max(0.0, np.log2(last / first))
    steps = np.arange(int(doublings * _STEPS_PER_DOUBLING) + 1) / _STEPS_PER_DOUBLING
    return sorted({round(first * 2.0**step) for step in steps.tolist()})


def _middle(edges: list[int], i: int) -> int:
    """A context in the middle of those between edge `i` and the next."""
    return (edges[i] + edges[i + 1]) // 2 if i + 1 < len(edges) else edges[i]
