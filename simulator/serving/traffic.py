"""What arrives: requests with a time, a prompt length and an output length, generated or replayed from a trace.

`Traffic` is a tagged record (poisson, gamma, closed-loop, clients, trace); `generate` turns it into `Requests`, plain
arrays, and `generate_chunks` into the same arrays piece by piece. Every generated number is drawn by counter, so request i
is the same however many requests are asked for, and a change of rate stretches the same arrivals instead of drawing new
ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from simulator import catalog, units
from simulator.errors import InputError, UnknownName
from simulator.randomness import STREAM_THINK_TIME, uniform_array
from simulator.records import Record, read_mapping, validate
from simulator.serving.arrivals import DAY_S, Diurnal, RateProfile, Renewal, Stage, Users
from simulator.serving.classes import (
    EVERYTHING,
    MOST_CLASSES,
    Content,
    RequestClass,
    TrafficClass,
    check_names,
    sources_of,
    with_sources,
)
from simulator.serving.clients import Clients, ClientTraffic, Merged
from simulator.serving.lengths import Lengths
from simulator.serving.population import Arrivals, Population, chunks
from simulator.serving.prefixes import SharedPrefixes, SystemPrompt
from simulator.serving.quantities import Count, Rate, ThinkTime
from simulator.serving.requests import TOO_LONG, Requests
from simulator.serving.sessions import Conversation
from simulator.serving.trace_replay import Trace, replayed

__all__ = [
    "TOO_LONG", "ClientTraffic", "ClosedLoop", "Gamma", "Poisson", "RequestClass", "Requests", "SharedPrefixes", "Trace",
    "Traffic", "generate", "generate_chunks", "load_traffic", "parse_traffic", "with_load",
]  # fmt: skip

CHUNK = 2**18
"""Requests built at once: enough that NumPy's own costs vanish, few enough that they stay near the processor."""


class _Mixed(Record):
    """What is asked: one kind of request, or a mixture of classes."""

    kind: str
    """Tag of this traffic."""
    lengths: Lengths | None = None
    """Prompt and output lengths; this or `classes`."""
    system_prompt: SystemPrompt | None = None
    """With `lengths`: text that begins the prompts of many requests, on top of their own length."""
    conversation: Conversation | None = None
    """With `lengths`: each arrival begins a conversation, whose later turns contain all earlier ones."""
    classes: tuple[TrafficClass, ...] | None = Field(default=None, min_length=1, max_length=MOST_CLASSES)
    """A mixture of classes, each with its own lengths, system prompt, conversation, priority, SLOs and acceptance."""

    @model_validator(mode="after")
    def _one_description(self) -> Self:
        if self.classes is None:
            if self.lengths is None:
                raise InputError("lengths", "(absent)", "be given, or classes")
            return self
        for name in ("lengths", "system_prompt", "conversation"):
            if getattr(self, name) is not None:
                raise InputError(name, "(given)", "be left out where there are classes, which have their own")
        check_names([c.name for c in self.classes], "classes")
        return self

    @property
    def contents(self) -> tuple[Content, ...]:
        """What the requests of each class are like."""
        if self.classes is not None:
            return self.classes
        assert self.lengths is not None
        return (
            Content(
                **dict(EVERYTHING[0]),
                lengths=self.lengths,
                system_prompt=self.system_prompt,
                conversation=self.conversation,
            ),
        )

    @property
    def lengths_source(self) -> str:
        """Where the lengths come from, for people."""
        return sources_of(self.contents)

    def population(self, seed: int, source: str) -> Population:
        """The classes, their shares and their luck."""
        shares = tuple(c.share for c in self.classes) if self.classes is not None else ()
        return Population(self.contents, seed, shares, with_sources(source, self.contents))


