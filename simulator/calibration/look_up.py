"""Matmul times looked up in a table rather than computed: what a dozen parameters give up, or do not.

The table holds measured time over datasheet roofline, which varies less than time does, and is read by interpolation of
its logarithm: over ln m within one matrix, and over (ln n, ln k) between matrices (linear on Delaunay triangles; outside
of them the nearest matrix). So a look-up extrapolates as sensibly as one can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import Delaunay

from simulator.calibration.kernel_tables import Columns
from simulator.calibration.solver import FloatArray, IntArray, rows
from simulator.hardware import Gpu


@dataclass(frozen=True)
class LookUp:
    """A table of bf16 matmuls."""

    gpu: Gpu
    matrices: FloatArray
    """ln n and ln k of each matrix [matrices, 2]."""
    log_m: FloatArray
    """ln m of every token count that any matrix was measured at, ascending [tokens]."""
    log_ratio: FloatArray
    """ln(measured/roofline) [matrices, tokens], beyond a matrix's own token counts as at the last of them."""

    @staticmethod
    def of(columns: Columns, gpu: Gpu) -> LookUp:
        """The table that `columns` (m, n, k, latency_s) fill; rows in any order."""
        log_ratio = np.log(columns["latency_s"] / roofline_s(columns, gpu))
        key = np.stack([columns["n"], columns["k"]], axis=1)
        matrices, which = np.unique(key, axis=0, return_inverse=True)
        log_m = np.log(np.unique(columns["m"]))
        table = np.empty((len(matrices), len(log_m)))
        for i in range(len(matrices)):
            own = np.flatnonzero(which.ravel() == i)
            own = own[np.argsort(columns["m"][own])]
            table[i] = np.interp(log_m, np.log(columns["m"][own]), log_ratio[own])
        return LookUp(gpu, np.log(matrices), log_m, table)

    def seconds(self, columns: Columns) -> FloatArray:
        """Times of other matmuls (m, n, k), s [rows]. Needs three matrices that are not in line to interpolate between;
        with fewer the nearest is taken."""
        key = np.log(np.stack([columns["n"], columns["k"]], axis=1))
        wanted, which = np.unique(key, axis=0, return_inverse=True)
        ratios = self._between(wanted)
        log_m = np.log(columns["m"])
        found = np.empty(len(log_m))
        for i in range(len(wanted)):
            own = which.ravel() == i
            found[own] = np.interp(log_m[own], self.log_m, ratios[i])
        return np.asarray(np.exp(found) * roofline_s(columns, self.gpu))

    def _between(self, wanted: FloatArray) -> FloatArray:
        # [wanted, tokens]; a matrix of the table is a corner of its triangles, so it comes out as it went in.
        nearest = np.asarray(NearestNDInterpolator(self.matrices, self.log_ratio)(wanted), float)
        if len(self.matrices) < 3 or np.linalg.matrix_rank(self.matrices - self.matrices[0]) < 2:
            return nearest
        linear = np.asarray(LinearNDInterpolator(Delaunay(self.matrices), self.log_ratio)(wanted), float)
        return np.asarray(np.where(np.isnan(linear), nearest, linear), float)


def roofline_s(columns: Columns, gpu: Gpu) -> FloatArray:
    """max(2·m·n·k/peak, 2·(n·k + m·n + m·k)/HBM bandwidth) of bf16 matmuls, datasheet figures, s [rows]."""
    m, n, k = (columns[name] for name in ("m", "n", "k"))
    flop_s = 2.0 * m * n * k / gpu.peak_flop_per_s("bf16")
    return np.asarray(np.maximum(flop_s, 2.0 * (n * k + m * n + m * k) / gpu.hbm_bytes_per_s))


def looked_up(columns: Columns, fold: IntArray, gpu: Gpu) -> FloatArray:
    """Every row looked up in a table of the other folds' rows, s [rows]."""
    seconds = np.empty(len(fold))
    for i in np.unique(fold):
        unseen: NDArray[Any] = fold == i
        seconds[unseen] = LookUp.of(rows(columns, ~unseen), gpu).seconds(rows(columns, unseen))
    return seconds
