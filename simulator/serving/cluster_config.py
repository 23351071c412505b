"""The ``cluster`` section of a scenario: pools of replicas, their router, the KV link, failures, an autoscaler.

Left out, a scenario's `replicas` equal ones serve behind the router with the fewest outstanding requests first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from simulator.engine_choice import EngineChoice
from simulator.errors import InputError, UnknownName
from simulator.hardware import Gpu, load_link
from simulator.records import Record
from simulator.serving.handover import Wire
from simulator.serving.model import ROUTERS
from simulator.serving.quantities import in_si

MOST_REPLICAS = 1024
"""Replicas of one cluster, those included that an autoscaler may start."""


def _seconds(value: Any) -> Any:
    return in_si(value, "s")


def _bytes_per_s(value: Any) -> Any:
    return in_si(value, "bytes_per_s")


def _engine(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Role = Literal["both", "prefill", "decode"]


class Transfer(Record):
    """The link over which prefill replicas send KV caches, one after the other: latency + bytes / bandwidth each."""

    link: str | None = None
    """Bundled link or path of a profile, one per GPU of a prefill replica; left out, that GPU's network link."""
    bytes_per_s: Annotated[float, BeforeValidator(_bytes_per_s), Field(gt=0)] | None = None
    """Bandwidth of the link as a whole instead, bytes/s (or text such as "50 GB/s")."""
    latency_s: Seconds = 0.0
    """Time before the first byte arrives, with `bytes_per_s`, s (or text such as "5 us")."""
    per: Literal["replica", "cluster"] = "replica"
    """Who queues for one link: each prefill replica has its own, or the whole cluster shares one."""

    @model_validator(mode="after")
    def _check(self) -> Transfer:
        if self.link is not None and self.bytes_per_s is not None:
            raise InputError("transfer.link", self.link, "be left out where bytes_per_s is given")
        if self.bytes_per_s is None and self.latency_s:
            raise InputError("transfer.latency_s", self.latency_s, "come with bytes_per_s; a link has its own")
        return self

    def wire(self, gpu: Gpu, gpus: int, base: Path | None = None) -> Wire:
        """The link of a prefill replica on `gpus` of `gpu`: each sends its rank's share at once. Raises UnknownName."""
        if self.bytes_per_s is not None:
            return Wire(self.bytes_per_s, self.latency_s)
        link = load_link(self.link or gpu.network_link, base=base)
        return Wire(link.bytes_per_s * gpus, link.latency_s)


class Failure(Record):
    """One outage (`replica`, `at_s`, `down_s`), or random ones (`mtbf_s`, `mttr_s`), whose lengths are exponential."""

    replica: int | None = Field(default=None, ge=0)
    """Number of the replica, pools counted through in their order, prefill first; of random ones left out: every replica."""
    at_s: Seconds | None = None
    """When it fails, s; the step that runs is completed. A replica that is down anyway does not fail."""
    down_s: Positive | None = None
    """Until it serves again, with an empty cache, s."""
    mtbf_s: Positive | None = None
    """Mean time from coming up to failing, s."""
    mttr_s: Positive | None = None
    """Mean time from failing to serving again, s."""

    @property
    def random(self) -> bool:
        """Whether times are drawn."""
        return self.mtbf_s is not None

    @model_validator(mode="after")
    def _check(self) -> Failure:
        planned = {"at_s": self.at_s, "down_s": self.down_s}
        drawn = {"mtbf_s": self.mtbf_s, "mttr_s": self.mttr_s}
        given = {name for name, value in {**planned, **drawn}.items() if value is not None}
        if given not in (set(planned), set(drawn)):
            text = ", ".join(sorted(given)) or "(nothing)"
            raise InputError("failures", text, "be either replica, at_s and down_s or mtbf_s and mttr_s")
        if self.at_s is not None and self.replica is None:
            raise InputError("failures.replica", "(absent)", "be given with at_s")
        return self


class Autoscaler(Record):
    """Replicas started and stopped by load, as Kubernetes' Horizontal Pod Autoscaler does.

    Every `interval_s` ⌈outstanding requests / target⌉ replicas are wanted, between `min` and `max`. More are started at once.
    Fewer are kept when the most that was wanted within `scale_down_after_s` is less than what there is.
    Source: kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale, "Algorithm details".
    """

    min: int = Field(default=1, ge=1, le=MOST_REPLICAS)
    """Replicas at least."""
    max: int = Field(ge=1, le=MOST_REPLICAS)
    """Replicas at most."""
    target: float = Field(gt=0)
    """Outstanding requests per replica aimed at."""
    startup_s: Seconds
    """From the decision until a new replica serves: machine, container, weights, CUDA graphs. s (or text such as "2 min")."""
    interval_s: Positive = 15.0
    """Time between two looks, s; Kubernetes' default."""
    scale_down_after_s: Seconds = 300.0
    """Stabilisation window, s; Kubernetes' default."""

    @model_validator(mode="after")
    def _check(self) -> Autoscaler:
        if self.max < self.min:
            raise InputError("autoscaler.max", self.max, f"be at least min = {self.min}")
        return self


