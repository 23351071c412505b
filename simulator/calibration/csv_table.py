"""A user's CSV: named columns in any order, rows as text; times in s, ms, µs or ns by the end of a column's name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError, UnknownName, nearest

MOST_BYTES = 64 * 2**20
"""A table of measurements has a few thousand rows; 64 MiB are a million."""
UNITS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""End of a column's name → how many of the unit make one second; dividing by it leaves 27482 ms exact."""


@dataclass(frozen=True)
class CsvTable:
    """The rows that are as wide as the header; `broken` counts the others."""

    columns: tuple[str, ...]
    """Lower case, without surrounding blanks; no two alike."""
    rows: tuple[dict[str, str], ...]
    """Cells by column, without surrounding blanks."""
    broken: int
    where: str

    @property
    def rows_read(self) -> int:
        """Rows of the file, the header and blank lines not counted."""
        return len(self.rows) + self.broken


def read_csv(path: Path) -> CsvTable:
    """The table at `path`. Raises InputError where it is no CSV with a header, too large, or names a column twice."""
    return parse_csv(read_text(path, MOST_BYTES), str(path))


def read_text(path: Path, most_bytes: int) -> str:
    """A text file of at most `most_bytes`. Raises InputError."""
    where = str(path)
    try:
        if not path.is_file():
            raise InputError("file", where, "be an existing file")
        size = path.stat().st_size
        if size > most_bytes:
            raise InputError("size", f"{size} bytes", f"be at most {most_bytes} bytes", where=where)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("content", "(binary)", "be UTF-8 text", where=where) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError("file", where, f"be readable ({reason})") from None


def parse_csv(text: str, where: str) -> CsvTable:
    """`text` as a table; `where` is what errors name."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    kept: list[list[str]] = []
    try:
        kept.extend([cell.strip() for cell in fields] for fields in reader if any(cell.strip() for cell in fields))
    except csv.Error as error:
        raise InputError("content", f"line {reader.line_num}", f"be valid CSV ({error})", where=where) from None
    if not kept:
        raise InputError("content", "(empty)", "hold a header and a row for each measurement", where=where)
    columns = tuple(name.lower() for name in kept[0])
    for name in columns:
        if not name:
            raise InputError("columns", ", ".join(columns), "each have a name", where=where)
        if columns.count(name) > 1:
            raise InputError("columns", name, "appear once", where=where)
    rows = [dict(zip(columns, row, strict=True)) for row in kept[1:] if len(row) == len(columns)]
    return CsvTable(columns, tuple(rows), len(kept) - 1 - len(rows), where)


def number(text: str) -> float | None:
    """A finite number, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def time_columns(table: CsvTable, stems: Iterable[str]) -> dict[str, tuple[str, float]]:
    """stem → (its column, units per second) for each stem that has a column, e.g. median → ("median_ms", 1000.0).

    Raises InputError when one has two columns.
    """
    found: dict[str, tuple[str, float]] = {}
    for stem in stems:
        named = [(f"{stem}_{unit}", per_s) for unit, per_s in UNITS_PER_S.items() if f"{stem}_{unit}" in table.columns]
        if len(named) > 1:
            raise InputError("columns", f"{named[0][0]}, {named[1][0]}", "give each time once", where=table.where)
        if named:
            found[stem] = named[0]
    return found


def unused_columns(table: CsvTable, used: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Columns that nothing reads. Raises UnknownName when one looks like a misspelt column of `known`, because its
    numbers would silently be missing."""
    used, known = set(used), sorted(set(known))
    unused = tuple(name for name in table.columns if name not in used)
    for name in unused:
        meant = nearest(name, known)
        if meant is not None and meant not in table.columns and _alike(name, meant):
            raise UnknownName("columns", name, known, where=table.where, kind="column")
    return unused


def _alike(name: str, meant: str) -> bool:
    # Closer than `nearest` asks for: a column of the user's own ("temperature_c") is no misspelling of ours.
    import difflib

    return difflib.SequenceMatcher(None, name, meant).ratio() >= 0.8
