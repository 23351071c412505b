"""What each class of requests got: its latencies, and its goodput against its own objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.serving import state
from simulator.serving.classes import RequestClass
from simulator.serving.distribution import Distribution
from simulator.serving.outcomes import TIMES, BoolArray, Outcomes
from simulator.serving.window import Tally, Window
from simulator.slo import Slo

TOO_LARGE = "larger than the KV cache"
"""Why a request is rejected on arrival: prompt, output and look-ahead slots would not fit the pool even alone."""
UNFINISHED = "unfinished"
"""Of requests without an end, where the simulation itself was interrupted."""
ENDS: Mapping[int, str] = {
    state.FINISHED: "finished",
    state.REJECTED: TOO_LARGE,
    state.REFUSED: "refused",
    state.TIMED_OUT: "timed out",
    state.CANCELLED: "cancelled",
    state.ABANDONED: "abandoned",
    state.WAITING: UNFINISHED,
    state.RUNNING: UNFINISHED,
    state.HANDED_OVER: UNFINISHED,
}
"""How requests end, in words."""
END_NAMES = tuple(dict.fromkeys(ENDS.values()))


@dataclass(frozen=True)
class ClassSummary:
    """One class of requests; `metrics.Summary` says what the figures mean."""

    name: str
    slo: Mapping[str, float]
    """Its objectives, those it has, s."""
    requests: Mapping[str, int]
    """By how they ended."""
    measured: int
    """Finished requests outside warm-up."""
    ttft_s: Distribution
    tpot_s: Distribution
    e2e_s: Distribution
    queue_s: Distribution
    requests_per_s: float
    goodput_per_s: float
    good_share: float
    prompt_tokens: int
    output_tokens: int
    cached_share: float


def slos_of(classes: Sequence[RequestClass], slo: Slo) -> list[Slo]:
    """Each class's own objectives, else the scenario's."""
    return [slo if c.slo is None else c.slo for c in classes]


def by_end(counts: Sequence[int]) -> dict[str, int]:
    """Counts by status (`state.STATUS`) as counts by `ENDS`; ``finished`` always, others where there are any."""
    found = dict.fromkeys(END_NAMES, 0)
    for status, n in enumerate(counts):
        found[ENDS[status]] += int(n)
    return {name: n for name, n in found.items() if n or name == "finished"}


def share(part: float, whole: float) -> float:
    """NaN of nothing."""
    return part / whole if whole else math.nan


def summarise_classes(
    outcomes: Outcomes,
    which: BoolArray,
    classes: Sequence[RequestClass],
    slos: Sequence[Slo],
    counts: Tally,
    window: Window,
    everybody: Mapping[str, Distribution],
) -> tuple[ClassSummary, ...]:
    """One summary per class; `which` are the measured finished requests, `everybody` the distributions over all of them."""
    found = []
    for c, (kind, slo) in enumerate(zip(classes, slos, strict=True)):
        times = everybody
        if len(classes) > 1:
            mine = which & (outcomes.class_of == c)
            times = {name: Distribution.of_own(outcomes.time_s(name, mine)) for name in TIMES}
        totals = {name: int(total[c]) if c < len(total) else 0 for name, total in outcomes.totals.items()}
        found.append(
            ClassSummary(
                name=kind.name,
                slo={k: v for k, v in slo.model_dump().items() if v is not None},
                requests=by_end(counts.ends[c].tolist()),
                measured=times["e2e_s"].n,
                **times,
                requests_per_s=float(counts.served[c]) / window.seconds,
                goodput_per_s=float(counts.good[c]) / window.seconds,
                good_share=share(float(counts.measured_good[c]), float(counts.measured_ended[c])),
                prompt_tokens=totals["prompt_tokens"],
                output_tokens=totals["output_tokens"],
                cached_share=share(totals["cached_tokens"], totals["prompt_tokens"]),
            )
        )
    return tuple(found)


def total_of(outcomes: Outcomes, name: str) -> int:
    """One of `outcomes.TOTALS` over all finished requests."""
    return int(np.sum(outcomes.totals[name]))
