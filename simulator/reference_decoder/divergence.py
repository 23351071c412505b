"""Divergence: where speculative greedy output leaves plain greedy output, and how near a tie the target was there.

In exact arithmetic it never does. A pass of several tokens adds up in another order than a pass of one, so in bf16 two
logits that are almost equal may change places; from there on the two texts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from simulator.reference_decoder.model import Decoder


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Place of the first token that differs; None where one text begins like the other."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)


def margins_of(model: Decoder, prompt: Sequence[int], output: Sequence[int]) -> list[float]:
    """At each token of the output, by how much the largest logit exceeds the second."""
    tokens = torch.tensor([[*prompt, *output[:-1]]], device=model.device)
    positions = torch.arange(tokens.shape[1], device=model.device)[None]
    cache = model.new_cache(1, tokens.shape[1])
    logits = model.forward(tokens, positions, cache, tokens.shape[1])[0, len(prompt) - 1 :]
    best = logits.float().topk(2, dim=-1).values  # [output, 2]
    margins: list[float] = (best[:, 0] - best[:, 1]).tolist()
    return margins


def compare(
    model: Decoder, prompts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]], other: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What a measurement file says of two outputs for the same prompts."""
    positions, margins, everywhere = [], [], []
    for prompt, ours, theirs in zip(prompts, plain, other, strict=True):
        here = margins_of(model, prompt, ours)
        everywhere += here
        place = first_difference(ours, theirs)
        if place is not None:
            positions.append(place)
            margins.append(here[place])
    return {
        "diverged": len(positions), "positions": positions, "margins": margins, "median_margin": median(everywhere),
    }  # fmt: skip
