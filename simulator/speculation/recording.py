"""Recorded rounds: for each request, how many drafts each of its rounds verified and how many the target kept.

Two layouts are read. JSON lines, of which those with ``accepted_by_request`` count (the reference decoder's measurement
files); or one JSON document, which is such an object. Its fields:

    accepted_by_request   one list per request: drafts kept, by round
    drafted_by_request    likewise drafts verified; left out, `gamma` in every round. 0: a round in which nothing was proposed
    gamma                 drafts per round at most
    drafter, text         names to choose by where a file holds several recordings
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.records import Record

MAX_FILE_BYTES = 2**28
"""Some hundred million rounds; a larger file is a mistake."""
MOST_DRAFTS = 1000
"""Nobody drafts so many in one round."""
_CHOICE = ("drafter", "text", "gamma")


class Replay(Record):
    """Which recording to replay: a file, and where it holds several, which one of them."""

    path: str
    """File with recorded rounds; a relative path starts at the scenario's folder, else at the working directory."""
    drafter: str | None = None
    """Name of the drafter that was recorded."""
    text: str | None = None
    """Name of the text it drafted."""
    gamma: int | None = None
    """Drafts per round that were recorded (a simulation may draft fewer)."""

    def load(self, base: Path | None = None) -> Recording:
        """The one recording that is meant. Raises InputError where none or several are, or the file makes no sense."""
        path = Path(self.path).expanduser()
        if base is not None and (base / path).is_file():
            path = base / path
        found = list(_recordings(path)) if path.suffix.lower() != ".csv" else []
        if not found:
            return self._of_log(path)
        wanted = {name: getattr(self, name) for name in _CHOICE if getattr(self, name) is not None}
        fitting = [(data, at) for data, at in found if all(data.get(name) == value for name, value in wanted.items())]
        if len(fitting) != 1:
            listed = "; ".join(_label(data) or at for data, at in (fitting or found)[:6])
            rule = f"name exactly one of {len(found)} recordings by drafter, text and gamma ({listed})"
            raise InputError("replay", wanted or "(any)", rule, where=str(path))
        return recording_of(*fitting[0])

    def _of_log(self, path: Path) -> Recording:
        # An engine's log of steps by request may be replayed as well.
        from simulator.speculation.ladder.logs import read_log  # which builds on this module

        try:
            log = read_log(path, self.gamma)
        except InputError as error:
            if error.field != "log":
                raise
            log = None
        if not isinstance(log, Recording) or self.drafter is not None or self.text is not None:
            rule = "be a file with recorded rounds (accepted_by_request, or a log of steps by request)"
            raise InputError("replay", self.path, rule)
        return log


@dataclass(frozen=True)
class Recording:
    """Rounds of recorded requests."""

    accepted: tuple[tuple[int, ...], ...]
    """Drafts kept, by request and round; every request has a round at least."""
    drafted: tuple[tuple[int, ...], ...]
    """Drafts verified, likewise."""
    gamma: int
    """Drafts per round at most."""
    source: str
    """File and recording."""
    without_rounds: int = 0
    """Recorded requests left out because they have no round (an answer of one token)."""

    @cached_property
    def first_round(self) -> NDArray[np.int64]:
        """Where each request's rounds begin in `rounds`, and the end of the last [requests + 1]."""
        return np.concatenate([[0], np.cumsum([len(row) for row in self.accepted])]).astype(np.int64)

    @cached_property
    def rounds(self) -> NDArray[np.int64]:
        """(drafted, accepted) of all rounds, request after request [rounds, 2]."""
        rows = [np.array(part, dtype=np.int64) for part in zip(self.drafted, self.accepted, strict=True)]
        return np.concatenate(rows, axis=1).T

    @property
    def match_probability(self) -> float:
        """Share of rounds with any draft."""
        return float(np.mean(self.rounds[:, 0] > 0))

    def marginal(self, gamma: int) -> NDArray[np.float64]:
        """Share of the rounds with any draft that kept at least j drafts, j = 1…γ, by request [requests, γ].

        Without such a round 0: nothing is known, and nothing is kept.
        """
        drafted, accepted = self.rounds.T
        kept = accepted[:, None] >= np.arange(1, gamma + 1)
        sums = np.add.reduceat(kept.astype(float), self.first_round[:-1], axis=0)
        rounds = np.add.reduceat((drafted > 0).astype(float), self.first_round[:-1])
        return sums / np.maximum(rounds, 1.0)[:, None]

    def tokens(self, gamma: int) -> NDArray[np.float64]:
        """Mean tokens per round by request, the target's own included [requests]."""
        sums = np.add.reduceat(1.0 + np.minimum(self.rounds[:, 1], gamma), self.first_round[:-1])
        return np.asarray(sums / np.diff(self.first_round))

    def pooled_marginal(self, gamma: int) -> NDArray[np.float64]:
        """`marginal` over the rounds of all requests together [γ], as engines log it."""
        drafted, accepted = self.rounds.T
        kept = accepted[:, None] >= np.arange(1, gamma + 1)
        return np.asarray(kept.sum(axis=0) / max(1, int((drafted > 0).sum())))


