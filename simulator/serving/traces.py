"""Request traces, read row by row: every row is either kept or counted under the reason it was left out.

Columns are found by name, in any order, extra ones ignored, upper and lower case alike. Formats, told apart by the header
or the first line:

    azure      CSV, TIMESTAMP (date and time), ContextTokens, GeneratedTokens (Azure LLM inference traces, 2023 and 2024)
    mooncake   JSON lines, timestamp (ms), input_length, output_length; hash_ids of blocks of 512 tokens
    bailian    JSON lines, timestamp (s), input_length, output_length, chat_id; hash_ids of blocks of 16 tokens
    burstgpt   CSV, Timestamp (s), Request tokens, Response tokens (0 where the request failed)
    csv, jsonl names as in `_NAMES`; times in s, or in ms where the column's name ends in _ms, or as date and time

Where there are such columns, rows also carry a session, a class, a priority and block ids of the prompt: `trace_labels`.

Memory is some 64 bytes per kept row (16 more per block id) and one line of text, whatever the file's size.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from simulator.errors import InputError, UnknownName, nearest
from simulator.serving.lengths import FloatArray, IntArray
from simulator.serving.prefixes import SharedPrefixes
from simulator.serving.trace_fields import Clock, Dropped, csv_rows, json_rows, read_tokens, text_lines
from simulator.serving.trace_labels import OPTIONAL, Kind, Labels

FORMATS: dict[str, str] = {
    "azure": "Azure LLM inference trace",
    "mooncake": "Mooncake trace, times in ms",
    "bailian": "Qwen-Bailian trace",
    "burstgpt": "BurstGPT trace",
    "csv": "CSV",
    "jsonl": "JSON lines",
}
"""Format → its name for people."""

_NAMES: dict[str, tuple[str, ...]] = {
    "arrival": ("arrival_s", "arrival", "arrival_time_s", "arrival_time", "arrived_at", "arrival_ms", "timestamp_ms",
                "timestamp_s", "timestamp", "time_s", "time"),
    "prompt": ("prompt_tokens", "input_tokens", "input_length", "num_prefill_tokens", "context_tokens", "contexttokens",
               "request tokens", "prompt_length", "prompt_len", "prompt"),
    "output": ("output_tokens", "completion_tokens", "output_length", "num_decode_tokens", "generated_tokens",
               "generatedtokens", "response tokens", "output_len", "output"),
    **OPTIONAL,
}  # fmt: skip
# Format → its three columns, lower case; the sets are what tells the formats apart.
_SIGNATURES: dict[str, dict[str, str]] = {
    "azure": {"arrival": "timestamp", "prompt": "contexttokens", "output": "generatedtokens"},
    "burstgpt": {"arrival": "timestamp", "prompt": "request tokens", "output": "response tokens"},
    "mooncake": {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"},
    "bailian": {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"},
}
_ALSO = {"bailian": {"chat_id", "parent_chat_id"}}
_JSON_FORMATS = ("mooncake", "bailian", "jsonl")
# Mooncake's README and technical report (arXiv:2407.00079) say 512; Bailian's files are called ..._blksz_16.
_BLOCK_TOKENS = {"mooncake": 512, "bailian": 16}


@dataclass(frozen=True, eq=False)
class TraceTable:
    """The usable rows of a trace, in file order."""

    arrival_s: FloatArray
    """[n] s after the first kept row, non-decreasing."""
    prompt_tokens: IntArray
    """[n] at least 1."""
    output_tokens: IntArray
    """[n] at least 1."""
    row: IntArray
    """[n] index of the row in the file, header and blank lines not counted."""
    rows_read: int
    """Rows read, blank lines not counted: n plus all of `dropped`."""
    dropped: Mapping[str, int]
    """Reason → rows left out for it."""
    format: str
    """The format it was read as, a key of `FORMATS`."""
    kind_of: IntArray | None = None
    """[n] index into `kinds`; None where the trace has neither classes nor priorities."""
    kinds: tuple[Kind, ...] = ()
    """Name and priority of each kind of row; None where the trace has no such column."""
    session: IntArray | None = None
    """[n] rows of one growing conversation have the same number, the index of its first; None where there is none."""
    shared: SharedPrefixes | None = None
    """What prompts have in common; None where the trace does not say."""
    notes: tuple[str, ...] = ()
    """What a reader should know about sessions and prefixes, for people."""


def read_trace(
    path: Path,
    *,
    format: str = "auto",
    columns: Mapping[Any, str] | None = None,
    limit: int | None = None,
    block_tokens: int | None = None,
) -> TraceTable:
    """The usable rows of the trace at `path`.

    format    a key of `FORMATS`, or auto
    columns   for csv and jsonl: arrival, prompt, output, or one of `OPTIONAL` → name of the column
    limit     stop after this many usable rows
    block_tokens   tokens that one block id stands for; None: as the format has it, 512 where it does not say

    Raises InputError when the file cannot be read as text, holds no usable row, or lacks a column.
    """
    if format != "auto" and format not in FORMATS:
        raise UnknownName("format", format, ["auto", *FORMATS], kind="trace format")
    where = str(path)
    if not path.is_file():
        raise InputError("trace", where, "be an existing file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(file, format, columns or {}, limit, block_tokens, where)
    except UnicodeDecodeError:
        raise InputError("content", "(binary)", "be UTF-8 text", where=where) from None
    except OSError as error:
        raise InputError("trace", where, f"be readable ({error.strerror or error})") from None


def find_columns(
    header: Sequence[str],
    columns: Mapping[Any, str],
    where: str,
    wanted: Sequence[str] = ("arrival", "prompt", "output"),
) -> dict[str, str]:
    """For each of `wanted`, the header's name for it. Raises InputError naming the columns found."""
    by_lower: dict[str, str] = {}
    for name in header:
        by_lower.setdefault(name.strip().lower(), name)
    found: dict[str, str] = {}
    for role in wanted:
        if role in columns:
            if columns[role].strip().lower() not in by_lower:
                raise UnknownName(f"columns.{role}", columns[role], by_lower.values(), where=where, kind="column")
            found[role] = by_lower[columns[role].strip().lower()]
            continue
        known = [name for name in _NAMES[role] if name in by_lower]
        if not known:
            meant = [name for name in by_lower if nearest(name, _NAMES[role])]
            raise InputError(
                "columns",
                ", ".join(name.strip() for name in header),
                f"hold one for the {role}, such as {_NAMES[role][0]}, or be named by `columns: {{{role}: NAME}}`",
                suggestion=by_lower[meant[0]].strip() if meant else None,
                where=where,
            )
        found[role] = by_lower[known[0]]
    repeated = [name for name in found.values() if sum(name.strip().lower() == h.strip().lower() for h in header) > 1]
    if repeated:
        raise InputError("columns", repeated[0], "appear once", where=where)
    return found