class ReplicaPool(Record):
    """Replicas of one kind."""

    role: Role = "both"
    """What they do: all of a request, its prompt and first token, or the rest of its answer."""
    gpu: str | None = None
    """Bundled name, alias or path; left out, as for all that follows, the scenario's."""
    tp: int | None = Field(default=None, ge=1)
    """GPUs that share every layer."""
    pp: int | None = Field(default=None, ge=1)
    """Stages of a pipeline."""
    ep: int | None = Field(default=None, ge=1)
    """GPUs over which whole experts are spread; 1: none are."""
    expert_skew: float | None = None
    """With `ep`: tokens on the busiest GPU over their mean over GPUs, no unit."""
    expert_exponent: float | None = None
    """Zipf exponent of the experts' popularity, no unit."""
    replicas: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    """Copies of the model; with an autoscaler those at the start."""
    engine: Annotated[EngineChoice, BeforeValidator(_engine)] | None = None
    """Serving engine, by name or with settings; settings without a name change the scenario's."""
    autoscaler: Autoscaler | None = None
    """For this pool alone."""

    @field_serializer("engine")
    def _as_given(self, engine: EngineChoice | None) -> dict[str, Any] | None:
        # Written with its defaults, an engine without a name would come back as one that is named.
        return None if engine is None else engine.model_dump(mode="json", exclude_unset=True)

    @property
    def built(self) -> int:
        """Replicas there may ever be."""
        return max(self.replicas or 1, self.autoscaler.max if self.autoscaler else 0)


class Cluster(Record):
    """Replicas behind a router, and what happens to them."""

    router: str = "least-outstanding"
    """Who gets a request: round-robin, least-outstanding, least-kv, prefix-aware or power-of-two."""
    decode_router: str = "least-outstanding"
    """The same for requests that come to the decode pool."""
    slack: int = Field(default=4, ge=0)
    """prefix-aware: outstanding requests that a replica may have more than the least loaded and still be chosen for its cache."""
    pools: tuple[ReplicaPool, ...] = ()
    """Kinds of replicas; left out, the scenario's `replicas` equal ones."""
    transfer: Transfer = Transfer()
    """Link between prefill and decode replicas."""
    failures: tuple[Failure, ...] = ()
    """Outages."""
    retry_delay_s: Seconds = 1.0
    """From a failure until its requests are back at the router, s; one second is the first back-off of gRPC clients."""
    autoscaler: Autoscaler | None = None
    """For the only pool; several have their own."""

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        for field in ("router", "decode_router"):
            if getattr(self, field) not in ROUTERS:
                raise UnknownName(f"cluster.{field}", getattr(self, field), ROUTERS, kind="router")
        roles = {pool.role for pool in self.pools}
        if roles not in (set(), {"both"}, {"prefill", "decode"}):
            missing = "decode" if "prefill" in roles else "prefill"
            rule = "not be mixed with prefill and decode" if "both" in roles else f"come with a pool of role {missing}"
            raise InputError("cluster.pools.role", "both" if "both" in roles else roles.pop(), rule)
        if self.autoscaler is not None and len(self.pools) > 1:
            raise InputError("cluster.autoscaler", "(given)", "be given in each pool where there are several")
        if "prefill" not in roles:
            for field, default in (("transfer", Transfer()), ("decode_router", "least-outstanding")):
                if getattr(self, field) != default:
                    raise InputError(f"cluster.{field}", "(given)", "come with pools of roles prefill and decode")
        return self

    def resolved(
        self, *, gpu: str, tp: int, replicas: int, engine: EngineChoice, pp: int = 1, ep: int | None = None,
        expert_skew: float = 1.0, expert_exponent: float = 0.0,
    ) -> tuple[ReplicaPool, ...]:  # fmt: skip
        """The pools with nothing left out, prefill before decode. Raises InputError where numbers do not fit each other."""
        own = {
            "gpu": gpu, "tp": tp, "pp": pp, "ep": ep, "expert_skew": expert_skew, "expert_exponent": expert_exponent,
        }  # fmt: skip
        found = []
        for pool in sorted(self.pools, key=lambda pool: pool.role == "decode") or [ReplicaPool()]:
            scaler = pool.autoscaler or self.autoscaler
            start = pool.replicas or (min(max(replicas, scaler.min), scaler.max) if scaler else replicas)
            if scaler is not None and not scaler.min <= start <= scaler.max:
                raise InputError(
                    "cluster.pools.replicas", start, f"be between the autoscaler's {scaler.min} and {scaler.max}"
                )
            given = {name: value for name, value in own.items() if getattr(pool, name) is None}
            given |= {"replicas": start, "autoscaler": scaler, "engine": _changed(engine, pool.engine)}
            found.append(pool.model_copy(update=given))
        built = sum(pool.built for pool in found)
        if built > MOST_REPLICAS:
            raise InputError("cluster.pools.replicas", built, f"add up to at most {MOST_REPLICAS}")
        for failure in self.failures:
            if failure.replica is not None and failure.replica >= built:
                raise InputError(
                    "cluster.failures.replica", failure.replica, f"be below the {built} replicas there are"
                )
        return tuple(found)


def _changed(engine: EngineChoice, own: EngineChoice | None) -> EngineChoice:
    """`engine` with a pool's settings; a pool that names another engine has that one's defaults instead."""
    if own is None:
        return engine
    if "name" in own.model_fields_set and own.name != engine.name:
        return own
    return engine.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def exponential_s(mean_s: float, uniform: float) -> float:
    """−mean · ln(1 − u): the time to an event without memory, s."""
    return -mean_s * math.log1p(-uniform)
