"""What the figures behind a prediction rest on, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import plotly.graph_objects as go

from simulator.calibration.provenance import Stated
from simulator.figures import style
from simulator.figures.validation import name_rows
from simulator.output.evidence_report import KINDS

KIND_COLOURS = {
    "measured": style.GREEN, "fitted": style.BLUE, "datasheet": style.SKY, "price-list": style.PINK,
    "configuration": style.GREY, "estimate": style.ORANGE,
}  # fmt: skip
_ROW_PX = 44


def provenance_figure(rows: Sequence[Stated]) -> go.Figure:
    """How many figures of each subject are measured, fitted, from a datasheet or estimated."""
    groups = list(dict.fromkeys(_group(row) for row in rows))
    counted = Counter((_group(row), row.kind) for row in rows)
    figure = go.Figure()
    for kind, colour in KIND_COLOURS.items():
        numbers = [counted[group, kind] for group in groups]
        if any(numbers):
            figure.add_bar(
                y=list(range(len(groups))), x=numbers, orientation="h", name=KINDS[kind], width=0.4,
                marker={"color": colour, "pattern": {"shape": "/" if kind == "estimate" else ""}},
                customdata=[style.text(group) for group in groups],
                hovertemplate=f"%{{customdata}}: %{{x}} {KINDS[kind]}<extra></extra>",
            )  # fmt: skip
    name_rows(figure, [style.text(group) for group in groups], 0.0)
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="figures")
    weak = max(groups, key=lambda group: counted[group, "estimate"])
    estimated = counted[weak, "estimate"]
    finding = (
        f"Most of what is estimated or set is in {weak}: {estimated} of its {sum(counted[weak, k] for k in KINDS)} figures"
        if estimated
        else "Nothing is estimated or set"
    )
    style.finish(
        figure, finding=finding, tag="profiles of this version; the table names the source of each figure",
        height=100 + _ROW_PX * len(groups),
    )  # fmt: skip
    return style.legend_below(figure, offset=-70 / (_ROW_PX * len(groups)))


def _group(row: Stated) -> str:
    """A calibration's sections together; everything else by itself."""
    head, _, section = row.subject.partition(", ")
    if not row.subject.startswith("calibration "):
        return row.subject
    taken = section.partition("; ")[2]
    return f"{head}; {taken}" if taken else head
