"""Decode steps composed of kernels: shapes of real models, blocks for missing matrices, sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.calibration.composed_steps import kernels_of, step_comparison, steps_of
from simulator.calibration.model_shapes import has_heads, has_matrix, matrices_in, pieces, shares_of, stand_ins
from simulator.calibration.solver import Problem

WIDTHS = [256, 512, 768, 1024, 1536, 2048, 3072, 3584, 4096, 6144, 7168, 12288, 16384, 51200, 65536]


def test_shares_of_llama():
    """Its config.json: 4096 wide, 32 heads of 128 and 8 KV heads, 14336 in the MLP, 128256 words, 32 layers."""
    whole, *_, eighth = shares_of("llama-3.1-8b")
    assert whole.matrices == {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)}
    assert (whole.head, whole.heads, whole.layers) == ((128256, 4096), (32, 8, 128), 32)
    assert eighth.matrices == {(768, 4096), (4096, 512), (3584, 4096), (4096, 1792)}
    assert (eighth.tp, eighth.heads, len(eighth.matmuls)) == (8, (4, 1, 128), 4 * 32)


def test_shares_that_heads_do_not_allow_are_left_out():
    assert [share.tp for share in shares_of("qwen2.5-7b")] == [1, 2, 4]  # 28 heads


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (4096, (4096,)),
        (28672, (16384, 12288)),
        (14336, (7168, 7168)),  # 12288 + 2048 are as few, but less even
        (128256, (65536, 65536)),  # 2 % more
        (64128, (65536,)),
        (57344, (51200, 6144)),
        (100, None),  # 256 is far more
        (300000, None),  # more than four of the widest
    ],
)
def test_pieces(width, expected):
    assert pieces(width, WIDTHS) == expected


@given(st.integers(1, 400_000), st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=8))
def test_pieces_make_up_the_width(width, known):
    found = pieces(width, known)
    if found is not None:
        assert width <= sum(found) <= 1.03 * width
        assert 1 <= len(found) <= 4
        assert set(found) <= set(known)
        assert list(found) == sorted(found, reverse=True)


def test_a_matrix_stands_for_itself_or_is_cut_into_blocks():
    square = {(n, k) for n in WIDTHS for k in WIDTHS}
    assert stand_ins((4096, 4096), square) == [(4096, 4096)]
    assert stand_ins((28672, 14336), square) == [
        (16384, 7168), (16384, 7168), (12288, 7168), (12288, 7168),
    ]  # fmt: skip
    assert stand_ins((28672, 4096), square - {(16384, 4096)}) is None


def columns_of(rows: list[tuple], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return dict(zip(names, np.array(rows, float).T, strict=True))


def tables() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every matmul takes 1 µs per row, every attention 1 ns per key."""
    matmul = [(m, n, k, m * 1e-6) for m in (1, 8) for n in WIDTHS for k in WIDTHS]
    attention = [(b, 1, keys, 8, 2, 128, keys * 1e-9) for b in (1, 8) for keys in (1024, 4096)]
    names = ("sequences", "new_tokens", "keys", "heads", "kv_heads", "head_dim", "latency_s")
    return columns_of(matmul, ("m", "n", "k", "latency_s")), columns_of(attention, names)


def test_a_step_is_the_sum_of_its_kernels():
    matmul, attention = tables()
    (steps,) = steps_of("llama-3.1-8b", matmul, attention)  # 8 heads and 2 KV heads are those of four GPUs
    assert steps.share.tp == 4
    # 32 layers of qkv, o, gate-up and down, all in the table; the head's 32064 columns are two blocks of 16384.
    assert steps.kernels == {(1536, 4096): 32, (4096, 1024): 32, (7168, 4096): 32, (4096, 3584): 32, (16384, 4096): 2}
    at = dict(zip(zip(steps.batch, steps.context_tokens, strict=True), steps.measured_s, strict=True))
    assert at == pytest.approx(
        {(b, c): (128 + 2) * b * 1e-6 + 32 * c * 1e-9 for b in (1, 8) for c in (1024, 4096)}
    )  # fmt: skip
    slower = Problem(matmul, matmul["n"], {}, {}, lambda values, c: values["a"] * c["m"])
    decode = Problem(attention, attention["heads"], {}, {}, lambda values, c: values["a"] * c["keys"])
    found = step_comparison([steps], slower, decode, ({"a": 2e-6}, {"a": 1e-9}), (0.03, 0.04), "steps", "held out")
    expected = 130 * steps.batch * 1e-6 / steps.measured_s
    assert found.errors == pytest.approx(expected)
    # Four matmuls of 64 µs a row and one of 4 µs, attention of 32 ns a key: independent errors add up in squares.
    b, c = steps.batch * 1e-6, steps.context_tokens * 1e-9
    variance = 0.03**2 * (4 * (64 * b) ** 2 + (4 * b) ** 2) + 0.04**2 * (32 * c) ** 2
    assert found.log_sd == pytest.approx(np.sqrt(variance) / (260 * b + 32 * c))
    assert "4 GPUs" in found.note
    assert "(4 of 5)" in found.note


def test_a_step_without_its_rows_is_left_out():
    matmul, attention = tables()
    narrow = {name: column[matmul["n"] != 7168] for name, column in matmul.items()}
    share = shares_of("llama-3.1-8b")[2]
    assert kernels_of(share, matrices_in(narrow))[3584, 4096] == 64  # gate and up, one after the other
    none = {name: column[matmul["k"] != 3584] for name, column in matmul.items()}
    assert kernels_of(share, matrices_in(none)) is not None
    assert steps_of("llama-3.1-8b", {n: c[matmul["k"] == 256] for n, c in matmul.items()}, attention) == []


def test_rows_of_a_model_are_found():
    matmul, attention = tables()
    assert has_matrix(matmul, {(4096, 1024)}).sum() == 2
    assert has_heads(attention, {(8, 2, 128)}).all()
    assert not has_heads(attention, {(8, 2, 64)}).any()
