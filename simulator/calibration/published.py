"""Published speeds: each row predicted without having been fitted on, and both side by side.

A CSV with the columns of `COLUMNS`, in any order; yours may hold more rows. A row gives a figure (`METRICS`) of plain
decoding or of a chain of γ drafts, for a batch of sequences, and what the source says about hardware, engine and model.
"same" and blank cells take what the row above says of the same source. Nothing is refused for being vague: what is guessed
(the context length, a GPU that is only implied) stands in the note, with the predictions at both ends of what is plausible.

Rows named in `HOST_ROWS` gave the vLLM profile its host times. Each of them is predicted with host times fitted again
without it (`host_times`), all others by the profile as it is.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simulator import catalog
from simulator.architecture import WeightQuantization, load_decoder
from simulator.calibration.comparison import Quantity, Validation
from simulator.calibration.csv_table import number, read_text
from simulator.calibration.host_times import HostRow, HostTimes, fit_host_times
from simulator.deployment import Deployment, deploy
from simulator.engine import Engine, load_engine
from simulator.errors import InputError, MemwallError
from simulator.hardware import load_gpu
from simulator.memory import weights_on_gpu
from simulator.operators import embedding_weight_bytes
from simulator.quantization import Quantization
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.round import RoundCost, round_cost
from simulator.uncertainty import interval_factor, log_sds

COLUMNS = ("id", "source", "hardware", "engine", "target", "draft", "method", "gamma_or_tree", "batch", "dataset",
           "accept_len", "metric", "value", "notes")  # fmt: skip
METRICS = {"tpot ms": "s", "step itl ms": "s", "tok/s": "tokens/s"}
"""Time per output token, time of a step or round, output tokens per second of the whole batch → unit of the figure."""
HOST_ENGINE = "vllm"
HOST_ROWS = ("vllm20780-v", "vllm20780-e1-2", "vllm20780-e1-7", "vllm-dsd-1-0", "vllm-dsd-32-0")
"""Rows that the host times of `HOST_ENGINE` were fitted on."""
CONTEXT_TOKENS = (400, 100, 1000)
"""Assumed where a source is silent, and the ends of what chat and MT-bench ask for: a few hundred tokens of both."""
GENERATED_TOKENS = 200
"""What gpt-fast generates unless told otherwise; its figures are means over them."""

_FORMATS = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
_GPT_FAST = "gpt-fast"
_GPT_FAST_GROUP = 32  # its int4 stores a bf16 scale and zero point for so many values
_VAGUE = re.compile(r"\b(?:unstated|implied|likely|probably)\b", re.IGNORECASE)
_WATTS = re.compile(r"\b\d+ ?W\b")
_MAX_BYTES = 16 * 2**20
_SHOWN = 10  # dropped rows that a note names


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
        how = f", {self.draft} γ = {self.gamma}" if self.gamma else ""
        what = {"tpot ms": "time per token", "step itl ms": "step", "tok/s": "rate"}[self.metric]
        return f"{self.id}: {self.target}{how}, batch {self.batch}, {what}"

    def figure(self, cost: RoundCost) -> float:
        """The row's own kind of figure of a priced round."""
        if self.metric == "step itl ms":
            return cost.seconds
        per_token_s = cost.seconds / (self.accept_length or 1.0)
        return per_token_s if self.metric == "tpot ms" else self.batch / per_token_s

    @property
    def step_s(self) -> float:
        """The measured time of a whole step or round."""
        length = self.accept_length or 1.0
        return {"tpot ms": self.value * length, "step itl ms": self.value, "tok/s": self.batch * length / self.value}[
            self.metric
        ]


@dataclass(frozen=True)
class PublishedTable:
    """Rows used and dropped; `read` is their sum."""

    rows: tuple[Row, ...]
    read: int
    dropped: Mapping[str, int]
    """Reason → rows."""
    problems: tuple[str, ...]
    """One sentence per dropped row, with its line and field."""


@dataclass(frozen=True)
class _Case:
    """What a row is taken for."""

    deployment: Deployment
    contexts: tuple[int, int, int]
    """Assumed, shortest and longest plausible tokens of context."""
    notes: tuple[str, ...]


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


