"""What people ask once they know where speculation pays: the same memory as KV cache, the same money as replicas, what is wasted,
and how much better anybody could do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost.tables import SECONDS
from simulator.deployment import Deployment
from simulator.operators import FloatArray
from simulator.planning.attention_times import alike_s
from simulator.planning.load_map import LoadAxis, LoadMap, chains, load_map
from simulator.planning.step_prices import DeploymentTables
from simulator.planning.work import Work
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.drafters import Parallel
from simulator.speculation.round import RoundCost, round_cost, waited_draft_s


@dataclass(frozen=True)
class KvInstead:
    """The drafter's memory, spent on KV cache instead: a full batch with and without it, of one work."""

    drafting: str
    room: float
    """Sequences that the KV cache holds beside the drafter."""
    plain_room: float
    """Without it."""
    batch: int
    """Requests in the largest batch: room, the engine's limits, or the token budget."""
    plain_batch: int
    requests_per_s: float
    """Of a full batch, with speculation."""
    plain_requests_per_s: float
    draft_bytes: float
    """Drafter's weights on each GPU; its KV cache comes on top, token by token."""

    @property
    def more_kv_wins(self) -> bool:
        """Whether a full plain batch serves more."""
        return self.plain_requests_per_s > self.requests_per_s

    @property
    def sentence(self) -> str:
        """The answer."""
        better = "more KV cache serves more" if self.more_kv_wins else "the drafter is worth its memory"
        batches = f"{self.plain_batch:,} instead of {self.batch:,} run at once"
        if self.batch == self.plain_batch:
            batches = f"the engine runs {self.batch:,} at once either way"
        return (
            f"Without the drafter the KV cache holds {self.plain_room:,.0f} requests instead of {self.room:,.0f}, and {batches}. A full "
            f"batch serves {self.plain_requests_per_s:.3g} requests/s instead of {self.requests_per_s:.3g} with {self.drafting}: {better}."
        )


def kv_instead(found: LoadMap, work: int) -> KvInstead | None:
    """For the way to draft that serves most with a full batch; None where none fits."""
    fitting = [c for line in found.curves if (c := line[work]) is not None]
    if not fitting:
        return None
    of, plain = max(fitting, key=lambda c: float(c.requests_per_s[-1])), found.plain[work]
    return KvInstead(
        of.drafting.name, of.room, plain.room, of.most, plain.most, float(of.requests_per_s[-1]),
        float(plain.requests_per_s[-1]), of.budget.draft_weight_bytes,
    )  # fmt: skip


@dataclass(frozen=True)
class ReplicaInstead:
    """The money for GPUs that draft, spent on replicas that decode plainly: as many GPUs on either side, the same load in all."""

    draft_gpus: int
    """Beside each replica."""
    replicas: float
    """Plain ones for each one that speculates."""
    hit: float
    """Share of rounds whose drafts, made ahead, can be used."""
    supposed: bool
    """Whether the drafter really shares its target's GPUs, and this is what GPUs of its own would bring."""
    loads: FloatArray
    """Per replica that speculates [loads]."""
    drafting: tuple[str, ...]
    """The quickest way to draft at each load."""
    tpot_s: FloatArray
    """With it [loads]."""
    plain_tpot_s: FloatArray
    """Of plain replicas that share the load among more [loads]."""
    requests_per_s: FloatArray
    """Of one replica that speculates [loads]."""
    plain_requests_per_s: FloatArray
    """Of the plain ones in its place [loads]."""

    @property
    def sentence(self) -> str:
        """The answer."""
        faster = np.flatnonzero(self.plain_tpot_s / self.tpot_s > 1.0)
        own = f"{self.draft_gpus} GPU{'s' * (self.draft_gpus > 1)}"
        share = f"{self.replicas:.3g} plain replicas cost what one does whose drafter has {own} of its own; "
        if not len(faster):
            return share + "they are quicker at every load."
        if len(faster) == len(self.loads):
            return share + "speculation is quicker at every load."
        return share + f"speculation is quicker up to {self.loads[faster[-1]]:.4g}, they are beyond."


