"""Prediction intervals of simulated figures: the same requests once more for every source of error, that much slower."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simulator.deployment import Deployment
from simulator.serving.simulation import SimulationResult, Stopped, simulate
from simulator.uncertainty import Interval, log_sds, spreads

MOST_REQUESTS = 20_000
"""A scenario of more requests is not simulated half a dozen times over unless asked to."""

FIGURES = (
    "ttft_s.mean", "ttft_s.p50", "ttft_s.p99", "tpot_s.mean", "tpot_s.p50", "tpot_s.p99", "e2e_s.mean", "e2e_s.p99",
    "output_tokens_per_s", "goodput_per_s",
)  # fmt: skip
"""Fields of `metrics.Summary` that get an interval."""
RATIO = "ratio"
"""In the place of a variant: figure with speculation over without."""


@dataclass(frozen=True)
class Intervals:
    """By variant (and `RATIO`) and figure."""

    of: Mapping[tuple[str, str], Interval]

    def get(self, variant: str, figure: str) -> Interval | None:
        """None where the figure has no interval: it is 0, or not a number."""
        return self.of.get((variant, figure))


def simulation_intervals(
    result: SimulationResult,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    stop: threading.Event | None = None,
) -> Intervals:
    """Where the figures lie with 90 %, as far as times are uncertain: traffic and acceptance are as given.

    Replicas of all kinds are taken to be off in the same way, by as much as those on the scenario's own GPU.
    Simulates the scenario once per source of error (five to seven times) on the same requests and the same luck; `progress`
    is told how many of them are done. Raises Stopped soon after another thread sets `stop`.
    """
    done, of = 0, len(spreads(result.deployment))

    def figures(deployment: Deployment) -> dict[str, float]:
        nonlocal done
        if deployment is result.deployment:
            return _named(figures_of(result))
        found = _named(figures_of(simulate(result.scenario, requests=result.traffic, deployment=deployment, stop=stop)))
        if stop is not None and stop.is_set():
            raise Stopped("Stopped before the prediction intervals were there.")
        done += 1
        if progress is not None:
            progress("intervals", done, of)
        return found

    base = figures(result.deployment)
    found = {}
    for name, log_sd in log_sds(result.deployment, figures).items():
        variant, _, figure = name.partition(":")
        found[variant, figure] = Interval.around(base[name], log_sd)
    return Intervals(found)


def figures_of(result: SimulationResult) -> dict[tuple[str, str], float]:
    """`FIGURES` by variant, and as `RATIO` with speculation over without where there is both."""
    found = {}
    for run in result.runs:
        for figure in FIGURES:
            field, _, point = figure.partition(".")
            value = getattr(run.summary, field)
            found[run.variant, figure] = float(getattr(value, point) if point else value)
    if len(result.runs) > 1:
        for figure in FIGURES:
            plain = found[result.plain.variant, figure]
            ours = found[result.main.variant, figure]
            found[RATIO, figure] = ours / plain if plain else 0.0
    return found


def _named(figures: Mapping[tuple[str, str], float]) -> dict[str, float]:
    return {f"{variant}:{figure}": value for (variant, figure), value in figures.items()}
