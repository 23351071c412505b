"""Validations in words and rows: statistics equal hand-computed ones, no miss is hidden, files hold every point."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.calibration.comparison import Comparison, Course, Quantity, Validation
from simulator.output import documents
from simulator.output.columns import write_columns
from simulator.output.tables import Section, print_blocks
from simulator.output.validation_document import comparison_columns, validation_document
from simulator.output.validation_report import (
    amount,
    comparison_table,
    quantity_table,
    usable,
    validation_report,
    verdict,
)
from tests.validation_sample import comparison, sample


def by_hand(**changes: Any) -> Comparison:
    """Errors +10 %, −20 %, 0, +30 %; the intervals hold the first and the third."""
    fields: dict[str, Any] = {
        "name": "steps", "measured_s": np.array([1.0, 1.0, 2.0, 1.0]), "predicted_s": np.array([1.1, 0.8, 2.0, 1.3]),
        "basis": "held out by batch", "labels": {"batch": np.array([1, 2, 4, 8]), "model": np.array(list("abcd"))},
        # A factor of 1.15 at 90 %.
        "log_sd": math.log(1.15) / 1.6448536269514722, **changes,
    }  # fmt: skip
    return Comparison(**fields)


def only(comparisons: list[Comparison], **changes: Any) -> Validation:
    return Validation("title", "subject", comparisons=comparisons, **changes)


def section(validation: Validation, title: str) -> Section:
    return next(b for b in validation_report(validation) if isinstance(b, Section) and b.title.startswith(title))


def test_the_table_holds_the_statistics_computed_by_hand() -> None:
    table = comparison_table([by_hand()])
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert row["n"] == "4"
    assert row["MAPE"] == "15.0%"  # (10 + 20 + 0 + 30) / 4
    assert row["median"] == "15.0%"  # between 10 and 20
    assert row["p95"] == "28.5%"  # 20 + 0.85 · (30 − 20)
    assert row["bias"] == f"{(1.1 * 0.8 * 1.3) ** 0.25 - 1:+.1%}"
    assert row["worst"] == "+30.0%"
    assert row["90% factor"] == "1.150"
    assert row["holds"] == "50.0%"


def test_the_verdict_of_one_comparison() -> None:
    assert verdict(only([by_hand()])) == (
        "Steps (held out by batch): 15.0% mean error over 4 points, worst +30.0%; 50% of points inside their 90% interval."
    )
    assert "no interval is claimed" in verdict(only([by_hand(log_sd=None)]))


def test_the_verdict_of_several_names_the_best_and_the_worst() -> None:
    better = by_hand(name="draft passes", predicted_s=np.array([1.02, 0.98, 2.04, 0.98]))
    text = verdict(only([by_hand(), better]))
    assert text.startswith(
        "Mean error 2.0% (draft passes) to 15.0% (steps) over 8 points in 2 comparisons, none fitted on;"
    )
    assert "worst +30.0% (steps)" in text
    assert "90% intervals hold 50% (steps) to 100% (draft passes) of their points" in text


def test_the_verdict_does_not_rest_on_what_was_fitted() -> None:
    flattering = by_hand(name="training", predicted_s=np.array([1.0, 1.0, 2.0, 1.0]), basis="fitted on these")
    assert verdict(only([flattering, by_hand()])) == verdict(only([by_hand()]))
    assert "fitted on these very measurements" in verdict(only([flattering]))
    assert "fitted on these very measurements" not in verdict(only([by_hand()]))


def test_the_verdict_of_whole_runs() -> None:
    quantities = [
        Quantity(n, "s", 1.0, p, "not fitted on") for n, p in (("a", 1.04), ("b", 0.75), ("c", 1.09), ("d", None))
    ]
    assert verdict(only([], quantities=quantities)) == (
        "2 of 3 figures of whole runs within 10%, median error 9.0%, worst −25.0% (b)."
    )


def test_nothing_compared_is_said() -> None:
    empty = Validation("title", "subject")
    assert verdict(empty) == "Nothing was compared."
    assert next(b for b in validation_report(empty) if isinstance(b, Section)).table.rows == [("validated", "subject")]
    none = only([by_hand().where(np.zeros(4, bool), "steps")])
    assert comparison_table(none.comparisons).rows == [("steps", "held out by batch", "0", *"–––––––")]
    assert verdict(none) == "Nothing was compared."


def test_courses_alone_give_the_verdict() -> None:
    course = Course("running", "requests", np.arange(3.0), np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert verdict(only([], courses=[course])) == "Running: 1 requests apart on average over 3 points."


def test_the_ten_worst_points_stand_in_order_with_their_labels() -> None:
    validation = sample()
    rows = section(validation, "The 10 points").table.rows
    shown = [float(row[4].rstrip("%")) / 100 for row in rows]
    every = np.concatenate([c.errors for c in validation.comparisons])
    expected = every[np.argsort(-np.abs(every))][:10]
    assert shown == pytest.approx(expected.tolist(), abs=0.0006)
    first = validation.comparisons[1]
    i = int(np.abs(first.errors).argmax())
    assert rows[0][1] == (
        f"batch {first.labels['batch'][i]}, tokens {first.labels['tokens'][i]}, "
        f"context {first.labels['context_tokens'][i]:,} tokens, {first.labels['model'][i]}"
    )
    assert section(only([by_hand()]), "The 4 points").table.rows[-1][4:] == ("+0.0%", "yes")


def test_coverage_is_what_was_put_in() -> None:
    # Quantiles of the claimed law, so exactly nine tenths of 800 points lie inside; with a claim half as wide, the share
    # that a normal law has within 1.645 / 2 standard deviations.
    rows = {
        row[0]: row[-1]
        for row in comparison_table(
            [comparison("a", sd=0.05, claimed=0.05), comparison("b", sd=0.08, claimed=0.04)]
        ).rows
    }
    assert rows["a"] == "90.0%"
    assert float(rows["b"].rstrip("%")) / 100 == pytest.approx(math.erf(1.6448536 / 2 / math.sqrt(2)), abs=1 / 800)


def test_points_without_an_error_are_counted_out() -> None:
    broken = by_hand(predicted_s=np.array([1.1, np.nan, 0.0, 1.3]))
    found = usable(only([broken], notes=["a note"]))
    assert len(found.comparisons[0]) == 2
    assert found.notes == [
        "a note",
        "Left out: 2 of 4 points of steps without a positive finite time, measured and predicted.",
    ]
    assert found.comparisons[0].labels["batch"].tolist() == [1, 8]
    assert any("Left out: 2 of 4" in str(b) for b in validation_report(only([broken])))


def test_quantities_with_units_intervals_and_without_a_prediction() -> None:
    quantities = [
        Quantity("TPOT", "s", 0.0125, 0.0130, "not fitted on", 0.0120, 0.0140),
        Quantity("throughput", "tokens/s", 2310.0, 2000.0, "not fitted on"),
        Quantity("speed-up", "×", 1.7, None, "fitted on these", note="no drafter"),
        Quantity("preemptions", "", 0.0, 3.0, "not fitted on"),
    ]
    assert quantity_table(quantities).rows == [
        ("TPOT", "12.5 ms", "13 ms", "+4.0%", "12 – 14 ms", "not fitted on", ""),
        ("throughput", "2,310 tokens/s", "2,000 tokens/s", "-13.4%", "–", "not fitted on", ""),
        ("speed-up", "1.7 ×", "–", "–", "–", "fitted on these", "no drafter"),
        ("preemptions", "0", "3", "–", "–", "not fitted on", ""),
    ]
    assert quantity_table(quantities[1:2]).headers == ("", "measured", "predicted", "error")
    assert amount(0.0004, "s") == "400 µs"
    assert amount(math.nan, "s") == "–"


@pytest.mark.parametrize("width", [60, 120])
def test_lines_are_no_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_blocks(validation_report([sample(), sample("another")]))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    for words in (
        "whole steps",
        "draft passes",
        "p95 TTFT",
        "no link profile",
        "KV cache filled",
        "Note: 12 shapes",
        "another",
    ):
        assert words in text


def test_the_document_is_strict_json_with_every_figure() -> None:
    text = documents.to_json(validation_document(sample()))
    loaded = json.loads(text)
    assert loaded["schema"] == "memwall.validation/1"
    (one,) = loaded["validations"]
    assert one["verdict"] == verdict(sample())
    steps, drafts, rounds = one["comparisons"]
    assert steps["points"] == 800
    assert steps["coverage"] == {f"{p:g}": pytest.approx(p, abs=1 / 800) for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}
    assert drafts["bias"] == pytest.approx(math.exp(0.02) - 1, abs=1e-9)
    assert rounds["coverage"] is None
    assert one["quantities"][-1]["predicted"] is None
    assert one["quantities"][0]["error"] == pytest.approx(2342 / 2310 - 1)
    assert len(one["courses"][0]["time_s"]) == 184
    assert one["roof"]["points"] == 300
    assert text == documents.to_json(validation_document([sample()]))


def test_rows_hold_every_point_and_read_back_equal(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    other = by_hand(labels={"sequences": np.array([1, 2, 3, 4]), "error": np.array(["w", "x", "y", "z"])}, log_sd=None)
    columns = comparison_columns([sample(), only([other])])
    assert {len(column) for column in columns.values()} == {2404}
    assert columns["error"][:800] == pytest.approx(sample().comparisons[0].errors)
    assert np.isnan(columns["low_s"][-4:]).all()
    assert columns["batch"][0] == sample().comparisons[0].labels["batch"][0]
    assert columns["batch"][-1] is None
    assert columns["label_error"][-1] == "z"
    inside = (columns["low_s"] <= columns["measured_s"]) & (columns["measured_s"] <= columns["high_s"])
    assert inside[:800].sum() == 720
    write_columns(columns, str(tmp_path / "a.parquet"))
    write_columns(columns, str(tmp_path / "a.csv"))
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(table) == 2404
    for line, row in zip(lines, table, strict=True):
        assert line == {name: "" if value is None else str(value) for name, value in row.items()}


def test_labels_of_several_types_become_text() -> None:
    first, second = by_hand(labels={"k": np.array([1, 2, 3, 4])}), by_hand(labels={"k": np.array(list("abcd"))})
    assert comparison_columns(only([first, second]))["k"].tolist() == [*"1234", *"abcd"]
    third = by_hand(labels={"k": np.array([0.5, 1.5, 2.5, 3.5])})
    assert comparison_columns(only([first, third]))["k"].tolist() == [1.0, 2.0, 3.0, 4.0, 0.5, 1.5, 2.5, 3.5]


def test_no_points_are_no_rows() -> None:
    columns = comparison_columns(replace(sample(), comparisons=()))
    assert {len(column) for column in columns.values()} == {0}
