"""A recorded run of a real serving engine → the same requests simulated, and both side by side.

    RUN/meta.json        model, engine version and settings, KV blocks, device
    RUN/requests.jsonl   one request a line: request_id, input_toks, output_toks and five times, s
    RUN/timeseries.csv   t (s), running, waiting, kv_cache_pct, one row a second; may be absent
    RUN/prefixes.csv     which prompts begin alike (`shared_prompts`); may be absent

The layout is that of casys-kaist/LLMServingSim's ``bench``. It has two clocks: ``arrival_time`` is wall time, the fields
ending in _ts are one monotonic clock. No request is queued before it arrives, so the one that was queued soonest gives the
difference; whatever all requests waited at least is lost by that (well below a millisecond where a request met an idle engine).

What the replay is given: arrivals, prompt and output tokens, the engine's settings, and how many KV blocks it had. A
vLLM pool of n blocks serves n − 1: the first is the null block, which nobody owns. The record holds no tokens, so what prompts
have in common has to come from elsewhere; without it no request finds another's blocks.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import units
from simulator.calibration.comparison import Comparison, Course, Quantity, Validation
from simulator.calibration.csv_table import number, read_text
from simulator.calibration.json_fields import Fields
from simulator.calibration.shared_prompts import read_shared_prompts
from simulator.errors import InputError
from simulator.records import read_mapping
from simulator.scenario import load_scenario
from simulator.serving import state
from simulator.serving.metrics import request_metrics
from simulator.serving.prefixes import SharedPrefixes
from simulator.serving.simulation import Run, simulate
from simulator.serving.traffic import Requests

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BASIS = "not fitted on"
NULL_BLOCKS = 1
"""Blocks of vLLM's pool that never hold a token (`BlockPool.null_block`)."""
STATISTICS: dict[str, Callable[[FloatArray], Any]] = {
    "mean": np.mean, "median": np.median, "p95": lambda values: np.percentile(values, 95),
}  # fmt: skip
KINDS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
"""Columns of `metrics.request_metrics` → what people call them."""

_TIMES = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_SETTINGS = {"max_sequences": "max_num_seqs", "max_batched_tokens": "max_num_batched_tokens"}
_COLUMNS = ("t", "running", "waiting", "kv_cache_pct")
_MAX_BYTES = 256 * 2**20  # some two million requests
_MAX_BLOCKS = 10**8
_LAST_TIME_S = 1e11  # the year 5138; a larger number is a clock in ms or ns


@dataclass(frozen=True, eq=False)
class EngineRun:
    """One recorded run; arrays are [requests] in order of arrival, times are s after the first arrival."""

    model: str
    """Bundled name: the last part of the checkpoint's, in lower case."""
    engine: str
    """Engine and version."""
    device: str
    """What the driver calls the GPU."""
    date: str
    """Start of the run, as recorded."""
    tp: int
    """GPUs that shared the model."""
    blocks: int
    """KV blocks that could hold tokens."""
    settings: Mapping[str, Any]
    """Overrides of `deployment.EngineChoice`."""
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    first_token_s: FloatArray
    finish_s: FloatArray
    """Last token."""
    series: Mapping[str, FloatArray] = field(default_factory=dict)
    """t (s), running, waiting, kv_cache_pct [ticks]; empty where none was recorded."""
    shared: SharedPrefixes | None = None
    """What prompts have in common; None: nothing is known of it."""

    def __len__(self) -> int:
        """Requests."""
        return len(self.arrival_s)

    @property
    def metrics(self) -> dict[str, FloatArray]:
        """TTFT, TPOT and E2E [requests], s; TPOT is NaN for a single output token."""
        steps = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return {
            "ttft_s": self.first_token_s - self.arrival_s,
            "tpot_s": (self.finish_s - self.first_token_s) / steps,
            "e2e_s": self.finish_s - self.arrival_s,
        }


