"""Replicas behind one router, advanced together: arrivals are routed in order of time, and ends cause arrivals.

`serve` is compiled; `Pool` holds its arrays. Between two calls nothing is open but what has been submitted, so it does not
matter how time is cut into calls.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.cost.roofline import AttentionRates
from simulator.cost.tables import AttentionKind, FastTables
from simulator.serving import state
from simulator.serving.arrays import Arrays
from simulator.serving.compiled import compiled, entry, uncollected
from simulator.serving.heap import popped, pushed
from simulator.serving.kv_cache import Blocks, blocks_by_name
from simulator.serving.line import Links, next_ready_s, submit
from simulator.serving.luck import Luck
from simulator.serving.model import Fleet, PlanTables, Workload
from simulator.serving.passes import FINE_TOKENS, KNOT_TOKENS, Tables
from simulator.serving.record import Followers, Record
from simulator.serving.replica import advance
from simulator.serving.routing import LEAST_OUTSTANDING, ROUND_ROBIN, chosen

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RATES = np.dtype([(name, "f8") for name in AttentionRates._fields], align=True)


@compiled
def next_boundary_s(replica: Any, requests: Any) -> float:
    """Start of the next step as far as is known, infinity where nothing waits."""
    if replica.running + replica.stacked + replica.fresh > 0:
        return float(replica.clock_s)
    return float(max(replica.clock_s, next_ready_s(replica, requests)))


@compiled
def next_replica(pool: Any, replicas: Any, requests: Any, horizon_s: float) -> tuple[int, float]:
    """The replica to advance next and how far, -1 where all have come to the horizon.

    Where an end may cause an arrival at once, nobody may be advanced beyond what others have yet to begin; else one after the
    other goes as far as the horizon.
    """
    first, first_s, second_s = -1, horizon_s, horizon_s
    for r in range(pool.cursor, replicas.shape[0]):
        boundary_s = next_boundary_s(replicas[r], requests)
        if boundary_s < first_s:
            if pool.feedback == 0:
                pool.cursor = r + 1
                return r, horizon_s
            first, first_s, second_s = r, boundary_s, first_s
        elif boundary_s < second_s:
            second_s = boundary_s
    return first, max(second_s, np.nextafter(first_s, math.inf))


@compiled
def next_arrival(a: Any) -> int:
    """The request that arrives next, -1 for none."""
    pool, requests = a.pool[0], a.requests
    known = a.admitted[pool.next] if pool.next < a.admitted.shape[0] else -1
    later = pool.later
    if known < 0 or later < 0:
        return int(max(known, later))
    known_s, later_s = requests[known].ready_s, requests[later].ready_s
    return int(later if later_s < known_s or (later_s == known_s and later < known) else known)


@compiled
def route(a: Any, index: int, now_s: float) -> bool:
    """Hands a request that has arrived to a replica; False where none is open."""
    pool, requests = a.pool[0], a.requests
    r = chosen(pool, a.configs, a.replicas, requests, a.blocks, a.pieces, index, now_s)
    if r < 0:
        return False
    if index == pool.later:
        links = a.links
        pool.later = popped(index, requests["ready_s"], links.index, links.arrival_left, links.arrival_right)
    else:
        pool.next += 1
    pool.routed += 1
    requests[index].ready_s = now_s
    requests[index].replica = a.replicas[r].number
    submit(a.replicas[r], a.links, pool.orders, index)
    pool.orders += 1
    return True


@entry
def serve(until_s: float, most_steps: int, blind: bool, a: Any) -> bool:
    """Routes all arrivals before `until_s` and runs every step that starts before it, `most_steps` at most.

    `blind`: the router does not look at replicas' states, so whoever arrives before `until_s` is routed at once. Returns whether
    all of it was done.
    """
    pool, replicas, requests = a.pool[0], a.replicas, a.requests
    pool.steps = pool.cursor = 0
    ended = pool.ended
    stuck = False  # nobody is open: whoever arrives waits for a later call, the others go on
    while True:
        index = -1 if stuck else next_arrival(a)
        arrival_s = requests[index].ready_s if index >= 0 else math.inf
        if blind and arrival_s < until_s:
            stuck = not route(a, index, max(arrival_s, pool.opened_s))
            continue
        horizon_s = min(arrival_s, until_s)
        r, limit_s = next_replica(pool, replicas, requests, horizon_s)
        if pool.steps >= most_steps:
            return False
        if r >= 0:
            advance(limit_s, a, r, most_steps)
            if pool.stops == 1 and pool.ended > ended:
                return False
            continue
        pool.cursor = 0
        if arrival_s >= until_s:
            return True
        stuck = not route(a, index, max(arrival_s, pool.opened_s))


@entry
def add_arrivals(a: Any, indices: Any) -> None:
    """Puts requests into the heap of arrivals, by their `ready_s`."""
    pool, links = a.pool[0], a.links
    for i in range(indices.shape[0]):
        pool.later = pushed(
            pool.later, indices[i], a.requests["ready_s"], links.index, links.arrival_left, links.arrival_right
        )


class Pool:
    """Replicas of a fleet and the requests that reach them."""

    def __init__(
        self,
        fleet: Fleet,
        workload: Workload,
        *,
        events: int = 0,
        later: bool = False,
        first_number: int = 0,
        longest: int = 0,
    ):
        """`events`: how many events to keep per replica; `later`: arrivals will be added by `add_arrivals`; `first_number`: of
        its replicas, as requests' records name them; `longest`: tokens of the longest request that is yet to come."""
        self.fleet, self.workload = fleet, workload
        models, requests = fleet.models, workload.requests
        n, replicas = len(requests), len(fleet.model_of)
        configs = np.concatenate([np.asarray(m.config) for m in models]).view(np.recarray)
        for model in models:
            needed = int((model.plan.shapes[:, state.COLUMN] + model.plan.shapes[:, state.DEPTH]).max())
            if model.acceptance.shape[2] < needed:  # compiled code would read past the end
                raise ValueError(f"acceptance has {model.acceptance.shape[2]} columns, the plan needs {needed}")
        longest = max(longest, int((requests["prompt_tokens"] + requests["output_tokens"]).max(initial=1)))
        ahead = max(int((m.plan.shapes[:, state.NODES] + m.plan.pass_tokens.sum(axis=1)).max()) for m in models)
        longest += ahead
        new_tokens = 1 + max(int(max(m.plan.shapes[:, state.NODES].max(), m.plan.pass_tokens.max())) for m in models)
        sequences = int(configs["max_sequences"].max())
        shares = bool((configs["shares"] == 1).any())
        feedback = workload.next_turn is not None or workload.users > 0
        records = state.records(state.POOL, 1)
        pool = records[0]
        pool.later = -1
        pool.router, pool.slack, pool.seed = fleet.router, fleet.slack, fleet.seed
        pool.feedback = int(feedback)
        all_replicas = state.records(state.REPLICA, replicas)
        all_replicas["bucket_s"] = state.FIRST_BUCKET_S
        all_replicas["open"] = 1
        all_replicas["number"] = first_number + np.arange(replicas)
        all_replicas["model"] = fleet.model_of
        all_replicas["free_rows"] = configs["max_sequences"][fleet.model_of]
        for name in ("tail", "unjoined", "first", "overdue", "ranks", "cancels"):
            all_replicas[name] = -1
        ranked, cancels = bool(configs["ranked"].any()), bool(np.isfinite(requests["cancel_s"]).any())
        none = np.zeros(0, dtype=np.int64)
        self.arrays = Arrays(
            pool=records,
            configs=configs,
            replicas=all_replicas,
            requests=requests,
            links=links_of(n, ranked=ranked, cancels=cancels, later=feedback or later),
            followers=Followers(
                none if workload.next_turn is None else workload.next_turn,
                np.zeros(0) if workload.think_s is None else workload.think_s,
                workload.backlog,
            ),
            slots=np.zeros((replicas, sequences), dtype=state.SLOT).view(np.recarray),
            stacks=stacks_of(configs, replicas, sequences, n),
            blocks=_named_blocks(configs, fleet.model_of, sequences, longest, shares=shares),
            pieces=(workload.source, workload.end_tokens),
            targets=_stacked(
                [m.target for m in models], [np.zeros((3, 2))] * len(models), sequences, longest, new_tokens
            ),
            drafts=_stacked(
                [m.draft for m in models],
                [m.draft_intake for m in models],
                sequences,
                longest,
                DECODE_QUERY_LIMIT,  # what a drafter has missed comes on top of a round
            ),
            plans=_plans([m.plan for m in models]),
            luck=Luck(
                models[0].acceptance,
                models[0].row_of,
                models[0].first_round,
                models[0].rounds,
                models[0].stretch_bounds,
                models[0].stretch_renewal,
                models[0].proposes,
            ),
            records=Record(
                np.zeros((replicas, state.GAP_BINS), dtype=np.int64),
                state.gap_edges_s(),
                np.zeros((replicas, len(state.SERIES), state.BUCKETS)),
                np.zeros((replicas, events), dtype=state.EVENT).view(np.recarray),
            ),
            scratch=_scratch(models, configs),
            admitted=np.ascontiguousarray(workload.admitted),
        )
        one = replicas == 1 and fleet.router in (ROUND_ROBIN, LEAST_OUTSTANDING)
        self.blind = not feedback and (one or fleet.router == ROUND_ROBIN)

    def serve(self, until_s: float = math.inf, most_steps: int = 1 << 60) -> bool:
        """Runs every step that starts before `until_s`; returns False where it stopped after `most_steps`."""
        with uncollected(serve):
            return bool(serve(until_s, most_steps, self.blind, self.arrays))

    def add_arrivals(self, indices: IntArray) -> None:
        """Requests arrive at their `ready_s`, which must not lie before what has been served."""
        add_arrivals(self.arrays, np.ascontiguousarray(indices, dtype=np.int64))

    @property
    def replicas(self) -> Any:
        """Records of `state.REPLICA`."""
        return self.arrays.replicas

    @property
    def ended(self) -> int:
        """Requests that have left a replica."""
        return int(self.arrays.pool[0].ended)

    def store_running(self) -> None:
        """Writes what running sequences have reached to their records, for a simulation that is cut short."""
        for r, replica in enumerate(self.replicas):
            slots = self.arrays.slots[r, : replica.running]
            for name in (
                "generated_tokens", "last_token_s", "longest_gap_s", "chunks", "decode_rounds", "rounds", "drafted_tokens",
                "accepted_tokens",
            ):  # fmt: skip
                self.arrays.requests[name][slots["request"]] = slots[name]


