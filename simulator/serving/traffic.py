"""What arrives: requests with a time, a prompt length and an output length, generated or replayed from a trace.

`Traffic` is a tagged record (poisson, gamma, closed-loop, trace); `generate` turns it into `Requests`, plain arrays.
Every generated number is drawn by counter, so request i is the same however many requests are asked for, and a change
of rate stretches the same arrivals instead of drawing new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from simulator import catalog, units
from simulator.errors import InputError, UnknownName
from simulator.randomness import (
    STREAM_INTERARRIVAL,
    STREAM_OUTPUT_TOKENS,
    STREAM_PROMPT_TOKENS,
    STREAM_THINK_TIME,
    uniform_array,
)
from simulator.records import Record, read_mapping, validate
from simulator.serving.classes import EVERYTHING, RequestClass, in_si
from simulator.serving.lengths import FloatArray, IntArray, Lengths
from simulator.serving.prefixes import SharedPrefixes
from simulator.serving.traces import FORMATS, read_trace

TOO_LONG = "longer than the context"
"""Reason under which `generate` counts requests whose prompt and output together exceed the context."""


# The bounds keep every arrival time finite and distinct in double precision: from one request in 12 days to one per µs.
_Rate = Annotated[float, Field(ge=1e-6, le=1e6), BeforeValidator(lambda value: in_si(value, "per_s"))]
_Requests = Annotated[int, Field(ge=1, le=10**7)]


class Poisson(Record):
    """Independent users, open loop: exponential gaps between arrivals."""

    kind: Literal["poisson"]
    """Tag of this traffic."""
    rate_per_s: _Rate
    """Mean arrivals per second; a number, or text such as "8 /s" or "30 /min"."""
    requests: _Requests
    """How many requests to generate; at most ten million, some 500 MB of arrays."""
    lengths: Lengths
    """Prompt and output lengths."""


class Gamma(Record):
    """Open loop with gaps that are burstier (b < 1) or steadier (b > 1) than Poisson."""

    kind: Literal["gamma"]
    """Tag of this traffic."""
    rate_per_s: _Rate
    """Mean arrivals per second; a number, or text such as "8 /s"."""
    burstiness: float = Field(ge=0.01, le=1e4)
    """Shape b of the gamma gaps, no unit: their coefficient of variation is 1/√b, and b = 1 is Poisson."""
    requests: _Requests
    """How many requests to generate."""
    lengths: Lengths
    """Prompt and output lengths."""


class ClosedLoop(Record):
    """A fixed number of users, each of whom waits for an answer, thinks, and asks again."""

    kind: Literal["closed-loop"]
    """Tag of this traffic."""
    users: int = Field(ge=1, le=10**6)
    """Users, each with at most one request in flight; all ask at time 0."""
    think_time_s: Annotated[float, Field(ge=0, le=1e6), BeforeValidator(lambda value: in_si(value, "s"))]
    """Mean of the exponential time between an answer's end and the user's next request, s; text such as "30 s" too."""
    requests: _Requests
    """How many requests all users make together."""
    lengths: Lengths
    """Prompt and output lengths."""


class Trace(Record):
    """Requests read from a file, whole rows: arrival, prompt length and output length stay together."""

    kind: Literal["trace"]
    """Tag of this traffic."""
    path: str
    """The file; a relative path is tried from the folder of the file that names it, then from the working folder."""
    format: Literal["auto", "azure", "mooncake", "burstgpt", "csv", "jsonl"] = "auto"
    """How to read it; auto goes by the header or the first line."""
    time_scale: float = Field(default=1.0, ge=1e-9, le=1e9)
    """Arrival times are multiplied by this, no unit: 0.5 doubles the rate."""
    rate_per_s: _Rate | None = None
    """Instead of `time_scale`: stretch the arrivals to this mean rate, requests per second."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many usable rows; null reads them all."""
    columns: dict[Literal["arrival", "prompt", "output"], str] | None = None
    """For csv and jsonl: names of the columns where ours do not match; a name ending in _ms holds milliseconds."""

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if self.rate_per_s is not None and self.time_scale != 1:
            raise ValueError("have either time_scale or rate_per_s, not both")
        return self


