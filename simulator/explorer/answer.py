"""What a page shows: a sentence, key figures that two settings are differenced by, plots, tables and files to take away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from simulator import units
from simulator.output.tables import Section

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Better = Literal["lower", "higher", ""]


ROOM_BYTES = 2_000_000
"""About what most answers hold at most."""
FORSAKEN_S = 120.0
"""A long answer that nobody has looked after for so long is given up."""


@dataclass(frozen=True)
class Number:
    """One key figure, in SI units."""

    label: str
    value: float | None
    """None: there is none, and `absent` says why."""
    dimension: str
    """As in `units.show`; ``x`` a ratio, ``%`` a share of one, empty a bare number."""
    better: Better = ""
    """Which way users want it to move."""
    note: str = ""
    """What it rests on, in some words."""
    absent: str = "–"

    @property
    def text(self) -> str:
        """With its unit."""
        return self.absent if self.value is None else show(self.value, self.dimension)


def show(value: float, dimension: str) -> str:
    """`value` with the unit of `dimension`."""
    if dimension == "x":
        return f"{value:.2f} ×"
    if dimension == "%":
        return f"{value:.1%}"
    if dimension == "":
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if dimension == "usd":
        return f"${value:,.2f}" if abs(value) >= 1.0 or value == 0.0 else f"${value:.3g}"
    return units.show(value, dimension)


class Plot(NamedTuple):
    """A figure that is built only where it is shown."""

    key: str
    """Names it on its page, and pairs it with its like of another setting."""
    build: Callable[[], Figure]
    wide: bool = True
    """Over the page's whole width; else two stand side by side on a wide screen."""


class Grid(NamedTuple):
    """Columns of many rows, listed only where somebody wants to see them."""

    title: str
    columns: Callable[[], Mapping[str, Any]]
    """Name → values [rows]."""


class Download(NamedTuple):
    """A file that is made only when somebody asks for it."""

    label: str
    file_name: str
    mime: str
    make: Callable[[], bytes | str]


@dataclass(frozen=True)
class Answer:
    """One setting's result, ready to be shown."""

    verdict: str
    """The finding in one sentence or two."""
    conditions: list[tuple[str, str]]
    """What it holds under."""
    numbers: list[Number]
    plots: list[Plot]
    sections: list[Section] = field(default_factory=list)
    """Tables, folded away."""
    grids: list[Grid] = field(default_factory=list)
    """Long ones, which can be scrolled and sorted."""
    downloads: list[Download] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences that put a figure in question, shown as warnings."""
    code: Mapping[str, str] = field(default_factory=dict)
    """What reproduces it outside the explorer: title → text to copy."""
    complete: bool = True
    """False where it was cut short: shown, but not kept for the next who asks."""
    room: int = 1
    """How much memory it holds on to, in `ROOM_BYTES`."""
    figures: dict[tuple[str, bool], Figure] = field(default_factory=dict, repr=False, compare=False)
    """Figures that were built, by key and whether for a dark page."""

    def figure(self, plot: Plot, *, dark: bool) -> Figure:
        """`plot` without its title, which pages print as text, and in the page's colours; built once."""
        from simulator.figures import style

        if (plot.key, dark) not in self.figures:
            drawn = style.without_title(plot.build())
            drawn = style.dark(drawn) if dark else drawn
            drawn.update_layout(paper_bgcolor="rgba(0,0,0,0)")
            self.figures[plot.key, dark] = drawn
        return self.figures[plot.key, dark]


class Upload(NamedTuple):
    """A file somebody sent: untrusted."""

    name: str
    content: bytes
    digest: str
    """SHA-256 of name and content, by which results are kept."""


Uploads = Mapping[str, Upload]
"""By the field that asked for them."""


@dataclass
class Tell:
    """How a long answer says how far it is, and hears that nobody waits for it any more."""

    what: str = ""
    done: int = 0
    of: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    """Set: end as soon as what has been reached can be kept."""
    asked_s: float = field(default_factory=time.monotonic)
    """When somebody last looked."""

    def __call__(self, what: str, done: int, of: int) -> None:
        """The signature of `serving.simulation.Progress`."""
        self.what, self.done, self.of = what, done, of
        if time.monotonic() - self.asked_s > FORSAKEN_S:  # a closed tab tells nobody
            self.stop.set()

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.of) if self.of else 0.0
