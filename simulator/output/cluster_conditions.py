"""Conditions of a cluster in words: kinds of replicas, router, KV link, failures, autoscaler."""

from __future__ import annotations

from collections.abc import Sequence

from simulator import units
from simulator.scenario import Scenario
from simulator.serving.cluster_config import Autoscaler, Cluster, Failure
from simulator.serving.fleets import Kind
from simulator.serving.simulation import SimulationResult


def kind_name(kind: Kind) -> str:
    """E.g. "2 × prefill on 1 × h100-sxm" or "3 replicas on 1 × l40s"; with an autoscaler "1 to 4 …"."""
    return f"{replicas_text(kind)} {_role(kind)} on {kind.deployment.gpus} × {kind.deployment.gpu.name}"


def kind_names(kinds: Sequence[Kind]) -> list[str]:
    """`kind_name` of each; with the engine or the number where it takes that to tell them apart."""
    names = [kind_name(kind) for kind in kinds]
    for more in ([kind.deployment.engine.name for kind in kinds], [f"pool {i}" for i in range(len(kinds))]):
        longer = [f"{name}, {m}" for name, m in zip(names, more, strict=True)]
        # Only what tells some of those apart that are called the same.
        names = [b if longer.count(b) < names.count(a) else a for a, b in zip(names, longer, strict=True)]
    return names


def replicas_text(kind: Kind) -> str:
    """How many replicas of this kind there are, or may be."""
    scaler = kind.pool.autoscaler
    return f"{kind.pool.built}" if scaler is None else f"{scaler.min} to {kind.pool.built}"


def _role(kind: Kind) -> str:
    if kind.pool.role != "both":
        return f"× {kind.pool.role}"
    return "replica" if kind.pool.built == 1 else "replicas"


def gpus_of_all(kinds: Sequence[Kind]) -> str:
    """All GPUs, e.g. "2 × NVIDIA H100 SXM + 1 × NVIDIA L40S"."""
    found: dict[str, int] = {}
    for kind in kinds:
        title = kind.deployment.gpu.title
        found[title] = found.get(title, 0) + kind.pool.built * kind.deployment.gpus
    return " + ".join(f"{n} × {title}" for title, n in found.items())


def kind_rows(kinds: Sequence[Kind]) -> list[tuple[str, str]]:
    """Of each of several kinds what it runs on and under."""
    engines = [kind.deployment.engine.title for kind in kinds]
    alike = len(set(engines)) == 1
    rows = [
        (f"kind {i}", "; ".join([name, *_layout(kind), *(() if alike else (engine,))]))
        for i, (name, kind, engine) in enumerate(zip(kind_names(kinds), kinds, engines, strict=True), start=1)
    ]
    return [*rows, ("engine", engines[0])] if alike else rows


def _layout(kind: Kind) -> list[str]:
    target = kind.deployment.target
    found = [f"tensor parallel {target.tp}"] if target.tp > 1 else []
    found += [f"pipeline of {target.pp} stages"] if target.pp > 1 else []
    found += [f"experts over {target.experts.ep} GPUs"] if target.experts.ep > 1 else []
    return found


def cluster_rows(result: SimulationResult) -> list[tuple[str, str]]:
    """Router and what happens to replicas; nothing of a single replica that nothing happens to."""
    scenario, kinds = result.scenario, result.main.kinds
    cluster = scenario.cluster or Cluster()
    rows = []
    if sum(kind.pool.built for kind in kinds) > 1:
        rows.append(("router", _router(cluster)))
    prefill = [kind for kind in kinds if kind.pool.role == "prefill"]
    if prefill:
        rows.append(("KV transfers over", _link(scenario, cluster, prefill)))
    if cluster.failures:
        said = [_failure(failure) for failure in cluster.failures]
        rows.append(("failures", "; ".join([*said, f"requests retried after {_s(cluster.retry_delay_s)}"])))
    for kind, name in zip(kinds, kind_names(kinds), strict=True):
        if kind.pool.autoscaler is not None:
            of = f" of {name}" if len(kinds) > 1 else ""
            rows.append((f"autoscaler{of}", _autoscaler(kind.pool.autoscaler)))
    return rows


def _router(cluster: Cluster) -> str:
    text = cluster.router
    if cluster.router == "prefix-aware":
        text += f" (up to {cluster.slack} outstanding requests more than the least loaded)"
    if any(pool.role == "decode" for pool in cluster.pools):
        text += f"; {cluster.decode_router} for decode"
    return text


def _link(scenario: Scenario, cluster: Cluster, kinds: Sequence[Kind]) -> str:
    whose = "one for all" if cluster.transfer.per == "cluster" else "one per prefill replica"
    named = cluster.transfer.link
    said = []
    for kind in kinds:
        gpu, gpus = kind.deployment.gpu, kind.deployment.gpus
        wire = cluster.transfer.wire(gpu, gpus, scenario.base)
        name = "" if cluster.transfer.bytes_per_s is not None else f"{gpus} × {named or gpu.network_link}, "
        said.append(f"{name}{units.show(wire.bytes_per_s, 'bytes_per_s')} after {_s(wire.latency_s)}")
    return "; ".join([*dict.fromkeys(said), whose])


def _failure(failure: Failure) -> str:
    if failure.mtbf_s is None or failure.mttr_s is None:
        return f"replica {failure.replica} at {_s(failure.at_s or 0.0)} for {_s(failure.down_s or 0.0)}"
    who = "every replica" if failure.replica is None else f"replica {failure.replica}"
    return f"{who} at random, up for {_s(failure.mtbf_s)} and down for {_s(failure.mttr_s)} in the mean"


def _autoscaler(config: Autoscaler) -> str:
    return (
        f"{config.min} to {config.max} replicas, one per {config.target:g} outstanding requests, looks every "
        f"{_s(config.interval_s)}; {_s(config.startup_s)} to start one, fewer after {_s(config.scale_down_after_s)}"
    )


def _s(seconds: float) -> str:
    return units.show(seconds, "s") if seconds < 600 else f"{seconds:,.0f} s"
