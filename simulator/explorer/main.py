"""The explorer's pages and how one walks between them."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image

from simulator.explorer import cart, page, presets
from simulator.explorer.gpus import HowManyGpus
from simulator.explorer.page import Question
from simulator.explorer.speculation import WhatSpeculationBuys
from simulator.explorer.trust import CanITrustIt
from simulator.explorer.users import ManyUsers
from simulator.explorer.why_slow import WhySlow

# Streamlit imports it with the first table, while another session's plotly may look at what is there of it by then.
importlib.import_module("pandas")

QUESTIONS: tuple[Question[Any], ...] = (WhySlow(), WhatSpeculationBuys(), ManyUsers(), HowManyGpus(), CanITrustIt())
"""In the order of the article."""
_STYLE = ".stMainBlockContainer { padding-top: 4.5rem; padding-bottom: 3rem; }"
"""Streamlit leaves a third of a laptop's first screen empty."""


def main() -> None:
    """The page that the URL names, or the one a preset asked for."""
    st.set_page_config(page_title="memwall", page_icon=_icon(), layout="wide")
    pages = {question.path: _page(question) for question in QUESTIONS}
    first = pages[QUESTIONS[0].path]
    # Streamlit serves the first page at the root alone; its name should lead there too.
    alias = st.Page(partial(_moved, first), title=first.title, url_path=QUESTIONS[0].path, visibility="hidden")
    chosen = st.navigation([*pages.values(), alias], position="top")
    wanted = pages.get(st.session_state.pop(cart.GO, ""))
    if wanted is not None and wanted is not chosen:
        st.switch_page(wanted, query_params={})  # left out, Streamlit refuses to drop those of this page's controls
    st.html(f"<style>{_STYLE}</style>")
    presets.draw(QUESTIONS)
    chosen.run()


def _moved(page: Any) -> None:
    st.switch_page(page, query_params={name: st.query_params.get_all(name) for name in st.query_params})


def _page(question: Question[Any]) -> Any:
    first = question is QUESTIONS[0]
    return st.Page(
        partial(page.run, question), title=question.title, url_path="start" if first else question.path, default=first
    )


def _icon() -> Any:
    """Shelves and a small desk; made here, as Streamlit would fetch an icon of its own from the network."""
    drawn = np.full((32, 32, 3), 255, dtype=np.uint8)
    for row in range(3, 29, 5):
        drawn[row : row + 3, 2:20] = (0, 114, 178)
    drawn[18:29, 23:30] = (213, 94, 0)
    return Image.fromarray(drawn)
