"""A page's settings, and how a link holds them: fields that differ from their defaults, as the query of a URL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlencode

from simulator.errors import InputError, MemwallError, UnknownName, nearest
from simulator.records import Record, validate

PINNED = "a"
"""Query parameter that holds the pinned setting, itself a query."""
MOST_CHARACTERS = 8000
"""Longest query that is read; browsers and servers keep about as much."""


MOST_REFUSALS = 5
"""Sentences on what a link asks for in vain."""
_NOT_OURS = ("embed", "utm_", "fbclid", "gclid")
"""Streamlit's own parameters, and those that others hang on links."""


class Control(NamedTuple):
    """What stands at the side for a field."""

    label: str
    options: tuple[str, ...] = ()
    """Where there are only so many."""


class Settings(Record):
    """What a page is asked. Fields are flat (text, numbers, yes or no, or several texts), and each has a default."""

    def query(self) -> str:
        """The fields that differ from their defaults, in order, e.g. ``model=llama-3.1-70b&tp=4``."""
        return urlencode([(name, text) for name, value in self.changed().items() for text in texts(value)])

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        fields = type(self).model_fields
        return {name: value for name, value in self if value != fields[name].default}


S = TypeVar("S", bound=Settings)


def without_files(settings: S) -> S:
    """`settings`, which a link brought. Raises InputError where they name a file: a link must not make us read what is on this
    machine. Controls offer only what is bundled."""
    for name, value in settings.changed().items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and _is_file(one):
                raise InputError(name, one, "be a name, not a file")
    return settings


def _is_file(text: str) -> bool:
    if "/" in text or "\\" in text or text.lower().endswith((".yaml", ".yml", ".json")):
        return True
    try:
        path = Path(text).expanduser()
        return path.is_file() or (path / "config.json").is_file()
    except (OSError, RuntimeError, ValueError):  # too long for a name, or the home folder of nobody
        return False


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


def refused(cls: type[S], asked: Mapping[str, list[str]], taken: S, controls: Mapping[str, Control]) -> list[str]:
    """Sentences on what a link `asked` for, by name, and `controls`, by field, did not take; fields without one say nothing."""
    found: list[str] = []
    for name, values in asked.items():
        if name == PINNED or name.startswith(_NOT_OURS):
            continue
        if name not in cls.model_fields:
            hint = nearest(name[:60], cls.model_fields)
            found.append(f"The link holds {_short(name)!r}, which this page does not know{_meant(hint)}.")
        elif name in controls and not _took(cls, name, values, taken):
            label, options = controls[name]
            hint = None if _is_number(values[-1]) else nearest(values[-1][:60], options)
            got = _shown(getattr(taken, name))
            found.append(
                f"The link asks for {label} = {_short(', '.join(values))!r}, which is not to be had here{_meant(hint)}; "
                + ("it stays empty." if got == "–" else f"{got} is taken.")
            )
    more = len(found) - MOST_REFUSALS
    return (
        found
        if more <= 0
        else [*found[:MOST_REFUSALS], f"{more} more of what the link asks for is not to be had here."]
    )


def _took(cls: type[S], name: str, values: list[str], taken: S) -> bool:
    default = cls.model_fields[name].default
    several = isinstance(default, tuple)
    if default is None and values[-1] == "":
        return getattr(taken, name) is None
    try:
        wanted = validate(cls, {name: tuple(v for v in values if v) if several else values[-1]}, "link")
    except MemwallError:
        return False
    return bool(getattr(wanted, name) == getattr(taken, name))


def differences(a: Settings, b: Settings) -> list[tuple[str, str, str]]:
    """(field, its value in `a`, in `b`) of the fields in which they differ."""
    return [(name, _shown(value), _shown(getattr(b, name))) for name, value in a if value != getattr(b, name)]


def texts(value: Any) -> list[str]:
    """A field's value as a link holds it: several texts where there are several."""
    return [_text(one) for one in (value if isinstance(value, (tuple, list)) else (value,))]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else "" if value is None else _text(value)
    return _short(text) or "–"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _meant(hint: str | None) -> str:
    return f" (did you mean {hint}?)" if hint else ""