class _OpenLoop(_Mixed):
    """Users who do not wait for each other: at one rate, in stages, or with the hours of the day."""

    rate_per_s: Rate | None = None
    """Mean arrivals per second, of conversations where there are any; a number, or text such as "8 /s" or "30 /min"."""
    stages: tuple[Stage, ...] | None = Field(default=None, min_length=1, max_length=10_000)
    """Instead of `rate_per_s`: stretches of time, one after the other, each with its own rate or ramp."""
    diurnal: Diurnal | None = None
    """With `rate_per_s`, which is then the mean: how the rate goes up and down with the hours."""
    requests: Count | None = None
    """How many requests to generate, at most ten million (some 500 MB of arrays). With stages it may be left out: as many
    as arrive before the last one ends; where it is given, the last stage's final rate goes on for as long as that takes."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.stages is None:
            if self.rate_per_s is None:
                raise InputError("rate_per_s", "(absent)", "be given, or stages")
            if self.requests is None:
                raise InputError("requests", "(absent)", "be given")
            return self
        for name in ("rate_per_s", "diurnal"):
            if getattr(self, name) is not None:
                raise InputError(name, "(given)", "be left out where there are stages, which have their own rates")
        expected = sum(stage.requests for stage in self.stages)
        if expected == 0:
            raise InputError("stages", "rate 0 throughout", "have a rate above 0 somewhere")
        if self.requests is None and expected > 10**7:
            raise InputError("stages", f"{expected:.3g} requests", "bring at most ten million requests")
        return self

    @property
    def load(self) -> str:
        """How fast requests come, for people."""
        if self.stages is not None:
            rates = [rate for stage in self.stages for rate in (stage.rate_per_s, stage.last_rate_per_s)]
            return f"{min(rates):g} to {max(rates):g} /s"
        return f"{self.rate_per_s:g} /s"

    @property
    def shape(self) -> float:
        """Shape of the gamma gaps."""
        return 1.0

    def arrivals(self, seed: int) -> Renewal:
        """The stream of arrivals."""
        until = np.inf
        if self.stages is not None:
            profile = RateProfile.of_stages(self.stages)
            if self.requests is None or self.stages[-1].last_rate_per_s == 0:
                until = float(profile.before[-1])
        else:
            assert self.rate_per_s is not None
            constant = RateProfile.constant(self.rate_per_s)
            profile = constant if self.diurnal is None else RateProfile.of_day(self.diurnal, self.rate_per_s)
        return Renewal(profile, self.shape, seed, until)

    def describe(self) -> str:
        """These arrivals in a few words, for people."""
        if self.stages is not None:
            span = units.show(sum(stage.duration_s for stage in self.stages), "s")
            many = len(self.stages)
            return f"{self.kind} arrivals in {many} stage{'s' * (many > 1)} over {span}, {self.load}"
        text = f"{self.kind} arrivals at {self.rate_per_s:g} /s"
        if self.diurnal is not None:
            period = "24 h" if self.diurnal.period_s == DAY_S else units.show(self.diurnal.period_s, "s")
            text += f" on average over {period}"
        return text

    def with_rate(self, rate_per_s: float) -> dict[str, Any]:
        """The fields that make this the mean rate; stages keep their proportions."""
        if self.stages is None:
            return {"rate_per_s": rate_per_s}
        mean = sum(stage.requests for stage in self.stages) / sum(stage.duration_s for stage in self.stages)
        return {"stages": [stage.times(rate_per_s / mean) for stage in self.stages]}


class Poisson(_OpenLoop):
    """Independent users, open loop: exponential gaps between arrivals."""

    kind: Literal["poisson"]
    """Tag of this traffic."""


class Gamma(_OpenLoop):
    """Open loop with gaps that are burstier (b < 1) or steadier (b > 1) than Poisson."""

    kind: Literal["gamma"]
    """Tag of this traffic."""
    burstiness: float = Field(ge=0.01, le=1e4)
    """Shape b of the gamma gaps, no unit: their coefficient of variation is 1/√b, and b = 1 is Poisson. Where the rate
    changes, that of the gaps counted in expected requests."""

    @property
    def shape(self) -> float:
        """Shape of the gamma gaps."""
        return self.burstiness

    def describe(self) -> str:
        """These arrivals in a few words, for people."""
        return f"{super().describe()}, burstiness {self.burstiness:g}"


class ClosedLoop(_Mixed):
    """A fixed number of users, each of whom waits for an answer, thinks, and asks again."""

    kind: Literal["closed-loop"]
    """Tag of this traffic."""
    users: int = Field(ge=1, le=10**6)
    """Users, each with at most one request in flight; all ask at time 0."""
    think_time_s: ThinkTime
    """Mean of the exponential time between an answer's end and the user's next request, s; text such as "30 s" too."""
    requests: Count
    """How many requests all users make together."""

    @model_validator(mode="after")
    def _no_conversations(self) -> Self:
        if any(content.conversation for content in self.contents):
            rule = "be left out for closed-loop traffic, whose users ask one thing after the other"
            raise InputError("conversation", "(given)", rule)
        return self

    @property
    def load(self) -> str:
        """How many ask, for people."""
        return f"{self.users} users"

    def describe(self) -> str:
        """This loop in a few words, for people."""
        return f"closed loop of {self.users} users, mean think time {units.show(self.think_time_s, 's')}"


Traffic = Annotated[Poisson | Gamma | ClosedLoop | ClientTraffic | Trace, Field(discriminator="kind")]
AnyTraffic = Poisson | Gamma | ClosedLoop | ClientTraffic | Trace
_KINDS: dict[str, type[Poisson] | type[Gamma] | type[ClosedLoop] | type[ClientTraffic] | type[Trace]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "closed-loop": ClosedLoop,
    "clients": ClientTraffic,
    "trace": Trace,
}


def load_traffic(name: str, base: Path | None = None) -> AnyTraffic:
    """The traffic of a bundled name or of a YAML file's path. Raises UnknownName or InputError."""
    file = catalog.locate("traffic", name, base=base)
    traffic = parse_traffic(read_mapping(file), str(file))
    if isinstance(traffic, Trace) and (file.parent / traffic.path).is_file():
        return traffic.model_copy(update={"path": str(file.parent / traffic.path)})
    return traffic


