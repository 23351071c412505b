"""Everything that can go wrong because of what a user gave us.

    MemwallError                exit code 2, printed as one sentence
     ├── InputError             a field, its value, the rule it breaks, a nearest-name suggestion
     │    └── UnknownName       a GPU, model, drafter, field ... that does not exist
     └── DoesNotFit             model, drafter or request larger than the memory it must live in

Anything else that escapes is a bug in memwall and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class MemwallError(Exception):
    """Base of all errors a user can cause; ``str(error)`` is one clear sentence."""


class InputError(MemwallError):
    """``<where>: <field>=<value> must <rule>; did you mean <name>?``"""

    def __init__(self, field: str, value: object, rule: str, *, suggestion: str | None = None, where: str = ""):
        self.field, self.value, self.rule, self.suggestion, self.where = field, value, rule, suggestion, where
        super().__init__(field, value, rule)

    def __str__(self) -> str:
        text = f"{self.field}={_shown(self.value)} must {self.rule}"
        if self.where:
            text = f"{self.where}: {text}"
        if self.suggestion:
            text += f"; did you mean {self.suggestion}?"
        return _printable(text)


class UnknownName(InputError):
    """A name that is in no list; ``known`` gives the list it was looked up in."""

    def __init__(self, field: str, value: str, known: Iterable[str], *, where: str = "", kind: str = "name"):
        self.known = sorted(set(known))
        self.kind = kind
        super().__init__(
            field,
            value,
            f"be a known {kind} ({_listed(self.known)})",
            suggestion=nearest(value, self.known),
            where=where,
        )

    def __str__(self) -> str:
        text = super().__str__()
        # A misspelt field is its own value: saying it once is enough.
        return text.replace(f"={_shown(self.value)} must", " must", 1) if self.kind == "field" else text


class DoesNotFit(MemwallError):
    """Something is larger than the memory that must hold it; the sentence says by how many bytes and what would fit."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None when nothing is close."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def _shown(value: object, limit: int = 60) -> str:
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "(huge)"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _printable(text: str) -> str:
    # Names from a file may hold terminal escapes, or halves of surrogate pairs that no terminal can encode.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _listed(names: list[str], limit: int = 8) -> str:
    if len(names) <= limit:
        return ", ".join(names)
    return ", ".join(names[:limit]) + f", and {len(names) - limit} more"
