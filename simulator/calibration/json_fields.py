"""Fields: one JSON object of somebody else's making, each field checked as it is asked for."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from simulator.errors import InputError
from simulator.serving.lengths import ABSURD_TOKENS, FloatArray


class Fields:
    """Absent and null are the same: None. Everything else that breaks a rule is an InputError with the field's name."""

    def __init__(self, data: Any, where: str):
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.where = where

    def refuse(self, name: str, value: object, rule: str) -> InputError:
        """The error to raise for a field."""
        return InputError(name, value, rule, where=self.where)

    def within(self, name: str) -> Fields:
        """The object inside `name`; an empty one where there is none."""
        return Fields(self.data.get(name), f"{self.where}: {name}")

    def number(self, name: str, *, least: float = -math.inf, above: float = -math.inf) -> float | None:
        """A finite number, at least `least` and greater than `above`."""
        value = self.data.get(name)
        if value is None:
            return None
        if not is_number(value) or value < least or value <= above:
            limit = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
            raise self.refuse(name, value, f"be a finite number{limit}")
        return float(value)

    def needed(self, name: str, *, least: float = -math.inf, above: float = -math.inf) -> float:
        """The same, but it must be there."""
        value = self.number(name, least=least, above=above)
        if value is None:
            raise self.refuse(name, "(absent)", "be given")
        return value

    def count(self, name: str) -> int | None:
        """A whole number from 0 to ten times the tokens of the longest context."""
        value = self.number(name, least=0.0)
        if value is not None and (value != int(value) or value > ABSURD_TOKENS):
            raise self.refuse(name, self.data[name], f"be a whole number of at most {ABSURD_TOKENS}")
        return None if value is None else int(value)

    def text(self, *names: str) -> str:
        """The first of `names` that is a text, else ""."""
        return next((self.data[name] for name in names if isinstance(self.data.get(name), str)), "")

    def column(self, name: str, values: list[Any]) -> FloatArray:
        """A list of finite numbers of at least 0 [n]."""
        for place, value in enumerate(values):
            if not is_number(value) or value < 0:
                raise self.refuse(f"{name}[{place}]", value, "be a finite number of at least 0")
        return np.array(values, float)

    def tokens(self, name: str, values: list[Any]) -> FloatArray:
        """The same, of token counts."""
        column = self.column(name, values)
        odd = np.nonzero((column != np.floor(column)) | (column > ABSURD_TOKENS))[0]
        if len(odd):
            raise self.refuse(f"{name}[{odd[0]}]", values[odd[0]], "be a number of tokens")
        return column


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether JSON's `value` is a finite number that fits a double; Python also reads NaN, Infinity and 400 digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
