"""Published sweeps: a few named rows are fitted on and nothing else; the bars that the others have to clear."""

from __future__ import annotations

import csv
import re
from itertools import combinations

import numpy as np
import pytest

from simulator import catalog
from simulator.calibration.comparison import Sweep
from simulator.calibration.host_times import HostTimes
from simulator.calibration.published import VOCABULARY_ROWS, validate_published
from simulator.calibration.published_sweeps import validate_sweeps
from simulator.deployment import deploy
from simulator.engine import load_engine
from simulator.speculation.round import round_cost
from tests.calibration.test_published import CHAIN, PLAIN, write

BUNDLED = catalog.root() / "hardware_profiles" / "measurements" / "published" / "speeds.csv"
LENGTHS = {1: 1.7, 2: 2.1, 3: 2.3, 5: 2.45, 7: 2.5}
KNOWN = HostTimes(0.5e-3, 0.9e-3, 0.0, 0.2e-3, ())


@pytest.fixture(scope="module")
def passes_s():
    """Seconds of a step or round of (batch, γ) without any host time that is fitted."""
    served = deploy("llama-3.1-8b", "h100-sxm", draft="eagle-llama-3.1-8b")
    bare = HostTimes(0.0, 0.0, 0.0, 0.0, ()).of(served.engine)
    found = {}
    for batch in (1, 32):
        for gamma in (0, *LENGTHS):
            law = None
            if gamma:
                share = (LENGTHS[gamma] - 1.0) / gamma
                law = type(served.drafter.acceptance)(marginal=(share,) * gamma).law()
            found[batch, gamma] = round_cost(
                served.target, bare, sequences=batch, context_tokens=400, gamma=gamma, acceptance=law,
                draft=served.draft, drafter=served.drafter,
            ).seconds  # fmt: skip
    return found


def rows(step_s, batches=(1, 32)):
    found = []
    for batch in batches:
        for gamma in (0, *LENGTHS):
            base = CHAIN | {"gamma_or_tree": str(gamma), "accept_len": str(LENGTHS[gamma])} if gamma else PLAIN
            value = f"{1e3 * step_s[batch, gamma]:.9f}"
            found.append(base | {"id": f"x-{batch}-{gamma}", "batch": str(batch), "value": value})
    return found


def test_known_host_times_come_back_from_three_rows(passes_s, tmp_path):
    """Rows made of the passes and known host times are predicted at every γ and batch; ties are broken within 0.05 %."""
    step_s = {(b, g): t + KNOWN.seconds(b, g) for (b, g), t in passes_s.items()}
    validation = validate_sweeps(write(tmp_path / "rows.csv", *rows(step_s)))
    assert [s.batch for s in validation.sweeps] == [1, 32]
    for sweep in validation.sweeps:
        lengths = np.array([1.0, *LENGTHS.values()])
        assert sweep.gamma.tolist() == [0, *LENGTHS]
        assert sweep.measured_s == pytest.approx([step_s[sweep.batch, g] for g in sweep.gamma] / lengths)
        assert sweep.predicted_s == pytest.approx(sweep.measured_s, rel=5e-4)
        assert sweep.training == "batch 1, γ = 0, 1, 7"
    fitted = re.findall(r"(\d\.\d{3}) \(", validation.notes[0])
    assert [float(ms) for ms in fitted] == pytest.approx([0.5, 0.9, 0.2, 0.0], abs=2e-3)
    assert validation.sweeps[0].trained.tolist() == [True, True, False, False, False, True]
    assert not validation.sweeps[1].trained.any()
    assert (
        "x EAGLE-1 trained on",
        "plain decoding, γ = 1 and γ = 7 at batch 1 (x-1-0, x-1-1, x-1-7)",
    ) in validation.conditions
    (one, *_) = validation.slopes
    assert one.measured_s - one.passes_s == pytest.approx(KNOWN.host_draft_pass_s, rel=1e-5)
    assert one.error_s < 0.02 * one.measured_s


def test_what_is_held_out_never_enters_its_prediction(passes_s, tmp_path):
    step_s = {(b, g): t + KNOWN.seconds(b, g) for (b, g), t in passes_s.items()}

    def predicted(**changed):
        moved = {k: 1.5 * t if k == changed.get("key") else t for k, t in step_s.items()}
        return [s.predicted_s for s in validate_sweeps(write(tmp_path / "rows.csv", *rows(moved))).sweeps]

    base = predicted()
    for key in [(1, 2), (1, 3), (1, 5), (32, 0), (32, 1), (32, 7)]:
        for ours, theirs in zip(base, predicted(key=key), strict=True):
            assert np.array_equal(ours, theirs)
    for key in [(1, 0), (1, 1), (1, 7)]:
        assert not np.allclose(base[1], predicted(key=key)[1], rtol=1e-3)


