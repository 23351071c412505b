"""Why speculation stops paying: what a round takes beyond a plain step, by cause, and the largest of them in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.cost.forward import Batch
from simulator.planning.load_map import LoadMap, Measure
from simulator.planning.steady_state import QUEUED

Cause = Literal["verification", "drafter", "host", "kv room", "prompts"]


@dataclass(frozen=True)
class Reason:
    """What a round at one load takes beyond a plain step of the same batch, in plain steps; more than `gained` of it does not pay."""

    cause: Cause
    """The largest of `beyond`."""
    beyond: dict[Cause, float]
    """Seconds beyond a plain step's over its seconds; of ``kv room`` those that the same loss of requests per second stands for.
    ``prompts``: what those that are read beside a round take beyond those beside a plain step."""
    gained: float
    """Tokens of a round beyond the first: what may be spent on it, in plain steps."""
    batch: int
    """Requests in the batch."""
    sentence: str


def reason(found: LoadMap, drafting: int, work: int, measure: Measure = "speed") -> Reason | None:
    """Why the drafting pays no longer after its last load, or at all; None where it pays up to the map's end or does not fit."""
    crossing = found.crossing(drafting, work, measure)
    if crossing.load is None or found.curves[drafting][work] is None:
        return None
    beyond = found.axis.fine[found.axis.fine > crossing.load]
    return reason_at(found, drafting, work, float(beyond[0]) if len(beyond) else crossing.load)


def reason_at(found: LoadMap, drafting: int, work: int, load: float) -> Reason:
    """What a round takes at `load`. Raises ValueError for a drafting that does not fit."""
    with_, without = found.curves[drafting][work], found.plain[work]
    if with_ is None:
        raise ValueError(f"{found.draftings[drafting].name} does not fit")
    loads = np.array([load])
    there, plain = (found.axis.states(c, loads, found.slo) for c in (with_, without))
    batch = max(1, min(round(float(there.batch[0])), with_.most, without.most))
    i, answer = batch - 1, with_.work.output_tokens - 1.0
    # Steps as a sequence sees them, prompts beside it included; `alone` are those without.
    round_, step = (tuple(float(part[i]) for part in c.parts) for c in (with_, without))
    alone, alone_step = (float(c.alone.verify_s[i]) for c in (with_, without))
    step_s, round_s = sum(step), sum(round_)
    tokens = answer / with_.rounds
    plain_batch = min(round(float(plain.batch[0])), without.most)
    kept = float(without.requests_per_s[i] / without.requests_per_s[plain_batch - 1])
    beyond: dict[Cause, float] = {
        "verification": (alone - alone_step) / step_s,
        "drafter": round_[1] / step_s,
        "host": (round_[2] - step[2]) / step_s,
        "prompts": ((round_[0] - alone) - (step[0] - alone_step)) / step_s,
        "kv room": tokens * max(0.0, 1.0 - kept) if plain_batch > batch and found.axis.kind == "users" else 0.0,
    }
    cause = max(beyond, key=lambda c: beyond[c])
    queued = with_.line_s[i] > QUEUED * with_.stay_s[i]
    if queued:  # the step is the same whatever it decodes
        return Reason(
            "prompts", beyond, tokens - 1.0, batch,
            f"prompts come faster than the token budget reads them at {batch:,} requests, with drafts or without",
        )  # fmt: skip
    shape = found.draftings[drafting].shape
    if cause == "verification":
        said = (
            f"verification {_bound(found, work, batch, shape.nodes + 1)} at batch {batch:,}: "
            f"{shape.nodes + 1} tokens cost {alone / alone_step:.2g} times one"
        )
    elif cause == "drafter":
        said = f"the drafter's passes take {round_[1] / round_s:.0%} of the round at batch {batch:,}"
    elif cause == "prompts":
        said = (
            f"fewer rounds per answer have more prompts each: they take {(round_[0] - alone) / round_s:.0%} of a round at batch {batch:,}, "
            f"and {(step[0] - alone_step) / step_s:.0%} of a plain step"
        )
    elif cause == "host":
        said = (
            f"the host's part is {round_[2] / round_s:.0%} of the round at batch {batch:,}, {round_[2] / step[2]:.2g} times that of a "
            "plain step"
        )
    else:
        said = f"the drafter leaves the KV cache room for {with_.most:,} requests at once instead of {without.most:,}"
    shared = ", prompts beside both" if step[0] > alone_step else ""
    sentence = f"{said}; a round yields {tokens:.2f} tokens and takes {round_s / step_s:.2f} plain steps{shared}"
    return Reason(cause, beyond, tokens - 1.0, batch, sentence)


_WORDS = {
    "compute": "is compute-bound",
    "weights": "wakes up more experts",
    "kv_cache": "reads more of the KV cache",
    "activations": "moves more activations",
    "communication": "waits for other GPUs",
    "launch": "launches more kernels",
    "host": "waits for the host",
}


def _bound(found: LoadMap, work: int, batch: int, tokens: int) -> str:
    """What grows most from a plain step to verification."""
    target, context = found.deployment.target, max(1, round(found.works[work].context_tokens))
    part = -(-batch // target.micro_batches(batch))
    more, one = (target.pass_cost(Batch.decode(part, context, new)).by_cause() for new in (tokens, 1))
    grown = {cause: more[cause] - one[cause] for cause in more}
    largest = max(grown, key=lambda cause: grown[cause])
    dense = all(getattr(kind.mlp, "experts", None) is None for kind in target.decoder.layer_kinds)
    return "reads more weights" if largest == "weights" and dense else _WORDS[largest]
