"""What all pages have in common: presets and controls at the side, then the verdict, key figures, plots, tables and files; two
settings side by side where one was pinned; the last good answer where a control asks for what cannot be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import streamlit as st

from simulator.errors import DoesNotFit, InputError, MemwallError
from simulator.explorer import carried, cart
from simulator.explorer.answer import Answer, Plot, Tell, Uploads
from simulator.explorer.controls import Controls, escaped
from simulator.explorer.jobs import Job, Jobs
from simulator.explorer.link import S, Settings, refused
from simulator.figures.pairs import on_same_axes
from simulator.output.tables import Section

PATIENCE_S = 1.0
"""How long a page waits for a long answer before it shows how far that is."""
POLL_S = 0.4
MOST_GRID_ROWS = 20_000
"""Rows of a long table that are sent to a browser."""


class Question(ABC, Generic[S]):
    """One page."""

    path: ClassVar[str]
    """In the URL."""
    title: ClassVar[str]
    settings: type[S]
    slow: ClassVar[bool] = False
    """Whether answers take longer than a moment and are worked out in a thread, with progress and a way to cancel."""
    compares: ClassVar[bool] = True
    """Whether two settings can be put side by side."""

    @abstractmethod
    def controls(self, draw: Controls) -> S:
        """Draws the controls and returns what they say. Raises InputError."""

    @abstractmethod
    def answer(self, settings: S, uploads: Uploads, tell: Tell) -> Answer:
        """Works it out; no Streamlit here. Raises MemwallError. Where `tell.stop` is set, what was reached by then."""

    def key(self, settings: S, uploads: Uploads) -> str:
        """By which its answer is kept."""
        files = "".join(f"{field}:{upload.digest}" for field, upload in sorted(uploads.items()))
        return f"{self.path}?{settings.model_dump_json()}{files}"


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """Shared by all sessions of this server, by content."""
    return Jobs()


def run(question: Question[Any]) -> None:
    """The page of `question`."""
    asked = {name: st.query_params.get_all(name) for name in st.query_params}
    entered = carried.enter(question)
    draw = Controls(question.settings)
    main, problems = st.container(), st.container()
    with st.sidebar:
        try:
            settings = question.controls(draw)
        except MemwallError as error:
            _complain(draw, error, problems)
            settings = None
    carried.remember(question, draw.said, entered=entered)
    with main:
        st.title(question.title, anchor=False)
        if settings is not None:
            _refusals(question, settings, asked if entered else {}, draw)
        held = st.container()
        if settings is None:
            _last_good(question)
            return
        pinned = cart.controls(question, settings) if question.compares else None
    with held:
        try:
            answer = _answered(question, settings, draw.uploads)
        except MemwallError as error:
            answer = None
            with main:
                _complain(draw, error, held)
    with main:
        if answer is None:
            _last_good(question)
            return
        st.session_state[_last(question)] = answer
        if pinned is None:
            show(answer)
        else:
            _beside(question, pinned, settings, answer, draw.uploads)


def _refusals(question: Question[Any], settings: Settings, asked: Mapping[str, list[str]], draw: Controls) -> None:
    """What the link asked for that no control took, said until a control is moved: a slow page runs more than once."""
    slot = f"refused-{question.path}"
    found = refused(question.settings, asked, settings, draw.controls)
    if found:
        st.session_state[slot] = (settings, found)
    said_of, sentences = st.session_state.get(slot, (settings, []))
    if said_of != settings:
        del st.session_state[slot]
        return
    for sentence in sentences:
        st.warning(escaped(sentence), icon=":material/link_off:")


def _answered(question: Question[Any], settings: Settings, uploads: Uploads, which: str = "b") -> Answer | None:
    """The answer, or None while it is being worked out, which is said here; `which` of two settings side by side."""
    key = question.key(settings, uploads)
    slot = f"job-{which}-{question.path}"
    known = jobs().known(key)
    if known is not None:
        _stop(slot)
        return known
    if not question.slow:
        return jobs().keep(key, question.answer(settings, uploads, Tell()))
    job: Job | None = st.session_state.get(slot)
    if job is None or job.key != key:
        _stop(slot)
        job = jobs().start(key, lambda tell: question.answer(settings, uploads, tell))
        st.session_state[slot] = job
    if job.wait(PATIENCE_S):
        if job.future.cancelled():
            st.info("Stopped before it began. Change a control to ask again.")
            return None
        return job.future.result()
    _progress(job)
    return None


def _stop(slot: str) -> None:
    """Ends the session's job there, which nobody waits for any more."""
    job: Job | None = st.session_state.pop(slot, None)
    if job is not None:
        job.cancel()


@st.fragment(run_every=POLL_S)
def _progress(job: Job) -> None:
    """How far `job` is; the whole page runs again when it has ended."""
    if job.wait(0.0):
        st.rerun(scope="app")
    tell = job.tell
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    stopping = tell.stop.is_set()
    if not job.future.running():
        said = "Waiting for a free processor"
    elif not tell.of:
        said = escaped(tell.what) or "Getting ready"
    else:
        said = f"{escaped(tell.what)}: {tell.done:,} of {tell.of:,}"
    left.progress(tell.share, "Stopping" if stopping else said)
    if right.button("Cancel", key=f"cancel-{job.key[:40]}", disabled=stopping, width="stretch"):
        job.cancel()
        st.rerun(scope="app")


def _last(question: Question[Any]) -> str:
    return f"last-{question.path}"


def _last_good(question: Question[Any]) -> None:
    answer = st.session_state.get(_last(question))
    if answer is not None:
        st.caption("Below is the last answer that worked out.")
        show(answer)


