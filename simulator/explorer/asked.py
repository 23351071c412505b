"""What the page of many users is asked: a bundled scenario and the changes to it, as a scenario of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field

from simulator.errors import InputError
from simulator.explorer.link import Settings
from simulator.scenario import Scenario, load_scenario
from simulator.serving.lengths import Lengths
from simulator.serving.trace_upload import UploadedTrace
from simulator.serving.traffic import AnyTraffic, ClosedLoop, load_traffic, parse_traffic, with_load
from simulator.speculation.drafters import load_drafter

AS_IS = "as in the scenario"
"""In the place of a name; links hold names as they are shown."""
PLAIN = "none"
"""In the place of a drafter."""
UPLOADED = "uploaded"
"""In the place of a kind of traffic: the file that was sent."""
GENERATED = ("poisson", "gamma", "closed-loop")
MOST_REQUESTS = 100_000
"""Of one simulation; whoever wants more has the command line."""
SOME_USERS = 64
"""Of a closed loop where nothing says how many."""
_LENGTHS = "chat"
"""Bundled traffic whose lengths are taken where the scenario's requests are not all of one kind."""


class Users(Settings):
    """A simulation; whatever is `AS_IS` or None is the scenario's own."""

    scenario: str = "chat-8b-h100-eagle"
    """Bundled scenario to start from."""
    model: str = AS_IS
    """Bundled model."""
    gpu: str = AS_IS
    """Bundled GPU."""
    tp: int | None = None
    """GPUs that share the model."""
    replicas: int | None = None
    """Copies of the model."""
    engine: str = AS_IS
    """Bundled engine."""
    max_sequences: int | None = None
    """Sequences in one batch at most."""
    max_batched_tokens: int | None = None
    """Tokens of one step at most: how much of a prompt is computed beside decoding."""
    draft: str = AS_IS
    """Bundled drafter, or `PLAIN`."""
    gamma: int | None = None
    """Tokens drafted per round."""
    acceptance: float | None = None
    """Conditional acceptance rate, the same at every depth; None: as published or as the scenario has it."""
    policy: str = AS_IS
    """How much is drafted when."""
    traffic: str = AS_IS
    """One of `GENERATED`, a bundled traffic, or `UPLOADED`."""
    rate_per_s: float | None = None
    """Arrivals per second."""
    burstiness: float = 0.5
    """Shape of the gaps of gamma traffic."""
    users: int | None = None
    """Of a closed loop."""
    think_time_s: float = 30.0
    """Mean time between answer and next question of a closed loop's users, s."""
    requests: int = Field(default=2000, ge=1, le=MOST_REQUESTS)
    """How many requests."""
    prompt: int | None = None
    """Tokens of every prompt; None: lengths as the traffic has them."""
    output: int | None = None
    """Tokens of every answer."""
    ttft_ms: float | None = None
    """Objective for the time to first token, ms."""
    tpot_ms: float | None = None
    """Objective for the mean time per token after it, ms."""
    seed: int | None = None
    """Of all randomness."""
    intervals: bool = False
    """Whether to say how far figures may be off."""


class Asked(NamedTuple):
    """What is to be simulated."""

    scenario: Scenario
    notes: list[str]
    """What a user should know about how it came about."""


def asked(settings: Users, trace: UploadedTrace | None = None) -> Asked:
    """The scenario that `settings` describe; `trace` is the file that was sent. Raises MemwallError."""
    base = load_scenario(settings.scenario)
    data = base.model_dump(mode="json", exclude_defaults=True)
    notes: list[str] = []
    _check_pools(base, settings)
    for name in ("model", "gpu", "tp", "replicas", "seed"):
        if getattr(settings, name) not in (AS_IS, None):
            data[name] = getattr(settings, name)
    data["engine"] = _engine(base, settings)
    data["speculation"] = _speculation(base, settings, data, notes)
    slo = {"ttft_s": settings.ttft_ms, "tpot_s": settings.tpot_ms}
    data["slo"] = {**data.get("slo", {}), **{name: ms / 1e3 for name, ms in slo.items() if ms is not None}}
    data["traffic"] = _traffic(base, settings, trace).model_dump(mode="json", exclude_defaults=True)
    if data["speculation"] is None:
        del data["speculation"]
    if set(settings.changed()) - {"scenario", "requests", "seed", "intervals"}:
        data.pop("title", None)  # which tells what the scenario was
    try:
        scenario = load_scenario(data, base=base.base, where="")
    except InputError as error:
        error.where = error.where.removeprefix(": ")
        raise
    return Asked(scenario if trace is None else scenario.with_base(trace.folder), notes)


