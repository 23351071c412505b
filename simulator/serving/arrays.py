"""All arrays of a pool of replicas, and those of one of them: views, with the replica or its model for the first axis."""

from __future__ import annotations

from typing import Any, NamedTuple

from simulator.serving.compiled import compiled
from simulator.serving.kv_cache import Blocks
from simulator.serving.line import Links
from simulator.serving.luck import Luck
from simulator.serving.model import PlanTables
from simulator.serving.passes import Tables
from simulator.serving.record import Followers, Record


class Arrays(NamedTuple):
    """Everything a pool consists of; the first axis is the replica, or its model."""

    pool: Any
    """One record of `state.POOL`."""
    configs: Any
    """Records of `state.CONFIG` [models]."""
    replicas: Any
    """Records of `state.REPLICA`."""
    requests: Any
    links: Links
    followers: Followers
    slots: Any
    """Records of `state.SLOT` [replicas, sequences]."""
    stacks: Any
    """Records of `state.PREEMPTED` [replicas, sequences]."""
    blocks: Blocks
    pieces: Any
    """Sources and ends of shared pieces."""
    targets: Tables
    """[models, …]."""
    drafts: Tables
    plans: PlanTables
    """[models, …]."""
    luck: Luck
    records: Record
    scratch: Any
    admitted: Any
    """Requests whose arrivals are known, in order of arrival."""


@compiled
def tables_of(tables: Any, m: int) -> Any:
    """Tables of model `m`."""
    return Tables(
        tables.linear[m], tables.head[m], tables.extra_host_s[m], tables.kinds[m], tables.rates[m], tables.knots[m],
        tables.pipeline[m], tables.intake[m],
    )  # fmt: skip


@compiled
def plan_of(plans: Any, m: int) -> Any:
    """Plan of model `m`."""
    return PlanTables(plans.shapes[m], plans.pass_tokens[m], plans.batches[m], plans.contexts[m], plans.choice[m])


@compiled
def one_of(blocks: Any, r: int) -> Any:
    """The named blocks of replica `r`."""
    return Blocks(
        blocks.key[r], blocks.users[r], blocks.after[r], blocks.before[r], blocks.bucket[r], blocks.chain[r],
        blocks.table[r], blocks.rows[r],
    )  # fmt: skip


@compiled
def record_of(records: Any, r: int) -> Any:
    """Where replica `r` writes."""
    return Record(records.gaps[r], records.edges_s, records.series[r], records.events[r])