def read_engine_run(folder: Path) -> EngineRun:
    """The run in `folder`. Raises InputError naming file, line and field of whatever is damaged."""
    if not folder.is_dir():
        raise InputError("run", str(folder), "be a folder with meta.json and requests.jsonl")
    meta = _Meta(folder / "meta.json")
    if meta.find("resolved_config.speculative_config") is not None:
        raise meta.error("resolved_config.speculative_config", "be null: a run does not record what was accepted")
    settings: dict[str, Any] = {
        ours: meta.count(f"engine_kwargs.{theirs}", 10**6) for ours, theirs in _SETTINGS.items()
    }
    settings["block_tokens"] = meta.count("kv_cache.block_size", 10**6)
    caching = meta.find("kv_cache.enable_prefix_caching")
    if caching is not None:
        settings["prefix_caching"] = meta.flag("kv_cache.enable_prefix_caching")
    names, times, tokens = _read_requests(folder / "requests.jsonl")
    order = np.argsort(times["arrival_time"], kind="stable")
    times, tokens = {k: v[order] for k, v in times.items()}, {k: v[order] for k, v in tokens.items()}
    arrival_s = times["arrival_time"] + (times["queued_ts"] - times["arrival_time"]).min()
    start_s = arrival_s[0]
    ticks, prefixes = folder / "timeseries.csv", folder / "prefixes.csv"
    shared = None
    if prefixes.exists():
        in_order = [names[i] for i in order]
        shared = read_shared_prompts(prefixes, in_order, tokens["input_toks"], settings["block_tokens"])
    return EngineRun(
        model=meta.text("model").rsplit("/", 1)[-1].lower(),
        engine=f"vLLM {meta.text('vllm_version')}",
        device=meta.text("hardware.device_name"),
        date=meta.text("started_at")[:10],
        tp=meta.count("engine_kwargs.tensor_parallel_size", 1024),
        blocks=meta.count("kv_cache.num_gpu_blocks", _MAX_BLOCKS, at_least=1 + NULL_BLOCKS) - NULL_BLOCKS,
        settings=settings,
        arrival_s=arrival_s - start_s,
        prompt_tokens=tokens["input_toks"],
        output_tokens=tokens["output_toks"],
        first_token_s=times["first_token_ts"] - start_s,
        finish_s=times["last_token_ts"] - start_s,
        series=_read_series(ticks) if ticks.exists() else {},
        shared=shared,
    )


def simulate_engine_run(run: EngineRun, gpu: str = "rtx-4090", engine: str = "vllm") -> Run:
    """The run's requests on its settings and exactly its KV blocks, simulated. Raises MemwallError."""
    order = np.argsort(run.arrival_s, kind="stable")
    n = len(order)
    requests = Requests(
        run.arrival_s[order],
        run.prompt_tokens[order],
        run.output_tokens[order],
        order,
        None,
        0,
        n,
        {},
        "the run's requests",
        shared=None if run.shared is None else run.shared.take(order),
    )
    given: dict[str, Any] = {
        "model": run.model, "gpu": gpu, "tp": run.tp, "warmup": 0, "engine": {"name": engine, **run.settings},
        # The recorded requests take the place of this.
        "traffic": {"kind": "poisson", "rate_per_s": 1.0, "requests": n, "lengths": {"prompt": 1, "output": 1}},
    }  # fmt: skip
    budget = load_scenario({**given, "engine": {**given["engine"], "memory_utilization": 1.0}}).deployment().fit()
    # Half a block more than needed, so that rounding cannot cost one.
    pool_bytes = (run.blocks + 0.5) * run.settings["block_tokens"] * budget.kv_bytes_per_token
    share = (budget.usable_bytes - budget.kv_bytes + pool_bytes) / budget.hbm_bytes
    if share > 1.0:
        raise InputError("kv_cache.num_gpu_blocks", run.blocks + NULL_BLOCKS, f"fit {gpu} beside {run.model}")
    given["engine"]["memory_utilization"] = share
    return simulate(load_scenario(given), requests=requests).main


