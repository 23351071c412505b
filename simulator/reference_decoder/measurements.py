"""Measurement files: JSON lines, one measurement each, appended whole, so that a run can stop at any time and resume.

Line 1 is the header (``"kind": "header"``): ``schema`` (this version), ``device_kind`` (cpu, cuda), ``device`` (its name),
``torch``, ``cuda`` and ``driver`` (null on a CPU), ``clocks`` (as nvidia-smi reports them), ``power_limit_w``,
``memory_bytes``, ``last_cache_bytes``, ``dtype`` (of models), ``attention``, ``fuse``, ``threads``, ``python``, ``date``
(UTC). Of a GPU also ``sm_count``, ``compute_capability`` and ``shared_memory_per_sm_bytes`` (null where PyTorch does not
tell). A resumed run adds a line ``"kind": "resumed"`` with its ``date`` and ``clocks``; files of the same device, PyTorch
and settings may be joined, headers included.

Every other line has ``kind``, the fields that name the point (together its key: no two lines share it), and either
``skipped`` (why it was not measured) or ``median_s``, ``min_s``, ``q1_s``, ``q3_s``, ``max_s`` over ``n`` repeats and the
kind's own results; `schema` is the same as a table of types. Seconds, bytes, tokens; all counts are totals over the batch
unless they say "per sequence".

========== ==========================================================  =====================================================
kind       point                                                       results besides the times
========== ==========================================================  =====================================================
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
step       model, batch, tokens (per sequence), context_tokens,        parameters (of the layers run), live_tokens (slots
           graphs; layers, where the pass ends after so many, with     attended to per sequence)
           the head (then one layer's time can be told from the
           head's and the host's)
draft      model, gamma (passes), batch, context_tokens, graphs        parameters. Catch-up of the first pass included
round      model, drafter (plain, small, early_exit, tree),            tokens_per_round and accepted (means per sequence).
           draft_model, gamma (depth), alpha (forced, of a node's      Times are of the whole round as the host sees it
           first child), batch, context_tokens (at the start),
           graphs; exit_layers, widths (children by depth)
serving    model, drafter, draft_model, gamma, alpha, load (share of   times are of TPOT over requests; rate_per_s,
           the plain capacity), requests, max_batch, prompt_tokens,    tokens_per_s, ttft_median_s, ttft_p99_s, duration_s,
           output_tokens, graphs                                       and lists by request and by pass (see `batcher`); with
                                                                       drafts also accepted_by_request and drafted_by_request,
                                                                       by round
acceptance model (the target of a trained pair, see `pair`), drafter   accepted_by_request, drafted_by_request (of each
           (small, early_exit, ngram), draft_model, gamma (drafted in  request a list with one number per round: enough to
           every round), text (greedy, sampled: the target's output;   replay it), acceptance_by_depth (conditional: given
           held_out: see `acceptance`), requests, context_tokens,      that the depths before were accepted; null without
           output_tokens, graphs; exit_layers                          rounds), rounds_by_depth (that it is a share of),
                                                                       tokens_per_round (mean over rounds, the target's own
                                                                       token included) and its _min, _q1, _median, _q3, _max
                                                                       over the requests' means, repeated_share (of the
                                                                       text's 12-grams), duration_s, and the pair's
                                                                       training_s, training_bytes, corpus_sha256 and
                                                                       cross entropies: target_ and draft_bits_per_byte (of
                                                                       held-out files), _training_bits_per_byte. No times
divergence model, weights (trained, random), draft_model, gamma,       diverged (sequences whose speculative greedy output is
           sequences, context_tokens, output_tokens, graphs            not the plain one), positions (of the first output
                                                                       token that differs), margins (there, between the two
                                                                       largest logits), median_margin (over all tokens),
                                                                       duration_s. No times
========== ==========================================================  =====================================================

On a shared processor a line also has ``disturbance`` (time of a fixed piece of work just before and after over its best of
the run, the worse of the two; see `canary`) and ``attempts`` (how often the point was measured; the quietest is kept).

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
from typing import Any, Literal, overload

from simulator.reference_decoder.schema import KINDS, Json, header_fault, line_fault

SCHEMA = 1
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


class MeasurementError(ValueError):
    """A file that cannot be read or continued, said in one sentence."""


def key_of(point: Mapping[str, Any]) -> str:
    """What makes a point that point: its kind and the fields that name a point of that kind."""
    kind = KINDS.get(point["kind"])
    names = point.keys() if kind is None else ("kind", *kind.point, *kind.optional)
    return json.dumps({name: point[name] for name in names if name in point}, sort_keys=True)


@overload
def read(path: Path) -> tuple[Json, list[Json], int]: ...
@overload
def read(path: Path, *, salvage: Literal[True]) -> tuple[Json, list[Json], int, str | None]: ...
def read(
    path: Path, *, salvage: bool = False
) -> tuple[Json, list[Json], int] | tuple[Json, list[Json], int, str | None]:
    """Header, measurements, and the bytes up to the end of the last line read.

    A line cut short at the end, as a killed run leaves it, is not counted. Damage elsewhere raises MeasurementError, which
    names line and field. With `salvage`, what stands before the damage is returned, and a fourth value says in one
    sentence what was lost (None: nothing was); a damaged header cannot be salvaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MeasurementError(f"{path}: {error.strerror or error}") from None
    *whole_lines, rest = data.split(b"\n")
    file = _Lines()
    whole, lost = 0, None
    for number, text in enumerate(whole_lines, 1):
        try:
            file.take(text)
        except MeasurementError as damage:
            if not salvage or number == 1:
                raise MeasurementError(f"{path}: line {number}: {damage}") from None
            which = f"lines {number} to {len(whole_lines)} are" if number < len(whole_lines) else f"line {number} is"
            lost = f"{path}: line {number}: {damage}; {which} left out"
            break
        whole += len(text) + 1
    if file.header is None:
        raise MeasurementError(f"{path}: line 1 must be the header")
    if lost is None and rest:
        lost = f"{path}: line {len(whole_lines) + 1} is cut short and left out"
    return (file.header, file.lines, whole, lost) if salvage else (file.header, file.lines, whole)