def _read(
    file: TextIO, format: str, columns: Mapping[Any, str], limit: int | None, block_tokens: int | None, where: str
) -> TraceTable:
    lines = text_lines(file)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError("content", "(empty)", "hold at least one row", where=where)
    is_json = format in _JSON_FORMATS or (format == "auto" and first.lstrip().startswith("{"))
    lines = chain([first], lines)
    rows: Any = json_rows(lines) if is_json else csv_rows(lines)
    table = _Table(format, columns, limit, block_tokens, where, is_json)
    for count, fields in rows:
        if table.add(count, fields):
            break
    return table.finished()


class _Table:
    """Rows going in, arrays and counts coming out."""

    def __init__(
        self,
        format: str,
        columns: Mapping[Any, str],
        limit: int | None,
        block_tokens: int | None,
        where: str,
        is_json: bool,
    ):
        self._format, self._columns, self._limit, self._where, self._is_json = format, columns, limit, where, is_json
        self._block_tokens = block_tokens
        self._pick: list[Any] | None = None
        self._width = 0
        self._time = Clock()
        self._arrival, self._prompt = array("d"), array("q")
        self._output, self._row = array("q"), array("q")
        self._rows_read = 0
        self._dropped: Counter[str] = Counter()
        self._labels: Labels | None = None

    def add(self, count: int, fields: Any) -> bool:
        """Take in `count` broken lines (`fields` None) or one row; True when the limit is reached."""
        if self._pick is None and fields is not None:
            self._learn(fields)
            if not self._is_json:
                return False
        if fields is None:
            self._rows_read += count
            self._dropped["broken row"] += count
            return False
        self._rows_read += 1
        try:
            arrival_s, prompt, output, label = self._values(fields)
        except Dropped as reason:
            self._dropped[str(reason)] += 1
            return False
        self._arrival.append(arrival_s)
        self._prompt.append(prompt)
        self._output.append(output)
        self._row.append(self._rows_read - 1)
        if self._labels is not None:
            self._labels.add(label, prompt)
        return len(self._row) == self._limit

    def _learn(self, header: Any) -> None:
        names = [str(name) for name in header]
        lower = {name.strip().lower() for name in names}
        if self._format == "auto":
            candidates = ("bailian", "mooncake") if self._is_json else ("azure", "burstgpt")
            self._format = "jsonl" if self._is_json else "csv"
            for candidate in candidates:
                signature = {*_SIGNATURES[candidate].values(), *_ALSO.get(candidate, ())}
                if not self._columns and lower.issuperset(signature):
                    self._format = candidate
                    break
        found = find_columns(names, {**_SIGNATURES.get(self._format, {}), **self._columns}, self._where)
        roles = ("arrival", "prompt", "output")
        self._pick = [found[role] if self._is_json else names.index(found[role]) for role in roles]
        self._width = len(names)
        optional = [role for role in OPTIONAL if role in self._columns or lower.intersection(OPTIONAL[role])]
        if optional:
            labels = find_columns(names, self._columns, self._where, optional)
            places = {role: name if self._is_json else names.index(name) for role, name in labels.items()}
            self._labels = Labels(labels, places, self._block_tokens or _BLOCK_TOKENS.get(self._format, 512))
        self._time.unit_s = (
            1e-3 if self._format == "mooncake" or found["arrival"].strip().lower().endswith("_ms") else 1.0
        )

    def _values(self, fields: Any) -> tuple[float, int, int, Any]:
        assert self._pick is not None
        if self._is_json:
            time, prompt_text, output_text = (fields.get(name) for name in self._pick)
        else:
            if len(fields) != self._width:
                raise Dropped("broken row")
            time, prompt_text, output_text = (fields[i].strip() for i in self._pick)
        if time in (None, "") or prompt_text in (None, "") or output_text in (None, ""):
            raise Dropped("missing column value")
        instant = self._time.read(time)
        prompt, output = read_tokens(prompt_text), read_tokens(output_text)
        if prompt < 0 or output < 0:
            raise Dropped("negative tokens")
        if output == 0:
            raise Dropped("zero output tokens")
        if prompt == 0:
            raise Dropped("zero prompt tokens")
        label = None if self._labels is None else self._labels.read(fields)
        return self._time.kept(instant), prompt, output, label

    def finished(self) -> TraceTable:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self._dropped.most_common())
        if not self._row:
            text = f"0 usable of {self._rows_read} rows" + (f" ({reasons})" if reasons else "")
            raise InputError("content", text, "hold at least one usable row", where=self._where)
        prompt_tokens, output_tokens = np.array(self._prompt), np.array(self._output)
        labelled = {} if self._labels is None else self._labels.finished(prompt_tokens, output_tokens)
        return TraceTable(
            arrival_s=np.array(self._arrival),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            row=np.array(self._row),
            rows_read=self._rows_read,
            dropped=dict(sorted(self._dropped.items())),
            format=self._format,
            **labelled,
        )
