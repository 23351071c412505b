"""A user's own measurements of kernels and steps as a CSV, read into the lines that the measuring suite writes.

A row is a point; its column ``kind`` says of which kind, the other columns are the fields of that kind in any order
(`reference_decoder.measurements` tells what they mean, `reference_decoder.schema` what they must be):

    kind,tokens,outputs,inputs,dtype,median_us
    matmul,1,4096,4096,bf16,24.1

Needed of every row are the fields that name the point and ``median`` with its unit at the end of the name (_s, _ms, _us,
_ns). ``min``, ``q1``, ``q3``, ``max`` (with units, each its own) and ``n`` are optional: where they are missing the row
is one value without spread, n = 1. What follows from the point is filled in: FLOP, bytes and parameters. A cell that is
empty is a field that is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.calibration import csv_table
from simulator.errors import InputError, MemwallError, UnknownName
from simulator.records import read_mapping
from simulator.reference_decoder.measurements import SCHEMA, key_of
from simulator.reference_decoder.schema import KINDS, SPREAD, TIMES, Rule, header_fault, line_fault
from simulator.reference_decoder.shapes import SHAPES, ConfigError, Shape

Json = dict[str, Any]

TABLE_KINDS = tuple(name for name, kind in KINDS.items() if kind.timed and name != "serving")
"""Kinds whose lines fit a row: whole runs (see `server_results`) and acceptance hold lists."""
HEADER_COLUMNS = ("device", "device_kind", "model_dtype")
BYTES_PER_VALUE = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of the formats that the schema knows."""
_STEMS = tuple(name.removesuffix("_s") for name in SPREAD)


@dataclass(frozen=True)
class PointTable:
    """What `measurements.read` gives of a file, and what was left out."""

    header: Json
    lines: list[Json]
    rows_read: int
    """Rows of the table: as many as `lines` and all of `dropped`."""
    dropped: Mapping[str, int]
    """Reason → rows left out for it."""
    unused: tuple[str, ...]
    """Columns that are no fields of ours."""


class _Dropped(Exception):
    """This row is left out, for this reason."""


def read_points(
    path: Path, *, device: str | None = None, device_kind: str = "cuda", dtype: str | None = None
) -> PointTable:
    """The points of the CSV at `path`.

    device        name of the device; with a column ``device`` only its rows are taken. One of the two must be there
    device_kind   cuda or cpu, unless a column ``device_kind`` says so
    dtype         number format of whole models (fp32, bf16, fp16), unless a column ``model_dtype`` says so; else that of
                  the first row that has one, else bf16

    Raises InputError where the table is damaged, a column is misspelt, devices are mixed, or no row can be used.
    """
    table = csv_table.read_csv(path)
    if "kind" not in table.columns:
        csv_table.unused_columns(table, (), ("kind",))
        raise InputError("columns", ", ".join(table.columns), "include kind", where=table.where)
    times = csv_table.time_columns(table, _STEMS)
    fields = sorted({name for kind in TABLE_KINDS for name in _rules(kind)} - set(SPREAD))
    spellings = [f"{stem}_{unit}" for stem in _STEMS for unit in csv_table.UNITS_PER_S]
    used = ["kind", *fields, *HEADER_COLUMNS, *(column for column, _ in times.values())]
    unused = csv_table.unused_columns(table, used, [*used, *spellings])
    if "median" not in times:
        raise InputError(
            "columns", ", ".join(table.columns), "include median_s, median_ms or median_us", where=table.where
        )
    name, rows = _of_device(table, device)
    kinds = _values(rows, "device_kind") or [device_kind]
    dtypes = _values(rows, "model_dtype") or ([dtype] if dtype else _values(rows, "dtype")[:1] or ["bf16"])
    for field, values in (("device_kind", kinds), ("model_dtype", dtypes)):
        if len(values) > 1:
            raise InputError(field, ", ".join(values), "be one in all rows of a file", where=table.where)
    header: Json = {
        "kind": "header", "schema": SCHEMA, "device_kind": kinds[0], "device": name, "dtype": dtypes[0], "toy": False,
    }  # fmt: skip
    dropped = Counter({"broken row": table.broken} if table.broken else {})
    if len(rows) < len(table.rows):
        dropped["of another device"] = len(table.rows) - len(rows)
    lines: list[Json] = []
    seen: set[str] = set()
    for cells in rows:
        try:
            line = _line(cells, times, header)
            if key_of(line) in seen:
                raise _Dropped("measured before in this file")
        except _Dropped as reason:
            dropped[str(reason)] += 1
            continue
        seen.add(key_of(line))
        lines.append(line)
    if not lines:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in dropped.most_common(3))
        text = f"0 usable of {table.rows_read} rows"
        rule = f"hold at least one usable row{f' ({reasons})' if reasons else ''}"
        raise InputError("content", text, rule, where=table.where)
    fault = header_fault(header)
    if fault is not None:
        raise InputError("header", name, f"be one the schema allows: {fault}", where=table.where)
    return PointTable(header, lines, table.rows_read, dict(dropped), unused)


def _rules(kind: str) -> dict[str, Rule]:
    """Fields of a kind that a row may hold, with what they must be."""
    found = KINDS[kind]
    return {**found.point, **found.optional, **found.results, **TIMES}


