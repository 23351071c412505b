"""Measurement files: JSON lines, one measurement each, appended whole, so that a run can stop at any time and resume.

Line 1 is the header (``"kind": "header"``): ``schema`` (this version), ``device_kind`` (cpu, cuda), ``device`` (its name),
``torch``, ``cuda`` and ``driver`` (null on a CPU), ``clocks`` (as nvidia-smi reports them), ``power_limit_w``,
``memory_bytes``, ``last_cache_bytes``, ``dtype`` (of models), ``attention``, ``fuse``, ``threads``, ``python``, ``date``
(UTC). A resumed run adds a line ``"kind": "resumed"`` with its ``date`` and ``clocks``.

Every other line has ``kind``, the fields that name the point (together its key: no two lines share it), and either
``skipped`` (why it was not measured) or ``median_s``, ``min_s``, ``q1_s``, ``q3_s``, ``max_s`` over ``n`` repeats and the
kind's own results. Seconds, bytes, tokens; all counts are totals over the batch unless they say "per sequence".

=========  ==========================================================  ==================================================
kind       point                                                       results besides the times
=========  ==========================================================  ==================================================
copy       size_bytes, cache (cold, resident)                          moved_bytes (read and written)
read       size_bytes, cache                                           moved_bytes
matmul     tokens (M), outputs (N), inputs (K), dtype                  flop, moved_bytes. Weights are cold, input is warm
attention  sequences, query_tokens (per sequence), context_tokens      flop, moved_bytes (K and V, once)
           (per sequence, before the query), heads, kv_heads,
           head_dim, dtype
launch     what: kernel (host time to launch one of many, eager),      times are those of one kernel, replay, read or
           graph_kernel (device time of one of many in a graph),       round
           graph_replay (host time), read_back (one value to the
           host), round (a whole round of a toy model: the host's
           share), gamma
step       model, batch, tokens (per sequence), context_tokens,        parameters, live_tokens (slots attended to per
           graphs                                                      sequence)
draft      model, gamma (passes), batch, context_tokens, graphs        parameters. Catch-up of the first pass included
round      model, drafter (plain, small, early_exit, tree),            tokens_per_round and accepted (means per sequence).
           draft_model, gamma (depth), alpha (forced, of a node's      Times are of the whole round as the host sees it
           first child), batch, context_tokens (at the start),
           graphs; exit_layers, widths (children by depth)
serving    model, drafter, draft_model, gamma, alpha, load (share of   times are of TPOT over requests; rate_per_s,
           the plain capacity), requests, max_batch, prompt_tokens,    tokens_per_s, ttft_median_s, ttft_p99_s, duration_s,
           output_tokens, graphs                                       and lists by request and by pass (see `batcher`)
=========  ==========================================================  ==================================================

On a GPU, copy, read, matmul and attention are timed eight launches at a time, queued back to back, and divided by eight;
steps and drafts one at a time; rounds and serving by the host's clock.

``model`` and ``draft_model`` name an entry of `shapes.SHAPES`; ``shape_of_<name>`` of the header holds its sizes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

SCHEMA = 1

RESULTS = frozenset(
    ("skipped", "median_s", "min_s", "q1_s", "q3_s", "max_s", "n", "moved_bytes", "flop", "parameters", "live_tokens",
     "tokens_per_round", "accepted", "rate_per_s", "tokens_per_s", "ttft_median_s", "ttft_p99_s", "duration_s",
     "arrival_s", "first_token_s", "finished_s", "output_lengths", "prefill_s", "round_s", "round_rows", "round_tokens")
)  # fmt: skip
"""Fields that are no part of a point's key."""
SAME_RUN = (
    "schema",
    "device_kind",
    "device",
    "torch",
    "cuda",
    "driver",
    "dtype",
    "attention",
    "fuse",
    "threads",
    "toy",
)
"""Header fields in which a resumed run must agree: otherwise the lines could not be compared."""

Json = dict[str, Any]


class MeasurementError(ValueError):
    """A file that cannot be read or continued, said in one sentence."""


def key_of(point: Mapping[str, Any]) -> str:
    """What makes a point that point."""
    return json.dumps({name: value for name, value in point.items() if name not in RESULTS}, sort_keys=True)


def read(path: Path) -> tuple[Json, list[Json], int]:
    """Header, measurements, and the bytes up to the end of the last whole line: a line cut short at the end, as a killed
    run leaves it, is not counted. Damage elsewhere is an error that names the line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    lines: list[Json] = []
    for number, text in enumerate(data[:whole].splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            raise MeasurementError(f"{path}: line {number} must be JSON") from None
        if not isinstance(line, dict) or "kind" not in line:
            raise MeasurementError(f"{path}: line {number} must be a measurement with a kind")
        lines.append(line)
    if not lines or lines[0]["kind"] != "header":
        raise MeasurementError(f"{path}: line 1 must be the header")
    if lines[0].get("schema") != SCHEMA:
        raise MeasurementError(f"{path}: schema={lines[0].get('schema')} must be {SCHEMA}")
    return lines[0], [line for line in lines[1:] if line["kind"] != "resumed"], whole


class MeasurementFile:
    """A file being written. Every line goes out in one write, so that no reader and no interruption sees half of it."""

    def __init__(self, path: Path, header: Json, *, resume: bool) -> None:
        self.done: set[str] = set()
        whole = 0
        first = {"kind": "header", "schema": SCHEMA, **header}
        if path.exists() and path.stat().st_size > 0:
            if not resume:
                raise MeasurementError(f"{path} exists: continue it with --resume, or name another file")
            found, lines, whole = read(path) if b"\n" in path.read_bytes() else (first, [], 0)
            for name in SAME_RUN:
                if found.get(name) != first.get(name):
                    raise MeasurementError(
                        f"{path}: {name}={found.get(name)!r} must be this run's {first.get(name)!r}; name another file"
                    )
            self.done = {key_of(line) for line in lines}
            if whole:
                first = {"kind": "resumed", "date": header.get("date"), "clocks": header.get("clocks")}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._fd, whole)
        self.append(first)

    def append(self, line: Json) -> None:
        """Write one line."""
        os.write(self._fd, (json.dumps(line, allow_nan=False) + "\n").encode())
        self.done.add(key_of(line))

    def __enter__(self) -> MeasurementFile:
        """For `with`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        os.close(self._fd)
