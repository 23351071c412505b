"""Fields of somebody else's JSON: each checked as it is read, each error naming the field, its value and the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError

MAX_SIZE = 10**9


class Fields:
    """A config's fields, checked as they are read. `null` means the same as absent."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = ""):
        self.data, self.where, self.prefix = data, where, prefix

    def error(self, name: str, value: object, rule: str) -> InputError:
        return InputError(self.prefix + name, value, rule, where=self.where)

    def optional(self, *names: str, at_least: int = 1, at_most: int = MAX_SIZE) -> int | None:
        """The whole number under any of `names`, which must agree; None when none is given."""
        found = [(n, self._checked(n, at_least, at_most)) for n in names if self.data.get(n) is not None]
        for name, value in found[1:]:
            if value != found[0][1]:
                raise self.error(name, value, f"equal {found[0][0]}={found[0][1]}")
        return found[0][1] if found else None

    def count(self, *names: str, default: int | None = None, at_least: int = 1, at_most: int = MAX_SIZE) -> int:
        value = self.optional(*names, at_least=at_least, at_most=at_most)
        if value is None:
            value = default
        if value is None:
            raise self.error(names[0], "(absent)", "be given")
        return value

    def _checked(self, name: str, at_least: int, at_most: int) -> int:
        value = self.data[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, value, "be a whole number")
        if not at_least <= value <= at_most:
            # Python refuses to print integers of thousands of digits.
            shown = value if value.bit_length() < 256 else "(huge)"
            raise self.error(name, shown, f"be between {at_least} and {at_most}")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        for name in names:
            value = self.data.get(name)
            if value is not None:
                if not isinstance(value, bool):
                    raise self.error(name, value, "be true or false")
                return value
        return default

    def listed(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(name, value, "be a list")
        return value

    def nested(self, name: str) -> Fields | None:
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, value, "be a mapping of fields to values")
        return Fields(value, self.where, f"{self.prefix}{name}.")
