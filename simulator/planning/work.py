"""What one request asks for, on average: the work of which a steady load is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.serving.requests import Requests

OUTPUT_TOKENS = 256
"""Mean answer where nobody says otherwise."""
_SPREAD = 0.5
"""Answers are uniform over (1 ∓ this) times their mean: of equal answers closed loops would stay in step for ever."""


@dataclass(frozen=True)
class Work:
    """Means over requests, tokens."""

    prompt_tokens: float
    output_tokens: float
    context_tokens: float
    """What a decoding sequence holds, averaged over time: E[O·(P + O/2)] / E[O]."""
    output_cv: float
    """Coefficient of variation of the answers' lengths."""

    @classmethod
    def of_context(cls, context_tokens: int, output_tokens: int = OUTPUT_TOKENS) -> Work:
        """Answers uniform over half to one and a half times `output_tokens`, and the one prompt length with which sequences
        hold `context_tokens` on average.

        Raises InputError where the answers alone hold more.
        """
        lengths = np.arange(*answer_range(output_tokens), dtype=float)
        mean = float(lengths.mean())
        held = float((lengths**2).mean()) / (2.0 * mean)
        if context_tokens < held + 1.0:
            least = math.ceil(held + 1.0)
            rule = f"be at least {least} for answers of {output_tokens} tokens, which hold as much on average"
            raise InputError("context", context_tokens, rule)
        prompt = float(round(context_tokens - held))
        return cls(prompt, mean, prompt + held, float(lengths.std() / mean))

    @classmethod
    def of_lengths(cls, prompt_tokens: int, output_tokens: int = OUTPUT_TOKENS) -> Work:
        """Prompts of `prompt_tokens`, and answers uniform over half to one and a half times `output_tokens`. Raises InputError."""
        for name, tokens in (("prompt", prompt_tokens), ("output", output_tokens)):
            if tokens < 1:
                raise InputError(name, tokens, "be at least 1 token")
        lengths = np.arange(*answer_range(output_tokens), dtype=float)
        mean = float(lengths.mean())
        held = float((lengths**2).mean()) / (2.0 * mean)
        return cls(float(prompt_tokens), mean, prompt_tokens + held, float(lengths.std() / mean))

    @classmethod
    def of_requests(cls, requests: Requests) -> Work:
        """Means of these requests."""
        prompt, output = requests.prompt_tokens.astype(float), requests.output_tokens.astype(float)
        mean = float(output.mean())
        context = float((output * (prompt + output / 2.0)).sum() / output.sum())
        return cls(float(prompt.mean()), mean, context, float(output.std() / mean))

    @property
    def lengths(self) -> dict[str, Any]:
        """The lengths of `of_context` as a scenario's ``traffic.lengths``."""
        low, beyond = answer_range(round(self.output_tokens))
        return {"prompt": round(self.prompt_tokens), "output": {"kind": "uniform", "low": low, "high": beyond - 1}}


def answer_range(output_tokens: int) -> tuple[int, int]:
    """First length and the one after the last of answers that are uniform around `output_tokens`."""
    half = math.floor(_SPREAD * output_tokens)
    low = max(1, output_tokens - half)
    return low, 2 * output_tokens - low + 1
