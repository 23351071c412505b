"""Passes: measured forward passes taken apart into operators once, so that a fit can price them thousands of times.

The price is that of `cost.forward.ForwardCost` to the last bit but rounding (a test holds the two equal); what takes time
there, building operators and formats, does not depend on the efficiencies and is done once here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder
from simulator.cost.efficiency import AttentionEfficiency, ElementwiseEfficiency, MatmulEfficiency
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.cost.roofline import attention_rates, attention_time, elementwise_time, l2_share, matmul_time
from simulator.hardware import Gpu
from simulator.operators import (
    Operator,
    attention_load,
    attention_shape,
    edge_operators,
    head_operators,
    layer_operators,
)
from simulator.quantization import Quantization, resolve

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Kernels(NamedTuple):
    """What a fit varies: the efficiencies of the kernels of a dense model on one GPU."""

    matmul: MatmulEfficiency
    decode_attention: AttentionEfficiency
    prefill_attention: AttentionEfficiency
    elementwise: ElementwiseEfficiency


@dataclass(frozen=True)
class Pass:
    """One forward pass of `sequences` equal sequences."""

    model: str
    """Key into the models that `Terms.of` is given."""
    sequences: int
    new_tokens: int
    """Per sequence."""
    cached_tokens: int
    head_rows: int
    """Rows of logits, over all sequences."""
    layers: int | None = None
    """Exit after so many; None: all."""
    repeated: bool = False
    """Run back to back with others like it (draft passes), so that weights which fit L2 stay there."""


@dataclass(frozen=True)
class Terms:
    """All kernels of many passes, flat. Arrays of one group have one entry per kernel and pass."""

    count: int
    """Passes."""
    matmul: Mapping[str, FloatArray]
    """``pass``, ``times`` (how often in the pass), m, n, k, weight_bytes, activation_bytes, and ``resident``: the share of
    the weights that stays in L2 between repeated passes."""
    elementwise: Mapping[str, FloatArray]
    """``pass``, ``times``, bytes."""
    attention: Sequence[Attention]
    """By model."""
    dtype: str

    @staticmethod
    def of(passes: Sequence[Pass], models: Mapping[str, Decoder], gpu: Gpu) -> Terms:
        """Passes, which may be of several models of one number format, taken apart."""
        matmuls, elementwise, attention = _Columns(), _Columns(), []
        for name in dict.fromkeys(p.model for p in passes):
            index = np.array([i for i, p in enumerate(passes) if p.model == name])
            chosen = [passes[i] for i in index]
            resident = _resident(models[name], chosen, gpu)
            for o, times in _operators(models[name], chosen):
                if o.kind == "matmul":
                    matmuls.add({
                        "pass": index, "times": times, "m": o.m, "n": o.n, "k": o.k, "weight_bytes": o.weight_bytes,
                        "activation_bytes": o.activation_bytes, "resident": resident,
                    })  # fmt: skip
                else:
                    elementwise.add({"pass": index, "times": times * (o.m > 0), "bytes": o.activation_bytes})
            attention.append(Attention.of(index, chosen, models[name]))
        # As `ForwardCost` has it: 16-bit formats are multiplied alike.
        dtype = "fp32" if any(decoder.dtype == "fp32" for decoder in models.values()) else "bf16"
        return Terms(len(passes), matmuls.columns(), elementwise.columns(), attention, dtype)

    def seconds(self, kernels: Kernels, gpu: Gpu) -> FloatArray:
        """Time of each pass [passes], without the engine's host time."""
        return np.asarray(sum(self.by_kind(kernels, gpu).values()))

    def by_kind(self, kernels: Kernels, gpu: Gpu) -> dict[str, FloatArray]:
        """The same by kind of operator."""
        c = self.matmul
        time = matmul_time(
            c["m"], c["n"], c["k"], c["weight_bytes"], c["activation_bytes"], self.dtype, gpu, kernels.matmul,
            resident_bytes=c["resident"] * c["weight_bytes"],
        )  # fmt: skip
        small = elementwise_time(self.elementwise["bytes"], 1.0, gpu, kernels.elementwise)
        parts = {
            "matmul": self._sum(c, time.total_s),
            "elementwise": self._sum(self.elementwise, small.total_s),
            "decode_attention": np.zeros(self.count),
            "prefill_attention": np.zeros(self.count),
        }
        for group in self.attention:
            group.add_to(parts, kernels, gpu, self.dtype)
        return parts

    def _sum(self, columns: Mapping[str, FloatArray], seconds: FloatArray) -> FloatArray:
        where = columns["pass"].astype(int)
        return np.asarray(np.bincount(where, columns["times"] * seconds, self.count), float)


