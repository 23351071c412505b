"""Look-up in a table: exact where interpolation in logarithms is, and sensible outside."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.calibration.look_up import LookUp, looked_up, roofline_s
from simulator.calibration.solver import rows
from simulator.hardware import load_gpu

H100 = load_gpu("h100-sxm")
BANDWIDTH, PEAK = 3.35e12, 989.4e12


def table(sizes=(512, 1024, 4096, 8192), tokens=(1, 16, 256)) -> dict[str, np.ndarray]:
    m, n, k = (x.ravel() for x in np.meshgrid(*(np.array(a, float) for a in (tokens, sizes, sizes)), indexing="ij"))
    columns = {"m": m, "n": n, "k": k}
    # ln(measured/roofline) is linear in ln m, ln n and ln k: what the look-up interpolates without error.
    return columns | {"latency_s": roofline_s(columns, H100) * 2.0 * m**0.1 * n**-0.2 * k**0.05}


def one(m, n, k) -> dict[str, np.ndarray]:
    return {"m": np.array([m], float), "n": np.array([n], float), "k": np.array([k], float)}


def test_roofline_is_the_slower_of_bytes_and_flop():
    assert roofline_s(one(1, 4096, 4096), H100) == pytest.approx(2 * (4096**2 + 2 * 4096) / BANDWIDTH, rel=1e-3)
    assert roofline_s(one(8192, 8192, 8192), H100) == pytest.approx(2 * 8192**3 / PEAK, rel=1e-3)


def test_what_is_in_the_table_comes_out_as_it_went_in():
    columns = table()
    assert LookUp.of(columns, H100).seconds(columns) == pytest.approx(columns["latency_s"])


def test_between_matrices_and_token_counts():
    wanted = one(64, 2048, 3000)
    expected = roofline_s(wanted, H100) * 2.0 * 64**0.1 * 2048**-0.2 * 3000**0.05
    assert LookUp.of(table(), H100).seconds(wanted) == pytest.approx(expected)


def test_outside_the_nearest_matrix_keeps_its_share_of_the_roofline():
    known, wanted = one(16, 8192, 8192), one(16, 65536, 8192)
    found = LookUp.of(table(), H100)
    ratio = found.seconds(known) / roofline_s(known, H100)
    assert found.seconds(wanted) / roofline_s(wanted, H100) == pytest.approx(ratio)


def test_matrices_in_a_line_span_no_triangle():
    columns = table()
    square = rows(columns, columns["n"] == columns["k"])
    found = LookUp.of(square, H100).seconds(one(16, 4096, 4000))
    assert found == pytest.approx(LookUp.of(square, H100).seconds(one(16, 4096, 4096)), rel=0.05)


def test_no_row_is_looked_up_in_its_own_fold():
    columns = table()
    fold = (columns["n"] == 1024).astype(np.int64)
    columns["latency_s"] = np.where(fold == 1, 1.0, columns["latency_s"])  # seconds; all else takes microseconds
    assert looked_up(columns, fold, H100)[fold == 1].max() < 1e-2