def parse_traffic(data: Mapping[str, Any], where: str) -> AnyTraffic:
    """A mapping of fields to values as the traffic its `kind` names; `where` is named in errors."""
    kind = data.get("kind")
    if kind is None:
        raise InputError("kind", "(absent)", f"be given ({', '.join(_KINDS)})", where=where)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownName("kind", str(kind), _KINDS, where=where, kind="kind of traffic")
    return validate(_KINDS[kind], dict(data), where)


def with_load(
    traffic: AnyTraffic,
    rate_per_s: float | None = None,
    requests: int | None = None,
    users: int | None = None,
) -> AnyTraffic:
    """`traffic` with another load; what is None stays.

    Of a trace, `rate_per_s` is a stretch and `requests` its limit (their number where it is repeated or resampled); stages
    and clients keep their proportions. Raises InputError where the traffic has no such figure: a closed loop has no rate,
    an open one no users.
    """
    changed: dict[str, Any] = {}
    if rate_per_s is not None:
        if isinstance(traffic, ClosedLoop):
            raise InputError("rate_per_s", rate_per_s, "be left out for closed-loop traffic", suggestion="users")
        if isinstance(traffic, ClientTraffic):
            factor = rate_per_s / traffic.rate_per_s
            clients = [{**c.model_dump(), "rate_per_s": c.rate_per_s * factor} for c in traffic.clients]
            changed["clients"] = clients
        elif isinstance(traffic, Trace):
            changed |= {"rate_per_s": rate_per_s, "time_scale": 1.0}
        else:
            changed |= traffic.with_rate(rate_per_s)
    if users is not None:
        if not isinstance(traffic, ClosedLoop):
            raise InputError("users", users, f"be left out for {traffic.kind} traffic", suggestion="rate_per_s")
        changed["users"] = users
    if requests is not None:
        if not isinstance(traffic, Trace) or traffic.resample or traffic.requests is not None:
            changed["requests"] = requests
        elif traffic.repeat is not None:
            changed |= {"requests": requests, "repeat": None}
        else:
            changed["limit"] = requests
    return validate(type(traffic), {**traffic.model_dump(), **changed}, "traffic")