@dataclass(frozen=True)
class Attention:
    """The attention kernels of one model's passes; arrays are [passes of it]."""

    index: IntArray
    """Which passes."""
    heads: float
    kv_heads: float
    head_dim: int
    layers: FloatArray
    sequences: FloatArray
    query_tokens: FloatArray
    kv_bytes: FloatArray
    flop: FloatArray
    new_tokens: FloatArray

    @staticmethod
    def of(index: IntArray, passes: Sequence[Pass], decoder: Decoder) -> Attention:
        """From passes of one model without windows."""
        formats = resolve(Quantization(), decoder)
        shape = attention_shape(decoder, formats, 1)
        loads = [attention_load((p.new_tokens,), (p.cached_tokens,), None) for p in passes]
        sequences = np.array([float(p.sequences) for p in passes])
        new_tokens = np.array([float(p.new_tokens) for p in passes])
        return Attention(
            index, shape.heads, shape.kv_heads, shape.head_dim, _layers(decoder, passes), sequences,
            sequences * new_tokens, sequences * [load.kv_tokens for load in loads] * shape.kv_bytes_per_token,
            sequences * [load.pairs for load in loads] * shape.decode_flop_per_pair, new_tokens,
        )  # fmt: skip

    def add_to(self, parts: Mapping[str, FloatArray], kernels: Kernels, gpu: Gpu, dtype: str) -> None:
        """Adds each pass's seconds to its kernel's part."""
        e = kernels.prefill_attention
        prefill = (self.new_tokens > DECODE_QUERY_LIMIT) | ((e.takes_decode > 0.0) & (self.new_tokens > 1))
        for name, chosen in (("decode_attention", ~prefill), ("prefill_attention", prefill)):
            rates = attention_rates(
                gpu,
                getattr(kernels, name),
                dtype=dtype,
                kv_heads=self.kv_heads,
                heads=self.heads,
                head_dim=self.head_dim,
            )
            seconds = attention_rows()(
                self.sequences[chosen], self.query_tokens[chosen], self.kv_bytes[chosen], self.flop[chosen], rates
            )
            parts[name][self.index[chosen]] += self.layers[chosen] * seconds


@cache
def attention_rows() -> Callable[..., FloatArray]:
    """`roofline.attention_time` over arrays [points], in seconds, compiled on first use: importing this module must not
    cost the second that numba takes."""
    import numba

    compiled: Any = numba.njit
    scalar = compiled(attention_time)

    def rows(sequences: Any, query_tokens: Any, kv_bytes: Any, flop: Any, rates: Any) -> Any:
        seconds = np.empty(len(sequences))
        for i in range(len(sequences)):
            seconds[i] = scalar(sequences[i], query_tokens[i], kv_bytes[i], flop[i], rates)[0]
        return seconds

    result: Callable[..., FloatArray] = compiled(rows)
    return result


class _Columns:
    """Columns that grow by blocks."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []

    def add(self, block: dict[str, Any]) -> None:
        length = len(block["pass"])
        self._blocks.append({name: np.broadcast_to(np.asarray(v, float), length) for name, v in block.items()})

    def columns(self) -> dict[str, FloatArray]:
        return {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}


def _layers(decoder: Decoder, passes: Sequence[Pass]) -> FloatArray:
    return np.array([float(min(p.layers or decoder.layers, decoder.layers)) for p in passes])


def _operators(decoder: Decoder, passes: Sequence[Pass]) -> list[tuple[Operator, FloatArray]]:
    """Each operator, and how often every pass runs it."""
    formats = resolve(Quantization(), decoder)
    tokens = np.array([float(p.sequences * p.new_tokens) for p in passes])
    once, layers = np.ones(len(passes)), _layers(decoder, passes)
    return [
        *((o, layers) for o in layer_operators(decoder, decoder.layer_kinds[0], formats, 1, tokens)),
        *((o, once) for o in edge_operators(decoder, formats, tokens)),
        *((o, once) for o in _head(decoder, passes)),
    ]


def _head(decoder: Decoder, passes: Sequence[Pass]) -> list[Operator]:
    rows = np.array([float(p.head_rows) for p in passes])
    return head_operators(decoder, resolve(Quantization(), decoder), 1, rows)


def _resident(decoder: Decoder, passes: Sequence[Pass], gpu: Gpu) -> FloatArray:
    """Share of a repeated pass's weights that its successor finds in L2: of what one token moves, logits left out."""
    one = [Pass(p.model, 1, 1, 1, 1, p.layers) for p in passes]
    logits = sum(o.activation_bytes for o in _head(decoder, one))
    moved = sum(times * (o.weight_bytes + o.activation_bytes) for o, times in _operators(decoder, one)) - logits
    return np.asarray([float(p.repeated) for p in passes] * l2_share(moved, gpu))
