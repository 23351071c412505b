"""From a scenario to fleets: which replicas there are, on which GPUs, behind which router, and what happens to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.attention import attention_shape
from simulator.cost.forward import ForwardCost
from simulator.deployment import Deployment
from simulator.engine import EngineSettings
from simulator.errors import InputError
from simulator.memory import MemoryBudget
from simulator.scenario import Scenario
from simulator.serving.cluster_config import Cluster, ReplicaPool
from simulator.serving.control import Control, Scaled
from simulator.serving.drafts import Drafts
from simulator.serving.handover import Links
from simulator.serving.metrics import ReplicaHardware
from simulator.serving.model import ROUTERS, Fleet, Workload
from simulator.serving.requests import Requests
from simulator.serving.step_model import Fates, most_tokens, step_model
from simulator.serving.workload import fates_of, has_common, workload_of


@dataclass(frozen=True)
class Kind:
    """Replicas that are alike."""

    pool: ReplicaPool
    deployment: Deployment
    """With a drafter where they draft: prefill replicas do not."""
    drafts: Drafts | None
    budget: MemoryBudget

    @property
    def nodes(self) -> int:
        """Drafts that it verifies at once for one sequence at most."""
        return self.drafts.nodes if self.drafts else 0

    @property
    def total_blocks(self) -> int:
        """KV blocks of each."""
        return self.budget.kv_blocks(self.deployment.engine.settings.block_tokens)

    @property
    def hardware(self) -> ReplicaHardware:
        """What each runs on."""
        gpu, target = self.deployment.gpu, self.deployment.target
        # Bytes and FLOP are of one rank of the target and one of the drafter, which may be on a GPU of its own.
        ranks = 1 if self.deployment.gpus == target.gpus else 2
        return ReplicaHardware(
            self.deployment.gpus, self.total_blocks, ranks * gpu.hbm_bytes_per_s,
            ranks * gpu.peak_flop_per_s(target.formats.activations), gpu.price_usd_per_s,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All that one variant of a scenario simulates."""

    kinds: Sequence[Kind]
    fleets: Sequence[Fleet]
    """One, or prefill and decode."""
    workload: Workload
    control: Control

    @property
    def hardware(self) -> list[ReplicaHardware]:
        """Of every replica there may ever be, pools in order."""
        return [kind.hardware for kind in self.kinds for _ in range(kind.pool.built)]


_OWN = ("gpu", "tp", "pp", "ep", "expert_skew", "expert_exponent", "engine")
"""Fields of a scenario that a pool may have of its own."""


def pools_of(scenario: Scenario) -> tuple[ReplicaPool, ...]:
    """The scenario's pools with nothing left out, prefill before decode. Raises InputError where numbers do not fit."""
    own = {name: getattr(scenario, name) for name in (*_OWN, "replicas")}
    return (scenario.cluster or Cluster()).resolved(**own)


def gpus_of(scenario: Scenario) -> dict[str, int]:
    """How many GPUs there may ever be, by name as the scenario has it."""
    found: dict[str, int] = {}
    for pool in pools_of(scenario):
        gpu = pool.gpu or scenario.gpu
        found[gpu] = found.get(gpu, 0) + pool.built * (pool.tp or 1) * (pool.pp or 1)
    return found


def kinds_of(scenario: Scenario, deployment: Deployment, drafts: Drafts | None) -> list[Kind]:
    """The scenario's kinds of replicas; `deployment` is what it names itself. Raises MemwallError where one does not fit."""
    kinds = []
    for pool in pools_of(scenario):
        given = {name: getattr(pool, name) for name in _OWN}
        same = all(getattr(scenario, name) == value for name, value in given.items())
        own = deployment
        if not same:
            own = _as_slow(
                scenario.model_copy(update=given).with_base(scenario.base).deployment(), scenario, deployment
            )
            own = own if deployment.drafter is not None else own.plain()
        ours = drafts if pool.role != "prefill" else None
        own = own if ours else own.plain()
        kinds.append(Kind(pool, own, ours, own.fit(gamma=ours.nodes if ours else 0)))
    return kinds


def longest_of(kinds: Sequence[Kind], *, prefill: bool = False) -> int | None:
    """Tokens of the longest request that replicas of every kind can hold to its end, or of prefill replicas up to its first
    token; None where there are no such replicas."""
    chosen = [kind for kind in kinds if (kind.pool.role == "prefill") == prefill]
    return min((most_tokens(kind.deployment, kind.budget, kind.nodes) for kind in chosen), default=None)


