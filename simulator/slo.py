"""Service-level objectives: what a request must meet to count as well served."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from simulator.records import Record
from simulator.serving.quantities import in_si

Seconds = Annotated[float, BeforeValidator(lambda value: in_si(value, "s")), Field(gt=0)]


class Slo(Record):
    """Service-level objectives; a request counts as good when it meets all that are given."""

    ttft_s: Seconds | None = None
    """Time to first token at most, s (or text such as "500 ms")."""
    tpot_s: Seconds | None = None
    """Mean time per output token after the first at most, s."""
    e2e_s: Seconds | None = None
    """Arrival to last token at most, s."""
