"""Counters of an engine: drafts kept by position, over all requests and rounds together.

vLLM counts, per position of the draft, the rounds that kept the token there: divided by the rounds, the *marginal* rates by depth.
Sources: vLLM ``v1/spec_decode/metrics.py``; the labels ``position``, ``engine`` and ``model_name`` are as in its Prometheus text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.speculation.ladder.rounds import FloatArray
from simulator.speculation.recording import MOST_DRAFTS

_DRAFTS, _DRAFT_TOKENS = "num_drafts", "num_draft_tokens"
_ACCEPTED, _BY_POSITION = "num_accepted_tokens", "num_accepted_tokens_per_pos"
_LINE = re.compile(
    r"(?:vllm:)?spec_decode_(?P<name>num_[a-z_]+?)(?:_total)?(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?"
)
_POSITION = re.compile(r'position="(\d+)"')


@dataclass(frozen=True)
class PositionCounts:
    """Rounds, and how many of them kept the token at each position."""

    rounds: float
    """Rounds with drafts."""
    kept: tuple[float, ...]
    """Rounds that kept at least j drafts, j = 1…γ."""
    source: str

    @property
    def gamma(self) -> int:
        """Positions counted."""
        return len(self.kept)

    @property
    def marginal(self) -> FloatArray:
        """Kept over rounds, by position [γ]."""
        return np.asarray(self.kept) / self.rounds

    @property
    def conditional(self) -> FloatArray:
        """Kept over those that kept the one before [γ]; NaN where none did."""
        before = np.array([self.rounds, *self.kept[:-1]])
        kept = np.asarray(self.kept)
        return np.asarray(np.divide(kept, before, out=np.full(len(kept), np.nan), where=before > 0))

    @classmethod
    def added(cls, parts: Iterable[PositionCounts]) -> PositionCounts:
        """The counts of all parts together."""
        every = list(parts)
        most = max(len(part.kept) for part in every)
        kept = np.sum([np.pad(part.kept, (0, most - len(part.kept))) for part in every], axis=0)
        return cls(sum(part.rounds for part in every), tuple(kept.tolist()), every[0].source.split(": ")[0])


def checked(
    rounds: float, kept: list[float], at: str, accepted: float | None = None, drafted: float | None = None
) -> PositionCounts:
    """Counts that can be. Raises InputError."""
    if not rounds > 0:
        raise InputError(_DRAFTS, f"{rounds:g}", "be above 0: nothing was drafted", where=at)
    if not 1 <= len(kept) <= MOST_DRAFTS:
        raise InputError(_BY_POSITION, f"{len(kept)} positions", f"have 1 to {MOST_DRAFTS} positions", where=at)
    before = rounds
    for position, count in enumerate(kept):
        if not 0 <= count <= before:
            what = f"{before:g} rounds" if position == 0 else f"{before:g} of the position before"
            raise InputError(f"{_BY_POSITION}[{position}]", f"{count:g}", f"be 0 to the {what}", where=at)
        before = count
    total = sum(kept)
    if accepted is not None and abs(accepted - total) > 0.5:
        raise InputError(_ACCEPTED, f"{accepted:g}", f"be the {total:g} of all positions together", where=at)
    if drafted is not None and not total <= drafted <= rounds * MOST_DRAFTS:
        raise InputError(_DRAFT_TOKENS, f"{drafted:g}", f"be at least the {total:g} accepted", where=at)
    return PositionCounts(rounds, tuple(kept), at)


def counts_of_text(text: str, place: str) -> PositionCounts:
    """Counters in Prometheus' text format, those of several engines or models together. Raises InputError."""
    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("#") or "spec_decode_" not in line:
            continue
        found = _LINE.fullmatch(line.strip())
        at = f"{place}: line {number}"
        if found is None:
            raise InputError("line", line.strip(), "be a counter and its value", where=at)
        if found["name"].endswith("_created"):
            continue
        value = _number(found["value"], found["name"], at)
        if found["name"] == _BY_POSITION:
            position = _POSITION.search(found["labels"] or "")
            if position is None:
                raise InputError("position", "(absent)", "be a label of each count per position", where=at)
            positions[int(position[1])] = positions.get(int(position[1]), 0.0) + value
        else:
            totals[found["name"]] = totals.get(found["name"], 0.0) + value
    return _assembled(totals, positions, place)


