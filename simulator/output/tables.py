"""Tables and paragraphs on a terminal, by rich; a table wider than the terminal is broken into blocks of columns."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from simulator.errors import MemwallError
from simulator.output.files import discard_output
from simulator.output.rows import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

PIPED_WIDTH = 120
"""Columns assumed where nobody's terminal is asked: output into a file or pipe, and no $COLUMNS."""

_SEPARATION = 2
# How the cell of a column of numbers may begin, placeholders for an absent number included.
_NUMBER = re.compile(r"[(>+-]?\s*\d\S*( \S+){0,2}|[–—]|never|none.*|")


class Section(NamedTuple):
    """A table with what is said above and below it."""

    title: str
    table: Table
    note: str = ""
    numeric: bool = True
    """Whether columns that hold numbers only are set flush right; no for a list of properties."""


def properties(title: str, table: Table | Sequence[tuple[str, ...]]) -> Section:
    """Names and values below a title, without a header."""
    body = table.rows if isinstance(table, Table) else table
    return Section(title, Table(("", ""), body), numeric=False)


def print_blocks(blocks: Sequence[str | Section]) -> None:
    """Writes paragraphs and tables to standard output, one blank line between them."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal or "COLUMNS" in os.environ else PIPED_WIDTH
    drawn = io.StringIO()
    console = Console(file=drawn, width=width, force_terminal=terminal, highlight=False, markup=False, emoji=False)
    for index, block in enumerate(blocks):
        if index:
            console.print()
        if isinstance(block, str):
            _print_text(console, block)
        else:
            _print_section(console, block)
    # One write at the end: a closed pipe is then our BrokenPipeError, not one inside rich.
    try:
        sys.stdout.write("\n".join(line.rstrip() for line in drawn.getvalue().split("\n")))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise MemwallError(f"cannot write to standard output ({error.strerror or error})") from None


def _print_text(console: Console, text: str, style: str | None = None) -> None:
    # Words that are too long for a line are addresses: broken, they could not be copied.
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        indent += "  " if indent else ""
        lines = textwrap.wrap(
            line, max(console.width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for part in lines or [""]:
            console.print(part, style=style, soft_wrap=True)


def _print_section(console: Console, section: Section) -> None:
    if section.title:
        _print_text(console, section.title, "bold")
    for index, columns in enumerate(_column_blocks(section.table, console.width)):
        if index:
            console.print()
        console.print(_rich_table(section, columns))
    if section.note:
        _print_text(console, section.note, "dim")


def _column_blocks(table: Table, width: int) -> list[list[int]]:
    """Indices of the columns of each block; the first column, which names the rows, stands in every block."""
    widths = [max(len(row[i]) for row in (table.headers, *table.rows)) for i in range(len(table.headers))]
    blocks: list[list[int]] = [[0]]
    used = widths[0]
    for i in range(1, len(widths)):
        # A long text is wrapped where it stands; a block of its own would not make it shorter.
        needed = _SEPARATION + min(widths[i], max(width // 4, len(table.headers[i])))
        if used + needed > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += needed
    return blocks


def _rich_table(section: Section, columns: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    headers, body = section.table
    drawn = RichTable(
        box=box.SIMPLE_HEAD if any(headers) else None,
        show_header=any(headers),
        show_edge=False,
        pad_edge=False,
        padding=(0, _SEPARATION - 1 if any(headers) else _SEPARATION, 0, 0),
    )
    for i in columns:
        short = max(len(row[i]) for row in (headers, *body)) <= 24
        flush_right = section.numeric and i > 0 and all(_NUMBER.fullmatch(row[i]) for row in body)
        drawn.add_column(
            headers[i], justify="right" if flush_right else "left", no_wrap=short or flush_right, overflow="fold"
        )
    for row in body:
        drawn.add_row(*(row[i] for i in columns))
    return drawn
