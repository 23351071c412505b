"""A page's settings, and how a link holds them: fields that differ from their defaults, as the query of a URL."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

from simulator.errors import InputError, UnknownName
from simulator.records import Record, validate

PINNED = "a"
"""Query parameter that holds the pinned setting, itself a query."""
MOST_CHARACTERS = 8000
"""Longest query that is read; browsers and servers keep about as much."""


class Settings(Record):
    """What a page is asked. Fields are flat (text, numbers, yes or no, or several texts), and each has a default."""

    def query(self) -> str:
        """The fields that differ from their defaults, in order, e.g. ``model=llama-3.1-70b&tp=4``."""
        return urlencode(
            [
                (name, _text(one))
                for name, value in self.changed().items()
                for one in (value if isinstance(value, tuple) else (value,))
            ]
        )

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        fields = type(self).model_fields
        return {name: value for name, value in self if value != fields[name].default}


S = TypeVar("S", bound=Settings)


def of_query(cls: type[S], query: str) -> S:
    """The settings that `query` holds. Raises InputError for what no page of ours wrote."""
    if len(query) > MOST_CHARACTERS:
        raise InputError("link", f"{len(query)} characters", f"have at most {MOST_CHARACTERS}")
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=200, errors="strict")
    except ValueError:
        raise InputError("link", query, "be fields and values of a page") from None
    data: dict[str, Any] = {}
    for name, values in found.items():
        if name not in cls.model_fields:
            raise UnknownName(name, name, cls.model_fields, where="link", kind="field")
        several = isinstance(cls.model_fields[name].default, tuple)
        data[name] = tuple(v for v in values if v) if several else values[-1]
    return validate(cls, data, "link")


def differences(a: Settings, b: Settings) -> list[tuple[str, str, str]]:
    """(field, its value in `a`, in `b`) of the fields in which they differ."""
    return [(name, _shown(value), _shown(getattr(b, name))) for name, value in a if value != getattr(b, name)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else _text(value) or "–"