def counts_of_object(data: Mapping[str, Any], at: str) -> PositionCounts | None:
    """Counters in a JSON object, with or without their prefix; None where it holds none. Raises InputError."""
    named = {re.sub(r"^(vllm:)?spec_decode_", "", str(name)).removesuffix("_total"): v for name, v in data.items()}
    if _BY_POSITION not in named:
        return None
    listed = named[_BY_POSITION]
    if isinstance(listed, Mapping):
        if not all(str(key).isdigit() for key in listed):
            raise InputError(_BY_POSITION, "(object)", "have positions 0, 1, … as names", where=at)
        positions = {int(str(key)): _number(value, _BY_POSITION, at) for key, value in listed.items()}
    elif isinstance(listed, list):
        positions = {place: _number(value, _BY_POSITION, at) for place, value in enumerate(listed)}
    else:
        raise InputError(_BY_POSITION, type(listed).__name__, "be a list of counts", where=at)
    totals = {
        name: _number(named[name], name, at)
        for name in (_DRAFTS, _DRAFT_TOKENS, _ACCEPTED)
        if named.get(name) is not None
    }
    return _assembled(totals, positions, at)


def counts_of_histogram(data: Mapping[str, Any], at: str) -> PositionCounts | None:
    """Steps by drafts kept, of one response; None where it holds none. Raises InputError."""
    metrics = data.get("metrics")
    detail = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else None
    meta = data.get("meta_info")
    listed = None
    for holder, name in (
        (detail, "acceptance_histogram"), (meta, "spec_accept_histogram"), (meta, "spec_correct_drafts_histogram"),
        (data, "acceptance_histogram"), (data, "spec_accept_histogram"),
    ):  # fmt: skip
        if isinstance(holder, Mapping) and holder.get(name):
            listed = holder[name]
            break
    if listed is None:
        return None
    if isinstance(listed, Mapping) and all(str(key).isdigit() for key in listed):
        by_length = {int(str(key)): _number(value, "histogram", at) for key, value in listed.items()}
    elif isinstance(listed, list):
        by_length = {kept: _number(value, "histogram", at) for kept, value in enumerate(listed)}
    else:
        raise InputError("histogram", type(listed).__name__, "be steps by drafts kept", where=at)
    most = max(by_length)
    if most < 1 or most > MOST_DRAFTS:
        raise InputError("histogram", f"{most + 1} entries", f"have 2 to {MOST_DRAFTS + 1} entries", where=at)
    steps = [by_length.get(kept, 0.0) for kept in range(most + 1)]
    reached = np.cumsum(steps[::-1])[::-1]
    return checked(float(reached[0]), reached[1:].tolist(), at)


def _assembled(totals: Mapping[str, float], positions: Mapping[int, float], at: str) -> PositionCounts:
    if not positions or sorted(positions) != list(range(len(positions))):
        rule = "have a count for every position from 0 on"
        raise InputError(_BY_POSITION, ", ".join(map(str, sorted(positions))) or "(absent)", rule, where=at)
    if _DRAFTS not in totals:
        raise InputError(_DRAFTS, "(absent)", "be given: the rounds that counts per position are shares of", where=at)
    kept = [positions[place] for place in range(len(positions))]
    return checked(totals[_DRAFTS], kept, at, totals.get(_ACCEPTED), totals.get(_DRAFT_TOKENS))


def _number(value: Any, name: str, at: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(name, str(value), "be a count", where=at) from None
    if not 0.0 <= number < 2.0**53:
        raise InputError(name, str(value), "be a count", where=at)
    return number
