"""Validations as one HTML page: predicted against measured, in the style of the other pages."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from simulator.calibration.comparison import Validation
from simulator.figures.html_page import HtmlPart, html_page
from simulator.figures.validation import coverage_figure, errors_figure, points_figure
from simulator.figures.validation_residuals import residual_figures
from simulator.figures.validation_runs import course_figure, quantity_figure, roof_figure
from simulator.figures.validation_sweeps import sweep_figure
from simulator.output.validation_report import as_list, result_sections, verdict

FOOTER = "memwall: predictions held against measurements. Every figure says what it rests on and how its points were kept from the fit."


def validation_page(validations: Validation | Sequence[Validation], reproduce: str) -> str:
    """One validation, or several one below the other, as HTML; `reproduce` is the command that writes the page again."""
    several = as_list(validations)
    parts = [
        HtmlPart(
            title=v.title,
            verdict=verdict(v),
            conditions=[("validated", v.subject), *v.conditions],
            tables=result_sections(v),
            figures=validation_figures(v),
            notes=v.notes,
        )
        for v in several
    ]
    title = "" if len(parts) == 1 else "How far are the predictions from what was measured?"
    return html_page(parts, reproduce, title=title, footer=FOOTER)


def validation_figures(validation: Validation) -> list[go.Figure]:
    """The figures that a `usable` validation has data for: points, errors by label, the roof, whole runs, courses."""
    subject, comparisons = validation.subject, [c for c in validation.comparisons if len(c)]
    found: list[go.Figure | None] = [sweep_figure(validation.sweeps, subject)]
    if comparisons and not validation.sweeps:  # whose figure shows each of these points
        found += [points_figure(comparisons, subject), errors_figure(comparisons, subject)]
        found += [coverage_figure(comparisons, subject), *residual_figures(comparisons, subject)]
    if validation.roof is not None:
        found.append(roof_figure(validation.roof, subject))
    found += [quantity_figure(validation.quantities, subject), course_figure(validation.courses, subject)]
    return [figure for figure in found if figure is not None]
