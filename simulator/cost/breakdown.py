"""One pass taken apart: the batch it serves, each operator priced, and what the seconds are spent on."""

from __future__ import annotations

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

    def stages(self, kept: float = 0.0, slower: float = 1.0) -> list[Stage]:
        """The pass as the layer pipeline's stages, layer by layer; streamed one after the other they take `seconds`.

        What-ifs: the share `kept` of every matrix never leaves the desk (today's keeps none), and loads take `slower` times
        as long (a desk too small to cover HBM's latency).
        """
        stages = [_stage(o, -1, kept, slower) for o in self.before for _ in range(o.repeat)]
        layer = 0
        for count, group in self.layers:
            for _ in range(count):
                stages += [_stage(o, layer, kept, slower) for o in group]
                layer += 1
        return stages + [_stage(o, -1, kept, slower) for o in self.after for _ in range(o.repeat)]


def _stage(o: OperatorCost, layer: int, kept: float, slower: float) -> Stage:
    share = 1.0 - kept * o.weight_bytes / o.bytes_ if o.bytes_ else 1.0
    load_s = o.memory_s * share * slower
    # Neither side makes headway while a kernel starts, and in what the smooth maximum adds to the slower side.
    gap_s = max(0.0, o.total_s - max(o.memory_s, o.compute_s))
    return Stage(o.name, layer, gap_s, load_s, o.compute_s, round(o.bytes_ * share), o.arithmetic_s)
