"""Text with a unit ↔ SI numbers. Nothing inside the simulator carries a unit string; this is the only edge.

``parse("3.35 TB/s", "bytes_per_s")`` is 3.35e12; ``show(3.35e12, "bytes_per_s")`` is "3.35 TB/s".
Decimal prefixes are powers of 1000, Ki/Mi/Gi/Ti powers of 1024.
"""

from __future__ import annotations

import math
import re

from simulator.errors import InputError

_PREFIX = {
    "": 1.0,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "m": 1e-3,
    "u": 1e-6,
    "µ": 1e-6,
    "n": 1e-9,
}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}

# dimension -> (symbol of the SI unit, other spellings -> factor)
_DIMENSIONS: dict[str, tuple[str, dict[str, float]]] = {
    "bytes": ("B", {}),
    "bytes_per_s": ("B/s", {"bit/s": 1 / 8, "b/s": 1 / 8}),
    "flop": ("FLOP", {}),
    "flop_per_s": ("FLOP/s", {"OP/s": 1.0, "FLOPS": 1.0, "OPS": 1.0}),
    "s": ("s", {"min": 60.0, "h": 3600.0}),
    "hz": ("Hz", {}),
    "w": ("W", {}),
    "usd_per_s": ("USD/s", {"USD/h": 1 / 3600}),
    "per_s": ("/s", {"/min": 1 / 60, "/h": 1 / 3600}),
    "tokens": ("tokens", {"tok": 1.0}),
}
_NUMBER = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")


def parse(text: str | int | float, dimension: str, *, field: str = "quantity", where: str = "") -> float:
    """SI value of `text` in `dimension` (a key of the table above); a bare number is taken as SI already.

    Raises InputError when the text is no number, the unit is of another dimension, or the value is not finite.
    """
    symbol, others = _DIMENSIONS[dimension]
    if isinstance(text, bool):
        raise InputError(field, text, f"be a number with a unit such as '1 {symbol}'", where=where)
    if isinstance(text, int | float):
        value = float(text)
    else:
        match = _NUMBER.match(text)
        factor = _factor(match[2], symbol, others) if match else None
        if match is None or factor is None:
            raise InputError(field, text, f"be a number with a unit such as '1 {symbol}'", where=where)
        value = float(match[1].replace("_", "")) * factor
    if not math.isfinite(value):
        raise InputError(field, text, "be finite", where=where)
    return value


def _factor(unit: str, symbol: str, others: dict[str, float]) -> float | None:
    if unit == "":
        return 1.0
    for spelling, scale in [(symbol, 1.0), *others.items()]:
        if unit.endswith(spelling):
            prefix = unit[: len(unit) - len(spelling)]
            if prefix in _BINARY:
                return _BINARY[prefix] * scale
            if prefix in _PREFIX and (prefix == "" or not spelling.startswith(("min", "h", "/"))):
                return _PREFIX[prefix] * scale
    return None


def show(value: float, dimension: str, digits: int = 3) -> str:
    """`value` with the prefix that leaves one to three digits before the point, e.g. "141 GB", "12.4 ms"."""
    symbol, _ = _DIMENSIONS[dimension]
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {symbol}"
    scales = [
        ("P", 1e15),
        ("T", 1e12),
        ("G", 1e9),
        ("M", 1e6),
        ("k", 1e3),
        ("", 1.0),
        ("m", 1e-3),
        ("µ", 1e-6),
        ("n", 1e-9),
    ]
    if dimension in ("bytes", "flop", "tokens"):
        scales = scales[:6]
    if dimension == "per_s":
        scales = [("", 1.0)]  # "5 k/s" and "5 m/s" would be read as something else
    reached = (pair for pair in scales if abs(value) >= pair[1] * (1 - 0.5 * 10.0**-digits))
    prefix, scale = next(reached, scales[-1])
    scaled = value / scale
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)) + 1e-12))
    text = f"{scaled:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {prefix}{symbol}"
