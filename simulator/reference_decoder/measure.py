"""Measure a device: bandwidth, kernels, whole steps, drafts, rounds and serving, as far as a time budget goes.

    python -m simulator.reference_decoder.measure --device cuda --budget 8m --out h200.jsonl
    python -m simulator.reference_decoder.measure --device cpu --budget 8m --out cpu.jsonl --resume

Needs PyTorch and numpy only. Lines are described in `measurements`; what is measured in which order, in `points`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from simulator.reference_decoder.canary import ATTEMPTS, Canary
from simulator.reference_decoder.clock import Clock
from simulator.reference_decoder.corpus import CorpusError
from simulator.reference_decoder.graphs import NO_GRAPH
from simulator.reference_decoder.measurements import MeasurementError, MeasurementFile, key_of
from simulator.reference_decoder.model import DTYPES
from simulator.reference_decoder.pair import RECIPES
from simulator.reference_decoder.points import SHARES, SUITES, TOY, Point, Suite, interleave
from simulator.reference_decoder.probes import Probe, TooLarge
from simulator.reference_decoder.schema import Json
from simulator.reference_decoder.shapes import SHAPES
from simulator.reference_decoder.training import TooLong

OK, INTERRUPTED, USER_ERROR = 0, 130, 2
POINTS_PER_BUDGET = 200
"""No point may take more than about so small a part of the budget, so that many are measured rather than few well."""
TRAINING_SHARE = 0.25
"""Most of the budget that training a pair may take, which on a CPU is about a minute: short runs go without."""
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of ``8m``, ``90s``, ``0.5h`` or ``300``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) == 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a time above zero like 90s, 8m or 1h")
    return float(match[1]) * UNITS_S[match[2]]


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks and power limit as the tool reports them; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    first = done.stdout.splitlines()[0].split(",") if done.stdout.strip() else []
    return dict(zip(fields, (value.strip() for value in first), strict=False))


def header_of(device: torch.device, suite: Suite, clock: Clock, options: argparse.Namespace) -> Json:
    """The conditions of this run."""
    cuda = device.type == "cuda"
    smi = nvidia_smi() if cuda else {}
    power = smi.get("power.limit", "")
    names = {*suite.targets, *suite.drafts, *suite.drafts.values(), suite.pair, RECIPES[suite.pair].draft}
    properties: Any = torch.cuda.get_device_properties(device) if cuda else None
    return {
        "device_kind": device.type,
        "device": properties.name if cuda else _cpu_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "driver": smi.get("driver_version"),
        "clocks": {f"{name}_mhz": value for name, value in smi.items() if name.startswith("clocks")} or None,
        "power_limit_w": float(power) if re.fullmatch(r"[\d.]+", power) else None,
        "memory_bytes": properties.total_memory if cuda else _host_memory_bytes(),
        "last_cache_bytes": clock.last_cache_bytes,
        "sm_count": properties.multi_processor_count if cuda else None,
        "compute_capability": f"{properties.major}.{properties.minor}" if cuda else None,
        "shared_memory_per_sm_bytes": getattr(properties, "shared_memory_per_multiprocessor", None),
        "dtype": suite.dtype,
        "attention": options.attention,
        "fuse": options.fuse,
        "threads": torch.get_num_threads(),
        "toy": options.toy,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{f"shape_of_{name}": asdict(SHAPES[name]) for name in sorted(names)},
    }


def _host_memory_bytes() -> int | None:
    try:
        match = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.M)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return match[1].strip() if match else platform.processor() or platform.machine()


def run(
    file: MeasurementFile, probe: Probe, plan: dict[str, list[Point]], budget_s: float, canary: Canary | None = None
) -> None:
    """Measure the plan's points until the time is up; with a canary, each when the machine is quiet."""
    begin_s = time.perf_counter()
    spent_s = dict.fromkeys(plan, 0.0)
    todo = {kind: [point for point in points if key_of(point) not in file.done] for kind, points in plan.items()}
    total = sum(map(len, todo.values()))
    for number, point in enumerate(interleave(todo, spent_s), 1):
        start_s = time.perf_counter()
        if start_s - begin_s >= budget_s:
            _say(f"time is up after {number - 1} of {total} points; --resume measures more")
            return
        trained_s = probe.training_s
        try:
            result = _quietly(probe, point, canary)
        except (TooLong, CorpusError) as error:
            # Not recorded as skipped: a run with more time, or on a complete Python, may still measure it.
            _say(f"{point['kind']} is left out: {error}")
            continue
        file.append(point | result)
        now_s = time.perf_counter()
        # Training has a limit of its own; charged to the kind, it would leave none of its share for what it was done for.
        spent_s[point["kind"]] += now_s - start_s - (probe.training_s - trained_s)
        _say(f"[{now_s - begin_s:5.0f} of {budget_s:.0f} s] {number}/{total} {_line(point, result)}")
    _say(f"all {total} points measured")


