"""Sweeps over γ in tables and documents: training rows are marked, errors are those computed by hand, nothing is hidden."""

from __future__ import annotations

import json

import numpy as np

from simulator.calibration.comparison import Choices, DraftSlope, Sweep, Validation
from simulator.output.documents import to_json
from simulator.output.tables import Section, print_blocks
from simulator.output.validation_document import validation_document
from simulator.output.validation_report import validation_report, verdict
from simulator.output.validation_sweeps import choices_table, points_table, slopes_table, summary_table


def sweep(**changes: object) -> Sweep:
    """Errors 0, +10 %, −20 %; the interval (±15 %) holds the second point; best γ measured 2, predicted 3."""
    fields: dict[str, object] = {
        "name": "some head, batch 4", "training": "batch 4, γ = 0", "batch": 4, "gamma": np.array([0, 2, 3]),
        "tokens": np.array([1.0, 2.0, 2.5]), "measured_s": 1e-3 * np.array([8.0, 4.0, 5.0]),
        "predicted_s": 1e-3 * np.array([8.0, 4.4, 4.0]), "log_sd": np.full(3, np.log(1.15) / 1.6448536269514722),
        "trained": np.array([True, False, False]), **changes,
    }  # fmt: skip
    return Sweep(**fields)  # type: ignore[arg-type]


def validation(*sweeps: Sweep) -> Validation:
    return Validation(
        "Sweeps", "constants", comparisons=[s.held_out for s in sweeps], sweeps=sweeps,
        choices=[
            Choices("two γ", "some head, batch 4", (0.01, 0.02, 0.06), -0.09, 2),
            Choices("no model", "some head, batch 4", (0.2,), 0.31),
        ],
        slopes=[DraftSlope("some head, batch 4", 4, 700e-6, 20e-6, 500e-6, 1.5e9, 450e-6)],
    )  # fmt: skip


def test_every_point_says_what_it_was_used_for() -> None:
    table = points_table([sweep()])
    body = [dict(zip(("name", "γ", "role", "tokens", "measured", "predicted", "error", "interval", "up", "to"), row, strict=True))
            for row in table.rows]  # fmt: skip
    assert [row["role"] for row in body] == ["training", "held out", "held out"]
    assert [row["γ"] for row in body] == ["0", "2", "3"]
    assert [row["error"] for row in body] == ["+0.0%", "+10.0%", "-20.0%"]
    assert [row["measured"] for row in body] == ["8.000", "4.000", "5.000"]
    assert body[1]["interval"] == f"{4.4 / 1.15:.3f} – {4.4 * 1.15:.3f}"
    assert [row["up"] for row in body] == ["1.00", "2.00", "1.60"]
    assert [row["to"] for row in body] == ["1.00", "1.82", "2.00"]
    without = sweep(gamma=np.array([1, 2, 3]))
    assert {row[-1] for row in points_table([without]).rows} == {"–"}


def test_the_summary_counts_held_out_points_only() -> None:
    (row,) = summary_table([sweep()]).rows
    assert row == ("some head, batch 4", "batch 4, γ = 0", "2", "15.0%", "10.0%", "-20.0%", "2", "3", "25.0%", "50%")
    (row,) = summary_table([sweep(trained=np.array([True, True, True]))]).rows
    assert row[2:6] == ("0", "–", "10.0%", "–")
    assert row[-1] == "–"


def test_other_choices_and_slopes() -> None:
    first, second = choices_table(validation(sweep()).choices).rows
    assert first == ("some head, batch 4", "two γ", "3", "1.0% – 6.0%", "2.0%", "-9.0%", "2 of 3")
    assert second == ("", "no model", "1", "20.0%", "–", "+31.0%", "–")
    (row,) = slopes_table(validation(sweep()).slopes).rows
    assert row[1:4] == ("700 µs ± 20 µs", "500 µs", "200 µs")


def test_the_report_shows_each_table_and_the_verdict_the_misses(capsys) -> None:
    found = validation(sweep())
    titles = [block.title for block in validation_report(found) if isinstance(block, Section)]
    assert titles[1:] == ["Sweeps over γ", "Time per token in ms, by γ and batch", "Other training rows",
                          "What one more draft adds to a round"]  # fmt: skip
    assert "the best γ found in 0 of 1 sweeps (some head, batch 4: 3 for 2, which costs 25.0%)" in verdict(found)
    assert "the best γ found in the sweep (2)" in verdict(validation(sweep(predicted_s=sweep().measured_s)))
    print_blocks(validation_report(found))
    assert "held out" in capsys.readouterr().out


def test_the_document_holds_every_point() -> None:
    document = json.loads(to_json(validation_document(validation(sweep()))))
    (found,) = document["validations"][0]["sweeps"]
    assert found["gamma"] == [0, 2, 3]
    assert found["trained"] == [True, False, False]
    assert found["best_measured"] == 2
    assert found["mape_held_out"] == 0.15 or abs(found["mape_held_out"] - 0.15) < 1e-12
    assert document["validations"][0]["choices"][0]["mapes"] == [0.01, 0.02, 0.06]
    assert document["validations"][0]["draft_slopes"][0]["weight_bytes"] == 1.5e9
