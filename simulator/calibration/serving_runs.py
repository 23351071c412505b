"""Small serving runs of the reference decoder, simulated: the same requests at the same times, under that engine's rules.

What was accepted there, round by round, is replayed; a file without it is simulated several times on its α.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.calibration.comparison import Quantity
from simulator.cost.efficiency import Efficiency
from simulator.cost.forward import ForwardCost
from simulator.deployment import Deployment
from simulator.engine import Engine
from simulator.hardware import Gpu
from simulator.quantization import Quantization
from simulator.scenario import load_scenario
from simulator.serving.simulation import Run, simulate
from simulator.serving.traffic import Requests
from simulator.speculation.acceptance import RecordedAcceptance
from simulator.speculation.drafters import Drafter
from simulator.speculation.recording import recording_of
from simulator.uncertainty import Interval, log_sds

if TYPE_CHECKING:
    from simulator.architecture import Decoder

DRAWS = 8
"""Simulations of a speculative run whose luck is not recorded; their mean is the prediction."""
FIGURES = {
    "tokens_per_s": ("output", "tokens/s"),
    "median_s": ("median TPOT", "s"),
    "ttft_median_s": ("median TTFT", "s"),
}
"""Results of a serving line → name and unit."""


def serving_quantities(
    lines: list[Mapping[str, Any]], models: Mapping[str, Decoder], gpu: Gpu, efficiency: Efficiency, engine: Engine
) -> list[Quantity]:
    """Each serving line's throughput, median TPOT and median TTFT, measured and simulated; speed-up of its pair beside."""
    found = []
    for line in lines:
        deployment = _deployment(line, models, gpu, efficiency, engine)

        def figures(d: Deployment, line: Mapping[str, Any] = line) -> dict[str, float]:
            return _mean(line, d)

        predicted, log_sd = figures(deployment), log_sds(deployment, figures)
        who = f"γ {line['gamma']} (α {line['alpha']:g})" if line["gamma"] else "plain"
        for name, (figure, unit) in FIGURES.items():
            interval = Interval.around(predicted[name], log_sd[name])
            found.append(
                Quantity(
                    f"{figure}, {line['model']} {who}, load {line['load']:g}",
                    unit,
                    float(line[name]),
                    predicted[name],
                    "not fitted on",
                    interval.low,
                    interval.high,
                    note=f"{line['requests']} requests, at most {line['max_batch']} at a time",
                )
            )
    return found


def _mean(line: Mapping[str, Any], deployment: Deployment) -> dict[str, float]:
    drawn = line["gamma"] and "accepted_by_request" not in line
    runs = [_simulated(line, deployment, seed) for seed in range(DRAWS if drawn else 1)]
    return {name: float(np.mean([_figures(run)[name] for run in runs])) for name in FIGURES}


def _figures(run: Run) -> dict[str, float]:
    r = run.requests
    many = r["output_tokens"] > 1
    tpot_s = (r["finish_s"] - r["first_token_s"])[many] / (r["output_tokens"][many] - 1)
    return {
        "tokens_per_s": float(r["output_tokens"].sum() / r["finish_s"].max()),
        "median_s": float(np.median(tpot_s)),
        "ttft_median_s": float(np.median(r["first_token_s"] - r["arrival_s"])),
    }


def _simulated(line: Mapping[str, Any], deployment: Deployment, seed: int) -> Run:
    n = line["requests"]
    traffic = Requests(
        np.array(line["arrival_s"], float), np.full(n, line["prompt_tokens"]), np.array(line["output_lengths"]),
        np.arange(n), None, 0, n, {}, "the measured run's requests",
    )  # fmt: skip
    scenario: dict[str, Any] = {
        "model": line["model"], "gpu": deployment.gpu.name, "seed": seed, "warmup": 0.0,
        # What was asked for; the recorded requests take its place.
        "traffic": {"kind": "poisson", "rate_per_s": line["rate_per_s"], "requests": n,
                    "lengths": {"prompt": line["prompt_tokens"], "output": line["output_tokens"]}},
    }  # fmt: skip
    if line["gamma"]:
        scenario["speculation"] = {"draft": line["draft_model"], "gamma": line["gamma"], "acceptance": line["alpha"]}
    law = None
    if line["gamma"] and "accepted_by_request" in line:
        law = RecordedAcceptance.of(recording_of(line, "the run's own rounds"))
    return simulate(load_scenario(scenario), requests=traffic, deployment=deployment, acceptance=law).main


def _deployment(
    line: Mapping[str, Any], models: Mapping[str, Decoder], gpu: Gpu, efficiency: Efficiency, engine: Engine
) -> Deployment:
    longest = line["prompt_tokens"] + 2 * line["output_tokens"]
    settings = engine.settings.model_copy(
        update={"max_sequences": line["max_batch"], "max_batched_tokens": max(8192, line["max_batch"] * longest)}
    )
    target = ForwardCost(models[line["model"]], gpu, efficiency=efficiency)
    drafter = draft = None
    if line["gamma"]:
        name = line["draft_model"]
        drafter = Drafter(name, name, "model", models[name], 1, Quantization(), None, ())
        draft = ForwardCost(models[name], gpu, efficiency=efficiency, back_to_back=True)
    return Deployment(target, replace(engine, settings=settings), drafter, draft)