def replay_engine_run(run: EngineRun, gpu: str = "rtx-4090", engine: str = "vllm") -> Validation:
    """Simulated over measured: TTFT, TPOT and E2E as statistics and request by request, throughput, and the time series.

    Raises MemwallError where the model does not fit `gpu` or a name is unknown.
    """
    simulated = simulate_engine_run(run, gpu, engine)
    served = simulated.requests["status"] == state.FINISHED
    requests, rows = simulated.requests[served], simulated.rows[served]
    measured, predicted = run.metrics, request_metrics(requests)
    quantities, comparisons = [], []
    for kind, name in KINDS.items():
        measured_s, predicted_s = measured[kind][rows], predicted[kind]
        both = np.isfinite(measured_s)
        if not both.any():
            continue
        labels = {"prompt_tokens": run.prompt_tokens[rows][both], "output_tokens": run.output_tokens[rows][both]}
        comparisons.append(Comparison(name, measured_s[both], predicted_s[both], BASIS, labels))
        quantities += [
            Quantity(f"{name} {statistic}", "s", float(of(measured_s[both])), float(of(predicted_s[both])), BASIS)
            for statistic, of in STATISTICS.items()
        ]
    tokens = run.output_tokens[rows].sum()
    rate, simulated_rate = (float(tokens / last.max()) for last in (run.finish_s[rows], requests["finish_s"]))
    quantities.append(Quantity("output throughput", "tokens/s", rate, simulated_rate, BASIS))
    return Validation(
        title=f"{run.engine} serving {run.model} on {run.device}, replayed",
        subject=f"{engine} profile on {gpu}",
        conditions=(
            ("measured", f"{run.engine}, {run.device} x {run.tp}, {run.date}"),
            ("simulated", f"{gpu} x {run.tp}, engine profile {engine}"),
            ("requests", f"{len(run)}, {run.prompt_tokens.sum()} prompt and {run.output_tokens.sum()} output tokens"),
            ("arrivals", f"over {units.show(float(run.arrival_s[-1]), 's')}, finished after "
                         f"{units.show(float(run.finish_s.max()), 's')}"),
            ("KV cache", f"{run.blocks} blocks of {run.settings['block_tokens']} tokens, given"),
            ("settings", ", ".join(f"{name} {value}" for name, value in run.settings.items())),
            ("cache", f"{simulated.requests['cached_tokens'].sum()} prompt tokens found in other requests' blocks"),
            ("preemptions", f"{simulated.summary.preemptions} simulated; the run does not record its own"),
        ),
        comparisons=comparisons,
        quantities=quantities,
        courses=_courses(run, simulated),
        notes=_notes(run, len(run) - len(rows)),
    )  # fmt: skip


def _notes(run: EngineRun, rejected: int) -> list[str]:
    notes = (
        [f"{rejected} requests that the simulation rejects as larger than the KV cache are left out"]
        if rejected
        else []
    )
    single = int((run.output_tokens == 1).sum())
    if single:
        notes.append(f"{single} requests of one output token have no TPOT")
    if not run.series:
        notes.append("no time series was recorded")
    if run.shared is None and run.settings.get("prefix_caching", True):
        notes.append(
            "what prompts have in common is not recorded, so none finds another's blocks (give it in prefixes.csv)"
        )
    return notes


def _courses(run: EngineRun, simulated: Run) -> list[Course]:
    """Simulated means from tick to tick: the recorder's clock starts before the first arrival, and its gauges are those of
    the last finished step. A step counts where it began."""
    if not run.series:
        return []
    sums = dict(zip(state.SERIES, simulated.series, strict=True))
    edges_s = np.arange(simulated.series.shape[1] + 1) * simulated.bucket_s
    tick_s = run.series["t"]

    def between_ticks(values: FloatArray) -> FloatArray:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return np.diff(np.interp(np.concatenate([[0.0], tick_s]), edges_s, total))

    busy_s = between_ticks(sums["busy_s"])

    def mean(name: str, factor: float) -> FloatArray:
        amount = factor * between_ticks(sums[name])
        return np.divide(amount, busy_s, out=np.zeros_like(amount), where=busy_s > 0)

    return [
        Course("running", "requests", tick_s, run.series["running"], mean("running_s", 1.0)),
        Course("waiting", "requests", tick_s, run.series["waiting"], mean("waiting_s", 1.0)),
        Course("KV occupancy", "%", tick_s, run.series["kv_cache_pct"], mean("kv_block_s", 100.0 / run.blocks)),
    ]


