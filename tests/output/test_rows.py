"""Conditions in words."""

import pytest

from simulator.output.rows import acceptance_text
from simulator.records import validate
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, RecordedAcceptance
from simulator.speculation.recording import Recording


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"alpha": 0.8}, "conditional acceptance 0.8 at every depth"),
        ({"conditional": [0.8, 0.7]}, "conditional acceptance 0.8, 0.7 by depth"),
        ({"alpha": 0.8, "request_icc": 0.057631}, "0.8 at every depth, intraclass correlation 0.0576 within a request"),
        ({"alpha": 0.8, "match_probability": 0.4}, "a draft found in 40% of rounds"),
        ({"alpha": 0.8, "match_probability": 0.4, "match_tokens": 12.5}, "a draft found at 40% of positions in stretches of 12.5 tokens"),
        ({"alpha": 0.8, "stretch_icc": 0.3, "stretch_tokens": 50}, "30% of a request's own variance between stretches of 50 tokens"),
        ({"alpha": 0.8, "repetition": {"every_tokens": 2000, "tokens": 300, "conditional": 0.98}}, "0.98 in loops of 300 tokens that begin every 2,000"),
        ({"alpha": 0.8, "request_icc": 0.1, "answer_length": {"correlation": 0.5, "median_tokens": 100, "log_std": 1}}, "luck correlated 0.5 with the length"),
    ],
)  # fmt: skip
def test_all_that_departs_from_independence_is_said(fields, said):
    assert said in acceptance_text(validate(AcceptanceConfig, fields, "").law())


def test_a_replay_is_no_law_of_rates():
    recording = Recording(((1, 2), (0, 2, 1)), ((2, 2), (2, 2, 2)), 2, "x")
    assert acceptance_text(RecordedAcceptance.of(recording)) == (
        "rounds of 2 recorded requests, replayed: conditional acceptance 0.8, 0.5 by depth over all of them"
    )


def test_many_depths_are_cut_short():
    text = acceptance_text(Acceptance(tuple(0.9 - 0.01 * n for n in range(20))))
    assert text.endswith("0.84, 0.83, … by depth")
