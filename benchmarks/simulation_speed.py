"""Requests simulated per second, how the time grows with their number, peak memory, and how long a first call takes.

    python benchmarks/simulation_speed.py [CASE ...] [--requests 10000 100000 1000000] [--repeats 5] [--json FILE]

Every measurement is a process of its own: one core, the compiled loop read from its cache and warmed up on 100 requests of the
same case. Figures are medians over the processes; growth is fitted over all sizes. `simulate` runs a scenario with a drafter
also without it; the figure of such a case is the time of both less that of plain decoding alone. Where the CPU's seconds
are much fewer than the clock's, the machine was busy with something else, and the figures are not worth keeping.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Bar, Stopwatch, growth, in_child, machine, peak_bytes, print_bars, spread, write_json

SIZES = (10_000, 100_000, 1_000_000)
WARM_UP = 100
MOST_MEMORY_BYTES = 1.5e9
COLD_START_S, WARM_START_S = 15.0, 1.5
STREAMED_REQUESTS, MOST_STREAMED_BYTES = 10_000_000, 2e9


def measure(case: str, requests: int) -> dict[str, float]:
    """Seconds of one simulation, by the clock and of CPU time, and this process's peak memory."""
    from cases import CASES

    from simulator import simulate

    def timed(n: int, *, speculation: bool) -> dict[str, float]:
        scenario = CASES[case].build(n)
        if not speculation:
            scenario = scenario.model_copy(update={"speculation": None})
        clock = Stopwatch()
        result = simulate(scenario)
        read = clock.read()
        # A simulation that stopped early would be the fastest of all.
        assert all(run.summary.requests == {"finished": n} for run in result.runs), f"all {n} requests must finish"
        return read

    def alone(n: int) -> dict[str, float]:
        both = timed(n, speculation=speculative)
        if not speculative:
            return {**both, "peak_bytes": peak_bytes()}
        most_bytes, plain = peak_bytes(), timed(n, speculation=False)
        return {name: both[name] - plain[name] for name in both} | {"peak_bytes": most_bytes}

    speculative = CASES[case].build(1).speculation is not None
    timed(WARM_UP, speculation=speculative)
    fixed_s = alone(WARM_UP)["seconds"]
    return {**alone(requests), "fixed_s": fixed_s}


def report(name: str, sizes: list[int], repeats: int) -> tuple[dict[str, Any], list[Bar]]:
    """Prints one line per size and the exponent of growth; returns them and the bars they are held against."""
    from cases import CASES

    case = CASES[name]
    print(f"\n{name}: {case.title}")
    if case.needs is not None and not case.needs.exists():
        print(f"skipped: there is no {case.needs} (set MEMWALL_DATA)")
        return {"title": case.title, "skipped": f"no {case.needs.name}"}, []
    runs = [[in_child(__file__, "--one", name, "--requests", str(n)) for n in sizes] for _ in range(repeats)]
    by_size = list(zip(*runs, strict=True))
    print(f"{'requests':>10} {'seconds':>26} {'requests/s':>11} {'µs/request':>11} {'CPU s':>8} {'peak MB':>8}")
    rows = []
    for n, measured in zip(sizes, by_size, strict=True):
        seconds = [run["seconds"] for run in measured]
        peak = max(run["peak_bytes"] for run in measured)
        cpu_s = [run["cpu_s"] for run in measured]
        rate = n / statistics.median(seconds)
        print(
            f"{n:10,d} {spread(seconds):>26} {rate:11,.0f} {1e6 / rate:11.2f} {statistics.median(cpu_s):8.3f} "
            f"{peak / 1e6:8.0f}",
            flush=True,
        )
        rows.append({"requests": n, "seconds": seconds, "cpu_s": cpu_s, "requests_per_s": rate, "peak_bytes": peak})
    document: dict[str, Any] = {"title": case.title, "sizes": rows}
    if len(sizes) > 1:
        # What does not depend on n (files, the price of a pass) would make growth look slower than it is.
        fixed_s = statistics.median(run["fixed_s"] for measured in by_size for run in measured)
        medians = [statistics.median(row["seconds"]) for row in rows]
        document["growth"] = growth(sizes, medians)
        document["growth_of_the_rest"] = growth(sizes, [max(s - fixed_s, 1e-9) for s in medians])
        document["fixed_s"] = fixed_s
        print(
            f"growth: time ~ n^{document['growth']:.3f}; without the {fixed_s:.3f} s of {WARM_UP} requests "
            f"n^{document['growth_of_the_rest']:.3f}"
        )
    label = f"{name}, {sizes[-1]:,} requests"
    bars = [Bar(label, case.bar_per_s, rows[-1]["requests_per_s"], "/s")]
    if sizes[-1] == 1_000_000:
        bars.append(
            Bar(f"{label}: memory", MOST_MEMORY_BYTES / 1e9, rows[-1]["peak_bytes"] / 1e9, "GB", at_least=False)
        )
    return document, bars


