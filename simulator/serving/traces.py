"""Request traces, read row by row: every row is either kept or counted under the reason it was left out.

Columns are found by name, in any order, extra ones ignored, upper and lower case alike. Formats, told apart by the header
or the first line:

    azure      CSV, TIMESTAMP (date and time), ContextTokens, GeneratedTokens (Azure LLM inference traces, 2023 and 2024)
    mooncake   JSON lines, timestamp (ms), input_length, output_length
    burstgpt   CSV, Timestamp (s), Request tokens, Response tokens (0 where the request failed)
    csv, jsonl names as in `_NAMES`; times in s, or in ms where the column's name ends in _ms, or as date and time

Memory is some 64 bytes per kept row and one line of text, whatever the file's size.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from simulator.errors import InputError, UnknownName, nearest
from simulator.serving.lengths import ABSURD_TOKENS, FloatArray, IntArray

FORMATS: dict[str, str] = {
    "azure": "Azure LLM inference trace",
    "mooncake": "Mooncake trace, times in ms",
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
}  # fmt: skip
# Format → its three columns, lower case; the sets are what tells the formats apart.
_SIGNATURES: dict[str, dict[str, str]] = {
    "azure": {"arrival": "timestamp", "prompt": "contexttokens", "output": "generatedtokens"},
    "burstgpt": {"arrival": "timestamp", "prompt": "request tokens", "output": "response tokens"},
    "mooncake": {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"},
}
_JSON_FORMATS = ("mooncake", "jsonl")

# No trace lies beyond the year 5138; a larger number of seconds is a clock in ms or ns read as s.
_LAST_TIME_S = 1e11
# A Mooncake line of a million tokens takes some 20 kB. Longer text than this is cut, and then fails to parse.
_MAX_LINE_CHARS = 4 * 2**20
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)? ?(?:Z|UTC|([+-])(\d\d):?(\d\d)?)?", re.ASCII
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


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


class _Dropped(Exception):
    """This row is left out, for this reason."""


def read_trace(
    path: Path, *, format: str = "auto", columns: Mapping[Any, str] | None = None, limit: int | None = None
) -> TraceTable:
    """The usable rows of the trace at `path`.

    format    a key of `FORMATS`, or auto
    columns   for csv and jsonl: arrival, prompt, output → name of the column
    limit     stop after this many usable rows

    Raises InputError when the file cannot be read as text, holds no usable row, or lacks a column.
    """
    if format != "auto" and format not in FORMATS:
        raise UnknownName("format", format, ["auto", *FORMATS], kind="trace format")
    where = str(path)
    if not path.is_file():
        raise InputError("trace", where, "be an existing file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(file, format, columns or {}, limit, where)
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


def _read(file: TextIO, format: str, columns: Mapping[Any, str], limit: int | None, where: str) -> TraceTable:
    lines = _lines(file)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError("content", "(empty)", "hold at least one row", where=where)
    is_json = format in _JSON_FORMATS or (format == "auto" and first.lstrip().startswith("{"))
    rows = _json_rows(_chain(first, lines)) if is_json else _csv_rows(_chain(first, lines))
    table = _Table(format, columns, limit, where, is_json)
    for count, fields in rows:
        if table.add(count, fields):
            break
    return table.finished()


class _Table:
    """Rows going in, arrays and counts coming out."""

    def __init__(self, format: str, columns: Mapping[Any, str], limit: int | None, where: str, is_json: bool):
        self._format, self._columns, self._limit, self._where, self._is_json = format, columns, limit, where, is_json
        self._pick: list[Any] | None = None
        self._width = 0
        self._time = _Clock()
        self._arrival, self._prompt = array("d"), array("q")
        self._output, self._row = array("q"), array("q")
        self._rows_read = 0
        self._dropped: Counter[str] = Counter()

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
            arrival_s, prompt, output = self._values(fields)
        except _Dropped as reason:
            self._dropped[str(reason)] += 1
            return False
        self._arrival.append(arrival_s)
        self._prompt.append(prompt)
        self._output.append(output)
        self._row.append(self._rows_read - 1)
        return len(self._row) == self._limit

    def _learn(self, header: Any) -> None:
        names = [str(name) for name in header]
        lower = {name.strip().lower() for name in names}
        if self._format == "auto":
            candidates = ("mooncake",) if self._is_json else ("azure", "burstgpt")
            self._format = "jsonl" if self._is_json else "csv"
            for candidate in candidates:
                if not self._columns and lower.issuperset(_SIGNATURES[candidate].values()):
                    self._format = candidate
        found = find_columns(names, {**_SIGNATURES.get(self._format, {}), **self._columns}, self._where)
        roles = ("arrival", "prompt", "output")
        self._pick = [found[role] if self._is_json else names.index(found[role]) for role in roles]
        self._width = len(names)
        self._time.unit_s = (
            1e-3 if self._format == "mooncake" or found["arrival"].strip().lower().endswith("_ms") else 1.0
        )

    def _values(self, fields: Any) -> tuple[float, int, int]:
        assert self._pick is not None
        if self._is_json:
            time, prompt_text, output_text = (fields.get(name) for name in self._pick)
        else:
            if len(fields) != self._width:
                raise _Dropped("broken row")
            time, prompt_text, output_text = (fields[i].strip() for i in self._pick)
        if time in (None, "") or prompt_text in (None, "") or output_text in (None, ""):
            raise _Dropped("missing column value")
        instant = self._time.read(time)
        prompt, output = _tokens(prompt_text), _tokens(output_text)
        if prompt < 0 or output < 0:
            raise _Dropped("negative tokens")
        if output == 0:
            raise _Dropped("zero output tokens")
        if prompt == 0:
            raise _Dropped("zero prompt tokens")
        return self._time.kept(instant), prompt, output

    def finished(self) -> TraceTable:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self._dropped.most_common())
        if not self._row:
            text = f"0 usable of {self._rows_read} rows" + (f" ({reasons})" if reasons else "")
            raise InputError("content", text, "hold at least one usable row", where=self._where)
        return TraceTable(
            arrival_s=np.array(self._arrival),
            prompt_tokens=np.array(self._prompt),
            output_tokens=np.array(self._output),
            row=np.array(self._row),
            rows_read=self._rows_read,
            dropped=dict(sorted(self._dropped.items())),
            format=self._format,
        )


class _Clock:
    """Times of rows → seconds after the first kept one. The first readable row decides whether times are dates or numbers.

    Dates are whole nanoseconds: seconds since 1970 in double precision would lose the seventh digit of Azure's fractions.
    """

    def __init__(self) -> None:
        self.unit_s = 1.0
        self._dates: bool | None = None
        self._first: float | int | None = None
        self._last: float | int = 0
        self._day, self._day_ns = "", 0

    def read(self, value: Any) -> float | int:
        """The instant in this clock's own unit: nanoseconds of a date, or the number as it stands."""
        number = _number(value)
        is_date = number is None
        if self._dates is not None and is_date != self._dates:
            raise _Dropped("unreadable time")
        instant = self._nanoseconds(value) if number is None else number
        if not is_date and abs(instant) > _LAST_TIME_S / self.unit_s:
            raise _Dropped("unreadable time")
        self._dates = is_date
        return instant

    def kept(self, instant: float | int) -> float:
        """Seconds after the first kept row; the row is dropped when time goes backwards."""
        if self._first is None:
            self._first = self._last = instant
        if instant < self._last:
            raise _Dropped("time going backwards")
        self._last = instant
        # Divisions, because 1e-3 and 1e-9 have no exact double: 27482 ms must be 27.482 s.
        per_s = 10**9 if self._dates else (1000 if self.unit_s == 1e-3 else 1)
        return (instant - self._first) / per_s

    def _nanoseconds(self, text: Any) -> int:
        match = _DATE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise _Dropped("unreadable time")
        day, hour, minute, second, fraction, sign, zone_hour, zone_minute = match.groups()
        if day != self._day:
            try:
                ordinal = datetime.date.fromisoformat(day).toordinal()
            except ValueError:
                raise _Dropped("unreadable time") from None
            self._day, self._day_ns = day, ordinal * 86_400 * 10**9
        if hour > "23" or minute > "59" or second > "59":
            raise _Dropped("unreadable time")
        seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
        if sign:
            offset_s = int(zone_hour) * 3600 + int(zone_minute or 0) * 60
            seconds -= offset_s if sign == "+" else -offset_s
        nanoseconds = int(fraction.ljust(9, "0")) if fraction else 0
        return self._day_ns + seconds * 10**9 + nanoseconds


