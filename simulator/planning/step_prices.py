"""What a step of a busy replica costs: some sequences decode or verify drafts, and some prompts are read beside them.

The same tables and kernels as in the serving loop, for all batch sizes at once, with means where the loop has the sequences
themselves: everybody holds the mean context, verifies a mean number of tokens where not every round finds a draft, and the
drafter reads τ tokens of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from simulator.cost.tables import SECONDS, FastTables, sampled_up_to
from simulator.deployment import Deployment
from simulator.operators import FloatArray
from simulator.planning.attention_times import alike_s, knots, prompts_s
from simulator.planning.work import Work
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.round import waited_draft_s
from simulator.speculation.shape import PLAIN, DraftShape
from simulator.speculation.tree_cost import MASKED_ATTENTION, tree_moves_s


@dataclass(frozen=True)
class Drafting:
    """One way to draft: what a round drafts and verifies, and how that fares."""

    name: str
    """``γ = 4``, ``tree of 16``, or ``plain``."""
    shape: DraftShape
    law: Acceptance | None = None
    """None: nothing is drafted."""

    @cached_property
    def tokens_per_round(self) -> float:
        """τ of a batch that is kept full."""
        return self.law.live_tokens(self.shape.depth) if self.law and self.shape.depth else 1.0

    @cached_property
    def match_share(self) -> float:
        """Share of the rounds that find anything to propose."""
        return self.law.match_share(self.shape.depth) if self.law and self.shape.depth else 1.0

    @cached_property
    def square_tokens(self) -> float:
        """E[X²] of the tokens X of one round."""
        if self.law is None or not self.shape.depth:
            return 1.0
        lengths = self.law.length_distribution(self.shape.depth)
        found = float(lengths @ np.arange(1.0, len(lengths) + 1.0) ** 2)
        return self.match_share * found + (1.0 - self.match_share)

    def rounds(self, tokens: float) -> float:
        """Mean rounds until `tokens` have come: (n + E[R]) / τ with the overshoot E[R] = E[X(X − 1)] / (2·E[X]) of drafts
        beyond the answer's end (Wald's identity; R of a lattice renewal process, Feller II, XI.4)."""
        overshoot = (self.square_tokens - self.tokens_per_round) / (2.0 * self.tokens_per_round)
        return (tokens + max(0.0, overshoot)) / self.tokens_per_round


PLAIN_DECODING = Drafting("plain", PLAIN)


class Parts(NamedTuple):
    """Seconds of steps [points] by what they are spent on; `seconds` is what the step takes."""

    verify_s: FloatArray
    """The target's pass."""
    draft_s: FloatArray
    """What is waited for the drafter's passes, their host time left out."""
    host_s: FloatArray
    """What the GPU waits for the host."""

    @property
    def seconds(self) -> FloatArray:
        """The whole step."""
        return self.verify_s + self.draft_s + self.host_s

    def mixed(self, other: Parts, share: FloatArray) -> Parts:
        """`share` [points] of the steps are the other ones."""
        return Parts(*(a + share * (b - a) for a, b in zip(self, other, strict=True)))


class DeploymentTables:
    """Tables of a deployment's passes, made once for all ways to draft."""

    def __init__(self, deployment: Deployment, most_tokens: int, *, sampled: bool = False):
        """`most_tokens` of one pass. `sampled`: passes are priced at some token counts and interpolated between them."""
        self.deployment, self.most_tokens, self.sampled = deployment, most_tokens, sampled
        self._target: dict[int, FastTables] = {}

    def target(self, per_sequence: int) -> FastTables:
        """The target's, on graphs captured for `per_sequence` tokens of each sequence."""
        key = per_sequence if self.deployment.engine.settings.graph_sizes_of == "sequences" else 1
        if key not in self._target:
            self._target[key] = self.deployment.target_tables(
                self.most_tokens, self.most_tokens, key, sampled=self.sampled
            )
        return self._target[key]

    def share(self, other: DeploymentTables) -> None:
        """Takes the target's passes from `other`, which has the same target and at least as many tokens."""
        self._target, self.most_tokens = other._target, other.most_tokens

    @cached_property
    def draft(self) -> FastTables | None:
        """The drafter's; None where no model drafts."""
        return self.deployment.draft_tables(self.most_tokens, self.most_tokens, sampled=self.sampled)

    @cached_property
    def intake_s(self) -> FloatArray:
        """What the drafter's first pass does beside the others, by its tokens [tokens + 1], s."""
        draft = self.deployment.draft
        if isinstance(draft, DraftCost) and self.sampled:
            return np.asarray(sampled_up_to(draft.intake, self.most_tokens)[0])
        tokens = np.arange(self.most_tokens + 1, dtype=float)
        return draft.intake(tokens)[0] if isinstance(draft, DraftCost) else np.zeros_like(tokens)