def validate_published(path: Path) -> Validation:
    """Every usable row of `path` measured and predicted; see the top of this module for what is not fitted on what."""
    table = read_published(path)
    quantities = [_quantity(row, table.rows) for row in table.rows]
    counted = ", ".join(f"{n} {reason}" for reason, n in table.dropped.items())
    notes = [f"not used: {problem}" for problem in table.problems[:_SHOWN]]
    if len(table.problems) > _SHOWN:
        notes.append(f"and {len(table.problems) - _SHOWN} more rows not used")
    points = _host_rows(table.rows)
    if len(points) == len(HOST_ROWS):
        notes.append(_host_note(fit_host_times(list(points.values())), load_engine(HOST_ENGINE)))
    return Validation(
        title="Published speeds",
        subject="calibrations and engine profiles as bundled",
        conditions=(
            ("rows", f"{table.read} read, {len(table.rows)} used, {table.read - len(table.rows)} dropped"
                     + (f" ({counted})" if counted else "")),
            ("acceptance", "the number of tokens per round is the row's own, not predicted"),
            ("intervals", "contexts at both ends of what is plausible, and 90 % of what the times are uncertain by"),
        ),
        quantities=quantities,
        notes=notes,
    )  # fmt: skip


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
    if method not in ("ar", "chain"):
        raise refuse("method", "be AR or chain: no other is priced")
    gamma = number(cells["gamma_or_tree"] or "0") if method == "chain" else 0.0
    if gamma is None or gamma != int(gamma) or not 0 <= gamma <= MAX_GAMMA:
        raise refuse("gamma_or_tree", f"be a chain's length of at most {MAX_GAMMA}")
    length = number(cells["accept_len"]) if gamma else 1.0
    if (length is None and cells["accept_len"]) or (length is not None and not 1.0 <= length <= gamma + 1.0):
        raise refuse("accept_len", "be between 1 and γ + 1, or blank")
    return Row(
        line, cells["id"], cells["source"], cells["hardware"], cells["engine"], cells["target"], cells["draft"],
        int(gamma), int(batch), cells["dataset"], length, metric, value / (1.0 if metric == "tok/s" else 1e3),
        cells["notes"],
    )  # fmt: skip


def _quantity(row: Row, rows: Sequence[Row]) -> Quantity:
    unit = METRICS[row.metric]
    try:
        case = _case(row)
        engine, basis, notes = _unfitted_engine(row, case, rows)
        served = replace(case.deployment, engine=engine)
        figures = [row.figure(_price(row, served, c)) for c in case.contexts]
    except MemwallError as error:
        return Quantity(row.title, unit, row.value, None, "not predicted", note=str(error))
    said = (*case.notes, *notes, f"the source adds: {row.notes}" if row.notes else "")
    note = "; ".join(text for text in said if text)
    log_sd = log_sds(served, lambda d: {"round": _price(row, d, case.contexts[0]).seconds})["round"]
    factor = float(interval_factor(log_sd))
    return Quantity(row.title, unit, row.value, figures[0], basis, min(figures) / factor, max(figures) * factor, note)


def _case(row: Row) -> _Case:
    """Raises MemwallError, saying what of the row cannot be priced."""
    if row.gamma and row.accept_length is None:
        raise InputError("accept_len", "(absent)", "be given to price a round", where=row.id)
    notes = []
    hardware = " ".join(_WATTS.sub("", _VAGUE.sub("", row.hardware)).replace("(", " ").replace(")", " ").split())
    if not hardware:
        raise InputError("hardware", row.hardware or "(absent)", "be stated", where=row.id)
    gpu = load_gpu(hardware)
    vague = "implied or likely, not stated" if _VAGUE.search(row.hardware) else ""
    limit = _WATTS.search(row.hardware)
    limited = f"limited to {limit[0]}, which the profile is not" if limit else ""
    guessed = ", ".join(text for text in (vague, limited) if text)
    notes.append(f"on {gpu.name}" + (f" ({guessed})" if guessed else ""))
    words = _VAGUE.sub("", row.target).replace("(", " ").replace(")", " ").lower().split()
    stated = [word for word in words if word in _FORMATS]
    group = next((int(word[1:]) for word in words if re.fullmatch(r"g[1-9]\d{0,4}", word, re.ASCII)), None)
    decoder = load_decoder("-".join(w for w in words if w not in _FORMATS and not re.fullmatch(r"g\d+", w)))
    if _VAGUE.search(row.target):
        notes.append(f"model taken to be {decoder.name}")
    quantization = Quantization()
    if stated and stated[0] in ("fp8", "int8", "int4"):
        if row.engine.lower().startswith(_GPT_FAST):
            # Weight only, LM head included, the embedding not.
            dtype = stated[0]
            block = group or _GPT_FAST_GROUP if dtype == "int4" else decoder.hidden_size
            scales = WeightQuantization(dtype, block, 4.0 if dtype == "int4" else 2.0, frozenset({"embedding"}))
            decoder, quantization = replace(decoder, quantization=scales), Quantization(activations="bf16")
            notes.append("kernels of narrow weights are not calibrated: bf16's efficiency taken")
        else:
            quantization = Quantization(weights=stated[0])
    name = row.engine.lower().split()[0] if row.engine.split() else ""
    bundled = name in catalog.names("engine")
    if not bundled:
        notes.append(f"no profile of {row.engine or 'the engine'}: no host time, the hardware's own limit")
    served = deploy(
        decoder, gpu, quantization=quantization, engine=name if bundled else "ideal",
        draft=_drafter(row, decoder.name) if row.gamma else None,
    )  # fmt: skip
    contexts, says = _contexts(row)
    served.fit(context_tokens=contexts[0], sequences=row.batch, gamma=row.gamma)
    if row.batch == 1 and not row.gamma:
        read_bytes = weights_on_gpu(served.target) - embedding_weight_bytes(decoder, served.target.formats, 1)
        rate = read_bytes / row.step_s
        notes.append(
            f"measured, {read_bytes / 1e9:.2f} GB of weights at {rate / 1e9:.0f} GB/s, "
            f"{rate / gpu.hbm_bytes_per_s:.0%} of the datasheet's"
        )
    return _Case(served, contexts, (*notes, says))


