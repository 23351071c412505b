"""Uncertainty: how far a predicted figure may be off, given what its calibration missed on rows it never saw.

Every kind of operator has a spread (`Efficiency.spread`), the standard deviation of ln(measured/predicted) on rows held out
of the fit. A figure is computed again with each kind slower by one standard deviation; the changes of its logarithm add up
in squares (the delta method with independent kinds), and the interval is figure·exp(∓z·σ). So ratios, in which a common
error cancels, have the narrow intervals they deserve.

Held-out spread is used rather than the fit's parameter covariance, which it contains: covariance takes rows for independent
and the form for true, and neither is (`docs/design.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cost.forward import Batch, ForwardCost
from simulator.deployment import Deployment
from simulator.engine import Engine

LEVEL = 0.9
"""Share of measurements that a prediction interval is meant to hold."""
KINDS = ("matmul", "decode_attention", "prefill_attention", "elementwise", "all_reduce")
"""Kinds of operators whose errors are taken as independent of each other."""

Figures = Mapping[str, float]


def interval_factor(log_sd: float | NDArray[np.float64], level: float = LEVEL) -> Any:
    """f such that prediction/f … prediction·f holds `level` of the measurements if ln(measured/predicted) is normal with
    standard deviation `log_sd` and mean 0: exp(z·log_sd)."""
    return np.exp(NormalDist().inv_cdf(0.5 + level / 2.0) * np.asarray(log_sd, float))


@dataclass(frozen=True)
class Interval:
    """Where a figure lies with probability `level`, as far as times are concerned; traffic and acceptance are as given."""

    low: float
    high: float
    level: float = LEVEL

    @staticmethod
    def around(value: float, log_sd: float, level: float = LEVEL) -> Interval:
        """value·exp(∓z·log_sd)."""
        factor = float(interval_factor(log_sd, level))
        return Interval(value / factor, value * factor, level)


def spreads(deployment: Deployment) -> dict[str, float]:
    """Independent sources of error of a deployment: standard deviation of the logarithm of each one's time.

    Where whole steps were measured on the device (``step``) theirs is the only one: it contains all others.
    """
    efficiency = deployment.target.efficiency
    if "step" in efficiency.spread:
        return {"step": efficiency.log_sd("step")}
    kinds = [kind for kind in KINDS if kind != "all_reduce" or deployment.target.communicates]
    found = {kind: efficiency.log_sd(kind) for kind in kinds}
    if efficiency.tag == "calibrated":  # another GPU's parameters are wrong for all matrices alike
        found["matmul"] *= _diluted(deployment.target)
    found["host"] = efficiency.log_sd("host")
    return found


def slowed(deployment: Deployment, source: str, log_sd: float) -> Deployment:
    """`deployment` with one source of error slower by a factor e^`log_sd`."""
    factor = math.exp(log_sd)
    kinds = KINDS if source == "step" else (source,)
    engine = _slower_host(deployment.engine, factor) if source in ("step", "host") else deployment.engine
    if source == "host":
        return replace(deployment, engine=engine)

    def on(cost: ForwardCost) -> ForwardCost:
        slower = {**cost.efficiency.slower, **dict.fromkeys(kinds, factor)}
        return cost.on(replace(cost.efficiency, slower=slower))

    return replace(
        deployment,
        engine=engine,
        target=on(deployment.target),
        draft=on(deployment.draft) if deployment.draft else None,
    )


def log_sds(deployment: Deployment, figures: Callable[[Deployment], Figures]) -> dict[str, float]:
    """Standard deviation of ln(truth/figure) of everything that `figures` computes from a deployment.

    Figures that are not positive numbers have none and are left out.
    """
    base = figures(deployment)
    variance = dict.fromkeys((name for name, value in base.items() if _positive(value)), 0.0)
    for source, log_sd in spreads(deployment).items():
        moved = figures(slowed(deployment, source, log_sd))
        for name in list(variance):
            if _positive(moved[name]):
                variance[name] += math.log(moved[name] / base[name]) ** 2
    return {name: math.sqrt(value) for name, value in variance.items()}


def intervals(
    deployment: Deployment, figures: Callable[[Deployment], Figures], level: float = LEVEL
) -> dict[str, Interval]:
    """`log_sds` as intervals around the figures."""
    base = figures(deployment)
    return {name: Interval.around(base[name], sd, level) for name, sd in log_sds(deployment, figures).items()}


def step_log_sd(deployment: Deployment, batch: Batch) -> float:
    """Standard deviation of ln(truth/predicted) of one step, host time included."""

    def figures(d: Deployment) -> Figures:
        seconds, layers = d.target.seconds(batch), d.target.decoder.layers
        sequences, most = len(batch.new_tokens), max(batch.new_tokens, default=1)
        host_s = d.engine.host_s(sequences, gpu_s=seconds) + d.engine.launch_gap_s(sequences, most, layers, seconds)
        return {"step": seconds + host_s}

    return log_sds(deployment, figures)["step"]


def _diluted(cost: ForwardCost) -> float:
    """√Σt² / Σt over the matrices of a decode step: their errors are those of different matrices, held out one by one, and
    partly cancel."""
    pass_cost = cost.pass_cost(Batch.decode(1, 1))
    seconds = np.array([o.repeat * o.total_s for o in pass_cost.operators if o.weight_bytes > 0.0])
    return float(np.sqrt(np.sum(seconds**2)) / np.sum(seconds)) if len(seconds) else 1.0


def _slower_host(engine: Engine, factor: float) -> Engine:
    times = {name: getattr(engine, name) for name in vars(engine) if name.startswith("host_")}
    return replace(engine, **{name: value * factor for name, value in times.items()})


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0
