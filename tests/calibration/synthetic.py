"""A device that exists on paper only: its measurement file is written from known efficiencies and a known noise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from simulator.calibration.device_fit import Data, attention_s, matmul_s, row_seconds
from simulator.calibration.measured import Measurements, rows_of
from simulator.calibration.passes import Kernels, Terms
from simulator.cost.efficiency import load_efficiency
from simulator.hardware import Gpu, load_gpu
from simulator.reference_decoder.shapes import SHAPES

MODELS = ("cpu-82m", "llama-1b", "llama-8b")
DRAFTS = {"llama-8b": "llama-1b"}
GAMMAS = (1, 4)


def truth(gpu: Gpu) -> Kernels:
    """H100's fit, with everything that is easily seen moved away from where a fit starts."""
    e = load_efficiency(load_gpu("h100-sxm"))
    matmul = e.matmul._replace(bandwidth=0.72, compute=0.66, t0_s=3.4e-6)
    decode = e.decode_attention._replace(bandwidth=0.62, t0_s=1.3e-5, l2_speedup=1.0)
    prefill = e.prefill_attention._replace(compute=0.45, l2_speedup=1.0)
    return Kernels(matmul, decode, prefill, e.elementwise._replace(t0_s=3e-6, bandwidth=0.6, l2_speedup=1.5))


def header(**changes: Any) -> dict[str, Any]:
    """Of a GPU run."""
    return {
        "kind": "header", "schema": 1, "device_kind": "cuda", "device": "NVIDIA H200", "torch": "2.11.0", "cuda": "13.0",
        "driver": "580.1", "clocks": None, "power_limit_w": 700.0, "memory_bytes": 150 * 2**30, "last_cache_bytes": 50 * 2**20,
        "dtype": "bf16", "attention": "auto", "fuse": False, "threads": 1, "toy": False, "python": "3.12",
        "date": "2026-11-24T00:00:00+00:00", **{f"shape_of_{name}": asdict(SHAPES[name]) for name in MODELS},
    } | changes  # fmt: skip


def points() -> list[dict[str, Any]]:
    """Matmuls, attention, steps, drafts and rounds over a coarse grid."""
    found: list[dict[str, Any]] = []
    for name, m in product(MODELS, (1, 8, 64, 256, 1024)):
        s = SHAPES[name]
        rows = (s.heads + 2 * s.kv_heads) * s.head_dim
        for n, k in ((rows, s.hidden), (s.hidden, s.heads * s.head_dim), (2 * s.width, s.hidden), (s.hidden, s.width)):
            found.append({"kind": "matmul", "tokens": m, "outputs": n, "inputs": k, "dtype": "bf16"})
    shapes = {(s.heads, s.kv_heads, s.head_dim) for s in (SHAPES[name] for name in MODELS)}
    for (h, kv, d), batch, query, context in product(sorted(shapes), (1, 16, 128), (1, 4, 64), (128, 1024, 4096)):
        found.append({"kind": "attention", "sequences": batch, "query_tokens": query, "context_tokens": context, "heads": h,
                      "kv_heads": kv, "head_dim": d, "dtype": "bf16"})  # fmt: skip
    for name, batch, tokens, context in product(MODELS, (1, 8, 32, 128), (1, 4, 16), (128, 2048)):
        found.append({"kind": "step", "model": name, "batch": batch, "tokens": tokens, "context_tokens": context,
                      "graphs": True})  # fmt: skip
    for target, draft in DRAFTS.items():
        for gamma, batch in product(GAMMAS, (1, 32)):
            base = {"batch": batch, "context_tokens": 512, "graphs": True}
            found.append({"kind": "draft", "model": draft, "gamma": gamma} | base)
            found.append({"kind": "round", "model": target, "drafter": "small", "draft_model": draft, "gamma": gamma,
                          "alpha": 0.7} | base)  # fmt: skip
            if gamma == GAMMAS[0]:
                found.append({"kind": "round", "model": target, "drafter": "plain", "draft_model": None, "gamma": 0,
                              "alpha": 0.0} | base)  # fmt: skip
    return found


def write(path: Path, noise: float = 0.02, seed: int = 0, *, host_s: float = 1e-4) -> Path:
    """The file that the device would give: every time its truth times e^(noise·normal); rounds also `host_s` a pass."""
    gpu = replace(load_gpu("h200"), name="(paper)")
    kernels, random = truth(gpu), np.random.default_rng(seed)
    lines = [_results(point) for point in points()]
    measured = Measurements.of(path, header(), lines)
    data = Data.of(measured, gpu)
    seconds: dict[str, Any] = {"matmul": iter(matmul_s(data, kernels)), "attention": iter(attention_s(data, kernels))}
    for kind in ("step", "draft", "round"):
        rows = rows_of([line for line in lines if line["kind"] == kind])
        passes = np.bincount(rows.row, rows.times, len(rows))
        extra_s = host_s * (passes + (passes > 1)) if kind == "round" else 0.0
        seconds[kind] = iter(row_seconds(rows, Terms.of(rows.passes, measured.models, gpu), kernels, gpu) + extra_s)
    for line in lines:
        median_s = float(next(seconds[line["kind"]]) * np.exp(noise * random.normal()))
        line |= {"median_s": median_s, "min_s": 0.98 * median_s, "q1_s": 0.99 * median_s, "q3_s": 1.01 * median_s,
                 "max_s": 1.05 * median_s, "n": 20}  # fmt: skip
    # One step in eight is also measured eagerly, where the host sets the pace; it is not what a fit is about.
    for line in [line for line in lines if line["kind"] == "step"][::8]:
        lines.append(line | {"graphs": False} | _spread(5.0 * line["median_s"]))
    for gamma in (0, 4):
        lines.append(
            {
                "kind": "launch",
                "what": "round",
                "gamma": gamma,
                "graphs": True,
                **_spread(host_s * (1 + gamma + bool(gamma))),
            }
        )
    lines.append(
        {"kind": "read", "size_bytes": 2**31, "cache": "cold", "moved_bytes": 2**31, **_spread(2**31 / 4.2e12)}
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in [header(), *lines]))
    return path


def _spread(seconds: float) -> dict[str, Any]:
    return dict.fromkeys(("median_s", "min_s", "q1_s", "q3_s", "max_s"), seconds) | {"n": 5}


def _results(point: dict[str, Any]) -> dict[str, Any]:
    """The point with the results that do not depend on time."""
    line = dict(point) | _spread(1.0)
    if point["kind"] == "matmul":
        m, n, k = point["tokens"], point["outputs"], point["inputs"]
        line |= {"flop": 2 * m * n * k, "moved_bytes": 2 * (m * k + n * k + m * n)}
    elif point["kind"] == "attention":
        live = point["context_tokens"] + point["query_tokens"]
        line |= {"flop": 4 * point["sequences"] * point["heads"] * point["head_dim"] * point["query_tokens"] * live,
                 "moved_bytes": 4 * point["sequences"] * point["kv_heads"] * live * point["head_dim"]}  # fmt: skip
    elif point["kind"] == "round":
        line |= {"tokens_per_round": 1.0 + 0.7 * (point["gamma"] > 0), "accepted": 0.7 * (point["gamma"] > 0)}
    else:
        line |= {"parameters": SHAPES[point["model"]].parameters}
        if point["kind"] == "step":
            line["live_tokens"] = point["context_tokens"] + point["tokens"]
    return line