class StepPrices:
    """Steps of `tables`' deployment with `drafting`, for sequences of `work`."""

    def __init__(self, tables: DeploymentTables, drafting: Drafting, work: Work, most: int):
        """`most`: sequences that decode at once at most."""
        self.deployment, self.drafting, self.work, self.most = tables.deployment, drafting, work, most
        self.tables = tables
        self.settings = self.deployment.engine.settings
        shape = drafting.shape
        self.target = tables.target(shape.nodes + 1)
        self.drafts = self.deployment.draft is not None and shape.passes > 0
        padded = self.settings.verify == "padded"
        share = 1.0 if padded or self.deployment.draft is not None else drafting.match_share
        self.verified = 1.0 + shape.nodes * share
        """Tokens of each sequence in the target's pass, on average."""
        self._knots = knots(most)
        self._sequences = np.arange(most + 1, dtype=float)

    def budget_left(self, sequences: FloatArray) -> FloatArray:
        """Prompt tokens [points] that a step has room for beside `sequences` that decode."""
        return self.settings.max_batched_tokens - sequences * (self.drafting.shape.nodes + 1)

    def parts(self, sequences: FloatArray, chunks: FloatArray, chunk_tokens: float, chunks_per_prompt: int) -> Parts:
        """Mean steps [points] in which `sequences` decode and `chunks` pieces of prompts come, both means; fewer than one piece
        is a piece in that share of the steps."""
        alone = self._without_prompts(sequences)
        if not np.any(chunks > 0.0):
            return alone
        many = np.maximum(chunks, 1.0)
        if self.settings.prefill == "first":  # a pass of their own, while the others wait
            apart = self._with_prompts(np.zeros_like(sequences), many, chunk_tokens, chunks_per_prompt)
            return Parts(*(a + np.minimum(chunks, 1.0) * b for a, b in zip(alone, apart, strict=True)))
        beside = self._with_prompts(sequences, many, chunk_tokens, chunks_per_prompt)
        return alone.mixed(beside, np.minimum(chunks, 1.0))

    def _without_prompts(self, sequences: FloatArray) -> Parts:
        whole = self._decoding
        return Parts(*(np.interp(sequences, self._sequences, part) for part in whole))

    @cached_property
    def _decoding(self) -> Parts:
        # Steps in which 0, 1, 2 … `most` sequences decode and nothing else happens.
        return self._priced(self._sequences, np.zeros(self.most + 1), 0.0, 1)

    def _with_prompts(
        self, sequences: FloatArray, chunks: FloatArray, chunk_tokens: float, chunks_per_prompt: int
    ) -> Parts:
        return self._priced(sequences, chunks, chunk_tokens, chunks_per_prompt)

    def _priced(self, sequences: FloatArray, chunks: FloatArray, chunk_tokens: float, chunks_per_prompt: int) -> Parts:
        prompts = bool(chunk_tokens > 0.0)
        mode, shape, engine = int(prompts), self.drafting.shape, self.deployment.engine
        new_prompt = chunks * chunk_tokens
        ends = chunks / chunks_per_prompt
        work = self.work
        pipeline = np.minimum(self.target.pipeline, np.maximum(1.0, sequences + chunks))
        tokens = self._index((sequences * self.verified + new_prompt) / pipeline)
        rows = self._index((sequences * self.verified + ends) / pipeline)
        verify_s = self.target.linear[mode, SECONDS, tokens] + self.target.head[SECONDS, rows]
        verify_s = verify_s + self._attention(
            "target", sequences, self.verified, work.context_tokens, chunks, chunk_tokens, chunks_per_prompt
        )
        verify_s = np.where(tokens > 0, verify_s + self._tree_s(sequences, pipeline), 0.0)
        draft_s = waited_s = np.zeros_like(verify_s)
        host_s = engine.host_step_s + engine.host_per_sequence_s * (sequences + chunks)
        host_s = host_s + self.target.extra_host_s[mode, tokens]
        if shape.nodes:
            somebody = 1.0 - (1.0 - self.drafting.match_share) ** sequences  # has drafts
            host_s = host_s + engine.host_speculative_round_s * somebody
            if self.drafts:
                passes_s, launches_s = self._draft_s(sequences, chunks, chunk_tokens, chunks_per_prompt)
                between_s = launches_s + shape.passes * engine.host_draft_pass_s
                draft_s = self._waited_s(passes_s, verify_s)
                waited_s = self._waited_s(passes_s + between_s, verify_s)
            elif self.deployment.draft is None:
                host_s = host_s + engine.host_ngram_per_sequence_s * (sequences + chunks)
        hidden_s = engine.host_hidden_step_s + engine.host_hidden_per_sequence_s * (sequences + chunks)
        gpu_s = verify_s + waited_s
        host_s = host_s + (waited_s - draft_s)
        return Parts(verify_s, draft_s, host_s + np.maximum(0.0, hidden_s - (gpu_s if self.settings.overlap else 0.0)))

    def _tree_s(self, sequences: FloatArray, pipeline: FloatArray) -> FloatArray:
        """Seconds [points] by which trees make the target's pass longer than chains of as many drafts, as `tree_extra_s` has it."""
        drafting, shape, target = self.drafting, self.drafting.shape, self.deployment.target
        if shape.is_chain:
            return np.zeros_like(sequences)
        trees = sequences * drafting.match_share
        nobody = np.zeros_like(sequences)
        attention_s = self._attention("target", trees, shape.nodes + 1.0, self.work.context_tokens, nobody, 0.0, 1)
        kept = (drafting.tokens_per_round - 1.0) / drafting.match_share if drafting.match_share > 0.0 else 0.0
        return (MASKED_ATTENTION - 1.0) * attention_s + tree_moves_s(target, shape.nodes, trees / pipeline, kept)

    def _waited_s(self, draft_s: FloatArray, verify_s: FloatArray) -> FloatArray:
        """What is waited for of `draft_s` beside `verify_s` [points]."""
        drafter = self.deployment.drafter
        if drafter is None or drafter.parallel is None:
            return draft_s
        pairs = zip(draft_s.tolist(), verify_s.tolist(), strict=True)
        return np.array([waited_draft_s(d, v, drafter.exposed_share) for d, v in pairs])

    def _draft_s(
        self, sequences: FloatArray, chunks: FloatArray, chunk_tokens: float, chunks_per_prompt: int
    ) -> tuple[FloatArray, FloatArray]:
        """Seconds [points] of the drafter's passes in one step, and what they wait for launches."""
        draft, shape, work = self.tables.draft, self.drafting.shape, self.work
        assert draft is not None
        mode = int(chunk_tokens > 0.0)
        reads = self.deployment.drafter is None or self.deployment.drafter.reads_prompts
        read = 1.0
        if reads:
            padded = self.settings.draft_batch == "padded"
            read = shape.depth + 1.0 if padded else self.drafting.tokens_per_round
            if self.settings.draft == "before":
                read = 2.0
        read_prompt = chunks * chunk_tokens if reads else np.zeros_like(chunks)
        begun = chunks / chunks_per_prompt
        pipeline = np.minimum(draft.pipeline, np.maximum(1.0, sequences + chunks))
        drafting = sequences + begun
        tokens = self._index((sequences * read + read_prompt) / pipeline)
        seconds = draft.linear[mode, SECONDS, tokens] + draft.head[SECONDS, self._index(drafting / pipeline)]
        seconds = seconds + self.tables.intake_s[tokens]
        launches_s = self._launches_s(draft, mode, drafting, tokens)
        before = chunk_tokens if reads else 0.0
        seconds = seconds + self._attention(
            "draft", sequences, read, work.context_tokens, chunks, before, chunks_per_prompt
        )
        middle = work.context_tokens + sum(shape.pass_tokens) // 2
        for width in sorted(set(shape.pass_tokens[1:])):
            times = shape.pass_tokens[1:].count(width)
            wide = self._index(drafting * width / pipeline)
            one = draft.linear[0, SECONDS, wide] + draft.head[SECONDS, wide]
            one = one + self._attention("draft", drafting, float(width), middle, np.zeros_like(chunks), 0.0, 1)
            seconds = seconds + times * one
            launches_s = launches_s + times * self._launches_s(draft, 0, drafting, wide)
        return np.where(drafting > 0.0, seconds, 0.0), np.where(drafting > 0.0, launches_s, 0.0)

    def _launches_s(
        self,
        draft: FastTables,
        mode: int,
        sequences: FloatArray,
        tokens: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ) -> FloatArray:
        """What a pass of the drafter waits for its launches [points], as in `serving.passes.launches_s`."""
        waits_s = draft.extra_host_s[mode, tokens]
        if self.settings.graph_sizes_of == "sequences":
            waits_s = np.minimum(waits_s, draft.extra_host_s[mode, self._index(sequences)])
        return np.asarray(waits_s)

    def _attention(
        self, whose: str, sequences: FloatArray, new_tokens: float, cached: float, chunks: FloatArray, chunk_tokens: float,
        chunks_per_prompt: int,
    ) -> FloatArray:  # fmt: skip
        """Seconds [points], interpolated between knots."""
        tables = self.target if whose == "target" else self.tables.draft
        assert tables is not None
        beside = chunk_tokens > 0.0
        key = (whose, new_tokens, cached, beside)
        if key not in self._alike:
            most = knots(self.most + math.ceil(float(chunks.max(initial=0.0))) + 1)
            self._alike[key] = (most, alike_s(tables, most, new_tokens, cached, beside_prompts=beside))
        found = np.interp(sequences, *self._alike[key])
        if beside:
            lines = (whose, chunk_tokens, chunks_per_prompt)
            most_chunks = math.ceil(float(chunks.max())) + 1
            known = self._prompts.get(lines)
            if known is None or known[0][-1] < most_chunks:
                places = knots(most_chunks)
                known = (places, prompts_s(tables, places, chunk_tokens, chunks_per_prompt))
                self._prompts[lines] = known
            found = found + np.interp(chunks, *known)
        return np.asarray(found)

    @cached_property
    def _alike(self) -> dict[tuple[str, float, float, bool], tuple[FloatArray, FloatArray]]:
        return {}

    @cached_property
    def _prompts(self) -> dict[tuple[str, float, int], tuple[FloatArray, FloatArray]]:
        return {}

    def _index(self, tokens: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.minimum(np.rint(tokens), self.tables.most_tokens).astype(np.int64)
