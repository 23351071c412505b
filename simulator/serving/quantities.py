"""Quantities of traffic as fields of records: numbers in SI units, or text with a unit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from simulator import units
from simulator.errors import InputError


def in_si(value: Any, dimension: str) -> Any:
    """Text with a unit as a number, anything else as it is; for pydantic's validators, which name the field."""
    if not isinstance(value, str):
        return value
    try:
        return units.parse(value, dimension)
    except InputError as error:  # pydantic adds the field's place to a ValueError, and to nothing else
        raise ValueError(error.rule) from None


def none_or_some(value: float) -> float:
    """0, or large enough that its square is a number; for pydantic's validators."""
    if 0 < value < 1e-6:
        raise ValueError("be 0 or at least 1e-6")
    return value


_PER_S = BeforeValidator(lambda value: in_si(value, "per_s"))
_S = BeforeValidator(lambda value: in_si(value, "s"))

# The bounds keep every arrival time finite and distinct in double precision: from one request in 12 days to one per µs.
Rate = Annotated[float, Field(ge=1e-6, le=1e6), _PER_S]
"""Arrivals per second."""
RateOrPause = Annotated[float, Field(ge=0, le=1e6), _PER_S, AfterValidator(none_or_some)]
"""Arrivals per second, perhaps none."""
Duration = Annotated[float, Field(ge=1e-3, le=1e9), _S]
"""A stretch of time, s, up to thirty years."""
SinceStart = Annotated[float, Field(ge=0, le=1e9), _S]
"""A time on some clock that begins at 0, s."""
ThinkTime = Annotated[float, Field(ge=0, le=1e6), _S]
"""A user's pause, s."""
Count = Annotated[int, Field(ge=1, le=10**7)]
"""Requests; at most ten million, some 500 MB of arrays."""
