"""What a draft-verify round moves and multiplies beyond a plain decode step, per token that reaches a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.cost.forward import Batch, ForwardCost
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

    def wasted_flop(self, rejected_share: float) -> float:
        """FLOP of the round that reach nobody: `rejected_share` of verification's (verified tokens that no user gets, over all
        that are verified), and the drafter's own, whose tokens the target computes once more."""
        return self.draft.flop + rejected_share * self.verify.flop

    @property
    def extra_bytes(self) -> float:
        """Traffic of the round beyond that of one plain step: the drafter's, and what more tokens add to the target's pass (KV
        and activations, woken experts)."""
        return self.draft.bytes_ + self.verify.bytes_ - self.plain.bytes_


def round_work(
    target: ForwardCost,
    draft: ForwardCost | None,
    shape: DraftShape,
    *,
    sequences: int,
    context_tokens: int,
    match: float,
    read_tokens: float,
) -> RoundWork:
    """Bytes and FLOP of a round of `shape` for `sequences` of `context_tokens`, of which the share `match` has drafts; the
    drafter's first pass reads `read_tokens` of each. DESIGN §2 prices the passes."""
    drafted = _of_target(target, sequences, context_tokens, shape.nodes + 1)
    plain = _of_target(target, sequences, context_tokens, 1)
    verify = Work(*(p + match * (d - p) for d, p in zip(drafted, plain, strict=True)))
    helped = draft is not None and shape.passes > 0 and shape.nodes > 0
    of_draft = _of_draft(draft, shape, sequences, context_tokens, read_tokens) if helped and draft else Work(0.0, 0.0)
    return RoundWork(verify, of_draft, plain)


def _of_target(target: ForwardCost, sequences: int, context_tokens: int, new_tokens: int) -> Work:
    parts = target.micro_batches(sequences)
    cost = target.pass_cost(Batch.decode(-(-sequences // parts), context_tokens, new_tokens))
    # Of a pipeline a pass goes through all stages, and pp of them are one step of the mean GPU.
    share = target.gpus * parts / target.pp
    return Work(share * cost.total("bytes_"), share * cost.total("flop"))


def _of_draft(draft: ForwardCost, shape: DraftShape, sequences: int, context_tokens: int, read: float) -> Work:
    tokens, rows = pass_sizes(shape, sequences, read)
    linear, head = draft.linear_work(tokens), draft.head_work(rows)
    first = draft.intake(tokens[:1]) if isinstance(draft, DraftCost) else np.zeros((3, 1))
    calls = attention_of(shape, sequences, context_tokens, read)
    attention = [(len(passes), draft.attention_work(new, cached)) for passes, new, cached in calls]
    moved, done = (
        linear[what].sum() + head[what].sum() + first[what].sum() + sum(times * of[what] for times, of in attention)
        for what in (BYTES, FLOP)
    )
    return Work(draft.gpus * float(moved), draft.gpus * float(done))


def pass_sizes(shape: DraftShape, sequences: int, read_tokens: float) -> tuple[FloatArray, FloatArray]:
    """Tokens and rows of logits of each pass of the drafter [passes]; the first one reads `read_tokens` of each sequence and
    draws from the last of them."""
    further = [float(tokens) for tokens in shape.pass_tokens[1:]]
    return sequences * np.array([read_tokens, *further]), sequences * np.array([1.0, *further])


def attention_of(
    shape: DraftShape, sequences: int, context_tokens: int, read_tokens: float
) -> list[tuple[list[int], tuple[int, ...], tuple[int, ...]]]:
    """Passes of the drafter that are alike: which, and the new and cached tokens of all sequences. What earlier passes
    drafted is in the cache of the later ones; it is taken to be half of it in each. Of the first pass whole tokens count."""
    middle = (context_tokens + sum(shape.pass_tokens) // 2,) * sequences
    further: dict[int, list[int]] = {}
    for i, width in enumerate(shape.pass_tokens[1:], start=1):
        further.setdefault(width, []).append(i)
    return [
        ([0], (max(1, round(read_tokens)),) * sequences, (context_tokens,) * sequences),
        *((passes, (width,) * sequences, middle) for width, passes in further.items()),
    ]
