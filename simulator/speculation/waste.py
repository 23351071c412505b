"""What a draft-verify round moves and multiplies beyond a plain decode step, per token that reaches a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.cost.forward import ForwardCost
from simulator.cost.tables import BYTES, FLOP
from simulator.operators import FloatArray
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.shape import DraftShape


class Work(NamedTuple):
    """Of all GPUs together."""

    bytes_: float
    """HBM traffic."""
    flop: float


@dataclass(frozen=True)
class RoundWork:
    """The passes of a round, and those of the plain step in its place."""

    verify: Work
    draft: Work
    plain: Work
    plain_verify_s: float
    """Seconds of the plain step's pass."""

    def wasted_flop(self, rejected_share: float) -> float:
        """FLOP of the round that reach nobody: `rejected_share` of verification's (verified tokens that no user gets, over all
        that are verified), and the drafter's own, whose tokens the target computes once more."""
        return self.draft.flop + rejected_share * self.verify.flop

    @property
    def extra_bytes(self) -> float:
        """Traffic of the round beyond that of one plain step: the drafter's, and what more tokens add to the target's pass (KV
        and activations, woken experts)."""
        return self.draft.bytes_ + self.verify.bytes_ - self.plain.bytes_


class Passes(NamedTuple):
    """The passes of a round of `shape`."""

    shape: DraftShape
    sequences: int
    context_tokens: int
    match: float
    """Share of the sequences that have drafts."""
    read_tokens: float
    """What the drafter's first pass reads of each."""


def round_works(target: ForwardCost, draft: ForwardCost | None, rounds: Sequence[Passes]) -> list[RoundWork]:
    """Bytes and FLOP of each of `rounds`, whose passes DESIGN §2 prices."""
    wide = [(r.sequences, r.context_tokens, r.shape.nodes + 1) for r in rounds]
    of_target = _of_target(target, [*wide, *((sequences, context, 1) for sequences, context, _ in wide)])
    helped = [r for r in rounds if draft is not None and r.shape.passes > 0 and r.shape.nodes > 0]
    of_draft = _of_draft(draft, helped) if draft is not None else {}
    found = []
    for r in rounds:
        drafted, _ = of_target[r.sequences, r.context_tokens, r.shape.nodes + 1]
        plain, plain_s = of_target[r.sequences, r.context_tokens, 1]
        verify = Work(*(p + r.match * (d - p) for d, p in zip(drafted, plain, strict=True)))
        found.append(RoundWork(verify, of_draft.get(r, Work(0.0, 0.0)), plain, plain_s))
    return found


_Verified = tuple[int, int, int]  # sequences, context tokens, new tokens of each


def _of_target(target: ForwardCost, asked: Sequence[_Verified]) -> dict[_Verified, tuple[Work, float]]:
    """Work and seconds of the target's passes."""
    found = {}
    largest = {ask: -(-ask[0] // target.micro_batches(ask[0])) for ask in asked}
    tokens = np.unique([float(part * ask[2]) for ask, part in largest.items()])
    # One addition after the other, so that a plain step's seconds are those of its `RoundCost` to the last bit.
    works = target.linear_work(tokens) + target.head_work(tokens)
    for ask, part in largest.items():
        sequences, context_tokens, new = ask
        at = int(np.searchsorted(tokens, part * new))
        seconds, moved, done = (
            float(linear) + attention
            for linear, attention in zip(
                works[:, at], target.attention_work((new,), (context_tokens,), (part,)), strict=True
            )
        )
        # Of a pipeline a pass goes through all stages, and pp of them are one step of the mean GPU.
        share = target.gpus * target.micro_batches(sequences) / target.pp
        found[ask] = Work(share * moved, share * done), seconds
    return found


def _of_draft(draft: ForwardCost, rounds: Sequence[Passes]) -> dict[Passes, Work]:
    """Work of all passes of the drafter in each round."""
    sizes = {r: pass_sizes(r.shape, r.sequences, r.read_tokens) for r in rounds}
    if not sizes:
        return {}
    ends = np.cumsum([len(tokens) for tokens, _ in sizes.values()])
    tokens, rows = (np.concatenate([size[i] for size in sizes.values()]) for i in range(2))
    works = np.split(draft.linear_work(tokens) + draft.head_work(rows), ends[:-1], axis=1)
    found = {}
    for (r, (first, _)), work in zip(sizes.items(), works, strict=True):
        total = work.sum(axis=1)
        if isinstance(draft, DraftCost):
            total = total + draft.intake(first[:1])[:, 0]
        for passes, new, cached in attention_of(r.shape, r.context_tokens, r.read_tokens):
            total = total + len(passes) * np.array(draft.attention_work((new,), (cached,), (r.sequences,)))
        found[r] = Work(draft.gpus * float(total[BYTES]), draft.gpus * float(total[FLOP]))
    return found


def pass_sizes(shape: DraftShape, sequences: int, read_tokens: float) -> tuple[FloatArray, FloatArray]:
    """Tokens and rows of logits of each pass of the drafter [passes]; the first one reads `read_tokens` of each sequence and
    draws from the last of them."""
    further = [float(tokens) for tokens in shape.pass_tokens[1:]]
    return sequences * np.array([read_tokens, *further]), sequences * np.array([1.0, *further])


def attention_of(shape: DraftShape, context_tokens: int, read_tokens: float) -> list[tuple[list[int], int, int]]:
    """Passes of the drafter that are alike: which, and the new and cached tokens of each sequence. What earlier passes
    drafted is in the cache of the later ones; it is taken to be half of it in each. Of the first pass whole tokens count."""
    middle = context_tokens + sum(shape.pass_tokens) // 2
    further: dict[int, list[int]] = {}
    for i, width in enumerate(shape.pass_tokens[1:], start=1):
        further.setdefault(width, []).append(i)
    return [
        ([0], max(1, round(read_tokens)), context_tokens),
        *((passes, width, middle) for width, passes in further.items()),
    ]
