"""The requests of a pool replaced while it stands still: those that are under way move together, new ones join behind them.

Everything that names a request by its place is renamed. Requests that have left are forgotten, also by the lists and heaps that
would have passed over them; so a pool goes on as if all had stayed (docs/engine-rules.md knows no places).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state
from simulator.serving.line import Links
from simulator.serving.model import FloatArray, IntArray, Workload
from simulator.serving.pool import Pool, links_of, stacks_of


def relocate(pool: Pool, kept: NDArray[np.bool_], more: Workload, rates: FloatArray, row_of: IntArray) -> None:
    """Keeps the requests `kept` [requests], in their order, and appends those of `more`, none of which arrives earlier.

    `rates` and `row_of` are the acceptance of the requests that there are then. Nobody may wait for the end of another.
    """
    arrays, old = pool.arrays, pool.arrays.requests
    staying = np.flatnonzero(kept)
    place = np.full(len(old) + 1, -1, dtype=np.int64)  # the last entry renames "nobody"
    place[staying] = np.arange(len(staying))
    requests = state.records(state.REQUEST, len(staying) + len(more.requests))
    requests[: len(staying)], requests[len(staying) :] = old[staying], more.requests
    pieces = _pieces(requests, len(staying), arrays.pieces, more)
    ranked = bool(arrays.configs["ranked"].any())
    cancels = bool(np.isfinite(requests["cancel_s"]).any())
    links = links_of(len(requests), ranked=ranked, cancels=cancels, later=False)
    links.order[: len(staying)] = arrays.links.order[staying]
    _relink(arrays.replicas, requests, links, place, arrays.links.order, ranked=ranked, cancels=cancels)
    for replica, slots, stack in zip(arrays.replicas, arrays.slots, arrays.stacks, strict=True):
        slots["request"][: replica.running] = place[slots["request"][: replica.running]]
        stack["request"][: replica.stacked] = place[stack["request"][: replica.stacked]]
    stacks = stacks_of(arrays.configs, len(arrays.replicas), arrays.slots.shape[1], len(requests))
    depth = int(arrays.replicas["stacked"].max())
    stacks[:, :depth] = arrays.stacks[:, :depth]
    row = arrays.pool[0]
    admitted = np.concatenate([place[arrays.admitted[row.next :]], len(staying) + more.admitted])
    row.next = row.ended = 0
    pool.arrays = arrays._replace(
        requests=requests,
        links=links,
        stacks=stacks,
        pieces=pieces,
        luck=arrays.luck._replace(rates=rates, row_of=row_of),
        admitted=admitted,
    )
    pool.workload = replace(pool.workload, requests=requests, admitted=admitted)


def _pieces(requests: Any, staying: int, pieces: Any, more: Workload) -> tuple[IntArray, IntArray]:
    """Shared pieces of the requests that there are now; theirs begin where `first_piece` will say."""
    source, end_tokens = pieces
    counts = requests["pieces"][:staying].astype(np.int64)
    first = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    index = np.arange(first[-1]) + np.repeat(requests["first_piece"][:staying] - first[:-1], counts)
    requests["first_piece"][:staying] = first[:-1]
    requests["first_piece"][staying:] += first[-1]
    return np.concatenate([source[index], more.source]), np.concatenate([end_tokens[index], more.end_tokens])


def _relink(
    replicas: Any, requests: Any, links: Links, place: IntArray, old_order: IntArray, *, ranked: bool, cancels: bool
) -> None:
    """Lists and heaps of the requests that have been submitted and have not left."""
    owner, order = requests["replica"], links.order
    submitted = np.flatnonzero(owner >= 0)
    submitted = submitted[np.lexsort((order[submitted], owner[submitted]))]
    bounds = np.searchsorted(owner[submitted], [replicas["number"], replicas["number"] + 1])
    for replica, start, end in zip(replicas, *bounds.tolist(), strict=True):
        chain = submitted[start:end]
        links.after[chain[:-1]] = chain[1:]
        numbers = order[chain]
        for name in ("first", "overdue"):
            was = replica[name]
            here = np.searchsorted(numbers, old_order[was]) if was >= 0 else len(chain)
            replica[name] = chain[here] if here < len(chain) else -1
        replica.tail = chain[-1] if len(chain) else -1
        replica.unjoined = place[replica.unjoined]
        joined = chain
        if replica.unjoined >= 0:
            joined = chain[: np.searchsorted(numbers, order[replica.unjoined])]
        if ranked:
            waiting = joined[requests["status"][joined] == state.WAITING]
            by_rank = waiting[np.lexsort((order[waiting], requests["rank"][waiting]))]
            replica.ranks = _heap(by_rank, links.rank_left)
        if cancels:
            giving_up = joined[np.isfinite(requests["cancel_s"][joined])]
            by_time = giving_up[np.lexsort((giving_up, requests["cancel_s"][giving_up]))]
            replica.cancels = _heap(by_time, links.cancel_left)
        else:
            replica.cancels = -1


def _heap(ascending: IntArray, left: IntArray) -> int:
    """Root of a heap of these requests (-1: none): each has the next for its only child."""
    left[ascending[:-1]] = ascending[1:]
    return int(ascending[0]) if len(ascending) else -1
