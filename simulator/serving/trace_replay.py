"""A trace replayed: as recorded, stretched in time, played over and over, or its rows drawn at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from simulator.errors import InputError, UnknownName
from simulator.randomness import STREAM_RESAMPLED_ROW, uniform_array
from simulator.records import Record
from simulator.serving.arrivals import RateProfile, Renewal
from simulator.serving.classes import EVERYTHING, RequestClass
from simulator.serving.lengths import FloatArray, IntArray
from simulator.serving.prefixes import SharedPrefixes
from simulator.serving.quantities import Count, Rate
from simulator.serving.requests import Requests
from simulator.serving.traces import FORMATS, TraceTable, read_trace


class Trace(Record):
    """Requests read from a file, whole rows: arrival, prompt length and output length stay together."""

    kind: Literal["trace"]
    """Tag of this traffic."""
    path: str
    """The file; a relative path is tried from the folder of the file that names it, then from the working folder."""
    format: Literal["auto", "azure", "mooncake", "bailian", "burstgpt", "csv", "jsonl"] = "auto"
    """How to read it; auto goes by the header or the first line."""
    time_scale: float = Field(default=1.0, ge=1e-9, le=1e9)
    """Arrival times are multiplied by this, no unit: 0.5 doubles the rate."""
    rate_per_s: Rate | None = None
    """Instead of `time_scale`: stretch the arrivals to this mean rate, requests per second."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many usable rows; null reads them all."""
    columns: dict[Literal["arrival", "prompt", "output", "session", "class", "priority", "hash_ids"], str] | None = None
    """For csv and jsonl: names of the columns where ours do not match; a name ending in _ms holds milliseconds."""
    block_tokens: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Tokens that one of a prompt's block ids stands for; left out, 512 (Mooncake) or 16 (Bailian)."""
    classes: tuple[RequestClass, ...] | None = None
    """What requests of the trace's classes have in common, by name; left out or not named here, only the priority that the
    trace gives them."""
    repeat: Annotated[int, Field(ge=1)] | None = None
    """Play the whole trace so many times, one after the other with a mean gap between. What rows have in common with
    others stays within one playing."""
    requests: Count | None = None
    """Instead of `repeat`: so many requests in all, playing the trace as often as that takes."""
    resample: bool = False
    """Draw whole rows at random, with replacement, and let them arrive by chance at `rate_per_s`. Sessions are dissolved;
    of the prompts' blocks those stay that at least two rows have."""
    burstiness: float | None = Field(default=None, ge=0.01, le=1e4)
    """With `resample`: shape of the gamma gaps, no unit; left out 1, which is Poisson."""

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if self.rate_per_s is not None and self.time_scale != 1:
            raise ValueError("have either time_scale or rate_per_s, not both")
        if self.repeat is not None and self.requests is not None:
            raise ValueError("have either repeat or requests, not both")
        if self.resample and self.rate_per_s is None:
            raise ValueError("have rate_per_s where rows are resampled")
        if self.resample and self.repeat is not None:
            raise ValueError("have requests, not repeat, where rows are resampled")
        if self.burstiness is not None and not self.resample:
            raise ValueError("have burstiness only with resample: true")
        return self

    @property
    def load(self) -> str:
        """How fast requests come, for people."""
        return "its own" if self.rate_per_s is None else f"{self.rate_per_s:g} /s"

    @property
    def lengths_source(self) -> str:
        """Where the lengths come from, for people."""
        return self.path


def replayed(traffic: Trace, seed: int, base: Path | None) -> Requests:
    """The requests of a trace. Raises InputError where it cannot be read or played as asked."""
    path = Path(traffic.path).expanduser()
    if base is not None and not path.is_absolute() and (base / path).is_file():
        path = base / path
    table = read_trace(
        path,
        format=traffic.format,
        columns=traffic.columns,
        limit=traffic.limit,
        block_tokens=traffic.block_tokens,
    )
    once = _as_recorded(traffic, table, str(path))
    rows = f"of {table.rows_read} rows of {path.name} ({FORMATS[table.format]})"
    if traffic.resample:
        requests, how = _resampled(traffic, once, seed)
        source = f"{len(requests)} requests drawn from {len(once)} {rows}{how}"
    else:
        arrival_s, mean_gap_s, how = _stretched(traffic, table.arrival_s, str(path))
        requests = _tiled(traffic, once, arrival_s, mean_gap_s, str(path))
        source = f"{min(len(requests), len(once))} {rows}{how}"
        if len(requests) > len(once):
            source = f"{len(requests)} requests, {source}, played {len(requests) / len(once):.4g} times"
    source = "; ".join((source, *table.notes))
    return replace(requests, rows_read=len(requests) + table.rows_read - len(table.row), source=source)


