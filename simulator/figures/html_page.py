"""One HTML file that needs no network.

plotly.js is written into the file once. A content security policy forbids every request, so that a page which would
load anything shows it at once instead of working only where there is a network.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from simulator.figures import style
from simulator.output.tables import Section

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
SIMULATED = "memwall: simulated, not measured. Every figure says what its times rest on."
_WORDS = 32
"""Characters from which a cell is a sentence and may be broken, in a table whose columns otherwise must not."""

_LONG = 90
"""Characters from which a condition has a line of its own."""


@dataclass(frozen=True)
class HtmlPart:
    """What a page shows of one result."""

    title: str
    verdict: str
    conditions: Sequence[tuple[str, str]]
    tables: Sequence[Section]
    figures: Sequence[go.Figure]
    notes: Sequence[str] = ()
    """Sentences; lines after a first one are text to copy, such as YAML."""


def html_page(parts: Sequence[HtmlPart], reproduce: str, *, title: str = "", footer: str = SIMULATED) -> str:
    """One part, or several below `title` and a list of their verdicts; `reproduce` is code that gives the page again."""
    title = title or parts[0].title
    assets = resources.files("simulator.figures")
    css, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = [f"<h1>{_escape(title)}</h1>"]
    if len(parts) > 1:
        entries = (
            f'<li><a href="#part-{i}">{_escape(p.title)}</a>: {_escape(p.verdict)}</li>' for i, p in enumerate(parts)
        )
        body += ['<nav aria-label="Parts of this page"><ol class="parts">', *entries, "</ol></nav>"]
    drawn = 0
    for i, part in enumerate(parts):
        if len(parts) == 1:
            body += _part(part, level=2, first_figure=drawn)
        else:
            body += [
                f'<article id="part-{i}" aria-labelledby="title-{i}"><h2 id="title-{i}">{_escape(part.title)}</h2>'
            ]
            body += [*_part(part, level=3, first_figure=drawn), "</article>"]
        drawn += len(part.figures)
    body += [
        '<section aria-label="Reproduce"><h2>What reproduces this page</h2>',
        f"<pre><code>{_escape(reproduce)}</code></pre></section>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_escape(title)}</title>",
            f"<style>{css}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            f"<footer>{_escape(footer)}</footer>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _part(part: HtmlPart, *, level: int, first_figure: int) -> list[str]:
    """Verdict, conditions, tables, notes and figures; headings begin at `level`."""
    lines = [f'<p class="verdict">{_escape(part.verdict)}</p>']

    def section(name: str, opening: str, inner: Iterable[str], closing: str) -> None:
        lines.extend(
            [f'<section aria-label="{name}"><h{level}>{name}</h{level}>{opening}', *inner, f"{closing}</section>"]
        )

    rows = (f"<div{_long(v)}><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in part.conditions)
    section("Conditions", '<dl class="conditions">', rows, "</dl>")
    if part.tables:
        section("Results", '<div class="tables">', (_section(table, level + 1) for table in part.tables), "</div>")
    if part.notes:
        section("Notes", '<ul class="notes">', map(_note, part.notes), "</ul>")
    if part.figures:
        numbered = enumerate(part.figures, first_figure)
        section("Figures", '<div class="figures">', (_figure(figure, i, level + 1) for i, figure in numbered), "</div>")
    return lines


def _note(note: str) -> str:
    sentence, _, lines = note.partition("\n")
    return f"<li>{_escape(sentence)}{f'<pre><code>{_escape(lines)}</code></pre>' if lines else ''}</li>"


def _figure(figure: go.Figure, index: int, level: int) -> str:
    meta = figure.layout.meta
    plot = style.without_title(figure)
    # A "<" inside a script element could end it; JSON may write it as an escape.
    data = str(plot.to_json()).replace("<", "\\u003c")
    return (
        f'<figure aria-labelledby="finding-{index}">'
        f'<figcaption><h{level} id="finding-{index}">{_escape(meta["finding"])}</h{level}><p>{_escape(meta["tag"])}</p></figcaption>'
        f'<div class="scroll"><div class="plot" id="plot-{index}" '
        f'style="height:{plot.layout.height:.0f}px;min-width:{meta["least_width"]}px"></div></div>'
        f'<script type="application/json" data-plot="plot-{index}">{data}</script>'
        "</figure>"
    )


def _section(section: Section, level: int) -> str:
    table = section.table
    title = f"<h{level}>{_escape(section.title)}</h{level}>" if section.title else ""
    # What a terminal sets apart by spaces, a browser would run together.
    note = _escape(re.sub(r"\s{2,}", " · ", section.note))
    note = f'<p class="note">{note}</p>' if note else ""
    # Figures in columns must not break; two columns of words may.
    many = len(table.headers) > 2
    head = "".join(f'<th scope="col">{_escape(h)}</th>' for h in table.headers)
    lines = "".join(
        f'<tr><th scope="row"{_words(row[0])}>{_escape(row[0])}</th>'
        + "".join(f"<td{_words(cell)}>{_escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="{"wide" if many else "narrow"}">{title}<div class="scroll{" grid" if many else ""}">{inner}</div>{note}</div>'


def _words(text: str) -> str:
    return ' class="words"' if len(text) > _WORDS else ""


def _long(text: str) -> str:
    return ' class="long"' if len(text) > _LONG else ""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
