"""Ours, a one-event-per-step SimPy version and Dynamo's offline replay on the same offered load, interleaved in one run.

    python benchmarks/peers.py [--requests 1000 10000 100000] [--repeats 5] [--peer-python PATH] [--json FILE]

Llama-3.1-8B on one H100, 512/256 tokens, 8 requests/s. Each run is a process of its own, warmed up on 100 requests; contenders
take turns, so that a slow minute of the machine hits all of them. What counts is the ratio of medians.

The peer is the package ai-dynamo, in this interpreter or in the one given by --peer-python; README.md says how to install it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import Bar, Stopwatch, in_child, machine, print_bars, spread, write_json

SIZES = (1_000, 10_000, 100_000)
MOST_SIMPY_REQUESTS = 10_000
"""SimPy's time is proportional to the requests; beyond this many one would only wait."""
LEAST_RATIO = 20.0
AGREEMENT = 0.01
"""Relative, of mean TTFT and TPOT: more would mean that the SimPy version simulates something else."""

TITLES = {
    "ours": "memwall",
    "simpy": "SimPy, one event per step",
    "peer": "ai-dynamo, arrivals every 125 ms",
    "peer-poisson": "ai-dynamo, Poisson arrivals",
}


def run_ours(requests: int) -> dict[str, float]:
    """One simulation of the stock case."""
    from cases import CASES

    from simulator import simulate

    build = CASES["plain"].build
    simulate(build(100))
    clock = Stopwatch()
    summary = simulate(build(requests)).main.summary
    return {**clock.read(), "completed": summary.requests["finished"]} | {
        "ttft_s": summary.ttft_s.mean, "tpot_s": summary.tpot_s.mean, "simulated_s": summary.makespan_s,
    }  # fmt: skip


def run_simpy(requests: int) -> dict[str, float]:
    """The same requests through the SimPy version."""
    import numpy as np
    from cases import CASES
    from simpy_steps import simulate_steps

    from simulator.serving.traffic import generate

    scenario = CASES["plain"].build(requests)
    clock = Stopwatch()
    traffic = generate(scenario.traffic, scenario.seed)
    ttft_s, tpot_s = simulate_steps(scenario.deployment(), traffic)
    read = clock.read()
    measured = np.arange(requests) >= int(scenario.warmup * requests)
    return {**read, "completed": int(np.isfinite(tpot_s).sum())} | {
        "ttft_s": float(ttft_s[measured].mean()), "tpot_s": float(tpot_s[measured].mean()),
    }  # fmt: skip


def peer_interpreter(given: str | None) -> tuple[str | None, str]:
    """The interpreter that has the peer, or None and why not."""
    if given is None:
        found = importlib.util.find_spec("dynamo") is not None
        return (sys.executable, "") if found else (None, "ai-dynamo is not installed here; name one by --peer-python")
    done = subprocess.run([given, "-c", "import dynamo.replay"], capture_output=True, text=True, check=False)
    return (given, "") if done.returncode == 0 else (None, f"{given}: {done.stderr.strip().splitlines()[-1]}")


def once(contender: str, requests: int, peer: str | None) -> dict[str, Any]:
    """One run of one contender in a process of its own."""
    if contender in ("peer", "peer-poisson"):
        script = str(Path(__file__).with_name("peer_replay.py"))
        arrivals = "poisson" if contender == "peer-poisson" else "fixed"
        return in_child(script, str(requests), arrivals, python=peer or sys.executable)
    return in_child(__file__, "--one", contender, "--requests", str(requests))


def report(requests: int, repeats: int, peer: str | None, judged: bool) -> tuple[dict[str, Any], list[Bar]]:
    """Prints one line per contender at one size; returns the figures and their bars, the peer's only if it is `judged` here."""
    contenders = ["ours"]
    if requests <= MOST_SIMPY_REQUESTS:
        contenders.append("simpy")
    if peer is not None:
        contenders += ["peer", "peer-poisson"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name in contenders:
            runs[name].append(once(name, requests, peer))
            assert runs[name][-1]["completed"] == requests, f"{name} must complete all {requests} requests"
    medians = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    print(f"\n{requests:,} requests")
    print(f"{'':34} {'seconds':>26} {'CPU s':>8} {'requests/s':>11} {'ours is':>9} {'TTFT ms':>8} {'TPOT ms':>8}")
    for name, found in runs.items():
        print(
            f"{TITLES[name]:34} {spread([run['seconds'] for run in found]):>26} "
            f"{statistics.median(run['cpu_s'] for run in found):8.3f} {requests / medians[name]:11,.0f} "
            f"{medians[name] / medians['ours']:8.1f}× {found[0]['ttft_s'] * 1e3:8.2f} {found[0]['tpot_s'] * 1e3:8.3f}",
            flush=True,
        )
    bars = []
    if "simpy" in runs:
        ours, theirs = runs["ours"][0], runs["simpy"][0]
        off = max(abs(theirs[name] / ours[name] - 1.0) for name in ("ttft_s", "tpot_s"))
        bars.append(
            Bar(f"SimPy and ours disagree, {requests:,} requests", AGREEMENT * 100, off * 100, "%", at_least=False)
        )
    if "peer" in runs and judged:
        ratio = medians["peer"] / medians["ours"]
        bars.append(Bar(f"ours over ai-dynamo, {requests:,} requests", LEAST_RATIO, ratio, "×"))
    return {"requests": requests, "medians_s": medians, "runs": runs}, bars


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=list(SIZES), help="sizes (10^3, 10^4, 10^5)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contender at each size (5)")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter that has ai-dynamo, where this one has not")
    parser.add_argument("--json", metavar="FILE", help="figures, machine and bars")
    parser.add_argument("--one", choices=["ours", "simpy"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = run_ours if arguments.one == "ours" else run_simpy
        print(json.dumps(run(arguments.requests[0])))
        return
    print(*(f"{key} {value}" for key, value in machine().items()), sep=", ")
    peer, why_not = peer_interpreter(arguments.peer_python)
    if peer is None:
        print(f"peer skipped: {why_not}")
    documents, bars = [], []
    for requests in sorted(arguments.requests):
        # Small sizes are mostly reading files and pricing a pass, which we do and the peer does not.
        document, found = report(requests, arguments.repeats, peer, requests == max(arguments.requests))
        documents.append(document)
        bars += found
    print_bars(bars)
    write_json(arguments.json, {"sizes": documents, "peer": why_not or "measured"}, bars)


if __name__ == "__main__":
    main()
