"""Collectives between the GPUs of one group: message bytes → seconds, latency joined with transfer.

Every step is t = (α(N)^p + (c·M/b_N)^p)^(1/p) with α(N) = t0 + steps·(L + α_peer·(N − 1)), L = link latency [s],
M = message [bytes], c = copies of it that cross one GPU's link, b_N = η·B·d_N with B = link bandwidth per direction
[bytes/s] and d_N the factor for crowding. α–β form: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
Operations in MPICH", 2005; shares and exponents are fitted (calibration files). Messages may be arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.cost.efficiency import CollectiveEfficiency
from simulator.hardware import Link


def all_reduce_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Sum of one message per GPU, left on every GPU, s; 0 for one GPU.

    M ≤ small_limit: min(one-shot: 1 step, c = N − 1; two-shot: 2 steps, c = 2(N − 1)/N). Larger: the library's pipeline,
    c = 2(N − 1)/N, with its own fixed time and share of bandwidth. Units: bytes → s.
    Source: module docstring; the two kernels and the limit of 8 MiB are those of vLLM's custom all-reduce.
    """
    message = np.asarray(message_bytes, float)
    if gpus <= 1:
        return np.zeros_like(message)[()]
    peers, share = gpus - 1, 2.0 * (gpus - 1) / gpus
    one = _step_s(message, gpus, 1, peers, e.t0_s, e.one_shot_bandwidth, link, e)
    two = _step_s(message, gpus, 2, share, e.t0_s, e.two_shot_bandwidth, link, e)
    small = np.minimum(one, two)
    # A larger message is never the cheaper one, whatever the two fits say at the limit.
    large = np.maximum(_pipeline_s(message, gpus, share, link, e), _at_limit_s(gpus, link, e))
    return np.where(message <= e.small_limit_bytes, small, large)[()]


def all_gather_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Every GPU ends with the whole `message_bytes`, of which each held 1/N: one step, c = (N − 1)/N, s.

    Source: module docstring; fitted on NCCL's all-gather and all-to-all together, over all group sizes.
    """
    return _exchange_s(message_bytes, gpus, (gpus - 1) / gpus, link, e)


def all_to_all_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Every GPU sends its `message_bytes`, 1/N to each, its own share stays: one step, c = (N − 1)/N, s.

    Source: as `all_gather_s`.
    """
    return _exchange_s(message_bytes, gpus, (gpus - 1) / gpus, link, e)


def point_to_point_s(message_bytes: Any, link: Link, e: CollectiveEfficiency) -> Any:
    """One GPU sends `message_bytes` to one other: one step, c = 1, s. Not fitted by itself: an exchange between two."""
    return _exchange_s(message_bytes, 2, 1.0, link, e)


def _exchange_s(message_bytes: Any, gpus: int, copies: float, link: Link, e: CollectiveEfficiency) -> Any:
    message = np.asarray(message_bytes, float)
    if gpus <= 1:
        return np.zeros_like(message)[()]
    fixed = e.exchange_t0_s + e.exchange_peer_s * (gpus - 1)
    return _step_s(message, gpus, 1, copies, fixed, e.exchange_bandwidth, link, e._replace(peer_s=0.0))[()]


def _pipeline_s(message: Any, gpus: int, copies: float, link: Link, e: CollectiveEfficiency) -> Any:
    return _step_s(message, gpus, 2, copies, e.pipeline_t0_s, e.pipeline_bandwidth, link, e)


def _at_limit_s(gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    limit, peers = np.asarray(e.small_limit_bytes, float), gpus - 1
    one = _step_s(limit, gpus, 1, peers, e.t0_s, e.one_shot_bandwidth, link, e)
    return np.minimum(one, _step_s(limit, gpus, 2, 2.0 * peers / gpus, e.t0_s, e.two_shot_bandwidth, link, e))


def _step_s(
    message: Any, gpus: int, steps: int, copies: float, t0_s: float, share: float, link: Link, e: CollectiveEfficiency
) -> Any:
    latency = t0_s + steps * (link.latency_s + e.peer_s * (gpus - 1))
    doublings = min(math.log2(gpus / 2), 2.0)  # nothing beyond eight was measured
    crowding = e.doubling ** min(doublings, 1.0) * e.doubling_again ** max(doublings - 1.0, 0.0)
    transfer = message * copies / (share * link.bytes_per_s * crowding)
    high, low = np.maximum(latency, transfer), np.minimum(latency, transfer)
    ratio = np.divide(low, high, out=np.zeros_like(np.asarray(high)), where=np.asarray(high) > 0)
    return high * (1.0 + ratio**e.power) ** (1.0 / e.power)
