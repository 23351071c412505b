"""Service-level objectives: what a request must meet to count as well served."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from simulator import units
from simulator.records import Record


def _seconds(value: Any) -> Any:
    return units.parse(value, "s", field="slo") if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class Slo(Record):
    """Service-level objectives; a request counts as good when it meets all that are given."""

    ttft_s: Seconds | None = None
    """Time to first token at most, s (or text such as "500 ms")."""
    tpot_s: Seconds | None = None
    """Mean time per output token after the first at most, s."""
    e2e_s: Seconds | None = None
    """Arrival to last token at most, s."""
