"""What happens to requests in a replica, in the order in which it happens."""

from __future__ import annotations

from typing import NamedTuple

from simulator.serving import state


class Event(NamedTuple):
    """One line of a replica's history; the same fields as `state.EVENT`."""

    time_s: float
    """Start of the step for admissions and preemptions, its end for tokens and for who then leaves, else the boundary."""
    kind: int
    """One of state.ADMITTED, PREEMPTED_, EMITTED, LEFT."""
    request: int
    """Its index."""
    value: int
    """Tokens found computed or brought along; 1 for swap; tokens; the status with which it left."""

    def __str__(self) -> str:
        name = ("admitted", "preempted", "emitted", "left")[self.kind]
        value = state.STATUS[self.value] if self.kind == state.LEFT else str(self.value)
        return f"{self.time_s:g} s: request {self.request} {name} {value}"