class _Meta:
    """meta.json, field by field."""

    def __init__(self, path: Path):
        self._data, self._where = read_mapping(path), str(path)

    def find(self, name: str) -> Any:
        """The value at the dotted `name`, None where there is none."""
        value: Any = self._data
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def error(self, name: str, rule: str) -> InputError:
        value = self.find(name)
        return InputError(name, "(absent)" if value is None else value, rule, where=self._where)

    def text(self, name: str) -> str:
        value = self.find(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "be text")
        return value

    def flag(self, name: str) -> bool:
        value = self.find(name)
        if not isinstance(value, bool):
            raise self.error(name, "be true or false")
        return value

    def count(self, name: str, at_most: int, at_least: int = 1) -> int:
        value = self.find(name)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise self.error(name, f"be a whole number from {at_least} to {at_most}")
        return value


def _read_requests(path: Path) -> tuple[list[str], dict[str, FloatArray], dict[str, IntArray]]:
    """Names, times and token counts by field [requests], in file order."""
    times: dict[str, list[float]] = {name: [] for name in _TIMES}
    tokens: dict[str, list[int]] = {name: [] for name in ("input_toks", "output_toks")}
    seen: dict[str, None] = {}
    for place, line in enumerate(read_text(path, _MAX_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {place}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError("content", line.strip(), "be a JSON object", where=where)
        fields = Fields(row, where)
        for name, counts in tokens.items():
            count = fields.count(name)
            if not count:
                raise fields.refuse(name, "(absent)" if count is None else count, "be at least 1")
            counts.append(count)
        for name, values in times.items():
            values.append(fields.needed(name, least=0.0))
            if values[-1] >= _LAST_TIME_S:
                raise fields.refuse(name, row[name], "be a time in seconds")
        for before, after in itertools.pairwise(_TIMES[1:]):
            if row[after] < row[before]:
                raise InputError(after, row[after], f"be at or after {before}={row[before]}", where=where)
        if row["first_token_ts"] <= row["queued_ts"]:
            raise InputError("first_token_ts", row["first_token_ts"], "be after queued_ts", where=where)
        if row["output_toks"] > 1 and row["last_token_ts"] <= row["first_token_ts"]:
            raise InputError("last_token_ts", row["last_token_ts"], "be after first_token_ts", where=where)
        name = str(row.get("request_id", place))
        if name in seen:
            raise InputError("request_id", name, "appear once", where=where)
        seen[name] = None
    if not seen:
        raise InputError("content", "(empty)", "hold at least one request", where=str(path))
    numbers = {k: np.array(v, np.int64) for k, v in tokens.items()}
    return list(seen), {k: np.array(v) for k, v in times.items()}, numbers


def _read_series(path: Path) -> dict[str, FloatArray]:
    # Strict, so that a quote left open is an error and not one giant field.
    reader = csv.reader(io.StringIO(read_text(path, _MAX_BYTES)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in _COLUMNS:
            if header.count(name) != 1:
                raise InputError("columns", ", ".join(header), f"include {name} once", where=str(path))
        columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise InputError("columns", len(row), f"be {len(header)}", where=where)
            for name, values in columns.items():
                cell = row[header.index(name)]
                value = number(cell)
                if value is None or not 0.0 <= value < _LAST_TIME_S:
                    raise InputError(name, cell, "be a number of at least 0", where=where)
                values.append(value)
            if columns["t"][-1] <= (columns["t"][-2] if len(columns["t"]) > 1 else 0.0):
                raise InputError("t", columns["t"][-1], "grow from row to row, from above 0", where=where)
    except csv.Error as error:
        raise InputError("content", f"line {reader.line_num}", f"be valid CSV ({error})", where=str(path)) from None
    if not columns["t"]:
        raise InputError("content", "(empty)", "hold at least one row", where=str(path))
    return {name: np.array(values) for name, values in columns.items()}
