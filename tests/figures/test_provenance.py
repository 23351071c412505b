"""Figures counted by what they rest on."""

from __future__ import annotations

import csv
import io

from simulator.calibration.provenance import Stated, provenance
from simulator.figures.provenance import provenance_figure
from simulator.output.evidence_report import columns_csv, provenance_columns, provenance_sentence


def stated(subject, kind):
    return Stated(subject, "a figure", "1 GB/s", kind, "a document", "", "2026", "")


def test_bars_count_the_figures_of_each_subject():
    rows = [
        stated("card", "datasheet"), stated("card", "datasheet"), stated("card", "estimate"),
        stated("calibration x, matmul", "fitted"), stated("calibration x, attention", "fitted"),
    ]  # fmt: skip
    figure = provenance_figure(rows)
    bars = {trace.name: list(trace.x) for trace in figure.data if trace.type == "bar"}
    assert bars == {"from datasheets": [2, 0], "fitted to measurements": [0, 2], "estimated or set": [1, 0]}
    assert figure.layout.meta["finding"].endswith("card: 1 of its 3 figures")
    assert provenance_sentence(rows) == (
        "Of 5 figures, 2 are from datasheets, 2 are fitted to measurements and 1 is estimated or set."
    )


def test_no_figure_is_lost_between_table_and_bars():
    rows = provenance("h200", "vllm", "llama-3.1-8b")
    figure = provenance_figure(rows)
    assert sum(sum(trace.x) for trace in figure.data if trace.type == "bar") == len(rows)
    read = list(csv.reader(io.StringIO(columns_csv(provenance_columns(rows)))))
    assert len(read) == len(rows) + 1
    assert [tuple(row) for row in read[1:]] == [tuple(row) for row in rows]
