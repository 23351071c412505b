"""The beta distribution's quantile function as a table, because a million exact quantiles take seconds.

Between two nodes the table is linear. Nodes are made by bisection until the middle of every interval is met, so steep ends
(a beta with a small shape parameter) and steps (both small) get as many as they need: some 3,000 for the laws of acceptance.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LARGEST_ERROR = 1e-5
"""No quantile of the table is further from the exact one. Tested for intraclass correlations up to 0.99."""
_MIDDLE_ERROR = 1e-6
"""At which the middle of an interval counts as met: less than the largest error, which may lie beside the middle."""
_FIRST_INTERVALS = 64
_FINEST = 2.0**-52
"""Uniform numbers have 53 bits: nothing lies between two neighbours in an interval of this width and its middle."""


@lru_cache(maxsize=64)
def beta_quantiles(p: float, q: float) -> tuple[FloatArray, FloatArray]:
    """Probabilities from 0 to 1, rising, and the quantiles of Beta(p, q) at them [nodes], for `numpy.interp`."""
    from scipy.special import betaincinv

    u = np.linspace(0.0, 1.0, _FIRST_INTERVALS + 1)
    x = betaincinv(p, q, u)
    x[0], x[-1] = 0.0, 1.0  # by definition; with tiny shape parameters some processors make the last one NaN
    nodes, quantiles = [u], [x]
    low, high, x_low, x_high = u[:-1], u[1:], x[:-1], x[1:]
    while len(low):
        middle = (low + high) / 2
        x_middle = betaincinv(p, q, middle)
        nodes.append(middle)
        quantiles.append(x_middle)
        missed = (np.abs(x_middle - (x_low + x_high) / 2) > _MIDDLE_ERROR) & (high - low > _FINEST)
        middle, x_middle = middle[missed], x_middle[missed]
        low, high = np.concatenate([low[missed], middle]), np.concatenate([middle, high[missed]])
        x_low, x_high = np.concatenate([x_low[missed], x_middle]), np.concatenate([x_middle, x_high[missed]])
    u, x = np.concatenate(nodes), np.concatenate(quantiles)
    order = np.argsort(u)
    # Rounding of the exact quantiles must not let a luckier request fare worse.
    u, x = u[order], np.maximum.accumulate(x[order])
    u.flags.writeable = x.flags.writeable = False
    return u, x