def test_every_other_choice_is_tried(passes_s, tmp_path):
    """All pairs of γ are training rows once; rows on a straight line need no model at one batch, and one at another."""
    step_s = {(b, g): t + KNOWN.seconds(b, g) for (b, g), t in passes_s.items()}
    validation = validate_sweeps(write(tmp_path / "rows.csv", *rows(step_s)))
    found = {(c.what, c.name): c for c in validation.choices}
    one, many = (s.name for s in validation.sweeps)
    pairs = found[one, "plain decoding and two γ"]
    assert len(pairs.mapes) == len(list(combinations(LENGTHS, 2)))
    assert max(pairs.mapes) < 1e-5
    assert pairs.best_right == len(pairs.mapes)
    assert len(found[one, "plain decoding and one γ"].mapes) == len(LENGTHS)
    assert len(found[one, "all but one γ"].mapes) == len(LENGTHS)
    assert max(found[one, "no model: a line through plain decoding's and two γ's steps"].mapes) < 0.01
    assert max(found[many, "each row's own γ at batch 1"].mapes) < 1e-5
    copied = found[many, "no model: as long as at batch 1"]
    assert copied.mapes[0] == pytest.approx(np.mean([1 - step_s[1, g] / step_s[32, g] for g in (0, *LENGTHS)]))
    nothing = found[one, "nothing: passes alone"]
    assert nothing.mapes[0] == pytest.approx(np.mean([1 - passes_s[1, g] / step_s[1, g] for g in (0, *LENGTHS)]))


def test_other_machines_never_mix(passes_s, tmp_path):
    """Rows of another source, engine or model are another machine; what cannot be priced is left out; too few make no sweep."""
    table = rows(passes_s, batches=(1,))
    others = [r | {"id": f"y{r['id']}", "source": "elsewhere"} for r in table]
    odd = table[2] | {"id": "odd", "gamma_or_tree": "6", "accept_len": ""}
    validation = validate_sweeps(write(tmp_path / "rows.csv", *table, *others, odd))
    assert [s.name for s in validation.sweeps] == ["x-1 EAGLE-1, batch 1", "yx-1 EAGLE-1, batch 1"]
    assert [len(s) for s in validation.sweeps] == [6, 6]
    assert any(c.name == "all of batch 1 of another source" for c in validation.choices)
    assert validate_sweeps(write(tmp_path / "few.csv", *table[:3])) is None
    assert validate_sweeps(write(tmp_path / "plain.csv", *table[1:])) is None
    trees = [r | {"method": "tree", "gamma_or_tree": f"{r['gamma_or_tree']}/2/9"} for r in table[1:]]
    assert validate_sweeps(write(tmp_path / "trees.csv", table[0], *trees)) is None


def test_a_sweeps_statistics():
    """By hand: the best γ is measured at 2 and predicted at 3, where a token takes 5 ms instead of 4."""
    sweep = Sweep(
        "s", "t", 1, np.array([0, 2, 3]), np.array([1.0, 2.0, 2.5]), 1e-3 * np.array([8.0, 4.0, 5.0]),
        1e-3 * np.array([8.0, 4.4, 4.0]), np.array([0.0, 0.1, 0.1]), np.array([True, False, False]),
    )  # fmt: skip
    assert (sweep.best_measured, sweep.best_predicted) == (2, 3)
    assert sweep.regret == pytest.approx(0.25)
    assert sweep.held_out.errors == pytest.approx([0.1, -0.2])
    assert sweep.held_out.mape == pytest.approx(0.15)
    assert sweep.whole.mape == pytest.approx(0.10)
    assert sweep.speedups(sweep.measured_s) == pytest.approx([1.0, 2.0, 1.6])
    low, high = sweep.limits_s
    assert low[0] == high[0] == pytest.approx(8e-3)
    assert high[1] / low[1] == pytest.approx(np.exp(2 * 1.6448536 * 0.1))


# --- the bars -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(memwall_data):
    return validate_sweeps(memwall_data / "published" / "measurements.csv")


def by_name(real):
    return {s.name: s for s in real.sweeps}


def test_training_rows_are_named(real):
    named = dict(real.conditions)
    assert "vllm20780-v, vllm20780-e1-2, vllm20780-e1-7" in named["vllm20780 EAGLE-1 trained on"]
    assert "vllm-dsd-1-0, vllm-dsd-1-1, vllm-dsd-1-7" in named["vllm-dsd EAGLE-1 trained on"]
    trained = {s.name: s.gamma[s.trained].tolist() for s in real.sweeps}
    assert trained == {
        "vllm20780 EAGLE-1, batch 1": [0, 2, 7], "vllm-dsd EAGLE-1, batch 1": [0, 1, 7], "vllm-dsd EAGLE-1, batch 32": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["vllm20780 EAGLE-1, batch 1", "vllm-dsd EAGLE-1, batch 1"])
