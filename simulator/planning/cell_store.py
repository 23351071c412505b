"""Finished cells of a simulated map in a file, one JSON line each, so that a killed run goes on where it stopped.

A cell's key is a hash of all that decides its outcome: what serves and how long its steps take, the way to draft, traffic, seed,
objectives, and memwall's own code. A line is appended by one write; one that a crash cut short is left out when the file is
read. When a map is complete its cells are put in the map's order, so that the file is the same however many workers made it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.output.files import replacing

Row = dict[str, Any]


class CellStore:
    """Rows by key, in memory and, where there is a path, on disk."""

    def __init__(self, path: str | None = None, option: str = "--out"):
        """Reads what is there. Raises InputError where `path` holds something else than cells."""
        self.path, self.option = path, option
        self.rows: dict[str, Row] = {}
        if path is not None and Path(path).exists():
            self._read(Path(path))

    def _read(self, path: Path) -> None:
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(self.option, str(path), f"be a file of cells ({error})") from None
        whole = text.endswith("\n") or not text
        lines = text.split("\n")
        broken = not whole
        for number, line in enumerate(lines[:-1] if whole else lines):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, TypeError, KeyError, RecursionError):
                if number < len(lines) - 1:
                    raise InputError(self.option, str(path), f"hold cells; line {number + 1} is none") from None
        if broken:  # the last line was cut short, or lacks its end
            self._write(list(self.rows.values()))

    def append(self, row: Row) -> None:
        """Adds one row with its key."""
        self.rows[row["key"]] = row
        if self.path is None:
            return
        line = (_line(row) + "\n").encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(self.option, self.path, f"be writable ({error.strerror or error})") from None

    def finish(self, keys: Sequence[str]) -> None:
        """Puts the rows of `keys` in their order; others, of other maps, go behind them, by key."""
        if self.path is None:
            return
        first = list(dict.fromkeys(key for key in keys if key in self.rows))
        others = sorted(set(self.rows) - set(first))
        self._write([self.rows[key] for key in [*first, *others]])

    def _write(self, rows: Sequence[Row]) -> None:
        assert self.path is not None
        with replacing(self.path, self.option) as file:
            file.write("".join(_line(row) + "\n" for row in rows).encode())


def key_of(*parts: Any) -> str:
    """A hash of `parts`, which are bytes or can be written as JSON, and of memwall's own code."""
    digest = hashlib.sha256(code_digest())
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


@cache
def code_digest() -> bytes:
    """A hash of the package's own modules, without those that only print and plot."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in (
            "figures",
            "output",
            "commands",
            "calibration",
            "reference_decoder",
        ):
            digest.update(path.read_bytes())
    return digest.digest()


def _line(row: Row) -> str:
    return json.dumps(row, sort_keys=True, separators=(",", ":"))
