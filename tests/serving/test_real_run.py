"""A real vLLM 0.19.0 run replayed: 300 requests, an RTX 4090 whose KV cache is full for 160 of 184 seconds.

No time of memwall was fitted to this run: kernels come from the layer timings of the same card (`calibration`), host times
from H100 rows, rules from vLLM V1; its KV capacity is given. Targets are 5 % for mean and median and 8 % for the 95th percentile; reached are

                 mean     median      95 %             measured          simulated
    TTFT       +0.03 %   −1.6 %    +7.7 %      65.5  60.1 122.7 s    65.5  59.2 132.2 s
    TPOT       −1.1 %    −0.7 %    −6.1 %      32.4  30.8  48.1 ms   32.1  30.5  45.1 ms
    E2E        −0.3 %    +2.9 %    −0.1 %      86.6  83.4 149.0 s    86.4  85.9 148.8 s
    output     +0.3 %                           1066 tokens/s         1069 tokens/s

so no target is missed. The 95th percentile of TTFT is no smooth figure here: requests are admitted in waves some 15 s apart,
13 of the 300 came with the last one, and 15 or fewer behind the percentile decide between +1 and +8 % (host time of 0.6 or
0.65 ms a step does). Second by second, 1.4 of 32 running and 2.4 of 109 waiting requests and 1.6 points of 93 % KV
occupancy are apart on average. Bounds are what is reached, rounded up, and 2 % at least.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.cost.efficiency import load_efficiency
from simulator.serving import state
from simulator.serving.simulation import Run

RUN = "engine-runs/rtx4090-llama-3.1-8b-vllm-0.19.0"
STATISTICS = {"mean": np.mean, "median": np.median, "95 %": lambda values: np.percentile(values, 95)}
BOUNDS = {
    ("ttft", "mean"): 0.02, ("ttft", "median"): 0.02, ("ttft", "95 %"): 0.08,
    ("tpot", "mean"): 0.02, ("tpot", "median"): 0.02, ("tpot", "95 %"): 0.07,
    ("e2e", "mean"): 0.02, ("e2e", "median"): 0.03, ("e2e", "95 %"): 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """The run's requests on one clock that starts with the first arrival, s."""

    arrival_s: Any
    prompt_tokens: Any
    output_tokens: Any
    first_token_s: Any
    finish_s: Any
    blocks: int
    settings: dict[str, int]
    series: dict[str, Any]


@pytest.fixture(scope="module")
def measured(memwall_data) -> Measured:
    folder: Path = memwall_data / RUN
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    column = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "request_id"}
    # Arrivals are wall time, the rest one monotonic clock: the request that was queued soonest gives the difference.
    arrival_s = column["arrival_time"] + (column["queued_ts"] - column["arrival_time"]).min()
    start_s = arrival_s.min()
    meta = json.loads((folder / "meta.json").read_text())
    given = meta["engine_kwargs"]
    with (folder / "timeseries.csv").open() as file:
        ticks = list(csv.DictReader(file))
    return Measured(
        arrival_s - start_s, column["input_toks"], column["output_toks"], column["first_token_ts"] - start_s,
        column["last_token_ts"] - start_s, meta["kv_cache"]["num_gpu_blocks"],
        {"max_sequences": given["max_num_seqs"], "max_batched_tokens": given["max_num_batched_tokens"],
         "block_tokens": meta["kv_cache"]["block_size"]},
        {name: np.array([float(tick[name]) for tick in ticks]) for name in ticks[0]},
    )  # fmt: skip


def replay(measured: Measured, folder: Path) -> Run:
    """The run's requests on its engine settings, with exactly its KV blocks."""
    trace = folder / "requests.jsonl"
    rows = zip(
        measured.arrival_s.tolist(), measured.prompt_tokens.tolist(), measured.output_tokens.tolist(), strict=True
    )
    names = ("arrival_s", "prompt_tokens", "output_tokens")
    trace.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    scenario = {"model": "llama-3.1-8b", "gpu": "rtx-4090", "warmup": 0, "engine": {"name": "vllm", **measured.settings},
                "traffic": {"kind": "trace", "path": str(trace)}}  # fmt: skip
    budget = load_scenario(scenario).deployment().fit()
    pool_bytes = (measured.blocks + 0.5) * measured.settings["block_tokens"] * budget.kv_bytes_per_token
    share = (budget.usable_bytes - budget.kv_bytes + pool_bytes) / budget.hbm_bytes
    scenario["engine"]["memory_utilization"] = share
    run = simulate(load_scenario(scenario)).main
    assert run.total_blocks == measured.blocks
    return run


@pytest.fixture(scope="module")
def run(measured, tmp_path_factory) -> Run:
    return replay(measured, tmp_path_factory.mktemp("replay"))


def errors(measured: Measured, run: Run) -> dict[tuple[str, str], float]:
    """simulated/measured − 1 of each figure and statistic."""
    requests = run.requests[np.argsort(run.rows)]
    figures = {}
    for name, first_s, last_s, arrival_s in (
        ("measured", measured.first_token_s, measured.finish_s, measured.arrival_s),
        ("simulated", requests["first_token_s"], requests["finish_s"], requests["arrival_s"]),
    ):
        figures[name] = {
            "ttft": first_s - arrival_s,
            "e2e": last_s - arrival_s,
            "tpot": (last_s - first_s) / (measured.output_tokens - 1),
        }
    return {
        (kind, name): float(of(figures["simulated"][kind]) / of(figures["measured"][kind]) - 1.0)
        for kind in ("ttft", "tpot", "e2e") for name, of in STATISTICS.items()
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "statistic"), BOUNDS)
def test_latency(measured, run, kind, statistic):
    error = errors(measured, run)[kind, statistic]
    assert abs(error) <= BOUNDS[kind, statistic], f"{kind} {statistic}: {error:+.1%}"


def test_throughput(measured, run):
    took_s = run.requests["finish_s"].max() - run.requests["arrival_s"].min()
    assert took_s == pytest.approx(measured.finish_s.max(), rel=0.02)


def test_running_waiting_and_kv_second_by_second(measured, run):
    series = dict(zip(state.SERIES, run.series, strict=True))
    second = (np.arange(run.series.shape[1]) * run.bucket_s).astype(int)
    busy_s = np.bincount(second, series["busy_s"])
    seconds = min(len(busy_s), len(measured.series["t"]))
    limits = {"running": 2.0, "waiting": 3.0, "kv_cache_pct": 2.0}
    names = {
        "running": ("running_s", 1.0),
        "waiting": ("waiting_s", 1.0),
        "kv_cache_pct": ("kv_block_s", 100.0 / measured.blocks),
    }
    for name, (ours, unit) in names.items():
        simulated = unit * np.bincount(second, series[ours])[:seconds] / busy_s[:seconds]
        apart = np.abs(simulated - measured.series[name][:seconds])
        assert apart.mean() <= limits[name], f"{name}: {apart.mean():.1f} apart on average"


def test_the_familys_prior_would_have_missed(measured, tmp_path, monkeypatch):
    """What the calibration is worth: on the L40S's efficiencies, scaled by the datasheets, the same replay is far off."""
    from simulator.cost import forward

    monkeypatch.setattr(forward, "load_efficiency", lambda gpu: load_efficiency(replace(gpu, name="(unmeasured)")))
    missed = errors(measured, replay(measured, tmp_path))
    assert min(missed[kind, "mean"] for kind in ("ttft", "tpot", "e2e")) > 0.15
