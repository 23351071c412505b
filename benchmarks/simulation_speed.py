"""Requests simulated per second, how the time grows with their number, and peak memory.

    python benchmarks/simulation_speed.py [--repeats 5] [--requests 1000 10000 100000] [--scenario NAME ...]

Every measurement is a process of its own (one core, the compiled loop read from its cache and warmed up on 100 requests),
so that peak memory belongs to it. Each scenario is timed as it stands, with speculation and without where it has both.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time

SCENARIOS = ("stock-8b-h100", "chat-70b-h200")


def measure(scenario: str, requests: int, speculation: bool) -> dict[str, float]:
    """Seconds of one simulation, its requests per second and this process's peak memory."""
    from simulator import load_scenario, simulate

    def build(n: int) -> object:
        chosen = load_scenario(scenario, load={"requests": n})
        return chosen if speculation else chosen.model_copy(update={"speculation": None})

    simulate(build(100))  # type: ignore[arg-type]
    start = time.perf_counter()
    result = simulate(build(requests))  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    simulated = requests * len(result.runs)
    return {"seconds": seconds, "requests_per_s": simulated / seconds, "peak_bytes": peak_bytes}


def in_child(scenario: str, requests: int, speculation: bool) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", json.dumps([scenario, requests, speculation])]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def report(scenario: str, speculation: bool, sizes: list[int], repeats: int) -> None:
    """One line per size and the exponent of growth (1 is linear)."""
    from simulator import load_scenario

    if speculation and load_scenario(scenario).speculation is None:
        return
    print(f"\n{scenario}, {'speculation on and off' if speculation else 'plain decoding'}")
    print(f"{'requests':>10} {'seconds':>9} {'spread':>17} {'requests/s':>11} {'peak MB':>8}")
    medians = []
    for n in sizes:
        runs = [in_child(scenario, n, speculation) for _ in range(repeats)]
        seconds = [run["seconds"] for run in runs]
        medians.append(statistics.median(seconds))
        rate = statistics.median(run["requests_per_s"] for run in runs)
        peak = max(run["peak_bytes"] for run in runs) / 1e6
        spread = f"{min(seconds):.3f} – {max(seconds):.3f}"
        print(f"{n:10,d} {medians[-1]:9.3f} {spread:>17} {rate:11,.0f} {peak:8.0f}", flush=True)
    if len(sizes) > 1:
        growth = math.log(medians[-1] / medians[-2]) / math.log(sizes[-1] / sizes[-2])
        print(f"growth from {sizes[-2]:,} to {sizes[-1]:,} requests: time ~ n^{growth:.2f}")


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    for scenario in arguments.scenario:
        for speculation in (False, True):
            report(scenario, speculation, sorted(arguments.requests), arguments.repeats)


if __name__ == "__main__":
    main()
