"""The benchmark scripts on inputs so small that only their workings show; and that the SimPy yardstick simulates the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving.traffic import Requests, generate

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


# The yardstick


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"load": {"rate_per_s": 0.3}},
        {"load": {"rate_per_s": 30}},
        {"load": {"rate_per_s": 30}, "engine": {"name": "vllm", "max_batched_tokens": 600, "max_sequences": 40}},
    ],
)
def test_simpy_steps_agree_with_ours(changes):
    from simpy_steps import simulate_steps

    load = {"requests": 150, **changes.pop("load", {})}
    scenario = load_scenario("stock-8b-h100", load=load, **changes)
    result = simulate(scenario)
    ttft_s, tpot_s = simulate_steps(scenario.deployment(), result.traffic)
    requests = result.main.requests
    ours_s = requests["first_token_s"] - requests["arrival_s"]
    assert ttft_s.mean() == pytest.approx(ours_s.mean(), rel=0.01)
    ours_s = (requests["finish_s"] - requests["first_token_s"]) / (requests["output_tokens"] - 1)
    assert tpot_s.mean() == pytest.approx(ours_s.mean(), rel=0.01)


def test_a_lone_request_by_hand():
    from simpy_steps import StepTime, simulate_steps

    deployment = load_scenario("stock-8b-h100").deployment()
    one = Requests(
        arrival_s=np.array([3.0]),
        prompt_tokens=np.array([100]),
        output_tokens=np.array([3]),
        row=np.array([0]),
        think_s=None,
        users=0,
        rows_read=1,
        dropped={},
        source="by hand",
    )
    ttft_s, tpot_s = simulate_steps(deployment, one)
    cost, engine = deployment.target, deployment.engine
    step = StepTime(deployment)
    prompt_s = step.linear_s[1][100] + step.head_s[1] + cost.attention([100], [0])
    prompt_s += engine.host_s(1, gpu_s=0.0)  # it found the engine idle
    decode_s = [step.linear_s[0][1] + step.head_s[1] + cost.attention([1], [cached]) for cached in (100, 101)]
    decode_s = [pass_s + engine.host_s(1, gpu_s=pass_s) for pass_s in decode_s]
    assert ttft_s == pytest.approx([prompt_s])
    assert tpot_s == pytest.approx([sum(decode_s) / 2])


# What is measured


def test_every_case_has_as_many_requests_as_it_is_asked_for(memwall_data):
    from cases import CASES

    for case in CASES.values():
        scenario = case.build(123)
        assert len(generate(scenario.traffic, scenario.seed)) == 123


def test_growth_is_the_exponent_of_a_power_law():
    from measuring import growth

    sizes = [10_000, 100_000, 1_000_000]
    assert growth(sizes, [3e-6 * n**1.25 for n in sizes]) == pytest.approx(1.25)


def test_bars_are_met_from_the_right_side():
    from measuring import Bar

    assert Bar("speed", 10.0, 10.0, "/s").met
    assert not Bar("speed", 10.0, 9.9, "/s").met
    assert Bar("memory", 1.5, 1.4, "GB", at_least=False).met
    assert not Bar("memory", 1.5, 1.6, "GB", at_least=False).met


# The scripts


def test_speed_of_a_tiny_case(tmp_path):
    file = tmp_path / "speed.json"
    arguments = ("plain", "trace", "--requests", "200", "400", "--repeats", "1", "--json", str(file))
    printed = script("simulation_speed.py", *arguments, MEMWALL_DATA=str(tmp_path / "nothing"))
    assert "skipped: there is no" in printed  # the trace
    assert "plain, 400 requests" in printed
    document = json.loads(file.read_text())
    assert [size["requests"] for size in document["cases"]["plain"]["sizes"]] == [200, 400]
    assert document["cases"]["plain"]["sizes"][0]["peak_bytes"] > 10e6
    (bar,) = document["bars"]
    assert bar["met"] == (bar["measured"] >= bar["bar"] == 400_000)


def test_memory_of_streamed_records(tmp_path):
    file = tmp_path / "stream.json"
    script("simulation_speed.py", "stream", "--streamed", "200", "--json", str(file))
    document = json.loads(file.read_text())
    assert document["cases"]["stream"]["rows_bytes"] > 0
    (bar,) = document["bars"]
    assert 0.01 < bar["measured"] < 2.0


def test_speculation_is_timed_without_the_plain_run_beside_it():
    measured = json.loads(script("simulation_speed.py", "--one", "eagle", "--requests", "300"))
    assert set(measured) == {"seconds", "cpu_s", "fixed_s", "peak_bytes"}


def test_unknown_cases_are_named():
    with pytest.raises(subprocess.CalledProcessError) as caught:
        script("simulation_speed.py", "plane")
    assert "CASE=plane must be one of plain, speculation" in caught.value.stderr


def test_peers_without_the_peer(tmp_path):
    printed = script("peers.py", "--requests", "100", "--repeats", "1", "--peer-python", str(no_peer(tmp_path)))
    assert "peer skipped:" in printed
    assert "No module named 'dynamo'" in printed
    assert "SimPy, one event per step" in printed
    line = next(line for line in printed.splitlines() if line.startswith("SimPy and ours disagree"))
    assert line.endswith("met")


def test_peers_beside_a_peer_that_answers(tmp_path):
    file = tmp_path / "peers.json"
    arguments = ("--requests", "100", "--repeats", "2", "--peer-python", sys.executable, "--json", str(file))
    paths = [str(fake_peer(tmp_path)), os.environ.get("PYTHONPATH", "")]
    printed = script("peers.py", *arguments, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    assert "ai-dynamo, Poisson arrivals" in printed
    document = json.loads(file.read_text())
    (size,) = document["sizes"]
    assert {name: len(runs) for name, runs in size["runs"].items()} == {
        "ours": 2, "simpy": 2, "peer": 2, "peer-poisson": 2,
    }  # fmt: skip
    ratio = next(bar for bar in document["bars"] if bar["name"].startswith("ours over ai-dynamo"))
    assert ratio["measured"] == pytest.approx(size["medians_s"]["peer"] / size["medians_s"]["ours"])


def no_peer(folder: Path) -> Path:
    """An interpreter that has no packages at all."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    return python


def fake_peer(folder: Path) -> Path:
    """A package that answers as the peer does, at once."""
    package = folder / "dynamo"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "replay.py").write_text(
        "class Report:\n"
        "    def __init__(self, n, output):\n"
        "        self.summary = dict(completed_requests=n, total_output_tokens=n * output, duration_ms=1.0,\n"
        "                            mean_ttft_ms=1.0, mean_tpot_ms=1.0)\n"
        "def run_synthetic_trace_replay(prompt, output, n, *, replay_mode, arrival_interval_ms=0.0, request_rate=0.0):\n"
        "    assert replay_mode == 'offline' and (arrival_interval_ms, request_rate) in ((125.0, 0.0), (0.0, 8.0))\n"
        "    return Report(n, output)\n"
    )
    metadata = folder / "ai_dynamo-0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ai-dynamo\nVersion: 0.0\n")
    return folder