Traffic = Annotated[Poisson | Gamma | ClosedLoop | Trace, Field(discriminator="kind")]
_KINDS: dict[str, type[Poisson] | type[Gamma] | type[ClosedLoop] | type[Trace]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "closed-loop": ClosedLoop,
    "trace": Trace,
}


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order of their index, one entry per request in every array."""

    arrival_s: FloatArray
    """[n] s, at least 0, non-decreasing where known. NaN until simulated: closed loop, all after the first `users`; sessions,
    all later turns."""
    prompt_tokens: IntArray
    """[n] at least 1."""
    output_tokens: IntArray
    """[n] at least 1, the first token included."""
    row: IntArray
    """[n] index of the trace's row, header and blank lines not counted; of the generated request otherwise."""
    think_s: FloatArray | None
    """[n] time the user thinks before this request, s: closed loops (0 for the first `users`) and later turns of a session
    (0 for first ones); None elsewhere."""
    users: int
    """Users of a closed loop, 0 for an open one."""
    rows_read: int
    """Rows read or requests generated: n plus all of `dropped`."""
    dropped: Mapping[str, int]
    """Reason → rows left out for it."""
    source: str
    """One line for people: where these requests come from."""
    class_of: IntArray | None = None
    """[n] index into `classes`; None: all of class 0."""
    classes: tuple[RequestClass, ...] = EVERYTHING
    """What requests of a class have in common."""
    follows: IntArray | None = None
    """[n] index of the request whose end this one waits for, smaller than its own, -1: none. A follower's arrival is that
    end plus its `think_s`, NaN until simulated. None: no request waits for another."""
    session: IntArray | None = None
    """[n] requests with the same number share one growing conversation: a later turn's prompt begins with everything
    (prompt and answer) of the turns before it. None: every request is its own session."""
    shared: SharedPrefixes | None = None
    """What prompts have in common beyond that; None: nothing."""

    def __len__(self) -> int:
        return len(self.arrival_s)


def load_traffic(name: str, base: Path | None = None) -> Poisson | Gamma | ClosedLoop | Trace:
    """The traffic of a bundled name or of a YAML file's path. Raises UnknownName or InputError."""
    file = catalog.locate("traffic", name, base=base)
    traffic = parse_traffic(read_mapping(file), str(file))
    if isinstance(traffic, Trace) and (file.parent / traffic.path).is_file():
        return traffic.model_copy(update={"path": str(file.parent / traffic.path)})
    return traffic


def parse_traffic(data: Mapping[str, Any], where: str) -> Poisson | Gamma | ClosedLoop | Trace:
    """A mapping of fields to values as the traffic its `kind` names; `where` is named in errors."""
    kind = data.get("kind")
    if kind is None:
        raise InputError("kind", "(absent)", f"be given ({', '.join(_KINDS)})", where=where)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownName("kind", str(kind), _KINDS, where=where, kind="kind of traffic")
    return validate(_KINDS[kind], dict(data), where)


def with_load(
    traffic: Poisson | Gamma | ClosedLoop | Trace,
    rate_per_s: float | None = None,
    requests: int | None = None,
    users: int | None = None,
) -> Poisson | Gamma | ClosedLoop | Trace:
    """`traffic` with another load; what is None stays. A trace takes `requests` as its limit and `rate_per_s` as a stretch.

    Raises InputError where the traffic has no such figure: a closed loop has no rate, an open one no users.
    """
    changed: dict[str, Any] = {}
    if rate_per_s is not None:
        if isinstance(traffic, ClosedLoop):
            raise InputError("rate_per_s", rate_per_s, "be left out for closed-loop traffic", suggestion="users")
        changed["rate_per_s"] = rate_per_s
        if isinstance(traffic, Trace):
            changed["time_scale"] = 1.0
    if users is not None:
        if not isinstance(traffic, ClosedLoop):
            raise InputError("users", users, f"be left out for {traffic.kind} traffic", suggestion="rate_per_s")
        changed["users"] = users
    if requests is not None:
        changed["limit" if isinstance(traffic, Trace) else "requests"] = requests
    return validate(type(traffic), {**traffic.model_dump(), **changed}, "traffic")


def generate(
    traffic: Poisson | Gamma | ClosedLoop | Trace,
    seed: int,
    *,
    base: Path | None = None,
    max_context_tokens: int | None = None,
) -> Requests:
    """The requests of `traffic`.

    seed                 any integer; the same seed and traffic give the same requests, byte for byte
    base                 folder from which a trace's relative path is tried first
    max_context_tokens   leave out, and count, requests whose prompt plus output is longer; None keeps all

    Raises InputError when a trace cannot be read or no request is left.
    """
    requests = _replayed(traffic, base) if isinstance(traffic, Trace) else _generated(traffic, seed)
    return requests if max_context_tokens is None else _within(requests, max_context_tokens)


