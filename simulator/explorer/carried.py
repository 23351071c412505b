"""What controls said on pages that the session has left: one that another page has too, with the same meaning, keeps its value
there; one that only shares its name does not; and a page that somebody comes back to is as they left it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.errors import StreamlitAPIException
from streamlit.runtime.scriptrunner import get_script_run_ctx

from simulator.explorer.link import PINNED, Settings, texts

if TYPE_CHECKING:
    from simulator.explorer.page import Question

_AT = "page-shown"
_SAID = "said"
_DRAWN = "drawn"
_MADE = "link-made"


def pin_slot(question: Question[Any]) -> str:
    """Where the session keeps the pinned setting of a page."""
    return f"pinned-{question.path}"


def enter(question: Question[Any]) -> bool:
    """Whether the session comes to this page now; then its controls, and its link, start at what was said of them. What the link
    holds already goes before that."""
    before = st.session_state.get(_AT)
    st.session_state[_AT] = question.path
    if before == question.path:
        return False
    if before is None or getattr(
        get_script_run_ctx(), "is_history_navigation", False
    ):  # a link, or the back button: nothing else
        return True
    said, found = st.session_state.get(_SAID, {}), {}
    drawn = st.session_state.get(f"{_DRAWN}-{question.path}", question.settings.model_fields)
    for name, info in question.settings.model_fields.items():
        # Streamlit keeps values by name alone: every field is set, so that none is another's.
        if name not in st.query_params:
            value = said.get(_meaning(question.settings, name), info.default)
            st.session_state[name] = _plain(value)
            if value != info.default and name in drawn:
                found[name] = texts(value)
    if PINNED not in st.query_params and pin_slot(question) in st.session_state:
        found[PINNED] = [st.session_state[pin_slot(question)]]
    st.session_state[_MADE] = set(found)
    if found:  # at once: each change of the link is a step for the back button
        try:
            st.query_params.update(found)
        except (
            StreamlitAPIException
        ):  # of a control that is still there from the page before: Streamlit shows its value itself
            for name in found.keys() & {PINNED}:
                st.query_params[name] = found[name]
    return True


def remember(question: Question[Any], values: dict[str, Any], *, entered: bool) -> None:
    """Keeps what the controls said, by field, for pages to come; a link that `enter` made loses what no control shows."""
    said = st.session_state.setdefault(_SAID, {})
    said.update({_meaning(question.settings, name): value for name, value in values.items()})
    st.session_state[f"{_DRAWN}-{question.path}"] = set(values)
    if entered and st.session_state.get(_MADE):
        for name in st.session_state.pop(_MADE) - values.keys() - {PINNED}:
            st.query_params.pop(name, None)


def put(settings: Settings) -> None:
    """Sets the controls of the page whose settings these are, wherever the session is: from a button's callback."""
    said = st.session_state.setdefault(_SAID, {})
    said.update({_meaning(type(settings), name): value for name, value in settings})
    for name, value in settings:
        st.session_state[name] = _plain(value)


def _meaning(settings: type[Settings], name: str) -> tuple[str, str, str]:
    """Two pages mean the same by a field that has the same type and the same default in both."""
    info = settings.model_fields[name]
    return name, str(info.annotation), repr(info.default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
