"""What a trace's row may say beyond time and lengths: its session, class, priority and the blocks of its prompt."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.serving.classes import MOST_CLASSES
from simulator.serving.lengths import IntArray
from simulator.serving.prefixes import Chains
from simulator.serving.trace_fields import Dropped, read_number

OPTIONAL: dict[str, tuple[str, ...]] = {
    "session": ("session_id", "session id", "session"),
    "class": ("request_class", "class"),
    "priority": ("priority",),
    "hash_ids": ("hash_ids",),
}
"""Role → names of its column, lower case."""

Kind = tuple[str | None, int | None]
"""Name and priority of a class of rows, each None where the trace does not say."""


class Labels:
    """Optional values of the kept rows going in, arrays coming out."""

    def __init__(self, names: Mapping[str, str], places: Mapping[str, Any], block_tokens: int):
        self._names, self._places = names, places
        self._kinds: dict[Kind, int] = {}
        self._sessions: dict[str, int] = {}
        self._kind_of, self._session = array("q"), array("q")
        self._chains = Chains(block_tokens) if "hash_ids" in places else None

    def read(self, fields: Any) -> tuple[str, Kind, Any]:
        """A row's session, kind and block ids. Raises Dropped where its priority is no whole number."""
        name, priority = self._text(fields, "class"), self._text(fields, "priority")
        number = None if priority == "" else read_number(priority)
        if priority != "" and (number is None or number != number // 1 or abs(number) >= 2**31):
            raise Dropped("unreadable priority")
        blocks = fields.get(self._places["hash_ids"]) if self._chains and isinstance(fields, dict) else None
        return self._text(fields, "session"), (name or None, None if number is None else int(number)), blocks

    def add(self, label: tuple[str, Kind, Any], prompt_tokens: int) -> None:
        """Takes in what `read` gave for a row that is kept."""
        session, kind, blocks = label
        self._kind_of.append(self._kinds.setdefault(kind, len(self._kinds)))
        if len(self._kinds) > MOST_CLASSES:
            columns = [self._names[role] for role in ("class", "priority") if role in self._names]
            raise InputError("columns", ", ".join(columns), f"hold at most {MOST_CLASSES} different classes")
        self._session.append(self._sessions.setdefault(session, len(self._sessions)) if session else -1)
        if self._chains is not None:
            self._chains.add(blocks, prompt_tokens)

    def finished(self, prompt_tokens: IntArray, output_tokens: IntArray) -> dict[str, Any]:
        """Fields of the table."""
        found: dict[str, Any] = {}
        notes = []
        if self._kinds.keys() != {(None, None)}:
            found |= {"kind_of": np.array(self._kind_of), "kinds": tuple(self._kinds)}
        if self._sessions:
            found["session"], broken = conversations(np.array(self._session), prompt_tokens, output_tokens)
            if broken:
                notes.append(f"{broken} turns that do not contain the ones before begin a session of their own")
        if self._chains is not None:
            found["shared"] = self._chains.finished()
            if self._chains.ambiguous:
                notes.append(f"{self._chains.ambiguous} block ids follow different prefixes and are told apart by them")
            if self._chains.unreadable:
                notes.append(f"{self._chains.unreadable} lists of block ids are cut where they cannot be read")
        return {**found, "notes": tuple(notes)}

    def _text(self, fields: Any, role: str) -> str:
        if role not in self._places:
            return ""
        value = fields.get(self._places[role]) if isinstance(fields, dict) else fields[self._places[role]]
        return "" if value is None else str(value).strip()


def conversations(session: IntArray, prompt_tokens: IntArray, output_tokens: IntArray) -> tuple[IntArray | None, int]:
    """Rows of one session whose prompt is longer than the prompt and answer before it: one growing conversation.

    `session` is -1 where a row has none. Returns the index of each row's first turn (None where every row stands alone),
    and how many rows of a session are too short to contain the turn before and begin anew.
    """
    order = np.argsort(session, kind="stable")
    sorted_session, prompt = session[order], prompt_tokens[order]
    same = (sorted_session[1:] == sorted_session[:-1]) & (sorted_session[1:] >= 0)
    grows = prompt[1:] > prompt[:-1] + output_tokens[order][:-1]
    begins = np.append(True, ~(same & grows))
    first = np.empty(len(session), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return (None if begins.all() else first), int(np.count_nonzero(same & ~grows))