def _drafter(row: Row, model: str) -> str:
    """The bundled drafter that a row means."""
    known = catalog.names("drafter")
    name = row.draft.lower()
    for candidate in (f"eagle-{model}" if name in ("eagle", "eagle-1") else name, name.replace("-", "")):
        if candidate in known:
            return candidate
    raise InputError("draft", row.draft or "(absent)", "be a bundled drafter", where=row.id)


def _contexts(row: Row) -> tuple[tuple[int, int, int], str]:
    prompt = re.match(r"(\d{1,6})-tok prompt", row.dataset, re.ASCII)
    if prompt and row.engine.lower().startswith(_GPT_FAST):
        start = int(prompt[1])
        contexts = (start + GENERATED_TOKENS // 2, start, start + GENERATED_TOKENS)
    else:
        contexts = CONTEXT_TOKENS
    return contexts, f"{contexts[0]} tokens of context assumed, {contexts[1]} to {contexts[2]} plausible"


def _price(row: Row, served: Deployment, context_tokens: int) -> RoundCost:
    law = None
    if row.gamma:
        # Any law with this mean prices the same round: only the mean enters.
        share = min(1.0, ((row.accept_length or 1.0) - 1.0) / row.gamma)
        law = AcceptanceConfig(marginal=(share,) * row.gamma).law()
    return round_cost(
        served.target, served.engine, sequences=row.batch, context_tokens=context_tokens, gamma=row.gamma,
        acceptance=law, draft=served.draft,
    )  # fmt: skip


def _unfitted_engine(row: Row, case: _Case, rows: Sequence[Row]) -> tuple[Engine, str, list[str]]:
    """Engine whose host times this row had no part in, the basis, and what to add to the note."""
    engine = case.deployment.engine
    if engine.name != HOST_ENGINE:
        return engine, "not fitted on", []
    if row.id not in HOST_ROWS:
        near = any(other.id in HOST_ROWS and other.source == row.source for other in rows)
        return engine, "not fitted on", ["host times were fitted on other rows of this source"] if near else []
    others = {id: point for id, point in _host_rows(rows).items() if id != row.id}
    if len(others) < len(HOST_ROWS) - 1:
        missing = ", ".join(id for id in HOST_ROWS if id != row.id and id not in others)
        raise InputError("rows", missing, "be there to fit host times without this row", where=row.id)
    times = fit_host_times(list(others.values()))
    notes = ["host times fitted on the other four rows"]
    if times.ambiguous:
        notes.append(f"which cannot tell {' from '.join(times.ambiguous)}")
    return times.of(engine), "left out of the fit", notes


def _host_rows(rows: Sequence[Row]) -> dict[str, HostRow]:
    """What the rows of `HOST_ROWS` took beyond their passes, by id; those that cannot be priced are left out."""
    bare, found = load_engine("ideal"), {}
    for row in rows:
        if row.id not in HOST_ROWS:
            continue
        try:
            case = _case(row)
        except MemwallError:
            continue
        passes = _price(row, replace(case.deployment, engine=bare), case.contexts[0])
        found[row.id] = HostRow(row.step_s - passes.seconds, row.batch, row.gamma, row.source)
    return found if len({point.version for point in found.values()}) <= 2 else {}


def _host_note(fitted: HostTimes, engine: Engine) -> str:
    pairs = [
        (name, getattr(fitted, field), getattr(engine, field))
        for name, field in (("step", "host_step_s"), ("sequence", "host_per_sequence_s"),
                            ("round", "host_speculative_round_s"), ("draft pass", "host_draft_pass_s"))
    ]  # fmt: skip
    said = ", ".join(f"{name} {1e3 * ours:.3f} ({1e3 * theirs:g})" for name, ours, theirs in pairs)
    return (
        f"host times over all {len(HOST_ROWS)} fitted rows, in ms, and in brackets the {engine.name} profile's: {said}"
    )


def _first(problems: Sequence[str]) -> str:
    return f" (first: {problems[0]})" if problems else ""
