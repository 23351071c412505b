"""Acceptance in one line of text, as the command line and the explorer take it, and as both write it out again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError, UnknownName

_ONE_NUMBER = {"length": "2.9", "rate": "0.63", "alpha": "0.85"}
"""Kinds of one number, each with an example."""
_LISTS = ("marginal", "conditional")


def fields_of_text(text: str, field: str = "acceptance") -> dict[str, Any]:
    """``0.8`` | ``0.8,0.7,0.6`` (conditional, by depth) | ``marginal:0.7,0.5`` | one number and the γ at which it was measured:
    ``length:2.9@4``, ``rate:0.63@3``, ``alpha:0.8@4``; as the fields of `AcceptanceConfig`. `field` names it in errors.

    Raises InputError or UnknownName.
    """
    kind, colon, numbers = text.rpartition(":")
    kind = kind.strip()
    kinds = (*_LISTS, *_ONE_NUMBER)
    if colon and kind not in kinds:
        raise UnknownName(field, kind, kinds, kind="kind of rates")
    if kind in _ONE_NUMBER:
        number_, at, gamma = numbers.partition("@")
        value = number(number_)
        if value is None or not at or re.fullmatch(r"\s*\d{1,4}\s*", gamma, re.ASCII) is None:
            rule = f"be a number and the γ it was measured at, such as {kind}:{_ONE_NUMBER[kind]}@4"
            raise InputError(field, text, rule)
        return {kind: value, "at_gamma": int(gamma)}
    rates = [number(part) for part in numbers.split(",")]
    if any(rate is None or not 0.0 <= rate <= 1.0 for rate in rates):
        raise InputError(
            field, text,
            "be numbers from 0 to 1, such as 0.8, or 0.8,0.7 by depth, or marginal:0.7,0.5, or one number such as length:2.9@4",
        )  # fmt: skip
    if colon or len(rates) > 1:
        return {kind or "conditional": tuple(rates)}
    return {"alpha": rates[0]}


def text_of_fields(fields: Mapping[str, Any]) -> str:
    """The text that `fields_of_text` reads as these rates; what else `fields` say of acceptance is left out."""
    for name in ("conditional", "marginal"):
        if fields.get(name) is not None:
            return f"{name}:" + ",".join(f"{rate!r}" for rate in fields[name])
    at = fields.get("at_gamma")
    if at is None:
        return repr(fields["alpha"])
    kind = next(name for name in _ONE_NUMBER if fields.get(name) is not None)
    return f"{kind}:{fields[kind]!r}@{at}"


def number(text: str) -> float | None:
    """The number that `text` is; None where it is none."""
    try:
        return float(text) if re.fullmatch(r"\s*[-+.\d]\S*\s*", text, re.ASCII) else None
    except ValueError:
        return None
