"""Seconds of the operators of a pass: each by itself with its parts, or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, point_to_point_s
from simulator.cost.efficiency import Efficiency
from simulator.cost.roofline import elementwise_time, matmul_time
from simulator.hardware import Gpu, Link
from simulator.operators import COLLECTIVES, FloatArray, Operator

_STACKED_POINTS = 512
"""Up to so many points, operators are priced in one call: what a call costs by itself is more than its arithmetic. Beyond,
arrays of all of them would leave the CPU's caches."""


class OperatorTimes:
    """Times on one GPU of a group of `tp`, of a pipeline of `pp` such groups, with experts on `ep` GPUs.

    `link` joins the GPUs of one node, `network` nodes. `resident_share` of the weights of every matrix is found in L2.
    """

    def __init__(
        self, gpu: Gpu, efficiency: Efficiency, link: Link, network: Link, *, tp: int, pp: int, ep: int,
        resident_share: float = 0.0,
    ):  # fmt: skip
        self.gpu, self.efficiency, self.link, self.network = gpu, efficiency, link, network
        self.tp, self.pp, self.ep, self.resident_share = tp, pp, ep, resident_share

    def parts(self, o: Operator) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(total, memory, compute, overhead) seconds [points]; nothing to do takes no time."""
        work = o.m > 0
        zero = np.zeros_like(o.m)
        slower = self.efficiency.slower.get("all_reduce" if o.kind in COLLECTIVES else o.kind, 1.0)
        if o.kind in COLLECTIVES:
            total = np.where(work, self._collective_s(o) * slower, 0.0)
            return total, zero, zero, total
        if o.kind == "elementwise":
            t = elementwise_time(o.activation_bytes, work.astype(float), self.gpu, self.efficiency.elementwise)
            return tuple(part * slower for part in t)
        matrices = np.ones_like(o.m) if o.matrices is None else o.matrices
        t = matmul_time(
            o.m,
            o.n,
            o.k,
            np.divide(o.weight_bytes, matrices, out=zero.copy(), where=matrices > 0),
            o.activation_bytes,
            o.dtype,
            self.gpu,
            self.efficiency.matmul,
            resident_bytes=self.resident_share * o.weight_bytes,
            count=matrices,
        )
        return tuple(np.where(work, part * slower, 0.0) for part in t)  # type: ignore[return-value]

    def seconds(self, operators: Sequence[Operator]) -> list[FloatArray]:
        """Seconds [points] of each of `operators`, as `parts` has them; those of a kind are priced together."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, o in enumerate(operators):
            key = (o.kind, o.dtype, o.matrices is None, o.m.shape) if o.m.size <= _STACKED_POINTS else (i,)
            alike.setdefault(key, []).append(i)
        found: dict[int, FloatArray] = {}
        for places in alike.values():
            first = operators[places[0]]
            together = _stacked([operators[i] for i in places]) if len(places) > 1 else first
            total_s = self.parts(together)[0]
            found.update(zip(places, total_s if len(places) > 1 else [total_s], strict=True))
        return [found[i] for i in range(len(operators))]

    def _collective_s(self, o: Operator) -> FloatArray:
        e, message, per_node = self.efficiency.all_reduce, o.message_bytes, self.gpu.gpus_per_node
        if o.kind == "all_reduce":
            found = all_reduce_s(message, self.tp, self.link, e)
        elif o.kind == "all_gather":
            found = all_gather_s(message, self.tp, self.link, e)
        elif o.kind == "all_to_all":
            found = all_to_all_s(message, self.ep, self.link if self.ep <= per_node else self.network, e)
        else:  # the widest gap between two stages sets the pace
            found = point_to_point_s(message, self.link if self.tp * self.pp <= per_node else self.network, e)
        return np.asarray(found, dtype=float)


def _stacked(operators: Sequence[Operator]) -> Operator:
    """`operators` of one kind as one whose arrays are [operators, points]."""
    arrays: dict[str, Any] = {
        name: np.stack([getattr(o, name) for o in operators])
        for name in ("flop", "weight_bytes", "activation_bytes", "m", "matrices", "message_bytes")
        if getattr(operators[0], name) is not None
    }
    sizes: dict[str, Any] = {name: np.array([[float(getattr(o, name))] for o in operators]) for name in ("n", "k")}
    return replace(operators[0], **arrays, **sizes)
