"""Acceptance: how many drafted tokens a trained target accepts, round by round, for every request.

Three kinds of text, since a small model under greedy decoding soon repeats itself, and repetition is easy to draft:
its greedy output, its samples (temperature 1, lossless rejection), and held-out text, where each round starts from what
really stands there and goes on as far as the target's greedy choices accepted, so that no loop can come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from simulator.reference_decoder.model import Model
from simulator.reference_decoder.speculative import Decoding, Drafter, generate

REPEAT_TOKENS = 12


class Trace(NamedTuple):
    """Rounds by request, in order: enough to replay them."""

    accepted: list[list[int]]
    drafted: list[list[int]]
    """Depth of each round's draft; 0 where none was found."""
    texts: list[list[int]]
    """What each request put out, or went along."""


def of_output(
    model: Model,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    *,
    temperature: float,
    seed: int = 0,
    pad: bool = False,
) -> Trace:
    """Rounds of the model's own output; greedy at temperature 0. `pad`: keep the batch, as graphs want it."""
    rows = generate(
        model, prompts, output_tokens, drafter=drafter, temperature=temperature, seed=seed,
        pad_to=(len(prompts),) if pad else (),
    )  # fmt: skip
    return Trace([row.accepted for row in rows], [row.drafted for row in rows], [row.output for row in rows])


def of_text(
    model: Model, drafter: Drafter, texts: Sequence[Sequence[int]], context_tokens: int, output_tokens: int
) -> Trace:
    """Rounds along given texts of at least context_tokens + output_tokens.

    Each round reads the context_tokens before its place anew and compares draft and target, both greedy; the next place is
    accepted + 1 further along the text, whatever the target would have put there.
    """
    count = len(texts)
    trace = Trace([[] for _ in texts], [[] for _ in texts], [[] for _ in texts])
    place = [context_tokens] * count
    decoding = Decoding(model, count, context_tokens + 2, drafter=drafter)
    running = set(range(count))
    while running:
        decoding.rows.clear()
        decoding.admit_texts([text[at - context_tokens : at + 1] for text, at in zip(texts, place, strict=True)])
        round_ = decoding.step()
        for i in list(running):
            trace.accepted[i].append(round_.accepted[i])
            trace.drafted[i].append(round_.drafted[i])
            place[i] += round_.accepted[i] + 1
            if place[i] >= context_tokens + output_tokens:
                running.remove(i)
                place[i] = context_tokens  # rows that are through stay in the batch, anywhere
                trace.texts[i].extend(texts[i][context_tokens : context_tokens + output_tokens])
    return trace


def summary(trace: Trace, gamma: int) -> dict[str, Any]:
    """What a measurement file says of a trace, the trace included."""
    accepted = np.array(list(chain.from_iterable(trace.accepted)))
    drafted = np.array(list(chain.from_iterable(trace.drafted)))
    by_depth: list[float | None] = []
    rounds_by_depth = []
    for depth in range(1, gamma + 1):
        reached = (drafted >= depth) & (accepted >= depth - 1)
        rounds_by_depth.append(int(reached.sum()))
        by_depth.append(float((accepted[reached] >= depth).mean()) if reached.any() else None)
    per_request = [float(np.mean(rounds)) + 1.0 for rounds in trace.accepted if rounds]
    spread = np.quantile(per_request, (0.0, 0.25, 0.5, 0.75, 1.0)).tolist()
    names = ("min", "q1", "median", "q3", "max")
    return {
        "accepted_by_request": trace.accepted, "drafted_by_request": trace.drafted,
        "acceptance_by_depth": by_depth, "rounds_by_depth": rounds_by_depth,
        "tokens_per_round": float(accepted.mean()) + 1.0,
        **{f"tokens_per_round_{name}": value for name, value in zip(names, spread, strict=True)},
        "repeated_share": repeated_share(trace.texts),
    }  # fmt: skip


def repeated_share(texts: Sequence[Sequence[int]]) -> float:
    """Of all 12-grams, those that stood in the same text before; 0 where texts are too short to have any."""
    grams = repeated = 0
    for text in texts:
        places = [tuple(text[i : i + REPEAT_TOKENS]) for i in range(len(text) - REPEAT_TOKENS + 1)]
        grams += len(places)
        repeated += len(places) - len(set(places))
    return repeated / grams if grams else 0.0