def generate(
    traffic: AnyTraffic,
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
    parts = list(generate_chunks(traffic, seed, base=base, max_context_tokens=max_context_tokens))
    whole = Requests.joined(parts)
    return whole if isinstance(traffic, Trace) else replace(whole, source=f"{whole.rows_read} requests, {whole.source}")


def generate_chunks(
    traffic: AnyTraffic,
    seed: int,
    *,
    base: Path | None = None,
    max_context_tokens: int | None = None,
    size: int = CHUNK,
) -> Iterator[Requests]:
    """The same requests as those of `generate`, in chunks of at most `size` (more where one conversation is longer).

    Indices in `row`, `follows` and `session` count from the beginning of the whole. A trace is read as a whole.
    """
    read = kept = 0
    shortest = None
    for chunk in _chunks(traffic, seed, base, size):
        fitting = chunk.fitting(max_context_tokens, read, kept)
        read, kept = read + len(chunk), kept + len(fitting)
        if max_context_tokens is not None and kept == 0:
            least = int((chunk.prompt_tokens + chunk.output_tokens).min())
            shortest = least if shortest is None else min(shortest, least)
        yield fitting
    if kept == 0:
        if max_context_tokens is None:
            raise InputError("stages", "0 requests", "bring at least one request with this seed")
        rule = f"be at least {shortest}, the shortest request"
        raise InputError("max_context_tokens", max_context_tokens, rule, where=chunk.source)


def _chunks(traffic: AnyTraffic, seed: int, base: Path | None, size: int) -> Iterator[Requests]:
    if isinstance(traffic, Trace):
        whole = replayed(traffic, seed, base)
        if len(whole) <= size:
            yield whole
            return
        for first in range(0, len(whole), size):
            index = np.arange(first, min(first + size, len(whole)), dtype=np.int64)
            left_out = {} if first else whole.dropped
            yield replace(whole.take(index), rows_read=len(index) + sum(left_out.values()), dropped=left_out)
        return
    requests, arrivals, population = traffic.requests, *_stream(traffic, seed, size)
    wanted = 10**7 + 1 if requests is None else requests
    made = 0
    for chunk in chunks(arrivals, population, wanted, size):
        made += len(chunk)
        if isinstance(traffic, ClosedLoop):
            think_s = -traffic.think_time_s * np.log1p(-uniform_array(seed, chunk.row, STREAM_THINK_TIME, 0))
            think_s[chunk.row < traffic.users] = 0.0
            chunk = replace(chunk, think_s=think_s, users=traffic.users)
        yield chunk
    if requests is None and made == wanted:
        raise InputError("stages", f"more than {made - 1} requests", "bring at most ten million requests")
    if requests is not None and made < requests:
        rule = f"be at most {made}, which arrive before the last stage ends with no rate"
        raise InputError("requests", requests, rule)


def _stream(traffic: Poisson | Gamma | ClosedLoop | ClientTraffic, seed: int, size: int) -> tuple[Arrivals, Population]:
    if isinstance(traffic, ClientTraffic):
        clients = Clients.of(traffic.clients, seed)
        source = with_sources(traffic.describe(), traffic.clients)
        stretch = clients.stretch if any(c.length_spread for c in traffic.clients) else None
        merged = Merged(clients, traffic.clients, seed, min(size, traffic.requests))
        return merged, Population(traffic.clients, seed, (), source, stretch, by_client=True)
    population = traffic.population(seed, traffic.describe())
    return Users(traffic.users) if isinstance(traffic, ClosedLoop) else traffic.arrivals(seed), population
