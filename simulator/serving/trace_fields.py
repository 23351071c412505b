"""Text of a trace's fields → numbers, and text of a file → rows. What cannot be read leaves its row out, with a reason."""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from collections.abc import Iterator
from typing import Any, TextIO

from simulator.serving.lengths import ABSURD_TOKENS

# No trace lies beyond the year 5138; a larger number of seconds is a clock in ms or ns read as s.
_LAST_TIME_S = 1e11
# A Mooncake line of a million tokens takes some 20 kB. Longer text than this is cut, and then fails to parse.
_MAX_LINE_CHARS = 4 * 2**20
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)? ?(?:Z|UTC|([+-])(\d\d):?(\d\d)?)?", re.ASCII
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


class Dropped(Exception):
    """This row is left out, for this reason."""


class Clock:
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
        figure = read_number(value)
        is_date = figure is None
        if self._dates is not None and is_date != self._dates:
            raise Dropped("unreadable time")
        instant = self._nanoseconds(value) if figure is None else figure
        if not is_date and abs(instant) > _LAST_TIME_S / self.unit_s:
            raise Dropped("unreadable time")
        self._dates = is_date
        return instant

    def kept(self, instant: float | int) -> float:
        """Seconds after the first kept row; the row is dropped when time goes backwards."""
        if self._first is None:
            self._first = self._last = instant
        if instant < self._last:
            raise Dropped("time going backwards")
        self._last = instant
        # Divisions, because 1e-3 and 1e-9 have no exact double: 27482 ms must be 27.482 s.
        per_s = 10**9 if self._dates else (1000 if self.unit_s == 1e-3 else 1)
        return (instant - self._first) / per_s

    def _nanoseconds(self, text: Any) -> int:
        match = _DATE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise Dropped("unreadable time")
        day, hour, minute, second, fraction, sign, zone_hour, zone_minute = match.groups()
        if day != self._day:
            try:
                ordinal = datetime.date.fromisoformat(day).toordinal()
            except ValueError:
                raise Dropped("unreadable time") from None
            self._day, self._day_ns = day, ordinal * 86_400 * 10**9
        if hour > "23" or minute > "59" or second > "59":
            raise Dropped("unreadable time")
        seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
        if sign:
            offset_s = int(zone_hour) * 3600 + int(zone_minute or 0) * 60
            seconds -= offset_s if sign == "+" else -offset_s
        nanoseconds = int(fraction.ljust(9, "0")) if fraction else 0
        return self._day_ns + seconds * 10**9 + nanoseconds


def read_number(value: Any) -> float | int | None:
    """A number or the text of one; None for anything else, NaN included (infinity stays: it is a number too large)."""
    if isinstance(value, str):
        if value.isascii() and value.isdecimal() and len(value) < 19:
            return int(value)
        return float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_tokens(value: Any) -> int:
    """A count of tokens. Raises Dropped."""
    figure = read_number(value)
    if figure is None:
        raise Dropped("unreadable number")
    if abs(figure) > ABSURD_TOKENS:
        raise Dropped("absurd token count")
    if figure != int(figure):
        raise Dropped("unreadable number")
    return int(figure)


def text_lines(file: TextIO) -> Iterator[str]:
    """Lines of at most `_MAX_LINE_CHARS`; the rest of a longer one is skipped, so that no file can fill the memory."""
    while line := file.readline(_MAX_LINE_CHARS):
        tail = line
        while len(tail) == _MAX_LINE_CHARS and not tail.endswith(("\n", "\r")):
            tail = file.readline(_MAX_LINE_CHARS)
        yield line


def csv_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | None]]:
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


def json_rows(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
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
