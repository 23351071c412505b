"""One pass taken apart: the batch it serves, each operator priced, and what the seconds are spent on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.cost.streaming import Stage

CAUSES = ("weights", "kv_cache", "activations", "compute", "launch", "communication", "host")
"""What the seconds of a step are spent on; the shares of all causes add up to the step."""


@dataclass(frozen=True)
class Batch:
    """One pass: sequences with `new_tokens` on top of `cached_tokens`; logits are needed for `rows` of them."""

    new_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    rows: int

    @classmethod
    def decode(cls, sequences: int, context_tokens: int, new_tokens: int = 1) -> Batch:
        """`sequences` equal sequences that each check `new_tokens` (1 for plain decoding, γ + 1 for verification)."""
        return cls((new_tokens,) * sequences, (context_tokens,) * sequences, sequences * new_tokens)

    @classmethod
    def prefill(cls, prompt_tokens: int) -> Batch:
        """One whole prompt."""
        return cls((prompt_tokens,), (0,), 1)

    @property
    def tokens(self) -> int:
        """New tokens of all sequences together."""
        return sum(self.new_tokens)


@dataclass(frozen=True)
class OperatorCost:
    """One operator of the pass, priced; times and amounts are of one occurrence on one rank."""

    name: str
    repeat: int
    """How often it occurs in the pass (layers of its kind)."""
    total_s: float
    memory_s: float
    compute_s: float
    """What the SMs would need if all operands were at hand: padded tiles, part-filled waves and serial loops included."""
    overhead_s: float
    arithmetic_s: float = 0.0
    """The FLOP alone, at the rate that large tiles reach: the part of `compute_s` in which the SMs really multiply."""
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    flop: float = 0.0
    message_bytes: float = 0.0
    waiting: bool = False
    """Whether it is waiting for other GPUs and nothing else."""

    @property
    def bytes_(self) -> float:
        """All bytes moved between HBM and SMs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    def by_cause(self) -> dict[str, float]:
        """Seconds by cause, adding up to `total_s`: the slower of memory and compute is charged in full, the other one
        for what sticks out."""
        if self.message_bytes or self.waiting:
            return {"communication": self.total_s}
        rest_s = self.total_s - self.overhead_s
        memory_s = self.memory_s if self.memory_s >= self.compute_s else rest_s - self.compute_s
        per_byte = memory_s / self.bytes_ if self.bytes_ else 0.0
        return {
            "weights": per_byte * self.weight_bytes,
            "kv_cache": per_byte * self.kv_bytes,
            "activations": per_byte * self.activation_bytes,
            "compute": rest_s - memory_s,
            "launch": self.overhead_s,
        }


@dataclass(frozen=True)
class PassCost:
    """One forward pass on one rank (all ranks of a TP group do the same at the same time); through all stages of a pipeline,
    one after the other."""

    layers: tuple[tuple[int, tuple[OperatorCost, ...]], ...]
    """Groups of identical layers: how many, and the operators of one, in order."""
    before: tuple[OperatorCost, ...]
    after: tuple[OperatorCost, ...]

    @property
    def operators(self) -> tuple[OperatorCost, ...]:
        """Every operator once, with its `repeat`."""
        return (*self.before, *(o for _, group in self.layers for o in group), *self.after)

    def total(self, field: str) -> float:
        """Sum over the pass of a numeric field or property of `OperatorCost`, e.g. ``"flop"``."""
        return sum(float(getattr(o, field)) * o.repeat for o in self.operators)

    @property
    def seconds(self) -> float:
        """Time of the pass without the engine's host time."""
        return self.total("total_s")

    def by_cause(self) -> dict[str, float]:
        """Seconds by cause; they add up to `seconds`."""
        sums = dict.fromkeys(CAUSES, 0.0)
        for operator in self.operators:
            for cause, seconds in operator.by_cause().items():
                sums[cause] += operator.repeat * seconds
        return sums

    def stages(self, kept: float = 0.0, slower: float = 1.0, *, ahead: bool = False) -> list[Stage]:
        """The pass as the layer pipeline's stages, layer by layer; streamed one after the other they take `seconds`.

        What-ifs: the share `kept` of every matrix never leaves the desk (today's keeps none), and loads take `slower` times
        as long (a desk too small to cover HBM's latency). `ahead`: loads run ahead into the next operators (`prefetch`).
        """

        def made(
            operators: tuple[OperatorCost, ...],
        ) -> list[tuple[OperatorCost, tuple[float, float, float, int, float]]]:
            return [(o, _parts(o, kept, slower, ahead)) for o in operators]

        stages = [Stage(o.name, -1, *parts) for o, parts in made(self.before) for _ in range(o.repeat)]
        layer = 0
        for count, group in self.layers:
            alike = made(group)
            for _ in range(count):
                stages += [Stage(o.name, layer, *parts) for o, parts in alike]
                layer += 1
        return stages + [Stage(o.name, -1, *parts) for o, parts in made(self.after) for _ in range(o.repeat)]


def _parts(o: OperatorCost, kept: float, slower: float, ahead: bool) -> tuple[float, float, float, int, float]:
    """Of a `Stage`: gap, load and compute times, bytes, and arithmetic time."""
    share = 1.0 - kept * o.weight_bytes / o.bytes_ if o.bytes_ else 1.0
    load_s = o.memory_s * share * slower
    # Neither side makes headway while a kernel starts, and in what the smooth maximum adds to the slower side.
    gap_s = max(0.0, o.total_s - max(o.memory_s, o.compute_s))
    if load_s != o.memory_s:
        gap_s = _gap_s(o, gap_s, load_s, ahead)
    return gap_s, load_s, o.compute_s, round(o.bytes_ * share), o.arithmetic_s


def _gap_s(o: OperatorCost, today_s: float, load_s: float, ahead: bool) -> float:
    """The gap where loads take `load_s` and not `o.memory_s`: what the smooth maximum (m^p + c^p)^(1/p) adds goes with them.

    With loads that run ahead of it, the gap is the least (of shorter loads) or the most (of longer ones) on the way from today's,
    so that no larger desk is slower: what the maximum adds is most where both sides are equal.
    """
    added_s = today_s - o.overhead_s
    low_s, high_s = sorted((o.memory_s, o.compute_s))
    if added_s <= 1e-9 * high_s or low_s <= 0.0:
        return today_s
    power = _power(low_s / high_s, 1.0 + added_s / high_s)
    now_s = _added_s(load_s, o.compute_s, power)
    if ahead:
        passed = o.memory_s < o.compute_s < load_s
        top_s = _added_s(o.compute_s, o.compute_s, power) if passed else max(added_s, now_s)
        now_s = min(added_s, now_s) if load_s < o.memory_s else top_s
    return today_s - added_s + now_s


def _added_s(x_s: float, y_s: float, power: float) -> float:
    low_s, high_s = sorted((x_s, y_s))
    return high_s * ((1.0 + (low_s / high_s) ** power) ** (1.0 / power) - 1.0) if high_s > 0.0 else 0.0


def _power(x: float, joined: float) -> float:
    """p of (1 + x^p)^(1/p) = `joined`, for x from 0 to 1, by bisection of its logarithm."""
    low, high = -5.0, 7.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        p = math.exp(middle)
        if math.log1p(x**p) / p > math.log(joined):
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))