def _recordings(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects with recorded rounds and where each stands."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError("replay", str(path), f"be a file of at most {MAX_FILE_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError("replay", str(path), f"be a readable file ({reason})") from None
    if text.lstrip()[:1] not in ("{", "["):
        return  # another log
    whole = _json(text)
    if isinstance(whole, dict):
        lines = [(whole, str(path))]
    else:
        rows = text.split("\n")
        if _json(rows[-1]) is None:  # what a killed run left of its last line; nothing where the file ends as it should
            rows.pop()
        lines = [(_json(row), f"{path}: line {n}") for n, row in enumerate(rows, 1) if row.strip()]
    for data, at in lines:
        if data is None:
            raise InputError("content", "(damaged)", "be JSON", where=at)
        if isinstance(data, dict) and "accepted_by_request" in data:
            yield data, at


def _json(text: str) -> Any:
    """The value that `text` is; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _label(data: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={data[name]}" for name in _CHOICE if name in data)


def recording_of(data: Mapping[str, Any], at: str) -> Recording:
    """The recording in an object with the fields above; `at` names it in errors. Raises InputError."""
    accepted = _counts(data, "accepted_by_request", at)
    gamma = data.get("gamma")
    if isinstance(gamma, bool) or not isinstance(gamma, int) or not 1 <= gamma <= MOST_DRAFTS:
        raise InputError("gamma", gamma if gamma is not None else "(absent)", f"be 1 to {MOST_DRAFTS}", where=at)
    if data.get("drafted_by_request") is None:
        drafted = [[gamma] * len(row) for row in accepted]
    else:
        drafted = _counts(data, "drafted_by_request", at)
    if [len(row) for row in drafted] != [len(row) for row in accepted]:
        rule = "have as many requests and rounds as accepted_by_request"
        raise InputError("drafted_by_request", f"{len(drafted)} requests", rule, where=at)
    for request, (proposed, kept) in enumerate(zip(drafted, accepted, strict=True)):
        for round_, (d, a) in enumerate(zip(proposed, kept, strict=True)):
            if not 0 <= a <= d <= gamma:
                rule = f"be 0 to the {d} drafted, and those at most γ = {gamma}"
                raise InputError(f"accepted_by_request[{request}][{round_}]", a, rule, where=at)
    keep = [i for i, row in enumerate(accepted) if row]
    if not keep:
        raise InputError("accepted_by_request", "(empty)", "have at least one request with a round", where=at)
    return Recording(
        tuple(tuple(accepted[i]) for i in keep), tuple(tuple(drafted[i]) for i in keep), gamma,
        f"{at} {_label(data)}".strip(), len(accepted) - len(keep),
    )  # fmt: skip


def _counts(data: Mapping[str, Any], name: str, at: str) -> list[list[int]]:
    rows = data[name]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InputError(name, type(rows).__name__, "be a list of lists of counts, one per request", where=at)
    for request, row in enumerate(rows):
        for round_, count in enumerate(row):
            if isinstance(count, bool) or not isinstance(count, int):
                raise InputError(f"{name}[{request}][{round_}]", count, "be a count", where=at)
    return rows
