"""A measurement file of the reference decoder → what a fit and its validation need: kernels as columns, passes as `Pass`.

The file's schema is `simulator.reference_decoder.measurements`; how that decoder drafts and verifies is told where a round
is taken apart here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, load_decoder, parse_config
from simulator.calibration.kernel_tables import Columns
from simulator.calibration.passes import Pass
from simulator.errors import InputError, MemwallError
from simulator.reference_decoder.measurements import MeasurementError
from simulator.reference_decoder.measurements import read as read_lines
from simulator.reference_decoder.shapes import SHAPES

Line = Mapping[str, Any]

MAX_FILE_BYTES = 2**28
"""A thousand times what ten minutes of measuring write."""
DISTURBED = 1.15
"""A measurement is not used if other work slowed the machine by more than this while it was taken (`canary`)."""
NOISE = f"the machine was slowed by more than {DISTURBED - 1:.0%} by other work"
TIMED_ROUNDS = 16
"""Rounds that the reference decoder times from one start; the context grows meanwhile."""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class PassRows:
    """Measured times that are sums of passes: a step is one pass, a draft several, a round both."""

    lines: Sequence[Line]
    measured_s: NDArray[np.float64]
    """[rows]"""
    passes: Sequence[Pass]
    row: NDArray[np.int64]
    """Row of each pass [passes]."""
    times: NDArray[np.float64]
    """How often it runs [passes]."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.lines)

    def label(self, name: str) -> NDArray[Any]:
        """One field of every row [rows]; None where a row has no such field."""
        return np.array([line.get(name) for line in self.lines])

    def where(self, chosen: NDArray[np.bool_]) -> PassRows:
        """The rows of a mask [rows]."""
        return rows_of([line for line, keep in zip(self.lines, chosen, strict=True) if keep])


