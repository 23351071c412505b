"""Tables and paragraphs on a terminal, by rich; a table wider than the terminal is broken into blocks of columns."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from simulator.output.rows import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

PIPED_WIDTH = 120
"""Columns assumed where nobody's terminal is asked: output into a file or pipe, and no $COLUMNS."""

_NUMBER = re.compile(r"[(>+-]?\s*\d|[–—]|never$|none|$")
"""How the cell of a column of numbers may begin, placeholders for an absent one included."""


class Section(NamedTuple):
    """A table with what is said above and below it."""

    title: str
    table: Table
    note: str = ""
    numeric: bool = True
    """Whether columns that hold numbers only are set flush right; no for a list of properties."""


def print_blocks(blocks: Sequence[str | Section]) -> None:
    """Writes paragraphs and tables to standard output, one blank line between them."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)
    with console.capture() as capture:
        for index, block in enumerate(blocks):
            if index:
                console.print()
            if isinstance(block, str):
                console.print(block)
            else:
                _print_section(console, block)
    # One write at the end: a closed pipe is then our BrokenPipeError, not one inside rich.
    sys.stdout.write("\n".join(line.rstrip() for line in capture.get().split("\n")))
    sys.stdout.flush()


def _print_section(console: Console, section: Section) -> None:
    if section.title:
        console.print(section.title, style="bold")
    for index, columns in enumerate(_column_blocks(section.table, console.width)):
        if index:
            console.print()
        console.print(_rich_table(section, columns))
    if section.note:
        console.print(section.note, style="dim")


def _column_blocks(table: Table, width: int) -> list[list[int]]:
    """Indices of the columns of each block; the first column, which names the rows, stands in every block."""
    widths = [max(len(row[i]) for row in (table.headers, *table.rows)) for i in range(len(table.headers))]
    blocks: list[list[int]] = [[0]]
    used = widths[0]
    for i in range(1, len(widths)):
        if used + 2 + widths[i] > width and len(blocks[-1]) > 1 and widths[i] < width // 3:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + widths[i]
    return blocks


def _rich_table(section: Section, columns: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for i in columns:
        flush_right = section.numeric and i > 0 and all(_NUMBER.match(row[i]) for row in section.table.rows)
        drawn.add_column(
            section.table.headers[i], justify="right" if flush_right else "left", no_wrap=flush_right or i == 0
        )
    for row in section.table.rows:
        drawn.add_row(*(row[i] for i in columns))
    return drawn
