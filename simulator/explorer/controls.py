"""A page's controls: each bound to the URL under its field's name, starting at the field's default, with its complaints beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from simulator.explorer.answer import Upload
from simulator.explorer.link import Control, Settings

LARGEST_UPLOAD_MB = 50
T = TypeVar("T")


def escaped(text: str) -> str:
    """`text` as Streamlit's markdown shows it literally: users' names and dollar signs stand in our sentences."""
    for sign in "\\`*_{}[]()<>#$~|!:":
        text = text.replace(sign, "\\" + sign)
    return text


class Controls:
    """Draws the widgets of a page whose settings are `settings`, wherever the caller's ``with`` points."""

    def __init__(self, settings: type[Settings]):
        self._settings = settings
        self._places: dict[str, Any] = {}
        self.uploads: dict[str, Upload] = {}
        """Files that were sent, by field."""
        self.controls: dict[str, Control] = {}
        """Those that were drawn, by field."""
        self.said: dict[str, Any] = {}
        """What they say, files excepted."""

    # --- widgets ------------------------------------------------------------------------------------------------------
    def choice(
        self, field: str, label: str, options: Sequence[str], *, names: Callable[[str], str] | None = None,
        help: str | None = None,
    ) -> str:  # fmt: skip
        """One of `options`, by `names` where they read better."""
        known = list(options)
        default = self._default(field)
        index = known.index(default) if default in known else 0
        self._tidy(field, known)
        chosen = st.selectbox(
            label, known, index=index, key=field, help=help, bind="query-params", format_func=names or str
        )
        self._drew(field, label, chosen, known)
        return str(chosen)

    def switch(self, field: str, label: str, options: Sequence[str], *, help: str | None = None) -> str:
        """One of a few `options` that all stand side by side."""
        default = self._default(field)
        self._tidy(field, options)
        chosen = st.segmented_control(
            label, list(options), default=default, key=field, help=help, bind="query-params", required=True
        )
        self._drew(field, label, chosen or default, options)
        return str(chosen or default)

    def steps(self, field: str, label: str, options: Sequence[T], *, help: str | None = None) -> T:
        """One of rising `options`, on a slider."""
        default = self._default(field)
        value = default if default in options else options[0]
        self._tidy(field, options)
        chosen: T = st.select_slider(label, options, value=value, key=field, help=help, bind="query-params")
        self._drew(field, label, chosen, options)
        return chosen

    def slider(
        self, field: str, label: str, low: float, high: float, step: float, *, help: str | None = None
    ) -> float:  # fmt: skip
        """A number from `low` to `high`; whole where all of them are."""
        kind = int if all(isinstance(x, int) for x in (low, high, step)) else float
        value = min(max(kind(self._default(field)), kind(low)), kind(high))
        self._bound(field, kind, low, high)
        chosen = st.slider(label, kind(low), kind(high), value, kind(step), key=field, help=help, bind="query-params")
        self._drew(field, label, chosen)
        return kind(chosen)

    def number(
        self, field: str, label: str, low: float, high: float, step: float, *, form: str | None = None,
        help: str | None = None,
    ) -> float:  # fmt: skip
        """A number typed in."""
        kind = int if all(isinstance(x, int) for x in (low, high, step)) else float
        self._bound(field, kind, low, high)
        chosen = st.number_input(
            label, kind(low), kind(high), kind(self._default(field)), kind(step), format=form, key=field, help=help,
            bind="query-params",
        )  # fmt: skip
        self._drew(field, label, chosen)
        return kind(chosen)

    def maybe(
        self, field: str, label: str, low: float, high: float, step: float, *, otherwise: str, help: str | None = None
    ) -> float | None:  # fmt: skip
        """A number typed in, or None where the field is left empty, which stands for what `otherwise` says."""
        kind = int if all(isinstance(x, int) for x in (low, high, step)) else float
        self._bound(field, kind, low, high, empty=True)
        chosen = st.number_input(
            label, kind(low), kind(high), None, kind(step), key=field, placeholder=otherwise, help=help,
            bind="query-params",
        )  # fmt: skip
        self._drew(field, label, chosen)
        return chosen

    def text(self, field: str, label: str, *, placeholder: str = "", help: str | None = None) -> str:
        """A line of text."""
        written = st.text_input(
            label, str(self._default(field)), key=field, help=help, placeholder=placeholder, max_chars=400,
            bind="query-params",
        )  # fmt: skip
        self._drew(field, label, written)
        return str(written)

    def toggle(self, field: str, label: str, *, help: str | None = None) -> bool:
        """Yes or no."""
        chosen = st.toggle(label, bool(self._default(field)), key=field, help=help, bind="query-params")
        self._drew(field, label, chosen)
        return bool(chosen)

    def several(self, field: str, label: str, options: Sequence[str], *, help: str | None = None) -> tuple[str, ...]:
        """Any of `options`."""
        default = [d for d in self._default(field) if d in options]
        if any(one not in options for one in st.session_state.get(field) or ()):
            del st.session_state[field]
        chosen = st.multiselect(label, list(options), default=default, key=field, help=help, bind="query-params")
        self._drew(field, label, list(chosen), options)
        return tuple(chosen)

    def upload(
        self, field: str, label: str, kinds: Sequence[str], *, most_mb: int = LARGEST_UPLOAD_MB, help: str | None = None
    ) -> Upload | None:
        """A file of one of `kinds` (suffixes); it is not part of a link."""
        sent = st.file_uploader(label, list(kinds), key=f"file-{field}", help=help, max_upload_size=most_mb)
        self._place(field)
        if sent is None:
            return None
        content = sent.getvalue()
        digest = hashlib.sha256(sent.name.encode("utf-8", "replace") + b"\0" + content).hexdigest()
        self.uploads[field] = Upload(sent.name, content, digest)
        return self.uploads[field]

    def sent(self, where: str) -> str:
        """The field of the file that a complaint is about; empty where it is about none."""
        names = {field: upload.name.replace("\\", "/").rsplit("/", 1)[-1] for field, upload in self.uploads.items()}
        return next((field for field, name in names.items() if name and where.startswith(name[:40])), "")

    # --- complaints ---------------------------------------------------------------------------------------------------
    def complain(self, field: str, sentence: str) -> bool:
        """Puts `sentence` below the control of `field`; False where there is none."""
        name = next((f for f in (field, field.rsplit(".", maxsplit=1)[-1]) if f in self._places), None)
        if name is None:
            return False
        self._places[name].error(escaped(sentence))
        return True

    def _place(self, field: str) -> None:
        self._places[field] = st.empty()

    def _default(self, field: str) -> Any:
        return self._settings.model_fields[field].default

    # --- what the session holds ---------------------------------------------------------------------------------------
    def _drew(self, field: str, label: str, value: Any, options: Sequence[Any] = ()) -> None:
        self.controls[field] = Control(label, tuple(map(str, options)))
        self.said[field] = value
        self._place(field)

    def _tidy(self, field: str, options: Sequence[Any]) -> None:
        """What another page, a preset or another model left for the control has to be among its options."""
        if field in st.session_state and st.session_state[field] not in options:
            del st.session_state[field]

    def _bound(self, field: str, kind: type, low: float, high: float, *, empty: bool = False) -> None:
        """The same for a number."""
        if field not in st.session_state:
            return
        value = st.session_state[field]
        if value is None:
            if not empty:
                del st.session_state[field]
        elif not low <= value <= high or type(value) is not kind:
            st.session_state[field] = kind(min(max(value, low), high))
