"""Two settings side by side: one is pinned as A, the controls move B. The pinned one is part of the link too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from simulator.errors import MemwallError
from simulator.explorer import carried
from simulator.explorer.answer import Answer, Number, show
from simulator.explorer.controls import escaped
from simulator.explorer.link import PINNED, Settings, differences, of_query, without_files

GO = "go-to"
"""Where the session keeps the path of the page it goes to next."""

if TYPE_CHECKING:
    from simulator.explorer.page import Question


def controls(question: Question[Any], settings: Settings) -> Settings | None:
    """The buttons that pin and unpin, and the setting that is pinned."""
    slot = carried.pin_slot(question)
    text = st.query_params.get(PINNED)
    if text is None:  # the browser's back button undid it
        st.session_state.pop(slot, None)
    pinned: Settings | None = None
    if text is not None:
        try:
            pinned = without_files(of_query(question.settings, text))
        except MemwallError as error:
            st.warning("The link's pinned setting cannot be read: " + escaped(str(error)))
    with st.container(horizontal=True):
        if st.button(
            "Pin this as A" if pinned is None else "Pin this as A instead", key="pin", icon=":material/push_pin:",
            help="Keeps this setting; whatever the controls change then stands beside it as B, with the differences.",
        ):  # fmt: skip
            st.session_state[slot] = st.query_params[PINNED] = settings.query()
            st.rerun()
        if text is not None and st.button("Unpin A", key="unpin", icon=":material/close:"):
            st.session_state.pop(slot, None)
            del st.query_params[PINNED]
            st.rerun()
        if pinned is not None and pinned != settings:
            st.button("Back to A", key="back", icon=":material/undo:", on_click=go, args=(question, pinned))
    if pinned is not None:
        st.session_state[slot] = text
    return pinned


def go(question: Question[Any], settings: Settings) -> None:
    """Sets a page's controls, from a button's callback; the next run shows that page."""
    carried.put(settings)
    st.session_state[GO] = question.path


def table(pinned: Settings, settings: Settings, a: Answer, b: Answer) -> None:
    """What was changed, and what that does to each key figure."""
    changed = differences(pinned, settings)
    if not changed:
        st.caption("A is what the controls show: move one, and it becomes B.")
        return
    words = "; ".join(f"**{escaped(name)}** {escaped(old)} → {escaped(new)}" for name, old, new in changed)
    st.markdown(f"From A to B: {words}")
    others = {number.label: number for number in b.numbers}
    rows = [row(number, others[number.label]) for number in a.numbers if number.label in others]
    st.table([dict(zip((" ", "A", "B", "B − A", "B over A"), cells, strict=True)) for cells in rows])


def row(a: Number, b: Number) -> tuple[str, str, str, str, str]:
    """A key figure in both settings, their difference and ratio, and whether that is for the better."""
    if a.value is None or b.value is None:
        return (escaped(a.label), escaped(a.text), escaped(b.text), "–", "–")
    change = b.value - a.value
    shown = ("+" if change > 0 else "−" if change < 0 else "±") + show(abs(change), a.dimension).replace(" ×", "")
    ratio = f"{b.value / a.value:.2f} ×" if a.value else "–"
    if a.better and change:
        ratio += " · better" if (change < 0) == (a.better == "lower") else " · worse"
    return (escaped(a.label), escaped(a.text), escaped(b.text), escaped(shown), ratio)
