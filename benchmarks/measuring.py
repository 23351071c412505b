"""What the benchmarks share: processes of their own, medians, the exponent of growth, bars, and what machine it was."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bar:
    """What a figure must reach."""

    name: str
    bar: float
    measured: float
    unit: str
    at_least: bool = True
    """False where the figure must stay below the bar."""

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


class Stopwatch:
    """Runs from its creation on."""

    def __init__(self) -> None:
        self.start_s, self.start_cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds by the clock, and those in which this process had a CPU."""
        return {"seconds": time.perf_counter() - self.start_s, "cpu_s": time.process_time() - self.start_cpu_s}


def in_child(script: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """What `script` prints as JSON in a process of its own, so that caches, heap and peak memory are its own."""
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{Path(script).name} {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    # getrusage's figure would begin with that of the process we were started from.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent b of time ~ n^b, least squares over all sizes in log-log; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and the least and largest in brackets."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine() -> dict[str, Any]:
    """Processor, cores and versions: what the figures belong to."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "date": date.today().isoformat(),
        "processor": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numba", "numpy", "simpy")},
    }


def print_bars(bars: Sequence[Bar]) -> None:
    """One line per bar: required, measured, met or missed."""
    print(f"\n{'bar':58} {'required':>16} {'measured':>12}")
    for bar in bars:
        digits = 0 if abs(bar.measured) >= 100 else 2
        required = f"{'≥' if bar.at_least else '≤'} {bar.bar:,g} {bar.unit}"
        print(f"{bar.name:58} {required:>16} {bar.measured:12,.{digits}f}  {'met' if bar.met else 'MISSED'}")


def write_json(path: str | None, document: dict[str, Any], bars: Sequence[Bar]) -> None:
    """Everything that was printed, with machine and bars, as a file; nothing without `path`."""
    if path is None:
        return
    judged = [{**asdict(bar), "met": bar.met} for bar in bars]
    Path(path).write_text(json.dumps({"machine": machine(), **document, "bars": judged}, indent=2) + "\n")