def _quietly(probe: Probe, point: Point, canary: Canary | None) -> Json:
    if canary is None:
        return _measured(probe, point)
    # What runs for minutes meets quiet and noise alike, and is not worth doing three times.
    attempts = 1 if point["kind"] in ("serving", "acceptance", "divergence") else ATTEMPTS
    result, disturbance, made = canary.quietly(lambda: _measured(probe, point), attempts)
    return result | {"disturbance": round(disturbance, 4), "attempts": made}


def _measured(probe: Probe, point: Point) -> Json:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = probe.measure(point)
        if any(NO_GRAPH in str(warning.message) for warning in caught):  # it ran, but not as the point says
            return {"skipped": str(caught[-1].message)[:200]}
        return result
    except TooLarge as error:
        return {"skipped": str(error)}
    except (torch.OutOfMemoryError, MemoryError):
        why = "out of memory"
    except RuntimeError as error:
        # The CPU allocator has no error of its own, and a kernel may refuse a shape: neither is worth losing the run.
        no_memory = re.search(
            "out of memory|allocate memory|not enough memory", str(error)
        )  # not "illegal memory access"
        why = "out of memory" if no_memory else f"failed: {str(error).splitlines()[0][:200]}"
    # Outside of the handlers: a traceback still holds the tensors of the frames it came through.
    probe.release()
    return {"skipped": why}


def _line(point: Point, result: Json) -> str:
    what = " ".join(f"{name}={value}" for name, value in point.items() if name != "kind")
    if "skipped" in result:
        return f"{point['kind']} {what}: skipped, {result['skipped']}"
    if point["kind"] == "acceptance":
        mean, repeated = result["tokens_per_round"], result["repeated_share"]
        return f"{point['kind']} {what}: {mean:.2f} tokens per round, {repeated:.0%} of 12-grams repeated"
    if point["kind"] == "divergence":
        return f"{point['kind']} {what}: {result['diverged']} of {point['sequences']} sequences diverged"
    median_s = result["median_s"]
    rates = [
        f"{result[name] / median_s / 1e9:.4g} {unit}"
        for name, unit in (("moved_bytes", "GB/s"), ("flop", "GFLOP/s"))
        if name in result
    ]
    return ", ".join([f"{point['kind']} {what}: {median_s * 1e3:.4g} ms (n={result['n']})", *rates])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m simulator.reference_decoder.measure", description=__doc__.split("\n")[0]
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--budget", type=parse_budget, default=480.0, help="how long to measure: 90s, 8m, 1h (default 8m)")
    p.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    p.add_argument("--resume", action="store_true", help="continue the file, measuring only what it lacks")
    p.add_argument("--kinds", help=f"only these, comma-separated: {', '.join(SHARES)}")
    p.add_argument("--dtype", choices=tuple(DTYPES), help="of the models (default bf16)")
    p.add_argument(
        "--threads", type=int, default=1, help="of a CPU run (default 1: more disturb each other when shared)"
    )
    p.add_argument("--attention", choices=("auto", "sdpa", "matmul"), default="auto", help="how attention is computed")
    p.add_argument("--fuse", action="store_true", help="fuse norms, rotary and activation with torch.compile")
    p.add_argument("--toy", action="store_true", help="tiny shapes, to check that everything works; no real speeds")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        _say(
            "error: --device cuda needs a GPU that PyTorch can see, and there is none; measure with --device cpu instead"
        )
        return USER_ERROR
    if options.threads < 1:
        _say(f"error: threads={options.threads} must be at least 1")
        return USER_ERROR
    kinds = options.kinds.split(",") if options.kinds else list(SHARES)
    if unknown := [kind for kind in kinds if kind not in SHARES]:
        _say(f"error: kinds={unknown[0]!r} must be one of {', '.join(SHARES)}")
        return USER_ERROR
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    suite = TOY if options.toy else SUITES[options.device]
    suite = replace(suite, dtype=options.dtype or suite.dtype)  # of kernels timed alone, too
    clock = Clock(device, within_s=min(2.0, options.budget / POINTS_PER_BUDGET))
    plan = {kind: points for kind, points in suite.plan().items() if kind in kinds}
    try:
        with MeasurementFile(
            options.out, header_of(device, suite, clock, options), resume=options.resume
        ) as file:  # fmt: skip
            probe = Probe(
                device, suite.dtype, clock, attention=options.attention, fuse=options.fuse,
                training_limit_s=TRAINING_SHARE * options.budget, say=_say,
            )  # fmt: skip
            # A GPU is nobody else's while it is measured; a processor may be.
            canary = Canary() if device.type == "cpu" and not options.toy else None
            run(file, probe, plan, options.budget, canary)
    except (MeasurementError, OSError) as error:
        _say(f"error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        _say(f"interrupted; {options.out} holds what was measured, --resume continues")
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
