"""The matrices and head shapes of bundled models on 1 to 8 GPUs, and the matrices of a table that stand in for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, load_decoder
from simulator.calibration.kernel_tables import Columns
from simulator.errors import InputError
from simulator.operators import attention_shape, check_tensor_parallel, head_operators, layer_operators
from simulator.quantization import Quantization, resolve

TENSOR_PARALLEL = (1, 2, 4, 8)
MOST_PIECES = 4
"""Kernels that one side of a matrix may be cut into."""
LARGEST_EXCESS = 0.03
"""Columns that the pieces may have too many: no table holds a vocabulary's width."""

Matrix = tuple[int, int]
"""(n, k) of a weight matrix: k values in, n out."""
Heads = tuple[int, int, int]
"""(heads, KV heads, head_dim) of one GPU."""


@dataclass(frozen=True)
class Share:
    """What one of `tp` GPUs multiplies in a decode step, and its heads."""

    model: str
    tp: int
    layers: int
    matmuls: tuple[Matrix, ...]
    """Of all layers together, in order; grouped ones (experts) are left out."""
    head: Matrix
    heads: Heads

    @property
    def matrices(self) -> set[Matrix]:
        """Distinct matrices of its layers."""
        return set(self.matmuls)


@cache
def shares_of(model: str) -> tuple[Share, ...]:
    """`model` on each number of GPUs that can share it. Raises UnknownName for a model that is not bundled."""
    decoder = load_decoder(model)
    return tuple(_share(decoder, tp) for tp in TENSOR_PARALLEL if _divides(decoder, tp))


def _share(decoder: Decoder, tp: int) -> Share:
    formats, one = resolve(Quantization(), decoder), np.ones(1)
    matmuls: list[Matrix] = []
    for kind in decoder.layer_kinds:
        operators = layer_operators(decoder, kind, formats, tp, one)
        matmuls += [(int(o.n), int(o.k)) for o in operators if o.kind == "matmul" and o.matrices is None] * kind.count
    lm_head = next(o for o in head_operators(decoder, formats, tp, one) if o.name == "lm_head")
    shape = attention_shape(decoder, formats, tp)
    heads = (int(shape.heads), int(shape.kv_heads), int(shape.head_dim))
    layers = sum(kind.count for kind in decoder.layer_kinds)
    return Share(decoder.name, tp, layers, tuple(matmuls), (int(lm_head.n), int(lm_head.k)), heads)


def _divides(decoder: Decoder, tp: int) -> bool:
    try:
        check_tensor_parallel(decoder, tp)
    except InputError:
        return False
    return True


def pieces(width: int, known: Sequence[int]) -> tuple[int, ...] | None:
    """The fewest of the `known` widths that together make `width` or up to 3 % more, as little and as even as possible;
    None where four do not."""
    widths = sorted(set(known), reverse=True)
    for count in range(1, MOST_PIECES + 1):
        found = [p for p in _sums(width, widths, count) if sum(p) <= width * (1.0 + LARGEST_EXCESS)]
        if found:
            return min(found, key=lambda p: (sum(p), p[0]))
    return None


def _sums(width: int, widths: Sequence[int], count: int) -> Iterable[tuple[int, ...]]:
    # All falling tuples of `count` widths that reach `width`.
    if count == 0:
        if width <= 0:
            yield ()
        return
    for i, first in enumerate(widths):
        if first * count < width:
            break  # the rest are no larger
        yield from ((first, *rest) for rest in _sums(width - first, widths[i:], count - 1))


def stand_ins(matrix: Matrix, table: Collection[Matrix]) -> list[Matrix] | None:
    """Matrices of `table` that do the work of `matrix`: itself, or blocks of it; None where the table lacks them."""
    if matrix in table:
        return [matrix]
    columns = pieces(matrix[0], [n for n, _ in table])
    rows = pieces(matrix[1], [k for _, k in table])
    if columns is None or rows is None:
        return None
    found = [(n, k) for n in columns for k in rows]
    return found if all(block in table for block in found) else None


def matrices_in(columns: Columns) -> set[Matrix]:
    """The distinct (n, k) of matmul rows."""
    return {(int(n), int(k)) for n, k in np.unique(np.stack([columns["n"], columns["k"]], axis=1), axis=0)}


def has_matrix(columns: Columns, matrices: Collection[Matrix]) -> NDArray[np.bool_]:
    """Which matmul rows are of these `matrices` [rows]."""
    return np.isin(columns["n"] * 1e6 + columns["k"], [n * 1e6 + k for n, k in matrices])


def has_heads(columns: Columns, heads: Collection[Heads]) -> NDArray[np.bool_]:
    """Which attention rows are of these `heads` [rows]."""
    key = columns["heads"] * 1e6 + columns["kv_heads"] * 1e3 + columns["head_dim"]
    return np.isin(key, [h * 1e6 + kv * 1e3 + d for h, kv, d in heads])
