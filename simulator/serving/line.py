"""Who waits: submission, joining, refusal, cancellation and time-outs, and who is first in the line. Rules: docs/engine-rules.md.

A replica's requests form a list in order of submission. First come, first served needs no more than a pointer into it;
ranked order keeps a heap beside it. Preempted sequences lie on a small stack whose top goes first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.heap import popped, pushed
from simulator.serving.state import REFUSED, WAITING


class Links(NamedTuple):
    """Arrays by request [requests] (or of length 1 where nothing of the kind occurs), shared by all replicas."""

    after: Any
    """Next in order of submission to the same replica, -1 for none."""
    order: Any
    """Number of submission."""
    rank_left: Any
    rank_right: Any
    cancel_left: Any
    cancel_right: Any
    arrival_left: Any
    arrival_right: Any
    index: Any
    """Every request's own index: the tie of heaps by time."""
    ended: Any
    """Requests in the order in which they left a replica [requests + …]."""


@compiled
def submit(replica: Any, links: Any, order: int, request: int) -> None:
    """`request` is the next of this replica; it joins the line when it is ready."""
    links.after[request] = -1
    links.order[request] = order
    if replica.tail >= 0:
        links.after[replica.tail] = request
    replica.tail = request
    if replica.unjoined < 0:
        replica.unjoined = request
    if replica.first < 0:
        replica.first = request
    if replica.overdue < 0:
        replica.overdue = request
    replica.submitted += 1


@compiled
def next_ready_s(replica: Any, requests: Any) -> float:
    """When the next submitted request is ready, infinity for none."""
    if replica.unjoined < 0:
        return math.inf
    return float(requests[replica.unjoined].ready_s)


@compiled
def first_fresh(config: Any, replica: Any, requests: Any, links: Any) -> int:
    """First in the line of those that were never started, -1 for none."""
    if replica.fresh == 0:
        return -1
    if config.ranked == 1:
        rank, order = requests["rank"], links.order
        while requests[replica.ranks].status != WAITING:  # it left the line from the middle
            replica.ranks = popped(replica.ranks, rank, order, links.rank_left, links.rank_right)
        return int(replica.ranks)
    while requests[replica.first].status != WAITING:
        replica.first = links.after[replica.first]
    return int(replica.first)


@compiled
def start_fresh(config: Any, replica: Any, requests: Any, links: Any) -> None:
    """The first of them leaves the line to run."""
    if config.ranked == 1:
        rank, order = requests["rank"], links.order
        replica.ranks = popped(replica.ranks, rank, order, links.rank_left, links.rank_right)
    else:
        replica.first = links.after[replica.first]
    replica.fresh -= 1


@compiled
def stack_goes_first(replica: Any, requests: Any, links: Any, stack: Any, fresh: int) -> bool:
    """Whether the top of the stack stands before `fresh`, the first of the others (-1: nobody)."""
    if replica.stacked == 0:
        return False
    top = stack[replica.stacked - 1]
    if fresh < 0:
        return True
    rank = requests[fresh].rank
    return bool(top.rank < rank or (top.rank == rank and top.order < links.order[fresh]))


@compiled
def place_on_stack(replica: Any, stack: Any, order: int, rank: int) -> Any:
    """Makes room for a preempted sequence at its place in the order, first on top; returns its entry."""
    place = replica.stacked
    while place > 0 and (
        stack[place - 1].rank < rank or (stack[place - 1].rank == rank and stack[place - 1].order < order)
    ):
        stack[place] = stack[place - 1]
        place -= 1
    replica.stacked += 1
    return stack[place]


@compiled
def join(config: Any, replica: Any, requests: Any, links: Any, heard_s: float) -> int:
    """Submitted requests that are ready by `heard_s` join the line. Returns one that is refused, else -1; call again then."""
    while replica.unjoined >= 0:
        index = replica.unjoined
        request = requests[index]
        if request.ready_s > heard_s:
            break
        replica.unjoined = links.after[index]
        if config.max_waiting > 0 and replica.fresh >= config.max_waiting:
            request.status = REFUSED
            return int(index)
        request.status = WAITING
        replica.fresh += 1
        if config.ranked == 1:
            replica.ranks = pushed(
                replica.ranks, index, requests["rank"], links.order, links.rank_left, links.rank_right
            )
        if math.isfinite(request.cancel_s):
            replica.cancels = pushed(
                replica.cancels, index, requests["cancel_s"], links.index, links.cancel_left, links.cancel_right
            )
    return -1


@compiled
def next_overdue(config: Any, replica: Any, requests: Any, links: Any) -> int:
    """First request in the line whose time-out will come next, -1 for none."""
    if replica.fresh == 0:
        return -1
    # Who was handed over may wait again, elsewhere.
    while requests[replica.overdue].status != WAITING or requests[replica.overdue].replica != replica.number:
        replica.overdue = links.after[replica.overdue]
    return int(replica.overdue)


@compiled_apart
def next_cancelled(replica: Any, number: int, requests: Any, links: Any, clock_s: float) -> int:
    """Takes the next request here whose user has given up by `clock_s` out of the heap, -1 for none."""
    while replica.cancels >= 0 and requests[replica.cancels].cancel_s <= clock_s:
        index = replica.cancels
        replica.cancels = popped(
            replica.cancels, requests["cancel_s"], links.index, links.cancel_left, links.cancel_right
        )
        if requests[index].status <= 1 and requests[index].replica == number:  # waits or runs, and here
            return int(index)
    return -1