def _of_device(table: csv_table.CsvTable, device: str | None) -> tuple[str, list[dict[str, str]]]:
    """The device's name, and its rows."""
    rows = list(table.rows)
    if "device" not in table.columns:
        if not device:
            raise InputError("device", "(absent)", "be given, or be a column of the table", where=table.where)
        return device, rows
    names = _values(rows, "device")
    if device is None:
        if len(names) != 1:
            rule = "be one device, or the one to take must be given"
            raise InputError("device", ", ".join(names) or "(empty)", rule, where=table.where)
        return names[0], rows
    if device not in names:
        raise UnknownName("device", device, names, where=table.where, kind="device of this table")
    return device, [row for row in rows if row["device"] == device]


def _values(rows: list[dict[str, str]], column: str) -> list[str]:
    """What a column holds, each value once, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def _line(cells: Mapping[str, str], times: Mapping[str, tuple[str, float]], header: Json) -> Json:
    """A row as a line of a measurement file; `header` gains the shapes of its models. Raises _Dropped."""
    kind = cells["kind"]
    if kind not in TABLE_KINDS:
        raise _Dropped(f"kind {kind!r} is not one of {', '.join(TABLE_KINDS)}" if kind else "no kind")
    line: Json = {"kind": kind}
    for name, rule in _rules(kind).items():
        if cells.get(name) and name not in SPREAD:
            line[name] = _value(name, cells[name], rule)
    line |= _spread(cells, times)
    for name, rule in KINDS[kind].point.items():
        if name not in line and rule.holds(None):
            line[name] = None
        if name not in line:
            raise _Dropped(f"{kind}: {name} is missing; it must be {rule.says}")
    for name, value in _FOLLOWS.get(kind, _nothing)(line).items():
        line.setdefault(name, value)
    shapes = {f"shape_of_{name}": asdict(_shape(name)) for name in (line.get("model"), line.get("draft_model")) if name}
    if "parameters" in KINDS[kind].results:
        line.setdefault("parameters", _shape(line["model"]).parameters)
    fault = line_fault(line)
    if fault is not None:
        raise _Dropped(f"{kind}: {fault}")
    header |= shapes
    return line


def _value(name: str, text: str, rule: Rule) -> Any:
    """The reading of a cell that its rule allows: a number, a flag, or the text itself."""
    number = csv_table.number(text)
    readings: list[Any] = []
    if number is not None:
        readings += [int(number), number] if number == int(number) else [number]
    if text.lower() in ("true", "false"):
        readings.append(text.lower() == "true")
    for value in (*readings, text):
        if rule.holds(value):
            return value
    raise _Dropped(f"{name} must be {rule.says}")


def _spread(cells: Mapping[str, str], times: Mapping[str, tuple[str, float]]) -> Json:
    """The five times in s; those without a value repeat their neighbour towards the median."""
    given: dict[str, float] = {}
    for stem, (column, per_s) in times.items():
        value = csv_table.number(cells[column]) if cells[column] else None
        if cells[column] and (value is None or value <= 0):
            raise _Dropped(f"{stem} must be a finite number above 0")
        if value is not None:
            given[stem] = value / per_s
    if "median" not in given:
        raise _Dropped("median is missing")
    q1, q3 = given.get("q1", given["median"]), given.get("q3", given["median"])
    values = [given.get("min", q1), q1, given["median"], q3, given.get("max", q3)]
    if values != sorted(values):
        raise _Dropped(f"times must not fall: {', '.join(_STEMS)}")
    return {**dict(zip(SPREAD, values, strict=True)), **({} if cells.get("n") else {"n": 1})}


def _nothing(line: Json) -> Json:
    return {}


def _transfer(moves: int, line: Json) -> Json:
    return {"moved_bytes": moves * line["size_bytes"]}


def _matmul(line: Json) -> Json:
    m, n, k = line["tokens"], line["outputs"], line["inputs"]
    return {"flop": 2 * m * n * k, "moved_bytes": BYTES_PER_VALUE[line["dtype"]] * (m * k + n * k + m * n)}


def _attention(line: Json) -> Json:
    rows, query, context = line["sequences"], line["query_tokens"], line["context_tokens"]
    kv_values = 2 * rows * line["kv_heads"] * line["head_dim"] * (context + query)
    flop = 4 * rows * line["heads"] * line["head_dim"] * query * (context + (query + 1) / 2)
    return {"flop": flop, "moved_bytes": BYTES_PER_VALUE[line["dtype"]] * kv_values}


def _step(line: Json) -> Json:
    return {"live_tokens": line["context_tokens"] + line["tokens"]}


def _round(line: Json) -> Json:
    if "tokens_per_round" in line:
        return {"accepted": line["tokens_per_round"] - 1.0}
    if "accepted" in line:
        return {"tokens_per_round": line["accepted"] + 1.0}
    return {"tokens_per_round": 1.0, "accepted": 0.0} if line["drafter"] == "plain" else {}


_FOLLOWS: dict[str, Callable[[Json], Json]] = {
    "copy": partial(_transfer, 2),
    "read": partial(_transfer, 1),
    "matmul": _matmul,
    "attention": _attention,
    "step": _step,
    "round": _round,
}
"""What each kind's results are by the definitions of `reference_decoder.measurements`."""


def _shape(name: str) -> Shape:
    """Of a model of the measuring suite, a bundled one or a config.json. Raises _Dropped."""
    if name in SHAPES:
        return SHAPES[name]
    try:
        return Shape.from_config(read_mapping(catalog.locate("model", name)))
    except (MemwallError, ConfigError):
        raise _Dropped("the model is unknown, or no dense Llama-style one") from None