def replica_instead(found: LoadMap, work: Work, *, draft_gpus: int = 1) -> ReplicaInstead | None:
    """Compares a replica whose drafter has GPUs of its own (`draft_gpus` where the drafter's own record says none) with what plain
    replicas the same number of GPUs make. A drafter that shares its target's GPUs is supposed to move to `draft_gpus` of its own, where
    drafts made ahead can be used when all of a round were accepted. None for what has no model of its own to move."""
    deployment = found.deployment
    drafter = deployment.drafter
    if drafter is None or drafter.decoder is None or drafter.kind != "model":
        return None
    supposed = drafter.parallel is None
    ways_here = [d for d in found.draftings if d.shape.is_chain]
    law = ways_here[0].law if ways_here else None
    if law is None:
        return None
    depth = max(d.shape.depth for d in ways_here)
    hit = float(law.length_distribution(min(depth, 4))[-1]) if supposed else 1.0 - drafter.exposed_share
    moved = deployment
    if supposed:
        apart = replace(drafter, parallel=Parallel(gpus=draft_gpus, hit=hit), tp=None)
        moved = replace(deployment, drafter=apart, draft=DraftCost(apart, deployment.target))
    gpus, own = moved.gpus, moved.target.gpus
    ways = chains(moved, law, [d.shape.depth for d in ways_here])
    theirs = load_map(moved, ways, [work], found.axis, slo=found.slo, intervals=False)
    replicas = gpus / own
    best = np.nan_to_num(theirs.speedup[:, 0]).argmax(axis=0)
    states = [line[0] for line in theirs.states]
    if any(states[i] is None for i in best.tolist()):
        return None
    chosen = [states[i] for i in best.tolist()]
    fewer = found.axis.values if found.axis.kind == "rate" else tuple(max(1.0, v / replicas) for v in found.axis.values)
    loads = np.array([v / replicas for v in fewer]) if found.axis.kind == "rate" else np.array(fewer)
    plain = LoadAxis(found.axis.kind, tuple(loads.tolist())).states(theirs.plain[0], loads, found.slo)
    return ReplicaInstead(
        draft_gpus=moved.gpus - own, replicas=replicas, hit=hit, supposed=supposed, loads=found.loads,
        drafting=tuple(ways[i].name for i in best.tolist()),
        tpot_s=np.array([s.tpot_s[k] for k, s in enumerate(chosen) if s]), plain_tpot_s=plain.tpot_s,
        requests_per_s=np.array([s.requests_per_s[k] for k, s in enumerate(chosen) if s]),
        plain_requests_per_s=replicas * plain.requests_per_s,
    )  # fmt: skip


@dataclass(frozen=True)
class Waste:
    """What one round of a way to draft wastes, per token that reaches a user (`speculation.round.RoundCost`)."""

    drafting: str
    batch: int
    wasted_tokens: float
    """Drafts that reach nobody, per token that does."""
    flop: float
    bytes_: float
    joules: float
    """At the GPUs' TDP: an estimate."""
    round_joules: float
    """All of the round's, likewise."""
    plain_joules: float
    """Of a plain step at the same batch."""


def waste(found: LoadMap, work: int, batch: int) -> list[Waste]:
    """Of every way to draft at `batch`, those that fit."""
    plain = _round(found.deployment.plain(), found, -1, work, batch)
    rows = []
    for i, line in enumerate(found.curves):
        if line[work] is None:
            continue
        cost = _round(found.deployment, found, i, work, batch)
        rows.append(
            Waste(
                found.draftings[i].name, batch, cost.wasted_tokens_per_sequence / cost.tokens_per_sequence,
                cost.wasted_flop_per_token, cost.wasted_bytes_per_token, cost.wasted_joules_per_token,
                cost.joules_per_token, plain.joules_per_token,
            )
        )  # fmt: skip
    return rows


def _round(deployment: Deployment, found: LoadMap, drafting: int, work: int, batch: int) -> RoundCost:
    drafted = found.draftings[drafting] if drafting >= 0 else None
    return round_cost(
        deployment.target, deployment.engine, sequences=batch, context_tokens=round(found.works[work].context_tokens),
        acceptance=drafted.law if drafted else None, draft=deployment.draft, drafter=deployment.drafter,
        shape=drafted.shape if drafted else None,
    )  # fmt: skip


