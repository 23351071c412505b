"""What one option of an engine's speculative configuration means here, and what came of a whole configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simulator.errors import InputError, UnknownName
from simulator.records import read_mapping, validate

Meaning = Literal["used", "unpriced", "acceptance", "idle"]
"""``used``: goes into the price. ``unpriced``: changes the engine's speed, but not the price. ``acceptance``: changes how much is
accepted, hence which acceptance is to be given. ``idle``: has no effect on speed."""
Form = Literal["count", "number", "text", "flag", "list", "mapping", "any"]


@dataclass(frozen=True)
class Option:
    """One option."""

    form: Form
    """What its value must be."""
    meaning: Meaning
    """What becomes of it."""
    plain: Any = None
    """Its value where it says nothing: mentioned neither as used nor as left out."""


@dataclass
class EngineSpeculation:
    """An engine's speculative configuration in memwall's terms."""

    speculation: dict[str, Any]
    """Fields of a scenario's ``speculation``: draft, gamma, and where the configuration says so tree, policy, acceptance,
    draft_tp, draft_quantization."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further changes of a scenario by dotted name, such as ``engine.draft_batch``."""
    used: tuple[str, ...] = ()
    """Options that went into the above."""
    unpriced: tuple[str, ...] = ()
    """Options that change the engine's speed, but nothing here."""
    acceptance: tuple[str, ...] = ()
    """Options that change how much is accepted: the acceptance given must be one measured with them."""
    idle: tuple[str, ...] = ()
    """Options without effect on speed."""
    notes: list[str] = field(default_factory=list)
    """What stands in for something else."""
    lossy: list[str] = field(default_factory=list)
    """Options that change the distribution of the output."""

    def remarks(self) -> list[str]:
        """What a user should know, one sentence each."""
        lines = [f"{note[:1].upper()}{note[1:]}." for note in self.notes]
        if self.lossy:
            lines.append(f"Lossy: {', '.join(self.lossy)} changes what the model says, not only how fast.")
        for names, text in (
            (self.unpriced, "Not priced, though the engine's speed depends on it"),
            (self.acceptance, "Changes acceptance only (give one measured with it)"),
            (self.idle, "Without effect on speed"),
        ):
            if names:
                lines.append(f"{text}: {', '.join(names)}.")
        return lines


def parsed(data: Mapping[str, Any] | str, where: str) -> dict[str, Any]:
    """A mapping, or the object in a JSON text, or in the file that ``@path`` names. Raises InputError."""
    if not isinstance(data, str):
        return dict(data)
    text = data.strip()
    if text.startswith("@"):
        return read_mapping(Path(text[1:]).expanduser())
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise InputError(where, text, "be a JSON object, or @ and the path of a file that holds one") from None
    if not isinstance(found, dict):
        raise InputError(where, text, "be a JSON object, or @ and the path of a file that holds one")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(key, "(twice)", "be given once")
        found[key] = value
    return found


def sort_options(data: Mapping[str, Any], options: Mapping[str, Option], where: str) -> dict[str, Any]:
    """The values that say something, by option name, hyphens read as underscores. Raises UnknownName for an option that the
    engine does not have, InputError for a value of the wrong kind."""
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise UnknownName(str(key), str(key), options, where=where, kind="field")
        if name in values:
            raise InputError(name, "(twice)", "be given once", where=where)
        if value is None:
            continue
        _check_form(name, value, options[name].form, where)
        values[name] = value
    return values


def result(
    speculation: dict[str, Any], values: Mapping[str, Any], options: Mapping[str, Option], **rest: Any
) -> EngineSpeculation:
    """`values` told apart by what becomes of them."""
    named: dict[Meaning, list[str]] = {"used": [], "unpriced": [], "acceptance": [], "idle": []}
    for name, value in values.items():
        option = options[name]
        if option.plain is None or value != option.plain:
            named[option.meaning].append(name if value is True else f"{name}={_short(value)}")
    return EngineSpeculation(
        speculation, used=tuple(named["used"]), unpriced=tuple(named["unpriced"]), acceptance=tuple(named["acceptance"]),
        idle=tuple(named["idle"]), **rest,
    )  # fmt: skip


def count(values: Mapping[str, Any], name: str, least: int, most: int, where: str) -> int | None:
    """A whole number among `values` within its bounds; None where it is absent."""
    value = values.get(name)
    if value is None:
        return None
    if not least <= value <= most:
        raise InputError(name, value, f"be between {least} and {most}", where=where)
    return int(value)


def _check_form(name: str, value: Any, form: Form, where: str) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    good, what = {
        "count": (isinstance(value, int) and numeric, "a whole number"),
        "number": (numeric and (isinstance(value, int) or math.isfinite(value)), "a number"),
        "text": (isinstance(value, str), "text"),
        "flag": (isinstance(value, bool), "true or false"),
        "list": (isinstance(value, list | tuple), "a list"),
        "mapping": (isinstance(value, dict), "a mapping"),
        "any": (True, ""),
    }[form]
    if not good:
        raise InputError(name, value, f"be {what}", where=where)


def _short(value: Any) -> str:
    try:
        text = str(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists in lists
        return "…"
    text = "".join(c if c.isprintable() else "?" for c in text[:41])
    return text if len(text) <= 40 else text[:39] + "…"


def schedule(steps: list[tuple[int, int]], gamma: int) -> dict[str, Any] | None:
    """The policy for γ by number of sequences: each (first number, γ) holds up to the next, the first at 1. None where it is γ
    everywhere."""
    kept = [step for i, step in enumerate(steps) if i == 0 or step[1] != steps[i - 1][1]]
    if [g for _, g in kept] == [gamma]:
        return None
    if [g for _, g in kept] == [gamma, 0]:
        return {"off_above": kept[1][0] - 1}
    return {"table": {"batches": [first for first, _ in kept], "gamma": [g for _, g in kept]}}


def steps_of(policy: Any, gamma: int) -> list[tuple[int, int]]:
    """(first number of sequences, γ) of a policy that an engine can follow: fixed, off above, or a table by batch alone.

    Raises InputError for any other.
    """
    from simulator.speculation.policies import PolicyConfig

    given = {"kind": policy} if isinstance(policy, str) else policy
    config = validate(PolicyConfig, given or {"kind": "fixed"}, "policy")
    if config.off_above is not None:
        return [(1, gamma), (config.off_above + 1, 0)]
    if config.table is not None:
        if len(config.table.contexts) > 1:
            raise InputError(
                "policy.table.contexts", list(config.table.contexts), "be one, as engines look at batches only"
            )
        return list(zip(config.table.batches, (row[0] for row in config.table.gamma), strict=True))
    if config.kind != "fixed":
        raise InputError("policy", config.kind, "be fixed, off-above or a table: an engine follows no other")
    return [(1, gamma)]
