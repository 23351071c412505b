"""A simulation's YAML, read back, gives the same simulation to the last bit, whatever was changed; so does the command line."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import catalog, load_scenario, simulate
from simulator.cli import main
from simulator.figures.page import scenario_yaml
from simulator.output.columns import request_bytes

LENGTHS = {"prompt": {"kind": "lognormal", "median": 300, "p95": 1500, "max": 4000}, "output": 60}
BASE = "chat-8b-h100-eagle"
CHANGES = {
    "gamma arrivals": {"traffic": {"kind": "gamma", "burstiness": 0.3, "rate_per_s": 7.3, "requests": 150, "lengths": LENGTHS}},
    "closed loop": {"traffic": {"kind": "closed-loop", "users": 9, "think_time_s": 0.7, "requests": 120, "lengths": LENGTHS}},
    "stages": {"traffic": {"kind": "poisson", "requests": 150, "lengths": LENGTHS,
                           "stages": [{"duration_s": 10, "rate_per_s": 3}, {"duration_s": 10, "rate_per_s": 20}]}},
    "bundled traffic": {"traffic": "clients", "load": {"requests": 150, "rate_per_s": 3.7}},
    "conversations": {"traffic": "agents-multi-turn", "load": {"requests": 120}},
    "classes": {"traffic": "mixed-classes", "load": {"requests": 150, "rate_per_s": 9.1}},
    "awkward numbers": {"traffic": {"kind": "poisson", "rate_per_s": 1e-5, "requests": 5, "lengths": LENGTHS}, "seed": 2**62,
                        "slo": {"ttft_s": 1 / 3, "tpot_s": "35 ms"}, "warmup": 0.1},
    "model and gpu": {"model": "llama-3.1-70b", "gpu": "h200", "tp": 2, "speculation": {
        "draft": "llama-3.1-8b", "gamma": 2, "acceptance": [0.9, 0.7]}},
    "acceptance within requests": {"speculation": {"draft": "llama-3.2-1b", "gamma": 6, "acceptance": {
        "alpha": 0.73, "request_icc": 0.12, "stretch_icc": 0.3, "stretch_tokens": 40}}},
    "one number": {"speculation": {"draft": "llama-3.2-1b", "acceptance": {"length": 2.6, "at_gamma": 4}}},
    "loops": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": {
        "alpha": 0.6, "repetition": {"every_tokens": 400, "tokens": 60, "conditional": 0.98}}}},
    "n-gram": {"speculation": {"draft": "ngram", "gamma": 3, "acceptance": {"alpha": 0.6, "match_probability": 0.4}}},
    "tree": {"speculation": {"draft": "eagle-llama-3.1-8b", "tree": {"nodes": 12, "depth": 4}}},
    "dynamic tree": {"speculation": {"draft": "eagle-llama-3.1-8b", "tree": {
        "nodes": 20, "depth": 4, "kind": "dynamic", "top_k": 6}}},
    "goodput policy": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": 0.7, "policy": "goodput"}},
    "off above": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": 0.7, "policy": {"off_above": 6}}},
    "table": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": 0.7, "policy": {
        "table": {"batches": [1, 4, 16], "gamma": [5, 2, 0]}}}},
    "per request": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": 0.7, "policy": "per-request"}},
    "oracle": {"speculation": {"draft": "llama-3.2-1b", "gamma": 5, "acceptance": 0.7, "policy": "oracle"}},
    "drafter's own settings": {"speculation": {"draft": "llama-3.2-1b", "gamma": 2, "acceptance": 0.7, "draft_tp": 1,
                                               "draft_quantization": {"weights": "fp8"}}, "tp": 2},
    "vllm's own words": {"speculation": {"vllm": '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}',
                                         "acceptance": {"alpha": 0.5, "match_probability": 0.5}}},
    "engine": {"engine": {"name": "sglang", "max_sequences": 7, "max_batched_tokens": 700, "prefix_caching": False,
                          "preemption": "swap", "swap_space_bytes": "4 GB", "queue_timeout_s": "20 s", "max_waiting": 40,
                          "graph_capture_sizes": [], "order": "shortest"}},
    "formats": {"quantization": {"weights": "fp8", "kv": "fp8"}, "gpu": "l40s"},
    "no speculation": {"speculation": None, "replicas": 3, "cluster": {"router": "power-of-two"}},
    "pools": {"speculation": None, "cluster": {"pools": [{"role": "prefill", "replicas": 1}, {"role": "decode", "replicas": 2}]}},
}  # fmt: skip


def same(one, other):
    """Whether two results are equal to the last bit."""
    assert [run.variant for run in one.runs] == [run.variant for run in other.runs]
    for a, b in zip(one.runs, other.runs, strict=True):
        for x, y in ((a.requests, b.requests), (a.rows, b.rows), (a.series, b.series), (a.held_s, b.held_s)):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert repr(a.summary) == repr(b.summary)


def again(scenario, folder):
    path = folder / "again.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    return load_scenario(path)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_scenarios_come_back(name, tmp_path):
    changes = {"load": {"requests": 150}, **CHANGES[name]}
    if isinstance(changes.get("traffic"), dict):
        changes["load"] = {"rate_per_s": None}  # the traffic brings its own
    scenario = load_scenario(BASE, **changes)
    if "speculation" in CHANGES[name] and CHANGES[name]["speculation"] is None:
        scenario = scenario.model_copy(update={"speculation": None})
    read = again(scenario, tmp_path)
    assert read.model_dump() == scenario.model_dump()
    same(simulate(read), simulate(scenario))


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_bundled_scenarios_come_back(name, tmp_path):
    scenario = load_scenario(name, load={"requests": 60})
    read = again(scenario, tmp_path)
    assert read.model_dump() == scenario.model_dump()
    same(simulate(read), simulate(scenario))


@pytest.mark.parametrize("changes", [{}, {"limit": 40}, {"repeat": 2}, {"rate_per_s": 5.5}, {"time_scale": 0.5},
                                     {"resample": True, "rate_per_s": 4.0, "requests": 90, "burstiness": 0.4}])  # fmt: skip
def test_a_trace_beside_its_scenario_comes_back(changes, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [f"{i * 0.37:.2f},{100 + 7 * i},{5 + i % 9}" for i in range(60)]
    (folder / "trace.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows, "x,1,1"]))
    traffic = {"kind": "trace", "path": "trace.csv", **changes}
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100-sxm",
        "traffic": traffic,
        "speculation": CHANGES["off above"]["speculation"],
    }
    scenario = load_scenario(data, base=folder)
    read = again(scenario, folder)
    assert read.model_dump() == scenario.model_dump()
    one, other = simulate(read), simulate(scenario)
    same(one, other)
    assert one.traffic.dropped == other.traffic.dropped == ({} if "limit" in changes else {"unreadable time": 1})


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_command_line_writes_the_same_rows(suffix, tmp_path, monkeypatch, capsys):
    """What a page hands out as bytes is the file that ``memwall simulate again.yaml --rows`` writes."""
    scenario = load_scenario(BASE, load={"requests": 150, "rate_per_s": 6.25}, seed=11)
    here = request_bytes(simulate(scenario), suffix)
    again(scenario, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "again.yaml", "--rows", f"rows.{suffix}", "--no-progress", "--no-intervals"]) == 0
    assert (tmp_path / f"rows.{suffix}").read_bytes() == here
