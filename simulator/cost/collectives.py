"""Collectives between the GPUs of one group: message bytes → seconds, latency joined with transfer."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.cost.efficiency import CollectiveEfficiency
from simulator.hardware import Link


def all_reduce_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Sum of one message per GPU, left on every GPU: the faster of one-shot and two-shot, s."""
    peers = gpus - 1
    one = _step_s(message_bytes, peers, 1, peers, link, e.one_shot_bandwidth, e)
    two = _step_s(message_bytes, peers, 2, 2 * peers / gpus, link, e.two_shot_bandwidth, e)
    return np.minimum(one, two)


def all_gather_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Every GPU ends with the whole message of `message_bytes`, of which each held 1/gpus, s."""
    return _step_s(message_bytes, gpus - 1, 1, (gpus - 1) / gpus, link, e.two_shot_bandwidth, e)


def all_to_all_s(message_bytes: Any, gpus: int, link: Link, e: CollectiveEfficiency) -> Any:
    """Every GPU sends its `message_bytes`, 1/gpus to each (its own share stays), s."""
    return _step_s(message_bytes, gpus - 1, 1, (gpus - 1) / gpus, link, e.two_shot_bandwidth, e)


def point_to_point_s(message_bytes: Any, link: Link, e: CollectiveEfficiency) -> Any:
    """One GPU sends `message_bytes` to one other, s."""
    return _step_s(message_bytes, 1, 1, 1.0, link, e.two_shot_bandwidth, e)


def _step_s(
    message_bytes: Any, peers: int, steps: int, copies: float, link: Link, share: float, e: CollectiveEfficiency
) -> Any:
    message = np.asarray(message_bytes, float)
    if peers <= 0:
        return np.zeros_like(message)
    latency = e.t0_s + steps * (link.latency_s + e.peer_s * peers)
    transfer = message * copies / (share * link.bytes_per_s)
    high, low = np.maximum(latency, transfer), np.minimum(latency, transfer)
    return high * (1.0 + (low / high) ** e.power) ** (1.0 / e.power)