@dataclass(frozen=True)
class Measurements:
    """One file, one device."""

    path: Path
    header: Line
    models: Mapping[str, Decoder]
    lines: Sequence[Line]
    """Those that were measured."""
    skipped: Mapping[str, int]
    """How many lines hold no measurement, by the reason they give."""
    lost: str = ""
    """What was given up to read a damaged file; "" for a whole one."""
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Measured lines that are not used, by kind and reason."""

    @staticmethod
    def of(
        path: Path, header: Line, lines: Sequence[Line], lost: str = "", dropped: Mapping[str, int] | None = None
    ) -> Measurements:
        """From lines already read. `dropped` counts rows of a table that are no lines, by reason."""
        whole = [line for line in lines if "skipped" not in line]
        taken = [line for line in whole if line.get("disturbance", 1.0) <= DISTURBED]
        left_out = {"row": dict(dropped)} if dropped else {}
        # A kernel in another number format than the models' would be priced as if it were in theirs.
        other = [line for line in taken if line.get("dtype", header["dtype"]) != header["dtype"]]
        for line in other:
            left_out.setdefault(line["kind"], Counter())[f"not in the models' {header['dtype']}"] += 1
        taken = [line for line in taken if line not in other]
        for line in whole:
            if line.get("disturbance", 1.0) > DISTURBED:
                left_out.setdefault(line["kind"], Counter())[NOISE] += 1
        if not taken:
            raise InputError("measurements", str(path), "hold at least one measurement")
        skipped = Counter(str(line["skipped"]) for line in lines if "skipped" in line)
        models = {name: _model(name, header, str(path)) for name in _model_names(header, taken)}
        return Measurements(path, header, models, taken, skipped, lost, left_out)

    def of_kind(self, *kinds: str) -> list[Line]:
        """Measured lines of these kinds."""
        return [line for line in self.lines if line["kind"] in kinds]

    def kernels(self, kind: str) -> Columns:
        """Columns of the kernel timings of one kind [rows], as `kernel_tables` has them."""
        lines = self.of_kind(kind)
        if kind == "matmul":
            names = {"m": "tokens", "n": "outputs", "k": "inputs"}
        else:
            names = {"sequences": "sequences", "new_tokens": "query_tokens", "cached": "context_tokens", "heads": "heads",
                     "kv_heads": "kv_heads", "head_dim": "head_dim"}  # fmt: skip
        columns = {ours: np.array([float(line[theirs]) for line in lines]) for ours, theirs in names.items()}
        columns["latency_s"] = np.array([float(line["median_s"]) for line in lines])
        if kind == "attention":
            columns["keys"] = columns.pop("cached") + columns["new_tokens"]
        return columns

    def passes(self, *kinds: str) -> PassRows:
        """Whole steps, drafts and rounds, as they are served: on a GPU those replayed as graphs."""
        return rows_of([line for line in self.of_kind(*kinds) if line.get("graphs", self.graphs) == self.graphs])

    @property
    def date(self) -> str:
        """When it was measured, YYYY-MM-DD, or "undated"."""
        return str(self.header.get("date") or "undated")[:10]

    @property
    def graphs(self) -> bool:
        """Whether passes are replayed as CUDA graphs, which is how they are served."""
        return bool(self.header["device_kind"] == "cuda")


def read_measurements(path: str | Path, *, salvage: bool = False) -> Measurements:
    """The file at `path`. Raises InputError naming line and field where it is damaged; with `salvage` what stands before
    the damage is read, and `lost` says so."""
    place = Path(path)
    if place.is_file() and place.stat().st_size > MAX_FILE_BYTES:
        raise InputError("size", f"{place.stat().st_size} bytes", f"be at most {MAX_FILE_BYTES} bytes", where=str(path))
    lost: str | None = None
    try:
        if salvage:
            header, lines, _, lost = read_lines(place, salvage=True)
        else:
            header, lines, _ = read_lines(place)
    except MeasurementError as error:
        raise MemwallError(str(error)) from None
    return Measurements.of(place, header, lines, lost or "")


def _model_names(header: Line, lines: Sequence[Line]) -> list[str]:
    """Models whose shape the header has, and those that a line names (a table of somebody else's may name bundled ones)."""
    named = [line.get(field) for line in lines for field in ("model", "draft_model")]
    given = [name.removeprefix("shape_of_") for name in header if name.startswith("shape_of_")]
    return list(dict.fromkeys([*given, *(name for name in named if name)]))


def _model(name: str, header: Line, where: str) -> Decoder:
    shape = header.get(f"shape_of_{name}") or (asdict(SHAPES[name]) if name in SHAPES else None)
    if shape is None:
        return load_decoder(name)
    config = {
        "model_type": "llama", "hidden_size": shape["hidden"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"],
        "intermediate_size": shape["width"], "vocab_size": shape["vocab"], "tie_word_embeddings": shape["tied_head"],
        "torch_dtype": _DTYPES[str(header["dtype"])],
    }  # fmt: skip
    return parse_config(config, name=name, where=f"{where}: shape_of_{name}")


def rows_of(lines: Sequence[Line]) -> PassRows:
    """Lines of kinds step, draft and round as sums of passes."""
    passes: list[Pass] = []
    row: list[int] = []
    times: list[float] = []
    for i, line in enumerate(lines):
        for one, often in _passes_of(line):
            passes.append(one)
            row.append(i)
            times.append(often)
    measured = np.array([float(line["median_s"]) for line in lines])
    return PassRows(lines, measured, passes, np.array(row, int), np.array(times))


def _passes_of(line: Line) -> list[tuple[Pass, float]]:
    model, batch, context = line["model"], line["batch"], line["context_tokens"]
    if line["kind"] == "step":
        tokens = line["tokens"]
        return [(Pass(model, batch, tokens, context, batch * tokens, line.get("layers")), 1.0)]
    gamma = line["gamma"]
    if line["kind"] == "draft":
        return _chain(model, batch, gamma, context, warm=True)
    # A round begins where the rounds timed before it have ended.
    context = round(context + TIMED_ROUNDS / 2 * line["tokens_per_round"])
    drafter, draft_model = line["drafter"], line["draft_model"]
    if drafter == "plain":
        return [(Pass(model, batch, 1, context, batch), 1.0)]
    if drafter == "tree":
        widths = [int(np.prod(line["widths"][:depth])) for depth in range(len(line["widths"]) + 1)]
        drafts = [(Pass(draft_model, batch, 2, context - 1, 2 * batch), 1.0)]
        for depth in range(1, gamma):
            before = sum(widths[:depth])
            level = Pass(draft_model, batch, widths[depth], context + before, batch * widths[depth], repeated=True)
            drafts.append((level, 1.0))
        nodes = sum(widths)
        return [*drafts, (Pass(model, batch, nodes, context, batch * nodes), 1.0)]
    if drafter == "early_exit":
        drafts = _chain(model, batch, gamma, context, layers=line["exit_layers"])
    else:
        drafts = _chain(draft_model, batch, gamma, context)
    return [*drafts, (Pass(model, batch, gamma + 1, context, batch * (gamma + 1)), 1.0)]


def _chain(
    model: str, batch: int, gamma: int, context: int, *, warm: bool = False, layers: int | None = None
) -> list[tuple[Pass, float]]:
    """γ draft passes. The first of an independent drafter takes two tokens a row, of which one may be new to it, and has
    logits for both; unless `warm`, the verification before it has swept L2. A target that exits after some `layers` has
    missed nothing."""
    first = 1 if layers else 2
    passes = [(Pass(model, batch, first, context + 1 - first, first * batch, layers, warm), 1.0)]
    if gamma > 1:
        passes.append((Pass(model, batch, 1, context + gamma // 2, batch, layers, repeated=True), gamma - 1.0))
    return passes
