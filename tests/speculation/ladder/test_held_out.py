"""Held-out judgement: folds that part the requests, laws that see nothing of what they predict, and the public answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError, UnknownName
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.ladder.held_out import BARS, chosen, cut_at, dealt, held_out
from simulator.speculation.ladder.logs import read_log
from simulator.speculation.ladder.result import fit_log
from simulator.speculation.ladder.rounds import Rounds
from simulator.speculation.ladder.rungs import Loops, RateByDepth, Replayed
from simulator.speculation.recording import Recording
from tests.speculation.ladder.test_rungs import recording_of

SMALL = recording_of(Acceptance((0.8, 0.6), request_icc=0.1), 2, 60)


@given(st.integers(40, 90), st.integers(2, 5), st.integers(0, 100))
def test_folds_part_the_requests_evenly(requests, folds, seed):
    rounds = Rounds.of(recording_of(Acceptance((0.5,)), 1, requests))
    parts = dealt(rounds, folds, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(requests))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # Alike in length: of each run of neighbours in length, one goes to each fold.
    medians = [np.median(rounds.answer_tokens[part]) for part in parts]
    assert max(medians) <= np.quantile(rounds.answer_tokens, 0.5 + 2 * folds / requests)


def test_every_request_is_predicted_once_with_its_own_tokens():
    found = held_out(SMALL, folds=3, kinds=[RateByDepth])
    assert sorted(found.actual.sums.tokens.tolist()) == sorted(Rounds.of(SMALL).answer_tokens.tolist())
    for recorded, predicted in zip(found.folds, found.predictions[0].folds, strict=True):
        assert predicted.answer_tokens.tolist() == np.tile(recorded.answer_tokens, 10).tolist()


def test_a_law_does_not_see_what_it_predicts():
    # All first drafts kept in one request, none in the others: a law that saw a fold would know.
    accepted = tuple((1,) * 30 if r == 0 else (0,) * 30 for r in range(60))
    recording = Recording(accepted, tuple((1,) * 30 for _ in range(60)), 1, "by hand")
    found = held_out(recording, folds=3, kinds=[RateByDepth], depths=False)
    own = [fold for fold, rounds in enumerate(found.folds) if rounds.tokens.max() > 1]
    assert len(own) == 1
    assert found.predictions[0].by_fold[own[0]].mean == 1.0


def test_seeds_decide_everything():
    first, again, other = (held_out(SMALL, folds=2, seed=s, kinds=[RateByDepth]).predictions[0] for s in (1, 1, 2))
    assert np.array_equal(first.folds[0].tokens, again.folds[0].tokens)
    assert not np.array_equal(first.folds[0].tokens, other.folds[0].tokens)


def test_prediction_of_depths_that_were_not_fitted():
    # A rate that does not change with depth is told by the first drafts alone.
    recording = recording_of(Acceptance((0.7,)), 4, 200)
    found = held_out(recording, folds=2, kinds=[RateByDepth, Replayed])
    assert found.cut_gamma == 2
    assert found.predictions[0].at_depth == pytest.approx(found.actual.mean, rel=0.02)
    assert found.predictions[1].at_depth is None


def test_cutting_and_choosing():
    recording = Recording(((4, 1, 0), (2, 3)), ((4, 4, 0), (4, 4)), 4, "by hand")
    cut = cut_at(recording, 2)
    assert (cut.accepted, cut.drafted, cut.gamma) == (((2, 1, 0), (2, 2)), ((2, 2, 0), (2, 2)), 2)
    assert chosen(recording, np.array([1])).accepted == ((2, 3),)


def test_bars():
    found = held_out(SMALL, folds=2, kinds=[RateByDepth])
    prediction = found.predictions[0]
    together, least, median, most = found.misses(prediction, "mean")
    assert together == pytest.approx(prediction.together.mean / found.actual.mean - 1)
    assert least <= median <= most
    assert found.meets_bars(prediction) == all(
        abs(found.misses(prediction, name)[0]) <= bar for name, bar in BARS.items()
    )


@pytest.mark.parametrize("folds", [1, 4, 60])
def test_too_many_folds(folds):
    with pytest.raises(InputError, match=f"folds={folds} must be 2 to a 20th of the 60 requests"):
        held_out(SMALL, folds=folds)


# A log's law


def test_which_rung_a_scenario_gets():
    assert isinstance(fit_log(SMALL, "x", folds=2, rung="depths", depths=False).chosen, RateByDepth)
    replay = fit_log(SMALL, "x.jsonl", folds=2, rung="replay", depths=False)
    assert replay.config.replay.path == "x.jsonl"
    few = fit_log(Recording(((1, 0),), ((2, 2),), 2, "one"), "x")
    assert few.judged is None
    assert isinstance(few.chosen, RateByDepth)
    with pytest.raises(InputError, match="rung='matches' must be one that this log can fit"):
        fit_log(SMALL, "x", folds=2, rung="matches")
    with pytest.raises(UnknownName, match="did you mean loops"):
        fit_log(SMALL, "x", rung="loop")


# The public answers: Vicuna-7B with EAGLE-1's tree and with a drafter of 68 M parameters, 480 questions


@pytest.mark.parametrize("seed", [0])
def test_the_public_answers_of_eagle(memwall_data, seed):
    recording = read_log(memwall_data / "acceptance" / "spec-bench" / "vicuna-7b-eagle1_tree.jsonl")
    found = held_out(recording, 5, seed, depths=False, kinds=[RateByDepth, Loops])
    independent, loops = found.predictions
    for name, bar in {"mean": 0.02, "p10": 0.05, "p90": 0.05, "block_variance_ratio": 0.15}.items():
        assert abs(found.misses(loops, name)[0]) <= bar, name
    assert not found.meets_bars(independent)
    assert found.best.kind is Loops


def test_the_public_answers_of_a_drafter(memwall_data):
    # Two of the 480 answers repeat one line to the end and carry half of the variance of 32 steps' sums, so that the recorded
    # ratio is itself known to a quarter only: it is not among what is asserted here (docs/acceptance.md says what is missed).
    recording = read_log(memwall_data / "acceptance" / "spec-bench" / "vicuna-7b-draft_model_68m.jsonl")
    found = held_out(recording, 3, 0, depths=False, kinds=[RateByDepth, Loops])
    independent, loops = found.predictions
    for name, bar in {"mean": 0.02, "p10": 0.05, "p90": 0.05}.items():
        assert abs(found.misses(loops, name)[0]) <= bar, name
    assert found.errors["block_variance_ratio"] / found.actual.block_variance_ratio > 0.15
    assert (
        abs(found.misses(loops, "block_variance_ratio")[0])
        < abs(found.misses(independent, "block_variance_ratio")[0]) / 2
    )


def test_of_a_long_log_a_sample_is_fitted(monkeypatch):
    whole = recording_of(Acceptance((0.8, 0.6)), 2, 300)
    steps = len(whole.rounds)
    monkeypatch.setattr("simulator.speculation.ladder.result.MOST_STEPS", steps // 3)
    fit = fit_log(whole, "log", folds=2, rung="depths", depths=False)
    assert fit.log is whole
    assert fit.judged is not None
    assert fit.sample is fit.judged.recording
    assert set(fit.sample.accepted) <= set(whole.accepted)
    assert len(fit.sample.rounds) <= steps // 3 < steps
    assert f"{len(fit.sample.accepted)} of 300 requests" in str(fit.config.source)
    monkeypatch.setattr("simulator.speculation.ladder.result.MOST_STEPS", steps)
    assert fit_log(whole, "log", folds=2, rung="depths", depths=False).sample is None