def _number(value: Any) -> float | int | None:
    """A number or the text of one; None for anything else, NaN included (infinity stays: it is a number too large)."""
    if isinstance(value, str):
        if value.isascii() and value.isdecimal() and len(value) < 19:
            return int(value)
        return float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokens(value: Any) -> int:
    number = _number(value)
    if number is None:
        raise _Dropped("unreadable number")
    if abs(number) > ABSURD_TOKENS:
        raise _Dropped("absurd token count")
    if number != int(number):
        raise _Dropped("unreadable number")
    return int(number)


def _lines(file: TextIO) -> Iterator[str]:
    """Lines of at most `_MAX_LINE_CHARS`; the rest of a longer one is skipped, so that no file can fill the memory."""
    while line := file.readline(_MAX_LINE_CHARS):
        tail = line
        while len(tail) == _MAX_LINE_CHARS and not tail.endswith(("\n", "\r")):
            tail = file.readline(_MAX_LINE_CHARS)
        yield line


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | None]]:
    """(1, fields) of each row that is not blank, or (lines, None) of text that is no CSV."""
    # Strict, so that a quote left open is an error with a count of lines and not one giant field.
    reader = csv.reader(lines, strict=True)
    while True:
        before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield max(1, reader.line_num - before), None
            continue
        if any(field.strip() for field in fields) or len(fields) > 1:
            yield 1, fields


def _json_rows(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(1, fields) of each line that is not blank, or (1, None) of one that is no JSON object."""
    for line in lines:
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            yield 1, None
            continue
        yield 1, fields if isinstance(fields, dict) else None