def _generated(traffic: Poisson | Gamma | ClosedLoop, seed: int) -> Requests:
    n = traffic.requests
    index = np.arange(n, dtype=np.int64)
    prompt_tokens, output_tokens = traffic.lengths.draw(
        uniform_array(seed, index, STREAM_PROMPT_TOKENS, 0), uniform_array(seed, index, STREAM_OUTPUT_TOKENS, 0)
    )
    think_s = None
    if isinstance(traffic, ClosedLoop):
        arrival_s = np.where(index < traffic.users, 0.0, np.nan)
        think_s = -traffic.think_time_s * np.log1p(-uniform_array(seed, index, STREAM_THINK_TIME, 0))
        think_s[: traffic.users] = 0.0
        source = f"closed loop of {traffic.users} users, mean think time {units.show(traffic.think_time_s, 's')}"
    else:
        shape = traffic.burstiness if isinstance(traffic, Gamma) else 1.0
        gaps = _unit_gaps(uniform_array(seed, index, STREAM_INTERARRIVAL, 0), shape)
        arrival_s = np.cumsum(gaps) / traffic.rate_per_s
        source = f"{traffic.kind} arrivals at {traffic.rate_per_s:g} /s"
        if isinstance(traffic, Gamma):
            source += f", burstiness {traffic.burstiness:g}"
    if traffic.lengths.source:
        source += f"; lengths: {traffic.lengths.source}"
    users = traffic.users if isinstance(traffic, ClosedLoop) else 0
    return Requests(arrival_s, prompt_tokens, output_tokens, index, think_s, users, n, {}, f"{n} requests, {source}")


def _unit_gaps(u: FloatArray, shape: float) -> FloatArray:
    """Gamma gaps of mean 1 at probability `u`: P⁻¹(b, u) / b with P the regularised lower incomplete gamma function."""
    if shape == 1:
        return -np.log1p(-u)
    from scipy.special import gammaincinv

    gaps: FloatArray = gammaincinv(shape, u) / shape
    return gaps


def _replayed(traffic: Trace, base: Path | None) -> Requests:
    path = Path(traffic.path).expanduser()
    if base is not None and not path.is_absolute() and (base / path).is_file():
        path = base / path
    table = read_trace(path, format=traffic.format, columns=traffic.columns, limit=traffic.limit)
    arrival_s, speed = table.arrival_s * traffic.time_scale, ""
    if traffic.rate_per_s is not None:
        span_s = float(table.arrival_s[-1])
        if span_s <= 0:
            raise InputError(
                "rate_per_s", traffic.rate_per_s, "be left out where all rows arrive at once", where=str(path)
            )
        arrival_s = table.arrival_s * ((len(arrival_s) - 1) / traffic.rate_per_s / span_s)
        speed = f", stretched to {traffic.rate_per_s:g} /s"
    elif traffic.time_scale != 1:
        speed = f", times × {traffic.time_scale:g}"
    n = len(arrival_s)
    source = f"{n} of {table.rows_read} rows of {path.name} ({FORMATS[table.format]}){speed}"
    return Requests(
        arrival_s, table.prompt_tokens, table.output_tokens, table.row, None, 0, table.rows_read, table.dropped, source
    )


def _within(requests: Requests, max_context_tokens: int) -> Requests:
    fits = requests.prompt_tokens + requests.output_tokens <= max_context_tokens
    left_out = int(np.count_nonzero(~fits))
    if left_out == 0:
        return requests
    if left_out == len(fits):
        shortest = int((requests.prompt_tokens + requests.output_tokens).min())
        raise InputError(
            "max_context_tokens",
            max_context_tokens,
            f"be at least {shortest}, the shortest request",
            where=requests.source,
        )
    arrival_s, think_s = requests.arrival_s[fits], None
    if requests.think_s is not None:
        # The users stay the same people: the first `users` requests that remain start at 0.
        first = np.arange(len(arrival_s)) < requests.users
        arrival_s = np.where(first, 0.0, np.nan)
        think_s = np.where(first, 0.0, requests.think_s[fits])
    return Requests(
        arrival_s,
        requests.prompt_tokens[fits],
        requests.output_tokens[fits],
        requests.row[fits],
        think_s,
        requests.users,
        requests.rows_read,
        {**requests.dropped, TOO_LONG: left_out},
        requests.source,
    )