def _check_pools(base: Scenario, settings: Users) -> None:
    """Raises InputError where a control would change nothing, as every pool has its own figure."""
    pools = base.cluster.pools if base.cluster else ()
    for name in ("gpu", "tp", "replicas", "engine"):
        value = getattr(settings, name)
        if pools and value not in (AS_IS, None) and all(getattr(pool, name) is not None for pool in pools):
            raise InputError(name, value, "be left out: each pool of this scenario's cluster has its own")


def _engine(base: Scenario, settings: Users) -> dict[str, Any]:
    engine = base.engine.model_dump(mode="json", exclude_none=True)
    if settings.engine not in (AS_IS, base.engine.name):
        engine = {"name": settings.engine}  # another engine's settings are not this one's
    for name in ("max_sequences", "max_batched_tokens"):
        if getattr(settings, name) is not None:
            engine[name] = getattr(settings, name)
    return engine


def _speculation(
    base: Scenario, settings: Users, data: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:  # fmt: skip
    found = dict(data["speculation"]) if base.speculation is not None else None
    if settings.draft == PLAIN:
        return None
    if settings.draft != AS_IS and (found is None or settings.draft != found["draft"]):
        found = {"draft": settings.draft, **({"gamma": found["gamma"]} if found and "gamma" in found else {})}
    elif found is not None and settings.model not in (AS_IS, base.model) and not _fits(found["draft"], settings.model):
        notes.append(
            f"The scenario's drafter {found['draft']} was not made for {settings.model}: plain decoding only. "
            "Choose a drafter to speculate."
        )
        return None
    given: dict[str, Any] = {
        name: value
        for name in ("gamma", "acceptance", "policy")
        if (value := getattr(settings, name)) not in (AS_IS, None)
    }
    if found is None:
        for name, value in given.items():
            raise InputError(name, value, "come with a drafter, which this scenario has not")
        return None
    if "gamma" in given:
        found.pop("tree", None)
    if "acceptance" in given:
        given["acceptance"] = {"alpha": given["acceptance"]}
    return {**found, **given}


def _fits(drafter: str, model: str) -> bool:
    """Whether a drafter was made for a model, or for any."""
    targets = load_drafter(drafter).targets
    return not targets or model in targets


def _traffic(base: Scenario, settings: Users, trace: UploadedTrace | None) -> AnyTraffic:
    kind, rate, users = settings.traffic, settings.rate_per_s, settings.users
    if kind == UPLOADED:
        if trace is None:
            raise InputError("trace", "(absent)", "be sent: a CSV or JSON-lines file with arrivals and lengths")
        return trace.traffic(limit=settings.requests, rate_per_s=rate)
    if kind in GENERATED:
        return _generated(base, settings)
    found = base.traffic if kind == AS_IS else load_traffic(kind)
    loaded = with_load(found, rate, settings.requests, users)
    return _with_lengths(loaded, settings)


def _generated(base: Scenario, settings: Users) -> AnyTraffic:
    own = base.traffic
    lengths = _lengths(own) or _lengths(load_traffic(_LENGTHS))
    data: dict[str, Any] = {"kind": settings.traffic, "requests": settings.requests, "lengths": lengths}
    if settings.traffic == "closed-loop":
        data["users"] = settings.users or (own.users if isinstance(own, ClosedLoop) else SOME_USERS)
        data["think_time_s"] = settings.think_time_s
    else:
        data["rate_per_s"] = settings.rate_per_s or getattr(own, "rate_per_s", None) or 1.0
    if settings.traffic == "gamma":
        data["burstiness"] = settings.burstiness
    return _with_lengths(parse_traffic(data, ""), settings)


def _with_lengths(traffic: AnyTraffic, settings: Users) -> AnyTraffic:
    """`traffic` with all prompts and answers of one length where that is asked for."""
    given = {
        name: {"kind": "constant", "tokens": tokens}
        for name, tokens in (("prompt", settings.prompt), ("output", settings.output))
        if tokens is not None
    }
    if not given:
        return traffic
    lengths = _lengths(traffic)
    if lengths is None:
        name = next(iter(given))
        raise InputError(
            name, getattr(settings, name), "be left empty: this traffic's requests have lengths of their own"
        )
    changed = {**lengths.model_dump(exclude_defaults=True), **given, "rank_correlation": 0.0}
    changed["source"] = "constant" if len(given) == 2 else f"{next(iter(given))} constant; {lengths.source}"
    return traffic.model_copy(update={"lengths": Lengths(**changed)})


def _lengths(traffic: AnyTraffic) -> Lengths | None:
    """Of traffic whose requests are all of one kind."""
    found = getattr(traffic, "lengths", None)
    return found if isinstance(found, Lengths) else None
