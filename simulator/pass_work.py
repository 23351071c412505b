"""Whole passes as points under a roofline: what one moves, what it multiplies, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cost.forward import Batch
from simulator.decoding import DecodeResult
from simulator.errors import InputError
from simulator.speculation.acceptance import MAX_GAMMA


@dataclass(frozen=True)
class PassWork:
    """One pass on one GPU, the engine's host time left out."""

    kind: str
    """``plain``, ``verify`` or ``draft``."""
    name: str
    """For people."""
    seconds: float
    bytes_: float
    """Moved between HBM and SMs."""
    flop: float

    @property
    def flop_per_byte(self) -> float:
        """FLOP/byte."""
        return self.flop / self.bytes_

    @property
    def flop_per_s(self) -> float:
        """FLOP/s reached."""
        return self.flop / self.seconds


def pass_works(result: DecodeResult, gamma: int = 0) -> tuple[PassWork, ...]:
    """The passes of a step, and with `gamma` drafts of a round: plain decoding, the verification of γ + 1 tokens of each
    sequence, and a pass of the deployment's drafter with one token of each, where it has a drafter that is a model.

    Raises InputError for `gamma` below 0 or beyond what can be drafted.
    """
    if not 0 <= gamma <= MAX_GAMMA:
        raise InputError("gamma", gamma, f"be from 0 to {MAX_GAMMA}")
    target, draft = result.deployment.target, result.deployment.draft
    part = -(-result.batch // result.micro_batches)
    found = []
    for kind, tokens in (("plain", 1), ("verify", gamma + 1)):
        if kind == "verify" and gamma == 0:
            continue
        known = tokens == result.new_tokens
        cost = result.pass_cost if known else target.pass_cost(Batch.decode(part, result.context_tokens, tokens))
        name = "plain decoding" if kind == "plain" else f"verifying {tokens} tokens"
        found.append(PassWork(kind, name, cost.seconds, cost.total("bytes_"), cost.total("flop")))
    if draft is not None and gamma > 0:
        rows = np.array([float(result.batch)])
        attention = draft.attention_work((1,), (result.context_tokens,), (result.batch,))
        seconds, moved, flop = (draft.linear_work(rows) + draft.head_work(rows))[:, 0] + np.array(attention)
        drafter = result.deployment.drafter
        name = f"a draft pass of {drafter.name if drafter else draft.decoder.name}"
        found.append(PassWork("draft", name, float(seconds), float(moved), float(flop)))
    return tuple(found)