def start_up(repeats: int) -> tuple[dict[str, Any], list[Bar]]:
    """Seconds of ``memwall simulate`` on 100 requests: never compiled before, and after that."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            copy_of_project(Path(folder))
            cold.append(seconds_of_simulate(Path(folder)))
            warm += [seconds_of_simulate(Path(folder)) for _ in range(3)]
    print("\nmemwall simulate stock-8b-h100 --requests 100, a process from start to end")
    print(f"cold (a fresh copy of the package, nothing compiled)  {spread(cold)} s")
    print(f"warm                                                  {spread(warm)} s")
    bars = [
        Bar("cold start", COLD_START_S, statistics.median(cold), "s", at_least=False),
        Bar("warm start", WARM_START_S, statistics.median(warm), "s", at_least=False),
    ]
    return {"cold_s": cold, "warm_s": warm}, bars


def streamed(requests: int) -> tuple[dict[str, Any], list[Bar]]:
    """Peak memory and seconds of ``memwall simulate --stream`` on so many requests, each written as a row of a Parquet file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        command = [sys.executable, "-m", "simulator.cli", "simulate", "stock-8b-h100", "--requests", str(requests)]
        start = time.perf_counter()
        child = subprocess.Popen(
            [*command, "--stream", "--rows", str(rows), "--no-progress"], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"memwall simulate --requests {requests} --stream --rows: exit code {child.returncode}")
        written_bytes = rows.stat().st_size
    most_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"\nmemwall simulate stock-8b-h100 --requests {requests} --stream --rows rows.parquet, a process from start to end"
    )
    print(
        f"{seconds:.1f} s, {requests / seconds:,.0f} requests/s, peak {most_bytes / 1e6:,.0f} MB, rows {written_bytes / 1e6:,.0f} MB"
    )
    bar = Bar(
        f"streamed records, {requests:,} requests: memory",
        MOST_STREAMED_BYTES / 1e9,
        most_bytes / 1e9,
        "GB",
        at_least=False,
    )
    return {"requests": requests, "seconds": seconds, "peak_bytes": most_bytes, "rows_bytes": written_bytes}, [bar]


def copy_of_project(folder: Path) -> None:
    """The package and its bundled files, without anything compiled."""
    project = Path(__file__).resolve().parents[1]
    for part in ("simulator", "hardware_profiles", "workloads"):
        shutil.copytree(project / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))


def seconds_of_simulate(folder: Path) -> float:
    """Of one process that runs the copy in `folder`, its caches there too."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    command = ["-m", "simulator.cli", "simulate", "stock-8b-h100", "--requests", "100", "--no-progress"]
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", metavar="CASE", nargs="*", help="plain, speculation, eagle, router, trace, start (all)"
    )
    parser.add_argument("--requests", type=int, nargs="+", default=list(SIZES), help="sizes (10^4, 10^5, 10^6)")
    parser.add_argument("--repeats", type=int, default=5, help="processes per size (5)")
    parser.add_argument(
        "--streamed", metavar="N", type=int, default=STREAMED_REQUESTS, help="requests of case stream (10^7)"
    )
    parser.add_argument("--json", metavar="FILE", help="figures, machine and bars")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.requests[0])))
        return
    from cases import CASES

    known = [*CASES, "start", "stream"]
    for name in arguments.cases:
        if name not in known:
            parser.error(f"CASE={name} must be one of {', '.join(known)}")
    print(*(f"{key} {value}" for key, value in machine().items()), sep=", ")
    documents, bars = {}, []
    for name in arguments.cases or known:
        if name == "start":
            documents[name], found = start_up(max(1, arguments.repeats // 2))
        elif name == "stream":
            documents[name], found = streamed(arguments.streamed)
        else:
            documents[name], found = report(name, sorted(arguments.requests), arguments.repeats)
        bars += found
    print_bars(bars)
    write_json(arguments.json, {"cases": documents}, bars)


if __name__ == "__main__":
    main()
