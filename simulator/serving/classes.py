"""Kinds of requests in one stream of traffic: who goes first, what counts as good service, how drafts fare, who gives up."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from simulator import units
from simulator.errors import InputError
from simulator.records import Record
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig


def in_si(value: Any, dimension: str) -> Any:
    """Text with a unit as a number, anything else as it is; for pydantic's validators, which name the field."""
    if not isinstance(value, str):
        return value
    try:
        return units.parse(value, dimension)
    except InputError as error:  # pydantic adds the field's place to a ValueError, and to nothing else
        raise ValueError(error.rule) from None


Patience = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(lambda value: in_si(value, "s"))]


class RequestClass(Record):
    """What requests of one class have in common, apart from their lengths."""

    name: str = Field(min_length=1)
    """Short name, under which metrics report the class."""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    """Who goes first where the engine orders by priority, no unit: smaller before larger."""
    slo: Slo | None = None
    """What counts as good service; left out, the scenario's."""
    acceptance: AcceptanceConfig | None = None
    """How drafts fare on these requests; left out, the scenario's."""
    patience_s: Patience | None = None
    """The user cancels a request that is not finished this long after its arrival, s; left out, never."""


EVERYTHING = (RequestClass(name="all"),)
"""The classes of traffic that has none."""
