"""The line of a replica: who has been sent to it, who waits, who is turned away."""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import Any

from simulator.serving.plain.sequence import Sequence


class Line:
    """Requests of a replica that do not run: not heard of yet, or waiting in the order (rank, number of submission)."""

    def __init__(self, settings: Any):
        self.settings = settings
        self.unheard: deque[Sequence] = deque()
        """Submitted, in that order."""
        self.waiting: list[Sequence] = []
        """Never started here, or preempted."""

    @property
    def fresh(self) -> list[Sequence]:
        """Those waiting that were never started here."""
        return [sequence for sequence in self.waiting if not sequence.started]

    def join(self, heard_s: float) -> list[Sequence]:
        """Whoever is ready by `heard_s` joins, in order of submission; returns those that are refused."""
        refused = []
        while self.unheard and self.unheard[0].ready_s <= heard_s:
            newcomer = self.unheard.popleft()
            if 0 < self.settings.max_waiting <= len(self.fresh):
                refused.append(newcomer)
            else:
                insort(self.waiting, newcomer, key=lambda other: other.place)
        return refused

    def overdue(self, clock_s: float) -> list[Sequence]:
        """Those that have waited too long without having been started, in order of submission."""
        late = [s for s in self.fresh if s.ready_s + self.settings.queue_timeout_s <= clock_s]
        return sorted(late, key=lambda sequence: sequence.order)