def line_of(kinds: Sequence[Kind]) -> EngineSettings:
    """Settings that say who goes first. Raises InputError where kinds have different orders: a request has one rank."""
    settings = [kind.deployment.engine.settings for kind in kinds]
    ranked = [one for one in settings if one.order != "fcfs"] or settings
    if len({one.order for one in ranked}) > 1:
        orders = sorted({one.order for one in ranked})
        raise InputError(
            "engine.order", ", ".join(orders), "be the same in all pools that do not serve first come first"
        )
    return ranked[0]


def _as_slow(own: Deployment, scenario: Scenario, deployment: Deployment) -> Deployment:
    """`own` with the errors that `deployment` is taken to have (`uncertainty.slowed`): all kinds are off in the same way."""

    def on(cost: ForwardCost) -> ForwardCost:
        return cost.on(replace(cost.efficiency, slower=deployment.target.efficiency.slower))

    if deployment.target.efficiency.slower:
        own = replace(own, target=on(own.target), draft=on(own.draft) if own.draft else None)
    named, given = scenario.engine.load(scenario.base, deployment.gpu), deployment.engine
    if deployment.draft is not None:
        named = named.beside(deployment.draft.decoder.head_vocab_size, deployment.target.decoder.vocab_size)
    host_s = {
        name: value * getattr(given, name) / getattr(named, name)
        for name, value in vars(own.engine).items()
        if name.startswith("host_") and getattr(named, name) and getattr(given, name) != getattr(named, name)
    }
    return replace(own, engine=replace(own.engine, **host_s)) if host_s else own


def plan(
    scenario: Scenario,
    traffic: Requests,
    deployment: Deployment,
    drafts: Drafts | None,
    *,
    total: int | None = None,
    common: bool | None = None,
) -> Plan:
    """Fleets, workload and control of one variant, which drafts as `drafts` say, or not at all.

    Where `traffic` is only the beginning of `total` requests, `common` says whether any prompts of the whole begin alike.
    Raises MemwallError where a kind does not fit its GPUs or no request fits its KV cache.
    """
    cluster = scenario.cluster or Cluster()
    kinds = kinds_of(scenario, deployment, drafts)
    workload = workload_of(
        traffic, line_of(kinds), scenario.warmup, longest_of(kinds) or 0, longest_of(kinds, prefill=True), total=total
    )
    if common is None:
        common = has_common(traffic)
    fates = Fates(np.ones((1, 1, 1)), np.zeros(len(traffic), dtype=np.int64))
    drafter = deployment.drafter.kind if deployment.drafter else None
    drawn = fates if drafts is None else fates_of(traffic, drafts, scenario, drafter=drafter)
    models = [
        step_model(
            kind.deployment, kind.budget, drafts=kind.drafts, fates=drawn if kind.drafts else fates, seed=scenario.seed,
            shares=common and kind.deployment.engine.settings.prefix_caching, prefill_only=kind.pool.role == "prefill",
        )
        for kind in kinds
    ]  # fmt: skip
    fleets, scaled, links = [], [], None
    for roles, router in ((("both", "prefill"), cluster.router), (("decode",), cluster.decode_router)):
        ours = [i for i, kind in enumerate(kinds) if kind.pool.role in roles]
        if ours:
            model_of = np.repeat(np.arange(len(ours)), [kinds[i].pool.built for i in ours])
            fleets.append(
                Fleet([models[i] for i in ours], model_of, ROUTERS.index(router), cluster.slack, scenario.seed)
            )
    first = 0
    for kind in kinds:
        if kind.pool.autoscaler is not None:
            scaled.append(Scaled(kind.pool.autoscaler, first, kind.pool.replicas or 1))
        first += kind.pool.built
    if len(fleets) == 2:
        links = _links(scenario, cluster, [kind for kind in kinds if kind.pool.role == "prefill"])
    control = Control(cluster.failures, cluster.retry_delay_s, scaled, links, scenario.seed)
    return Plan(kinds, fleets, workload, control)


def _links(scenario: Scenario, cluster: Cluster, kinds: Sequence[Kind]) -> Links:
    # The target's KV cache, each part once however many ranks have a copy; what a drafter keeps of the prompt is taken to be
    # computed beside the transfer.
    target = kinds[0].deployment.target
    shape = attention_shape(target.decoder, target.formats, 1)
    bytes_per_token = shape.kv_bytes_per_token * target.decoder.layers
    wires = [
        cluster.transfer.wire(kind.deployment.gpu, kind.deployment.gpus, scenario.base)
        for kind in kinds
        for _ in range(kind.pool.built)
    ]
    if cluster.transfer.per == "cluster":
        return Links(wires[:1], [0] * len(wires), bytes_per_token)
    return Links(wires, range(len(wires)), bytes_per_token)