def _complain(draw: Controls, error: MemwallError, place: Any) -> None:
    sentence = str(error)
    if isinstance(error, DoesNotFit):  # more GPUs help, mostly
        draw.complain("tp", "Does not fit: see the sentence above the figures.")
    fields = (error.field, draw.sent(error.where)) if isinstance(error, InputError) else ()
    beside = any(draw.complain(field, sentence) for field in fields if field)
    if not beside:
        with place:
            st.error(escaped(sentence), icon=":material/error:")
    else:
        with place:
            st.error("A control at the side asks for what cannot be: " + escaped(sentence), icon=":material/error:")


# --- one answer -------------------------------------------------------------------------------------------------------
def show(answer: Answer) -> None:
    """The whole of it."""
    st.info(escaped(answer.verdict))
    for note in answer.notes:
        st.warning(escaped(note))
    numbers(answer)
    plots(answer.plots, answer)
    tables(answer.sections)
    grids(answer)
    files(answer)
    conditions(answer)


def numbers(answer: Answer) -> None:
    """The key figures in a row that wraps."""
    with st.container(horizontal=True, gap="medium"):
        for number in answer.numbers:
            st.metric(number.label, number.text, help=number.note or None, width="content")


def plots(chosen: list[Plot], answer: Answer, *, prefix: str = "") -> None:
    """Wide ones one below the other, others in pairs."""
    waiting: list[Plot] = []
    for plot in [*chosen, None]:
        if plot is not None and not plot.wide:
            waiting.append(plot)
        if waiting and (plot is None or plot.wide or len(waiting) == 2):
            for column, one in zip(st.columns(len(waiting), gap="medium"), waiting, strict=True):
                with column:
                    draw_plot(one, answer, prefix)
            waiting = []
        if plot is not None and plot.wide:
            draw_plot(plot, answer, prefix)


def draw_plot(plot: Plot, answer: Answer, prefix: str = "") -> None:
    """A figure under its finding and the tag of what it rests on."""
    try:
        figure = answer.figure(plot, dark=_dark())
    except MemwallError as error:  # a pinned setting may hold what no control offers
        st.error(escaped(str(error)))
        return
    _draw(figure, prefix + plot.key)


def _draw(figure: Any, key: str) -> None:
    meta = figure.layout.meta
    st.markdown(f"#### {escaped(meta['finding'])}")
    st.caption(escaped(meta["tag"]))
    st.plotly_chart(figure, theme=None, key=f"plot-{key}", config={"displaylogo": False, "responsive": True})


def _dark() -> bool:
    return getattr(getattr(st.context, "theme", None), "type", "light") == "dark"


def tables(sections: list[Section]) -> None:
    """Each folded under its title."""
    for section in sections:
        with st.expander(escaped(section.title[:1].upper() + section.title[1:]) or "Table"):
            headers = [escaped(h) or " " * (i + 1) for i, h in enumerate(section.table.headers)]
            st.table([dict(zip(headers, map(escaped, row), strict=True)) for row in section.table.rows])
            if section.note:
                st.caption(escaped(section.note))


def grids(answer: Answer) -> None:
    """Long tables, sent to the browser only where they are asked for."""
    for grid in answer.grids:
        if not st.toggle(escaped(grid.title), key=f"grid-{grid.title}"):
            continue
        columns = grid.columns()
        rows = len(next(iter(columns.values()), ()))
        st.dataframe({name: values[:MOST_GRID_ROWS] for name, values in columns.items()}, hide_index=True)
        if rows > MOST_GRID_ROWS:
            st.caption(f"The first {MOST_GRID_ROWS:,} of {rows:,} rows; the files hold all.")


def files(answer: Answer) -> None:
    """Buttons for what can be taken away, and what reproduces it."""
    if answer.downloads:
        with st.container(horizontal=True):
            for one in answer.downloads:
                st.download_button(
                    one.label, one.make, file_name=one.file_name, mime=one.mime, on_click="ignore",
                    icon=":material/download:",
                )  # fmt: skip
    for title, text in answer.code.items():
        with st.expander(escaped(title)):
            st.code(text, language="yaml" if title.endswith("YAML") else "python" if "import" in text else "bash")


def conditions(answer: Answer) -> None:
    """What it holds under."""
    st.caption(" · ".join(f"{escaped(label)}: {escaped(text)}" for label, text in answer.conditions))


# --- two of them ------------------------------------------------------------------------------------------------------
def _beside(question: Question[Any], pinned: Settings, settings: Settings, answer: Answer, uploads: Uploads) -> None:
    """The pinned setting (A) and the one of the controls (B): differences first, then plot by plot."""
    try:
        a = _answered(question, pinned, uploads, "a")
    except MemwallError as error:
        st.error("The pinned setting does not work out: " + escaped(str(error)))
        show(answer)
        return
    if a is None:
        show(answer)
        return
    cart.table(pinned, settings, a, answer)
    left, right = st.columns(2, gap="medium")
    left.info("A · " + escaped(a.verdict))
    right.info("B · " + escaped(answer.verdict))
    others = {plot.key: plot for plot in answer.plots}
    for plot in a.plots:
        if plot.key in others:
            dark = _dark()
            try:
                pair = on_same_axes(a.figure(plot, dark=dark), answer.figure(others[plot.key], dark=dark))
            except MemwallError as error:
                st.error(escaped(str(error)))
                continue
            for column, figure, which in zip(st.columns(2, gap="medium"), pair, "ab", strict=True):
                with column:
                    _draw(figure, f"{which}-{plot.key}")
    files(answer)
    conditions(answer)
