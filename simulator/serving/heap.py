"""A heap of requests without storage of its own: a skew heap whose links lie in two arrays, one entry per request.

A request is in at most one heap of a kind, so that a thousand replicas share the arrays. Ordered by (key, tie). Merging is
amortised O(log n). Reference: D. D. Sleator and R. E. Tarjan, "Self-adjusting heaps", SIAM J. Computing 15 (1986).
"""

from __future__ import annotations

from typing import Any

from simulator.serving.compiled import compiled, compiled_apart


@compiled
def goes_before(a: int, b: int, key: Any, tie: Any) -> bool:
    """Whether request `a` stands before `b`."""
    return bool(key[a] < key[b] or (key[a] == key[b] and tie[a] < tie[b]))


@compiled_apart
def merged(a: int, b: int, key: Any, tie: Any, left: Any, right: Any) -> int:
    """Root of the union of the heaps with roots `a` and `b` (-1: empty)."""
    if a < 0:
        return b
    if b < 0:
        return a
    if goes_before(b, a, key, tie):
        a, b = b, a
    root = parent = a
    while True:
        a = right[parent]
        right[parent] = left[parent]
        if a < 0:
            left[parent] = b
            return root
        if goes_before(b, a, key, tie):
            a, b = b, a
        left[parent] = a
        parent = a


@compiled
def pushed(root: int, request: int, key: Any, tie: Any, left: Any, right: Any) -> int:
    """Root after `request` has joined."""
    left[request] = right[request] = -1
    new: int = merged(root, request, key, tie, left, right)
    return new


@compiled
def popped(root: int, key: Any, tie: Any, left: Any, right: Any) -> int:
    """Root after the first request has left."""
    new: int = merged(left[root], right[root], key, tie, left, right)
    return new
