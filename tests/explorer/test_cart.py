"""Two settings differenced: by hand."""

from __future__ import annotations

from simulator.explorer.answer import Number
from simulator.explorer.cart import row


def test_a_row_says_difference_ratio_and_for_whom():
    faster = row(Number("TPOT", 0.010, "s", "lower"), Number("TPOT", 0.008, "s", "lower"))
    assert faster == ("TPOT", "10 ms", "8 ms", "−2 ms", "0.80 × · better")
    dearer = row(Number("Cost", 2.0, "usd", "lower"), Number("Cost", 3.0, "usd", "lower"))
    assert dearer[3:] == ("+\\$1.00", "1.50 × · worse")
    assert row(Number("Gain", 1.5, "x"), Number("Gain", 1.5, "x"))[3:] == ("±0.00", "1.00 ×")


def test_an_absent_figure_has_no_difference():
    assert row(Number("Crossover", None, "", absent="never"), Number("Crossover", 64, ""))[1:] == (
        "never", "64", "–", "–",
    )  # fmt: skip
