"""ForwardCost: the seconds of one forward pass, and what they are spent on, for any batch.

Three views of one model of cost, equal by test:
`ForwardCost.pass_cost` prices every operator and says what it moved and multiplied;
`ForwardCost.linear`, `head` and `attention` give the same seconds for whole arrays of batch sizes;
`FastTables` holds them as arrays by token count, for the compiled serving loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.architecture import Decoder
from simulator.cost.collectives import all_gather_s, all_reduce_s
from simulator.cost.efficiency import Efficiency, load_efficiency
from simulator.cost.graphs import EVERY_SIZE, GraphCapture
from simulator.cost.roofline import (
    AttentionRates,
    attention_rates,
    attention_time,
    elementwise_time,
    l2_share,
    matmul_time,
    one_kernel,
)
from simulator.cost.streaming import Stage
from simulator.cost.tables import AttentionKind, FastTables
from simulator.hardware import Gpu, Link, load_link
from simulator.operators import (
    AttentionLoad,
    FloatArray,
    Operator,
    attention_load,
    attention_shape,
    check_tensor_parallel,
    edge_operators,
    head_operators,
    layer_operators,
)
from simulator.quantization import Formats, Quantization, resolve

__all__ = [
    "CAUSES",
    "DECODE_QUERY_LIMIT",
    "AttentionKind",
    "Batch",
    "FastTables",
    "ForwardCost",
    "OperatorCost",
    "PassCost",
]

DECODE_QUERY_LIMIT = 16
"""Up to this many new tokens a sequence goes to the decode attention kernel; longer runs are prefill."""

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

    @property
    def bytes_(self) -> float:
        """All bytes moved between HBM and SMs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    def by_cause(self) -> dict[str, float]:
        """Seconds by cause, adding up to `total_s`: the slower of memory and compute is charged in full, the other one
        for what sticks out."""
        if self.message_bytes:
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
    """One forward pass on one rank (all ranks of a TP group do the same at the same time)."""

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
        stages = [_stage(o, -1, kept, slower) for o in self.before]
        layer = 0
        for count, group in self.layers:
            for _ in range(count):
                stages += [_stage(o, layer, kept, slower) for o in group]
                layer += 1
        return stages + [_stage(o, -1, kept, slower) for o in self.after]


def _stage(o: OperatorCost, layer: int, kept: float, slower: float) -> Stage:
    share = 1.0 - kept * o.weight_bytes / o.bytes_ if o.bytes_ else 1.0
    load_s = o.memory_s * share * slower
    # Neither side makes headway while a kernel starts, in what the smooth maximum adds to the slower side, and while the
    # SMs wait inside a kernel for longer than the load takes.
    gap_s = max(0.0, o.total_s - max(o.memory_s, o.compute_s)) + max(0.0, o.compute_s - max(load_s, o.arithmetic_s))
    return Stage(o.name, layer, gap_s, load_s, o.arithmetic_s, round(o.bytes_ * share))