def test_the_sweep_over_gamma_is_within_5_percent_and_its_best_gamma_right(real, name):
    sweep = by_name(real)[name]
    assert len(sweep.held_out) >= 3
    assert sweep.held_out.mape <= 0.05
    assert sweep.whole.mape <= 0.05
    assert sweep.best_predicted == sweep.best_measured == 3


def test_batch_32_is_within_10_percent_of_what_batch_1_says(real):
    sweep = by_name(real)["vllm-dsd EAGLE-1, batch 32"]
    assert len(sweep.held_out) == len(sweep) == 6
    assert np.abs(sweep.held_out.errors).max() <= 0.10
    assert sweep.best_predicted == sweep.best_measured


def test_no_choice_of_training_rows_breaks_the_bars(real):
    """Two γ, whichever: 5 % of the sweep and 10 % of every row at batch 32. Without a model batch 32 is missed by more."""
    found = {(c.what, c.name): c for c in real.choices}
    for name in ("vllm20780 EAGLE-1, batch 1", "vllm-dsd EAGLE-1, batch 1"):
        assert max(found[name, "plain decoding and two γ"].mapes) <= 0.05
    many = "vllm-dsd EAGLE-1, batch 32"
    for way in (
        "plain decoding and one γ",
        "plain decoding and two γ",
        "each row's own γ at batch 1",
        "all of batch 1",
    ):
        assert abs(found[many, way].worst) <= 0.10
    assert abs(found[many, "no model: as long as at batch 1"].worst) > 0.10


def test_intervals_hold_what_they_claim(real):
    """13 points: at 90 % at least 10 of them, up to chance (binomial, 3.4 %)."""
    inside = [
        bool(low <= measured <= high)
        for s in real.sweeps
        for measured, low, high, trained in zip(s.measured_s, *s.limits_s, s.trained, strict=True)
        if not trained
    ]
    assert len(inside) == 13
    assert sum(inside) >= 10


def test_a_draft_pass_takes_longer_than_its_bytes(real):
    """Measured slopes lie above the predicted passes, these above the datasheet's bandwidth; the rest is near the profile's."""
    for slope in real.slopes:
        assert slope.datasheet_s < slope.passes_s < slope.measured_s
    rest = [s.measured_s - s.passes_s for s in real.slopes if s.batch == 1]
    assert rest == pytest.approx([load_engine("vllm").host_draft_pass_s] * 2, rel=0.25)


# --- rows of our own ------------------------------------------------------------------------------------------------------
def test_bundled_rows_have_their_source_and_their_words():
    with BUNDLED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows) >= 20
    for row in rows:
        assert row["url"].startswith("https://"), row["id"]
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["date"]), row["id"]
        assert row["value"] in row["quote"], row["id"]
        assert not row["gamma_or_tree"] or row["accept_len"].rstrip("0") in row["quote"], row["id"]


def test_bundled_rows_are_all_read_and_none_is_fitted_on_itself():
    validation = validate_published(BUNDLED)
    assert validation.conditions[0][1].endswith(" 0 dropped")
    assert {q.basis for q in validation.quantities} <= {"not fitted on", "left out of the fit", "not predicted"}
    predicted = [q for q in validation.quantities if q.predicted is not None]
    errors = np.array([q.error for q in predicted if "EAGLE-3" not in q.name])
    assert len(errors) >= 14
    assert np.median(np.abs(errors)) < 0.15
    inside = [q.low <= q.measured <= q.high for q in predicted]
    assert f"they hold {sum(inside)} of {len(inside)} figures" in dict(validation.conditions)["intervals"]


def test_eagle_3_by_one_figure_fitted_on_two_rows():
    """The profile's `host_reduced_vocabulary` rests on γ = 2 and 7; γ = 3 to 6 are predicted, and those two each by the other."""
    found = {q.name.split(":")[0]: q for q in validate_published(BUNDLED).quantities}
    rows = {id: q for id, q in found.items() if id.startswith("vllm20780-e3")}
    assert [id for id, q in rows.items() if q.basis == "left out of the fit"] == list(VOCABULARY_ROWS)
    between = {id: q for id, q in rows.items() if id not in VOCABULARY_ROWS}
    assert np.abs([q.error for q in between.values()]).max() <= 0.05
    assert np.abs([rows[id].error for id in VOCABULARY_ROWS]).max() <= 0.10
    best = min(rows, key=lambda id: rows[id].measured)
    assert min(rows, key=lambda id: rows[id].predicted) == best
