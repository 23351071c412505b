"""The rows of a table of published speeds, as their sources have them.

A CSV with the columns of `COLUMNS`, in any order, others beside them; yours may hold more rows. A row gives a figure (`METRICS`)
of plain decoding, of a chain of γ drafts or of a tree as SGLang describes one (steps/candidates per step/verified tokens, the
last with the root: 8/8/64), for a batch of sequences, and what the source says about hardware, engine and model. "same" and
blank cells take what the row above says of the same source.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.calibration.csv_table import number, read_text
from simulator.errors import InputError
from simulator.speculation.acceptance import MAX_GAMMA
from simulator.speculation.shape import MAX_NODES

COLUMNS = ("id", "source", "hardware", "engine", "target", "draft", "method", "gamma_or_tree", "batch", "dataset",
           "accept_len", "metric", "value", "notes")  # fmt: skip
METRICS = {"tpot ms": "s", "step itl ms": "s", "tok/s": "tokens/s"}
"""Time per output token, time of a step or round, output tokens per second of the whole batch → unit of the figure."""

VAGUE = re.compile(r"\b(?:unstated|implied|likely|probably)\b", re.IGNORECASE)
"""In cells whose text is a guess."""

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Row:
    """One usable row; texts as the source has them, "same" resolved."""

    line: int
    id: str
    source: str
    hardware: str
    engine: str
    target: str
    draft: str
    gamma: int
    """Drafts in a row that can be accepted: of a chain all, of a tree its depth."""
    tree: tuple[int, int] | None
    """Candidates per pass, and drafted tokens that are verified; None for a chain."""
    batch: int
    dataset: str
    accept_length: float | None
    """Tokens per round, accepted + 1; 1 for plain decoding."""
    metric: str
    """A key of `METRICS`."""
    value: float
    """SI: s or tokens/s."""
    notes: str

    @property
    def title(self) -> str:
        """For people."""
        tree = f" in a tree of {self.tree[1]}" if self.tree else ""
        how = f", {self.draft} γ = {self.gamma}{tree}" if self.gamma else ""
        what = {"tpot ms": "time per token", "step itl ms": "step", "tok/s": "rate"}[self.metric]
        return f"{self.id}: {self.target}{how}, batch {self.batch}, {what}"

    @property
    def states_gpu(self) -> bool:
        """Whether the source says which GPU it was; else it is implied or likely."""
        return not VAGUE.search(self.hardware)

    @property
    def tokens(self) -> float:
        """Tokens per round; 1 where the source is silent."""
        return self.accept_length or 1.0

    def figure(self, step_s: float) -> float:
        """The row's own kind of figure of a step or round that takes `step_s`."""
        if self.metric == "step itl ms":
            return step_s
        per_token_s = step_s / self.tokens
        return per_token_s if self.metric == "tpot ms" else self.batch / per_token_s

    @property
    def step_s(self) -> float:
        """The measured time of a whole step or round."""
        if self.metric == "step itl ms":
            return self.value
        return self.tokens * (self.value if self.metric == "tpot ms" else self.batch / self.value)


@dataclass(frozen=True)
class PublishedTable:
    """Rows used and dropped; `read` is their sum."""

    rows: tuple[Row, ...]
    read: int
    dropped: Mapping[str, int]
    """Reason → rows."""
    problems: tuple[str, ...]
    """One sentence per dropped row, with its line and field."""


def read_published(path: Path) -> PublishedTable:
    """The table at `path`. Raises InputError where it is no CSV with these columns, or no row can be used."""
    where = str(path)
    # Strict, so that a quote left open is an error and not one giant field.
    reader = csv.reader(io.StringIO(read_text(path, _MAX_BYTES), newline=""), strict=True)
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    problems: list[str] = []
    read = 0
    above = dict.fromkeys(COLUMNS, "")
    hardware: dict[str, str] = {}
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for name in COLUMNS:
            if header.count(name) != 1:
                raise InputError("columns", ", ".join(header) or "(none)", f"include {name} once", where=where)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            read += 1
            if len(fields) != len(header):
                error = InputError(
                    "columns", len(fields), f"be {len(header)}", where=f"{where}, line {reader.line_num}"
                )
                dropped["not as wide as the header"] += 1
                problems.append(str(error))
                continue
            cells = {name: field.strip() for name, field in zip(header, fields, strict=True)}
            if cells["source"].lower() == "same":
                cells |= {name: cells[name] or above[name] for name in ("hardware", "dataset")} | {
                    "source": above["source"]
                }
            cells["hardware"] = cells["hardware"] or hardware.get(cells["source"], "")
            hardware[cells["source"]] = cells["hardware"]
            above = cells
            try:
                row = _row(cells, reader.line_num, f"{where}, line {reader.line_num}", {r.id for r in rows})
            except InputError as error:
                dropped[f"{error.field} must {error.rule}"] += 1
                problems.append(str(error))
            else:
                rows.append(row)
    except csv.Error as error:
        raise InputError("content", f"line {reader.line_num}", f"be valid CSV ({error})", where=where) from None
    if not rows:
        raise InputError("content", f"0 usable of {read} rows", "hold a usable row" + _first(problems), where=where)
    return PublishedTable(tuple(rows), read, dict(dropped), tuple(problems))


def _row(cells: Mapping[str, str], line: int, where: str, taken: set[str]) -> Row:
    def refuse(name: str, rule: str) -> InputError:
        return InputError(name, cells[name] or "(absent)", rule, where=where)

    if not cells["id"] or cells["id"] in taken:
        raise refuse("id", "be given, once")
    metric = cells["metric"].lower()
    if metric not in METRICS:
        raise refuse("metric", f"be one of {', '.join(METRICS)}")
    value = number(cells["value"])
    if value is None or not 1e-9 < value < 1e12:
        raise refuse("value", "be a number above 0")
    batch = number(cells["batch"])
    if batch is None or batch != int(batch) or not 1 <= batch <= 65536:
        raise refuse("batch", "be a whole number from 1 to 65536")
    method = cells["method"].lower()
    if method not in ("ar", "chain", "tree"):
        raise refuse("method", "be AR, chain or tree: no other is priced")
    gamma, tree = (number(cells["gamma_or_tree"] or "0") if method == "chain" else 0.0), None
    if method == "tree":
        sizes = re.fullmatch(r"(\d{1,3})/(\d{1,3})/(\d{1,3})", cells["gamma_or_tree"], re.ASCII)
        steps, width, tokens = (int(size) for size in sizes.groups()) if sizes else (0, 0, 0)
        if not 1 <= steps < tokens <= MAX_NODES or not width:
            raise refuse("gamma_or_tree", "be steps/candidates per step/verified tokens, e.g. 8/8/64")
        gamma, tree = float(steps), (width, tokens - 1)
    if gamma is None or gamma != int(gamma) or not 0 <= gamma <= MAX_GAMMA:
        raise refuse("gamma_or_tree", f"be a chain's length of at most {MAX_GAMMA}")
    length = number(cells["accept_len"]) if gamma else 1.0
    if (length is None and cells["accept_len"]) or (length is not None and not 1.0 <= length <= gamma + 1.0):
        raise refuse("accept_len", "be between 1 and γ + 1, or blank")
    return Row(
        line, cells["id"], cells["source"], cells["hardware"], cells["engine"], cells["target"], cells["draft"],
        int(gamma), tree, int(batch), cells["dataset"], length, metric, value / (1.0 if metric == "tok/s" else 1e3),
        cells["notes"],
    )  # fmt: skip


def _first(problems: Sequence[str]) -> str:
    return f" (first: {problems[0]})" if problems else ""