class ForwardCost:
    """The cost of passes of one model on one tensor-parallel group.

    Raises InputError when `tp` does not divide the model, or exceeds what one node's link joins.
    """

    def __init__(
        self,
        decoder: Decoder,
        gpu: Gpu,
        *,
        tp: int = 1,
        quantization: Quantization | None = None,
        link: Link | None = None,
        efficiency: Efficiency | None = None,
        back_to_back: bool = False,
    ):
        """`back_to_back`: the pass is repeated at once (draft passes), so what fits the resident part of L2 stays there."""
        check_tensor_parallel(decoder, tp)
        self.decoder, self.gpu, self.tp = decoder, gpu, tp
        self.quantization = quantization or Quantization()
        self.formats: Formats = resolve(self.quantization, decoder)
        self.efficiency = efficiency or load_efficiency(gpu)
        self.link = link or load_link(gpu.node_link)
        self.shape = attention_shape(decoder, self.formats, tp)
        self.back_to_back = back_to_back
        self._resident_share = self._l2_share() if back_to_back else 0.0
        # Attention multiplies in 16 bit whatever the cache is stored in, unless the model is fp32.
        attention_dtype = "fp32" if self.formats.model_bytes == 4 else "bf16"
        shape, e = self.shape, self.efficiency
        self.decode_rates, self.prefill_rates = (
            attention_rates(
                gpu, part, dtype=attention_dtype, kv_heads=kv_heads, heads=shape.heads, head_dim=head_dim,
                flop_per_pair=flop_per_pair,
            ).slowed(e.slower.get(kind, 1.0))
            for kind, part, kv_heads, head_dim, flop_per_pair in (
                ("decode_attention", e.decode_attention, shape.kv_heads, shape.head_dim, shape.decode_flop_per_pair),
                ("prefill_attention", e.prefill_attention, shape.prefill_kv_heads, shape.prefill_head_dim,
                 shape.prefill_flop_per_pair),
            )
        )  # fmt: skip
        if decoder.attention.mla is not None:  # absorbed and expanded form are different kernels
            self.prefill_rates = self.prefill_rates._replace(takes_decode=0.0)
        self.kinds = tuple(
            AttentionKind(
                float(kind.count),
                float(kind.window_tokens) if kind.window_tokens is not None else float("inf"),
                shape.kv_bytes_per_token,
                shape.decode_flop_per_pair,
                shape.prefill_flop_per_pair,
            )
            for kind in decoder.layer_kinds
        )

    def on(self, efficiency: Efficiency) -> ForwardCost:
        """The same passes on other efficiencies."""
        return ForwardCost(
            self.decoder, self.gpu, tp=self.tp, quantization=self.quantization, link=self.link, efficiency=efficiency,
            back_to_back=self.back_to_back,
        )  # fmt: skip

    # --- whole arrays ----------------------------------------------------------------------------------------------
    def linear(self, tokens: FloatArray) -> FloatArray:
        """Seconds [points] of all that depends on the number of tokens only: matmuls, norms, collectives."""
        return self._sum(self._linear_operators(tokens), 0)

    def head(self, rows: FloatArray) -> FloatArray:
        """Seconds [points] of LM head and sampler for `rows` of logits."""
        return self._sum([(1, o) for o in head_operators(self.decoder, self.formats, self.tp, rows)], 0)

    def attention(self, new_tokens: Sequence[int], cached_tokens: Sequence[int]) -> float:
        """Seconds of the attention kernels of all layers for these sequences."""
        parts = self._attention_costs(new_tokens, cached_tokens)
        return sum(o.repeat * o.total_s for costs in parts for o in costs)

    def seconds(self, batch: Batch) -> float:
        """Seconds of one pass, without its breakdown."""
        linear = self.linear(np.array([float(batch.tokens)]))[0]
        head = self.head(np.array([float(batch.rows)]))[0]
        return float(linear + head) + self.attention(batch.new_tokens, batch.cached_tokens)

    def tables(self, max_tokens: int, max_rows: int, capture: GraphCapture | None = None) -> FastTables:
        """The pass as arrays over 0..max_tokens tokens and 0..max_rows rows, on the graphs of `capture` (None: of every size)."""
        graphs = capture or EVERY_SIZE
        padded = [graphs.padded(max_tokens, prompts) for prompts in (False, True)]
        points, back = np.unique(np.concatenate([np.arange(max_tokens + 1), *padded]), return_inverse=True)
        operators = self._linear_operators(points.astype(float))
        linear = np.stack([self._sum(operators, what) for what in (0, 1, 2)])
        rows = np.arange(max_rows + 1, dtype=float)
        heads = [(1, o) for o in head_operators(self.decoder, self.formats, self.tp, rows)]
        head = np.stack([self._sum(heads, what) for what in (0, 1, 2)])
        own, *planes = (linear[:, part] for part in np.split(back, 3))
        return FastTables(
            linear_s=own[0],
            linear_bytes=own[1],
            linear_flop=own[2],
            head_s=head[0],
            head_bytes=head[1],
            head_flop=head[2],
            kinds=self.kinds,
            decode_rates=self.decode_rates,
            prefill_rates=self.prefill_rates,
            linear=np.stack(planes),
            head=head,
            extra_host_s=np.stack([graphs.extra_host_s(max_tokens, prompts) for prompts in (False, True)]),
        )

    # --- one pass in detail ------------------------------------------------------------------------------------------
    def pass_cost(self, batch: Batch) -> PassCost:
        """Every operator of one pass of `batch`, priced."""
        tokens, rows = np.array([float(batch.tokens)]), np.array([float(batch.rows)])
        attention = self._attention_costs(batch.new_tokens, batch.cached_tokens)
        layers = []
        for kind, kernels in zip(self.decoder.layer_kinds, attention, strict=True):
            operators = layer_operators(self.decoder, kind, self.formats, self.tp, tokens)
            costs = [self._cost(o, kind.count) for o in operators]
            at = 1 + next(i for i, o in enumerate(operators) if o.name == "rotary")
            layers.append((kind.count, (*costs[:at], *kernels, *costs[at:])))
        edges = [self._cost(o, 1) for o in edge_operators(self.decoder, self.formats, tokens, self.tp)]
        heads = [self._cost(o, 1) for o in head_operators(self.decoder, self.formats, self.tp, rows)]
        return PassCost(tuple(layers), tuple(edges[:-1]), (edges[-1], *(heads if batch.rows else ())))

    def _cost(self, o: Operator, repeat: int) -> OperatorCost:
        total_s, memory_s, compute_s, overhead_s = (float(part[0]) for part in self._time(o))
        message = float(o.message_bytes[0]) if o.message_bytes is not None else 0.0
        weight, activation, flop = float(o.weight_bytes[0]), float(o.activation_bytes[0]), float(o.flop[0])
        reached = self.efficiency.matmul.compute * self.gpu.peak_flop_per_s(o.dtype)
        arithmetic_s = min(compute_s, flop / reached)
        return OperatorCost(
            o.name, repeat, total_s, memory_s, compute_s, overhead_s, arithmetic_s, weight, 0.0, activation, flop, message,
        )  # fmt: skip

    def _attention_costs(self, new: Sequence[int], cached: Sequence[int]) -> list[list[OperatorCost]]:
        """For each layer kind, its decode and prefill attention kernels, those that have anything to do."""
        short = [i for i, q in enumerate(new) if 0 < q <= DECODE_QUERY_LIMIT]
        long = [i for i, q in enumerate(new) if q > DECODE_QUERY_LIMIT]
        together = one_kernel(len(short), sum(new[i] for i in short), len(long), self.prefill_rates)
        groups = []
        for name, picked, rates in (
            ("decode_attention", short, self.prefill_rates if together else self.decode_rates),
            ("prefill_attention", long, self.prefill_rates),
        ):
            if picked:
                # What shares a launch pays for it once.
                saved_s = rates.t0_s if together and long and picked is short else 0.0
                groups.append((name, [new[i] for i in picked], [cached[i] for i in picked], rates, saved_s))
        return [
            [
                self._attention_cost(name, attention_load(q, c, kind.window_tokens), rates, kind.count, saved_s)
                for name, q, c, rates, saved_s in groups
            ]
            for kind in self.decoder.layer_kinds
        ]

    def _attention_cost(
        self, name: str, load: AttentionLoad, rates: AttentionRates, repeat: int, saved_s: float
    ) -> OperatorCost:
        kv_bytes = load.kv_tokens * self.shape.kv_bytes_per_token
        per_pair = self.shape.decode_flop_per_pair if rates is self.decode_rates else self.shape.prefill_flop_per_pair
        flop = load.pairs * per_pair
        total_s, memory_s, compute_s, overhead_s = attention_time(
            load.sequences, load.query_tokens, kv_bytes, flop, rates
        )
        total_s, overhead_s = total_s - saved_s, overhead_s - saved_s
        arithmetic_s = min(compute_s, flop / rates.flop_per_s)
        return OperatorCost(
            name, repeat, total_s, memory_s, compute_s, overhead_s, arithmetic_s, kv_bytes=kv_bytes, flop=flop
        )

    # --- pricing -------------------------------------------------------------------------------------------------
    def _linear_operators(self, tokens: FloatArray) -> list[tuple[int, Operator]]:
        tokens = np.asarray(tokens, dtype=float)
        operators = [
            (kind.count, o)
            for kind in self.decoder.layer_kinds
            for o in layer_operators(self.decoder, kind, self.formats, self.tp, tokens)
        ]
        return operators + [(1, o) for o in edge_operators(self.decoder, self.formats, tokens, self.tp)]

    def _time(self, o: Operator) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(total, memory, compute, overhead) seconds [points]; nothing to do takes no time."""
        work = o.m > 0
        zero = np.zeros_like(o.m)
        slower = self.efficiency.slower.get("all_reduce" if o.kind == "all_gather" else o.kind, 1.0)
        if o.kind in ("all_reduce", "all_gather"):
            collective_s = all_reduce_s if o.kind == "all_reduce" else all_gather_s
            total = collective_s(o.message_bytes, self.tp, self.link, self.efficiency.all_reduce) * slower
            total = np.where(work, total, 0.0)
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
            resident_bytes=self._resident_share * o.weight_bytes,
            count=matrices,
        )
        return tuple(np.where(work, part * slower, 0.0) for part in t)  # type: ignore[return-value]

    def _sum(self, operators: Sequence[tuple[int, Operator]], what: int) -> FloatArray:
        """Over the pass [points]: 0 seconds, 1 bytes, 2 FLOP."""
        if what == 0:
            parts = [count * self._time(o)[0] for count, o in operators]
        elif what == 1:
            parts = [count * (o.weight_bytes + o.activation_bytes) for count, o in operators]
        else:
            parts = [count * o.flop for count, o in operators]
        return np.asarray(sum(parts), dtype=float)

    def _l2_share(self) -> float:
        one = np.ones(1)
        weights = float(self._sum(self._linear_operators(one), 1)[0])
        weights += sum(float(o.weight_bytes[0]) for o in head_operators(self.decoder, self.formats, self.tp, one))
        return float(l2_share(weights, self.gpu))