def links_of(n: int, *, ranked: bool, cancels: bool, later: bool) -> Links:
    def by_request(wanted: bool) -> IntArray:
        return np.full(n if wanted else 1, -1, dtype=np.int64)

    return Links(
        by_request(True), by_request(True), by_request(ranked), by_request(ranked), by_request(cancels), by_request(cancels),
        by_request(later), by_request(later), np.arange(n if cancels or later else 1), np.zeros(n, dtype=np.int64),
    )  # fmt: skip


def stacks_of(configs: Any, replicas: int, sequences: int, requests: int) -> Any:
    """Room for preempted sequences: first come, first served nobody passes them, so no more than may run; where others may go
    before them, any number (pages that are never touched cost nothing)."""
    depth = max(sequences, requests) if configs["ranked"].any() else sequences
    return np.zeros((replicas, depth + 1), dtype=state.PREEMPTED).view(np.recarray)


def _named_blocks(configs: Any, model_of: IntArray, sequences: int, longest: int, *, shares: bool) -> Blocks:
    each = configs[model_of]
    if not shares:
        return blocks_by_name(len(model_of), 1, 1, 1, shares=False)
    smallest = int(each["block_tokens"].min())
    rows = -(-longest // smallest) + 2
    blocks = blocks_by_name(len(model_of), int(each["total_blocks"].max()), sequences, rows, shares=True)
    for r, config in enumerate(each):  # the queue's ends stand behind the replica's own last block
        total = int(config["total_blocks"])
        blocks.after[r, : total + 1] = np.roll(np.arange(total + 1), -1)
        blocks.before[r, : total + 1] = np.roll(np.arange(total + 1), 1)
    return blocks


def _stacked(
    tables: list[FastTables], intakes: list[FloatArray], sequences: int, longest: int, new_tokens: int
) -> Tables:
    columns = len(AttentionKind._fields)
    kinds = [np.array([tuple(k) for k in t.kinds], dtype=np.float64).reshape(-1, columns) for t in tables]
    rates = np.zeros((len(tables), 2), dtype=RATES)
    sizes = [
        (t.pipeline, t.linear.shape[2] - 1, i.shape[1] - 1 if i.any() else 0)
        for t, i in zip(tables, intakes, strict=True)
    ]
    for m, table in enumerate(tables):
        rates[m, 0], rates[m, 1] = tuple(table.decode_rates), tuple(table.prefill_rates)
    contexts = FINE_TOKENS + int(longest / KNOT_TOKENS) + 3
    knots = np.zeros(
        (len(tables), min(new_tokens, DECODE_QUERY_LIMIT), sequences + 1, contexts)
    )  # pages that are never touched cost nothing
    return Tables(
        _padded([t.linear for t in tables]), _padded([t.head for t in tables]), _padded([t.extra_host_s for t in tables]),
        _kinds(kinds), rates.view(np.recarray), knots, np.array(sizes, dtype=np.int64),
        _padded(intakes),
    )  # fmt: skip


def _plans(plans: list[PlanTables]) -> PlanTables:
    """Plans stacked; beyond the end of a shorter one lies what no batch and no context reaches."""
    rows, columns = max(len(p.batches) for p in plans), max(len(p.contexts) for p in plans)
    never = np.iinfo(np.int64).max

    def edges(values: list[Any], most: int) -> Any:
        return np.stack([np.concatenate([v, np.full(most - len(v), never)]).astype(np.int64) for v in values])

    return PlanTables(
        _padded([p.shapes for p in plans]), _padded([p.pass_tokens for p in plans]),
        edges([p.batches for p in plans], rows), edges([p.contexts for p in plans], columns),
        _padded([p.choice for p in plans]),
    )  # fmt: skip


def _padded(arrays: list[Any]) -> Any:
    """Arrays of one rank stacked; shorter ones end in zeros. A kind of no layers costs nothing."""
    shape = tuple(max(a.shape[axis] for a in arrays) for axis in range(arrays[0].ndim))
    whole = np.zeros((len(arrays), *shape), dtype=arrays[0].dtype)
    for place, a in zip(whole, arrays, strict=True):
        place[tuple(slice(size) for size in a.shape)] = a
    return whole


def _kinds(kinds: list[FloatArray]) -> FloatArray:
    """Kinds of layers of each model; one that only another model has stands for no layers."""
    most = max(len(k) for k in kinds)
    none = np.array(tuple(AttentionKind(0.0, np.inf, 0.0, 0.0, 0.0)))
    return np.stack([np.concatenate([k, np.tile(none, (most - len(k), 1))]) for k in kinds])


def _scratch(models: Any, configs: Any) -> tuple[Any, ...]:
    kinds = max(len(m.target.kinds) for m in models)
    draft_kinds = max(len(m.draft.kinds) for m in models)
    depths = 1 + max(int(m.plan.shapes[:, state.DEPTH].max()) for m in models)
    return (
        np.zeros((kinds, 4)), np.zeros((draft_kinds, 4)), np.zeros(4), np.zeros(kinds), np.zeros(draft_kinds),
        np.zeros(kinds), np.zeros(int(configs["block_tokens"].max()) + 1, dtype=np.int64),
        np.zeros(depths, dtype=np.int64), np.zeros((depths, draft_kinds)),
    )  # fmt: skip
