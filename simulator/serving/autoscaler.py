"""How many replicas are wanted: Kubernetes' rule with its stabilisation window, as a function of what was seen so far."""

from __future__ import annotations

import math
from collections import deque

from simulator.serving.cluster_config import Autoscaler


class Wanted:
    """Replicas wanted by one autoscaler, look after look."""

    def __init__(self, config: Autoscaler, replicas: int):
        self.config = config
        self._seen = deque([(0.0, replicas)])
        """(time, wanted) within the stabilisation window; the replicas at the start were wanted at 0 s."""

    def at(self, now_s: float, outstanding: int) -> tuple[int, int]:
        """(at least, at most): fewer replicas are to be made more, more are to be made fewer.

        At least min(max(⌈outstanding / target⌉, min), max), at most the largest such number within `scale_down_after_s`.
        """
        config = self.config
        wanted = min(max(math.ceil(outstanding / config.target), config.min), config.max)
        self._seen.append((now_s, wanted))
        while self._seen[0][0] < now_s - config.scale_down_after_s:
            self._seen.popleft()
        return wanted, max(number for _, number in self._seen)