class _Lines:
    """The lines of one file, checked one by one."""

    def __init__(self) -> None:
        self.header: Json | None = None
        self.lines: list[Json] = []
        self._keys: set[str] = set()

    def take(self, text: bytes) -> None:
        """The next line. Raises MeasurementError, without saying where."""
        try:
            line = json.loads(text, object_pairs_hook=_fields_once)
        except (ValueError, RecursionError) as error:
            what = str(error) if isinstance(error, MeasurementError) else "must be JSON"
            raise MeasurementError(what) from None
        if not isinstance(line, dict) or "kind" not in line:
            raise MeasurementError("must be a measurement with a kind")
        if line["kind"] == "header":
            self._take_header(line)
        elif self.header is None:
            raise MeasurementError("must be the header")
        elif line["kind"] != "resumed":
            self._take_measurement(line, self.header)

    def _take_header(self, line: Json) -> None:
        if line.get("schema") != SCHEMA:
            raise MeasurementError(f"schema={line.get('schema')!r:.60} must be {SCHEMA}")
        fault = header_fault(line)
        if fault is not None:
            raise MeasurementError(fault)
        if self.header is None:
            self.header = line
        for name in SAME_RUN:
            if line.get(name) != self.header.get(name):
                raise MeasurementError(
                    f"mixed devices: {name}={line.get(name)!r} must be {self.header.get(name)!r}, as in the first header"
                    if name.startswith("device")
                    else f"{name}={line.get(name)!r} must be {self.header.get(name)!r}, as in the first header"
                )

    def _take_measurement(self, line: Json, header: Json) -> None:
        fault = line_fault(line)
        if fault is not None:
            raise MeasurementError(fault)
        for name in ("model", "draft_model"):
            if line.get(name) is not None and f"shape_of_{line[name]}" not in header:
                raise MeasurementError(
                    f"{name}={line[name]!r} must be a model whose shape_of_{line[name]} is in the header"
                )
        key = key_of(line)
        if key in self._keys:
            raise MeasurementError(f"must be measured once, and an earlier line has the same point {key}")
        self._keys.add(key)
        self.lines.append(line)


def _fields_once(pairs: list[tuple[str, Any]]) -> Json:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MeasurementError(f"{twice} must not stand there twice")
    return fields


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
