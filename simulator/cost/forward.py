"""ForwardCost: the seconds of one forward pass, and what they are spent on, for any batch.

Three views of one model of cost, equal by test:
`ForwardCost.pass_cost` prices every operator and says what it moved and multiplied;
`ForwardCost.linear`, `head` and `attention` give the same seconds for whole arrays of batch sizes;
`FastTables` holds them as arrays by token count, for the compiled serving loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from simulator.architecture import Decoder, Mlp, Moe
from simulator.cost.breakdown import CAUSES, Batch, OperatorCost, PassCost
from simulator.cost.efficiency import Efficiency, load_efficiency
from simulator.cost.graphs import EVERY_SIZE, GraphCapture
from simulator.cost.operator_time import OperatorTimes
from simulator.cost.roofline import (
    AttentionRates,
    attention_rates,
    attention_time,
    l2_share,
    one_kernel,
)
from simulator.cost.tables import AttentionKind, FastTables, sampled_up_to
from simulator.experts import SPLIT_EVENLY, ExpertPlacement
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
    send_operators,
)
from simulator.pipeline import pipeline_stages
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


class LinearParts(NamedTuple):
    """All that depends on the number of tokens only."""

    layers: dict[Mlp | Moe, list[Operator]]
    """Operators of one layer, by its MLP."""
    edges: list[Operator]
    """What happens once per pass; the final norm last."""
    sends: list[Operator]
    """What one stage of a pipeline does to hand over."""


class ForwardCost:
    """The cost of passes of one model on one tensor-parallel group, or on a pipeline of `pp` such groups.

    A pipeline works on `pp` micro-batches at a time, one in each stage, and its slowest stage sets the pace: times are those
    that one micro-batch takes through all stages, pp·(slowest stage + handing over). Where stages are not alike, the LM head
    is charged for what it adds to the slowest stage beyond the layers that the last one has fewer. Bytes and FLOP are those
    of all stages, which is what the mean GPU moves and multiplies for one step of `pp` micro-batches.

    Raises InputError when `tp`, `pp` or the experts' placement do not suit the model.
    """

    def __init__(
        self,
        decoder: Decoder,
        gpu: Gpu,
        *,
        tp: int = 1,
        pp: int = 1,
        experts: ExpertPlacement = SPLIT_EVENLY,
        quantization: Quantization | None = None,
        link: Link | None = None,
        network: Link | None = None,
        efficiency: Efficiency | None = None,
        back_to_back: bool = False,
    ):
        """`link` joins the GPUs of one node, `network` nodes. `back_to_back`: the pass is repeated at once (draft passes), so
        what fits the resident part of L2 stays there."""
        check_tensor_parallel(decoder, tp)
        experts.check(decoder, tp)
        self.decoder, self.gpu, self.tp, self.pp, self.experts = decoder, gpu, tp, pp, experts
        self.stages = pipeline_stages(decoder, pp)
        self.quantization = quantization or Quantization()
        self.formats: Formats = resolve(self.quantization, decoder)
        self.efficiency = efficiency or load_efficiency(gpu)
        self.link = link or load_link(gpu.node_link)
        self.network = network or load_link(gpu.network_link)
        self.shape = attention_shape(decoder, self.formats, tp)
        self.back_to_back = back_to_back
        self._known: dict[tuple[str, bool], FloatArray] = {}
        self._times = OperatorTimes(
            gpu, self.efficiency, self.link, self.network, tp=tp, pp=pp, ep=experts.ep,
            resident_share=self._l2_share() if back_to_back else 0.0,
        )  # fmt: skip
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
                layers, window, shape.kv_bytes_per_token, shape.decode_flop_per_pair, shape.prefill_flop_per_pair
            )
            for layers, window in self._attention_layers()
        )

    def _attention_layers(self) -> list[tuple[float, float]]:
        """How often attention is paid for, and its window; in a pipeline pp times the most layers that a stage has of it."""
        windows = [
            float("inf") if k.window_tokens is None else float(k.window_tokens) for k in self.decoder.layer_kinds
        ]
        if self.pp == 1:
            return [(float(kind.count), window) for kind, window in zip(self.decoder.layer_kinds, windows, strict=True)]
        found = []
        for window in dict.fromkeys(windows):
            counts = [sum(n for n, w in zip(s.counts, windows, strict=True) if w == window) for s in self.stages]
            found.append((float(self.pp * max(counts)), window))
        return found

    @property
    def gpus(self) -> int:
        """GPUs of one copy of the model: tp·pp. Experts spread wider are shared with other copies."""
        return self.tp * self.pp

    def micro_batches(self, sequences: int) -> int:
        """Parts into which a pipeline cuts a step of `sequences`: as many as it has stages, none of them empty."""
        return min(self.pp, max(1, sequences))

    @property
    def communicates(self) -> bool:
        """Whether passes wait for other GPUs."""
        return self.gpus > 1 or self.experts.ep > 1

    def on(self, efficiency: Efficiency) -> ForwardCost:
        """The same passes on other efficiencies."""
        return ForwardCost(
            self.decoder, self.gpu, tp=self.tp, pp=self.pp, experts=self.experts, quantization=self.quantization,
            link=self.link, network=self.network, efficiency=efficiency, back_to_back=self.back_to_back,
        )  # fmt: skip

    # --- whole arrays ----------------------------------------------------------------------------------------------
    def linear(self, tokens: FloatArray) -> FloatArray:
        """Seconds [points] of all that depends on the number of tokens only: matmuls, norms, collectives."""
        return self._linear_s(self._parts(tokens))

    def _linear_s(self, parts: LinearParts) -> FloatArray:
        if self.pp == 1:
            return self._sum(self._linear_operators(parts), 0)
        return np.asarray(
            self.pp * (np.max(self._stage_s(parts), axis=0) + self._sum([(1, o) for o in parts.sends], 0))
        )

    def head(self, rows: FloatArray) -> FloatArray:
        """Seconds [points] of LM head and sampler for `rows` of logits."""
        head_s = self._sum(self._head_operators(rows), 0)
        if self.pp == 1:
            return head_s
        # Every row is a token that went through the layers, hence at least as many tokens wait for the slowest stage.
        stage_s = self._stage_s(self._parts(rows))
        return np.asarray(self.pp * np.maximum(0.0, head_s - (np.max(stage_s, axis=0) - stage_s[-1])))

    def linear_work(self, tokens: FloatArray) -> FloatArray:
        """Seconds, bytes and FLOP of one rank [3, points] of what `linear` times."""
        parts = self._parts(tokens)
        operators = self._linear_operators(parts)
        return np.stack([self._linear_s(parts), self._sum(operators, 1), self._sum(operators, 2)])

    def head_work(self, rows: FloatArray) -> FloatArray:
        """Seconds, bytes and FLOP of one rank [3, points] of what `head` times."""
        heads = self._head_operators(rows)
        return np.stack([self.head(rows), self._sum(heads, 1), self._sum(heads, 2)])

    def attention(
        self, new_tokens: Sequence[int], cached_tokens: Sequence[int], counts: Sequence[int] | None = None
    ) -> float:
        """Seconds of the attention kernels of all layers for these sequences, or for `counts` like each of them."""
        groups = self._attention_groups(new_tokens, cached_tokens, counts)
        return sum(
            int(kind.layers) * (self._attention_s(load, rates)[0] - saved_s)
            for kind in self.kinds
            for _, load, rates, saved_s in groups(kind.window_tokens)
        )

    def attention_work(
        self, new_tokens: Sequence[int], cached_tokens: Sequence[int], counts: Sequence[int] | None = None
    ) -> tuple[float, float, float]:
        """Seconds, bytes and FLOP of one rank of what `attention` times."""
        layers = [(int(kind.layers), kind.window_tokens) for kind in self.kinds]
        costs = [o for part in self._attention_costs(new_tokens, cached_tokens, layers, counts) for o in part]
        seconds, bytes_, flop = (
            sum(o.repeat * float(getattr(o, field)) for o in costs) for field in ("total_s", "bytes_", "flop")
        )
        return seconds, bytes_, flop

    def seconds(self, batch: Batch) -> float:
        """Seconds of one pass, without its breakdown."""
        linear = self.linear(np.array([float(batch.tokens)]))[0]
        head = self.head(np.array([float(batch.rows)]))[0]
        return float(linear + head) + self.attention(batch.new_tokens, batch.cached_tokens)

    def tables(
        self, max_tokens: int, max_rows: int, capture: GraphCapture | None = None, *, sampled: bool = False
    ) -> FastTables:
        """The pass as arrays over 0..max_tokens tokens and 0..max_rows rows, on the graphs of `capture` (None: of every size).
        `sampled`: priced at `tables.sample_points` and interpolated between them, about ten times as fast."""
        graphs = capture or EVERY_SIZE
        padded = [graphs.padded(max_tokens, prompts) for prompts in (False, True)]
        linear = self._up_to("linear_work", max(int(part.max()) for part in padded), sampled)
        return FastTables(
            linear=np.stack([linear[:, part] for part in padded]),
            head=self._up_to("head_work", max_rows, sampled)[:, : max_rows + 1],
            extra_host_s=np.stack([graphs.extra_host_s(max_tokens, prompts) for prompts in (False, True)]),
            kinds=self.kinds,
            decode_rates=self.decode_rates,
            prefill_rates=self.prefill_rates,
            pipeline=self.pp,
        )

    def _up_to(self, work: Literal["linear_work", "head_work"], most: int, sampled: bool) -> FloatArray:
        """`linear_work` or `head_work` of 0..most or more; kept, as deployments ask for the same on graphs of other sizes."""
        key = (work, sampled)
        if key not in self._known or self._known[key].shape[1] <= most:
            of = getattr(self, work)
            self._known[key] = sampled_up_to(of, most) if sampled else of(np.arange(most + 1, dtype=float))
        return self._known[key]

    # --- one pass in detail ------------------------------------------------------------------------------------------
    def pass_cost(self, batch: Batch) -> PassCost:
        """Every operator of one pass of `batch`, priced; with a pipeline also what handing over and waiting take."""
        tokens, rows = np.array([float(batch.tokens)]), np.array([float(batch.rows)])
        kinds = [
            (k.count, float("inf") if k.window_tokens is None else k.window_tokens) for k in self.decoder.layer_kinds
        ]
        attention = self._attention_costs(batch.new_tokens, batch.cached_tokens, kinds)
        parts, layers = self._parts(tokens), []
        for kind, kernels in zip(self.decoder.layer_kinds, attention, strict=True):
            operators = parts.layers[kind.mlp]
            costs = [self._cost(o, kind.count) for o in operators]
            at = 1 + next(i for i, o in enumerate(operators) if o.name == "rotary")
            layers.append((kind.count, (*costs[:at], *kernels, *costs[at:])))
        edges = [self._cost(o, 1) for o in parts.edges]
        heads = [self._cost(o, times) for times, o in self._head_operators(rows)]
        alone = PassCost(tuple(layers), tuple(edges[:-1]), (edges[-1], *(heads if batch.rows else ())))
        if self.pp == 1:
            return alone
        sends = [self._cost(o, self.pp) for o in parts.sends]
        waiting_s = self.seconds(batch) - alone.seconds - sum(o.repeat * o.total_s for o in sends)
        bubble = OperatorCost("pipeline_bubble", 1, waiting_s, 0.0, 0.0, waiting_s, waiting=True)
        return PassCost(alone.layers, alone.before, (*alone.after, *sends, bubble))

    def _cost(self, o: Operator, repeat: int) -> OperatorCost:
        total_s, memory_s, compute_s, overhead_s = (float(part[0]) for part in self._times.parts(o))
        message = float(o.message_bytes[0]) if o.message_bytes is not None else 0.0
        weight, activation, flop = float(o.weight_bytes[0]), float(o.activation_bytes[0]), float(o.flop[0])
        reached = self.efficiency.matmul.compute * self.gpu.peak_flop_per_s(o.dtype)
        arithmetic_s = min(compute_s, flop / reached)
        return OperatorCost(
            o.name, repeat, total_s, memory_s, compute_s, overhead_s, arithmetic_s, weight, 0.0, activation, flop, message,
        )  # fmt: skip

    def _attention_costs(
        self,
        new: Sequence[int],
        cached: Sequence[int],
        kinds: Sequence[tuple[int, float]],
        counts: Sequence[int] | None = None,
    ) -> list[list[OperatorCost]]:
        """For each (layers, window) its decode and prefill attention kernels, those that have anything to do."""
        groups = self._attention_groups(new, cached, counts)
        return [[self._attention_cost(*group, count) for group in groups(window)] for count, window in kinds]

    def _attention_groups(
        self, new: Sequence[int], cached: Sequence[int], counts: Sequence[int] | None
    ) -> Callable[[float], list[tuple[str, AttentionLoad, AttentionRates, float]]]:
        """By window: name, load and rates of each kernel that has anything to do, and what it saves by sharing a launch, s."""
        if counts is None:  # most batches are of a few kinds of sequences
            runs = [(q, c, n) for (q, c), n in Counter(zip(new, cached, strict=True)).items()]
        else:
            runs = list(zip(new, cached, counts, strict=True))
        sequences = [(q, c, n) for q, c, n in runs if q > 0 and n > 0]
        short = [s for s in sequences if s[0] <= DECODE_QUERY_LIMIT]
        long = [s for s in sequences if s[0] > DECODE_QUERY_LIMIT]
        together = one_kernel(sum(n for *_, n in short), sum(q * n for q, _, n in short), len(long), self.prefill_rates)
        # What shares a launch pays for it once.
        saved_s = self.prefill_rates.t0_s if together and long else 0.0
        groups = [
            (name, tuple(zip(*picked, strict=True)), rates, saved)
            for name, picked, rates, saved in (
                ("decode_attention", short, self.prefill_rates if together else self.decode_rates, saved_s),
                ("prefill_attention", long, self.prefill_rates, 0.0),
            )
            if picked
        ]
        return lambda window: [
            (name, attention_load(q, c, window, n), rates, saved) for name, (q, c, n), rates, saved in groups
        ]

    def _attention_s(self, load: AttentionLoad, rates: AttentionRates) -> tuple[float, float, float, float]:
        """(total, memory, compute, overhead) seconds of one layer's kernel."""
        kv_bytes, flop = self._attention_amounts(load, rates)
        return attention_time(load.sequences, load.query_tokens, kv_bytes, flop, rates)

    def _attention_amounts(self, load: AttentionLoad, rates: AttentionRates) -> tuple[float, float]:
        """Bytes of KV cache and FLOP of one layer's kernel."""
        per_pair = self.shape.decode_flop_per_pair if rates is self.decode_rates else self.shape.prefill_flop_per_pair
        return load.kv_tokens * self.shape.kv_bytes_per_token, load.pairs * per_pair

    def _attention_cost(
        self, name: str, load: AttentionLoad, rates: AttentionRates, saved_s: float, repeat: int
    ) -> OperatorCost:
        kv_bytes, flop = self._attention_amounts(load, rates)
        total_s, memory_s, compute_s, overhead_s = self._attention_s(load, rates)
        total_s, overhead_s = total_s - saved_s, overhead_s - saved_s
        arithmetic_s = min(compute_s, flop / rates.flop_per_s)
        return OperatorCost(
            name, repeat, total_s, memory_s, compute_s, overhead_s, arithmetic_s, kv_bytes=kv_bytes, flop=flop
        )

    # --- pricing -------------------------------------------------------------------------------------------------
    def _parts(self, tokens: FloatArray) -> LinearParts:
        """The operators that `tokens` [points] pass through, those that layers share made once."""
        tokens = np.asarray(tokens, dtype=float)
        kinds = {kind.mlp: kind for kind in self.decoder.layer_kinds}  # a window changes nothing but attention
        return LinearParts(
            {
                m: layer_operators(self.decoder, k, self.formats, self.tp, tokens, self.experts)
                for m, k in kinds.items()
            },
            edge_operators(self.decoder, self.formats, tokens, self.tp),
            send_operators(self.decoder, self.formats, tokens, self.tp) if self.pp > 1 else [],
        )

    def _linear_operators(self, parts: LinearParts) -> list[tuple[int, Operator]]:
        operators = [(kind.count, o) for kind in self.decoder.layer_kinds for o in parts.layers[kind.mlp]]
        return operators + [(1, o) for o in parts.edges]

    def _head_operators(self, rows: FloatArray) -> list[tuple[int, Operator]]:
        return [(1, o) for o in head_operators(self.decoder, self.formats, self.tp, rows)]

    def _stage_s(self, parts: LinearParts) -> FloatArray:
        """Seconds [stage, points] that each stage takes, without attention, LM head and handing over."""
        layer_s = {mlp: self._sum([(1, o) for o in operators], 0) for mlp, operators in parts.layers.items()}
        front_s, norm_s = (self._sum([(1, o) for o in part], 0) for part in (parts.edges[:-1], parts.edges[-1:]))
        found = []
        for stage in self.stages:
            seconds = sum(n * layer_s[k.mlp] for n, k in zip(stage.counts, self.decoder.layer_kinds, strict=True))
            found.append(seconds + (front_s if stage.first else 0.0) + (norm_s if stage.last else 0.0))
        return np.array(found, dtype=float)

    def _sum(self, operators: Sequence[tuple[int, Operator]], what: int) -> FloatArray:
        """Over the pass [points]: 0 seconds, 1 bytes, 2 FLOP."""
        if what == 0:
            once = {id(o): o for _, o in operators}
            seconds = dict(zip(once, self._times.seconds(list(once.values())), strict=True))
            parts = [count * seconds[id(o)] for count, o in operators]
        elif what == 1:
            parts = [count * (o.weight_bytes + o.activation_bytes) for count, o in operators]
        else:
            parts = [count * o.flop for count, o in operators]
        return np.asarray(sum(parts), dtype=float)

    def _l2_share(self) -> float:
        one = np.ones(1)
        weights = float(self._sum(self._linear_operators(self._parts(one)), 1)[0])
        weights += sum(float(o.weight_bytes[0]) for _, o in self._head_operators(one))
        return float(l2_share(weights, self.gpu))