@dataclass(frozen=True)
class OracleGap:
    """How far the best fixed way to draft is from one that knows what will be accepted, by batch [batches]."""

    gamma: int
    """Drafts at most, the oracle's too."""
    batches: tuple[int, ...]
    oracle: FloatArray
    """Speed-up of rounds that draft and verify just what is accepted, or nothing: no policy can do better with this drafter and γ."""
    best: FloatArray
    """Speed-up of the best fixed γ up to it."""

    @property
    def gap(self) -> FloatArray:
        """Oracle over best [batches]."""
        return self.oracle / np.maximum(self.best, 1.0)

    @property
    def sentence(self) -> str:
        """The answer."""
        first, last = float(self.gap[0]) - 1.0, float(self.gap[-1]) - 1.0
        return (
            f"Who knew what will be accepted would be {first:.0%} faster than the best fixed γ at batch {self.batches[0]:,} and "
            f"{last:.0%} at {self.batches[-1]:,}."
        )


def oracle_gap(found: LoadMap, work: int, batches: Sequence[int]) -> OracleGap | None:
    """Rounds without prompts of chains up to the map's longest; None for maps of trees alone.

    With m_j the share of sequences that keep at least j drafts, pass j + 1 of an oracle's drafter takes B·m_j tokens and is left out
    where nobody needs it, with probability (1 − m_j)^B; verification takes B·τ tokens.
    """
    ways = zip(found.curves, found.draftings, strict=True)
    fitting = [i for i, (line, d) in enumerate(ways) if line[work] is not None and d.shape.is_chain]
    if not fitting:
        return None
    longest = found.draftings[max(fitting, key=lambda i: found.draftings[i].shape.depth)]
    law, gamma = longest.law, longest.shape.depth
    if law is None:
        return None
    deployment, context = found.deployment, found.works[work].context_tokens
    tables = DeploymentTables(deployment, max(max(batches) * (gamma + 1), 64))
    kept = law.length_distribution(gamma)
    reaching = law.match_share(gamma) * (1.0 - np.cumsum(kept)[:-1])  # m_1 … m_γ
    oracle, best = [], []
    for batch in batches:
        plain = _round(deployment.plain(), found, -1, work, batch)
        fixed = [_round(deployment, found, i, work, batch) for i in fitting]
        best.append(plain.tpot_s / min(r.tpot_s for r in fixed))
        own = longest.shape.passes in (0, gamma)  # else all drafts come from one pass
        known = min(
            _known_tpot_s(tables, reaching[:most], batch, context, passes if own else min(1, most))
            for most in range(1, gamma + 1)
            for passes in [most if longest.shape.passes else 0]
        )
        # Who knows may also draft nothing, or as the best fixed γ does.
        oracle.append(max(1.0, best[-1], plain.tpot_s / known))
    return OracleGap(gamma, tuple(batches), np.array(oracle), np.array(best))


def _known_tpot_s(tables: DeploymentTables, reaching: FloatArray, batch: int, context: float, passes: int) -> float:
    """TPOT of rounds that draft and verify just what is accepted, at most as many as `reaching` has shares m_1, m_2 …; the drafter
    runs up to `passes`."""
    target, draft, deployment = tables.target(1), tables.draft, tables.deployment
    by_tokens = deployment.engine.settings.graph_sizes_of == "tokens"
    tau = 1.0 + float(reaching.sum())
    tokens = round(batch * tau)
    gpu_s = float(target.linear[0, SECONDS, tokens] + target.head[SECONDS, tokens])
    gpu_s += float(alike_s(target, np.array([float(batch)]), tau, context)[0])
    run = draft_s = 0.0
    for j, share in enumerate(reaching[:passes].tolist() if draft is not None else []):
        assert draft is not None
        runs = 1.0 - (1.0 - share) ** batch
        if runs < 1e-9:
            continue
        rows = batch * share / runs
        sequences, width = (float(batch), tau) if j == 0 else (rows, 1.0)
        n = round(sequences * width)
        one = float(draft.linear[0, SECONDS, n] + draft.head[SECONDS, max(1, round(rows))])
        one += float(alike_s(draft, np.array([sequences]), width, context + j)[0])
        one += float(draft.extra_host_s[0, n if by_tokens else min(n, round(sequences))])
        draft_s += runs * (one + (float(tables.intake_s[n]) if j == 0 else 0.0))
        run += runs
    engine = deployment.engine
    exposed = deployment.drafter.exposed_share if deployment.drafter else 1.0
    gpu_s += waited_draft_s(draft_s + run * engine.host_draft_pass_s, gpu_s, exposed)
    host_s = engine.host_s(batch, speculating=True, ngram=deployment.draft is None, gpu_s=gpu_s)
    return (gpu_s + host_s) / tau
