"""A made-up validation whose statistics are known: errors are lognormal quantiles, so coverage is what was put in."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.comparison import Comparison, Course, Quantity, Roof, Validation

BATCHES, CONTEXTS, TOKENS = (1, 2, 4, 8, 16, 32, 64, 128), (512, 2048, 8192, 32768), (1, 2, 4, 8, 16)


def normal_scores(n: int, seed: int) -> NDArray[np.float64]:
    """The n middles of equally probable slices of a standard normal law, shuffled: any central interval holds its share."""
    scores = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    return np.random.default_rng(seed).permutation(scores)


def comparison(
    name: str, *, sd: float, claimed: float | None, bias: float = 0.0, seed: int = 1, **changes: object
) -> Comparison:
    """800 points over batch, context, tokens and model; ln(predicted/measured) is normal with `bias` and `sd`."""
    rng = np.random.default_rng(seed)
    n = 800
    labels = {
        "batch": rng.choice(BATCHES, n),
        "tokens": rng.choice(TOKENS, n),
        "context_tokens": rng.choice(CONTEXTS, n),
        "model": rng.choice(np.array(["llama-3.1-8b", "qwen3-8b", "llama-2-13b"]), n),
    }
    measured = 1e-3 * (
        5 + 0.01 * labels["batch"] * labels["tokens"] + 4e-5 * labels["batch"] * labels["context_tokens"]
    )
    fields = {
        "basis": "held out by batch", "labels": labels, "log_sd": claimed,
        "measured_s": measured, "predicted_s": measured * np.exp(bias + sd * normal_scores(n, seed)), **changes,
    }  # fmt: skip
    return Comparison(name=name, **fields)  # type: ignore[arg-type]


def sample(title: str = "Reference decoder on an H200", subject: str = "calibration h200-mine") -> Validation:
    """Two comparisons with intervals (one honest, one half as wide as it should be), one without; runs, courses, a roof."""
    rng = np.random.default_rng(3)
    time_s = np.arange(0.0, 184.0)
    load = np.clip(time_s / 20, 0, 1) * np.clip((184 - time_s) / 30, 0, 1)
    waiting = 120 * np.exp(-(((time_s - 60) / 35) ** 2))
    intensity = 10 ** rng.uniform(-0.5, 3, 300)
    moved = 10 ** rng.uniform(6, 9, 300)
    limit = np.minimum(intensity * 4.2e12, 8.0e14)
    return Validation(
        title=title,
        subject=subject,
        conditions=[("device", "NVIDIA H200"), ("torch", "2.9.1+cu130"), ("measured on", "2026-11-20"), ("clocks", "1,980 MHz")],
        comparisons=[
            comparison("whole steps", sd=0.05, claimed=0.05),
            comparison("draft passes", sd=0.08, claimed=0.04, bias=0.02, seed=2, basis="held out by model"),
            comparison("rounds", sd=0.03, claimed=None, seed=4, basis="not fitted on", note="forced acceptance"),
        ],
        quantities=[
            Quantity("throughput", "tokens/s", 2310.0, 2342.0, "not fitted on", 2200.0, 2480.0),
            Quantity("mean TTFT", "s", 0.412, 0.431, "not fitted on", 0.37, 0.49),
            Quantity("median TPOT", "s", 0.01312, 0.01401, "not fitted on", 0.0121, 0.0149),
            Quantity("p95 TTFT", "s", 1.21, 1.44, "not fitted on", note="the queue is short: a few requests decide"),
            Quantity("speed-up of speculation, γ = 4", "×", 1.71, 1.69, "not fitted on", 1.6, 1.8),
            Quantity("host time per step", "s", 0.0011, 0.00111, "fitted on these"),
            Quantity("throughput with two nodes", "tokens/s", 4100.0, None, "not fitted on", note="no link profile of that switch"),
        ],
        courses=[
            Course("running", "requests", time_s, 64 * load, 64 * np.roll(load, 2) + rng.normal(0, 1, 184)),
            Course("waiting", "requests", time_s, waiting, 0.9 * np.roll(waiting, 3)),
            Course("KV cache filled", "%", time_s, 97 * load, 98 * np.roll(load, 2)),
        ],
        roof=Roof(
            4.2e12, 8.0e14, "bandwidth and matmul rate measured in this run", intensity * moved, moved,
            intensity * moved / (limit * rng.beta(6, 2, 300)), np.where(intensity < 20, "decode attention", "matmul"),
        ),
        notes=["12 shapes were skipped: out of memory."],
    )  # fmt: skip