def _as_recorded(traffic: Trace, table: TraceTable, where: str) -> Requests:
    classes = _classes(traffic, table, where)
    return Requests(
        table.arrival_s, table.prompt_tokens, table.output_tokens, table.row, None, 0, table.rows_read, table.dropped,
        "", table.kind_of, classes, None, table.session, table.shared,
    )  # fmt: skip


def _classes(traffic: Trace, table: TraceTable, where: str) -> tuple[RequestClass, ...]:
    given = {c.name: c for c in traffic.classes or ()}
    if len(given) < len(traffic.classes or ()):
        raise InputError(
            "classes", ", ".join(c.name for c in traffic.classes or ()), "have different names", where=where
        )
    if not table.kinds:
        if given:
            raise InputError("classes", ", ".join(given), "be left out where no column says a row's class", where=where)
        return EVERYTHING
    names = {name for name, _ in table.kinds if name is not None}
    for wanted in given:
        # A trace that is cut short may simply not have come to it.
        if wanted not in names and traffic.limit is None:
            raise UnknownName("classes.name", wanted, names, where=where, kind="class of the trace")
    several = {name for name in names if sum(n == name for n, _ in table.kinds) > 1}
    classes = []
    for name, priority in table.kinds:
        shown = name or "all"
        if priority is not None and (name is None or name in several):
            shown = f"{shown}, priority {priority}"
        changed: dict[str, Any] = {"name": shown} if priority is None else {"name": shown, "priority": priority}
        classes.append(given.get(name or "", EVERYTHING[0]).model_copy(update=changed))
    return tuple(classes)


def _stretched(traffic: Trace, recorded_s: FloatArray, where: str) -> tuple[FloatArray, float, str]:
    """Arrival times, the mean gap between them (0 where all come at once), and a word on it."""
    gaps, span_s = len(recorded_s) - 1, float(recorded_s[-1])
    if traffic.rate_per_s is None:
        mean_gap_s = span_s / gaps * traffic.time_scale if gaps else 0.0
        return (
            recorded_s * traffic.time_scale,
            mean_gap_s,
            f", times × {traffic.time_scale:g}" if traffic.time_scale != 1 else "",
        )
    if span_s <= 0:
        raise InputError("rate_per_s", traffic.rate_per_s, "be left out where all rows arrive at once", where=where)
    arrival_s = recorded_s * (gaps / traffic.rate_per_s / span_s)
    return arrival_s, 1 / traffic.rate_per_s, f", stretched to {traffic.rate_per_s:g} /s"


def _tiled(traffic: Trace, once: Requests, arrival_s: FloatArray, mean_gap_s: float, where: str) -> Requests:
    """The trace played as often as asked."""
    n = len(once)
    total = traffic.requests if traffic.requests is not None else n * (traffic.repeat or 1)
    if total > 10**7:
        raise InputError("repeat", traffic.repeat, f"make at most ten million requests of {n} rows", where=where)
    if total > n and mean_gap_s == 0:
        field = "requests" if traffic.repeat is None else "repeat"
        raise InputError(
            field,
            total if traffic.repeat is None else traffic.repeat,
            "not go beyond one playing where all rows arrive at once",
            where=where,
        )
    index = np.arange(total, dtype=np.int64)
    playing, row = np.divmod(index, n)
    period_s = float(arrival_s[-1]) + mean_gap_s
    tiled = once.take(row)
    session = None if tiled.session is None else tiled.session + playing * n
    shared = tiled.shared
    if shared is not None and total > n:
        # Other playings are other conversations: the same words again would be a hit rate that nobody has recorded.
        sources = int(shared.source.max(initial=-1)) + 1
        per_piece = np.repeat(playing, np.diff(shared.first_piece))
        shared = SharedPrefixes(shared.first_piece, shared.source + per_piece * sources, shared.end_tokens)
    times_s = arrival_s[row] if total <= n else arrival_s[row] + playing * period_s
    return replace(tiled, arrival_s=times_s, session=session, shared=shared)


def _resampled(traffic: Trace, once: Requests, seed: int) -> tuple[Requests, str]:
    total = traffic.requests or len(once)
    assert traffic.rate_per_s is not None
    shape = traffic.burstiness or 1.0
    arrival_s = Renewal(RateProfile.constant(traffic.rate_per_s), shape, seed).times(0, total)
    index = np.arange(total, dtype=np.int64)
    row: IntArray = (uniform_array(seed, index, STREAM_RESAMPLED_ROW, 0) * len(once)).astype(np.int64)
    shared = None if once.shared is None else once.shared.common()
    drawn = replace(once, shared=shared, session=None).take(row)
    how = f", arriving at {traffic.rate_per_s:g} /s" + (f", burstiness {shape:g}" if shape != 1 else "")
    return replace(drawn, arrival_s=arrival_s), how
