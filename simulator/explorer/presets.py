"""Questions that people ask, and the article's experiments, as settings to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from simulator.explorer import cart
from simulator.explorer.link import of_query

if TYPE_CHECKING:
    from simulator.explorer.page import Question


class Preset(NamedTuple):
    """A named setting of one page."""

    path: str
    """The page's."""
    title: str
    query: str
    """Its settings, as a link holds them."""


PRESETS: tuple[Preset, ...] = (
    Preset("why-slow", "The article's 70B on one node, batch 1", "model=llama-3.1-70b&tp=4&batch=1&context=2048"),
)


def draw(questions: Sequence[Question[Any]]) -> None:
    """The list at the top of the side bar; whoever takes one goes to its page."""
    with st.sidebar.popover("Start from a question", icon=":material/lightbulb:", width="stretch"):
        for question in questions:
            mine = [p for p in PRESETS if p.path == question.path]
            if mine:
                st.caption(question.title)
            for preset in mine:
                st.button(
                    preset.title, key=f"preset-{preset.path}-{preset.title}", type="tertiary", on_click=cart.go,
                    args=(question, of_query(question.settings, preset.query)),
                )  # fmt: skip
