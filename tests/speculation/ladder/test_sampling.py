"""Rounds drawn from laws: literal trajectories, the definition in plain Python, closed forms, and cut ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.randomness import uniform
from simulator.speculation.acceptance import Acceptance, AnswerLength, RecordedAcceptance, Repetition
from simulator.speculation.ladder.rounds import Rounds
from simulator.speculation.ladder.sampling import sampled_rounds
from simulator.speculation.recording import Recording
from simulator.speculation.stretches import STRETCH_BEGINS, STRETCH_STATE


def steps(rounds: Rounds) -> list[list[int]]:
    return [rounds.tokens[a:b].tolist() for a, b in zip(rounds.first[:-1], rounds.first[1:], strict=True)]


def test_certain_luck_by_hand():
    assert steps(sampled_rounds(Acceptance((1.0,)), 3, [9, 4, 1], 0)) == [[4, 4, 1], [4], [1]]
    assert steps(sampled_rounds(Acceptance((0.0,)), 3, [3], 0)) == [[1, 1, 1]]
    assert steps(sampled_rounds(Acceptance((1.0, 0.0)), 3, [5], 0)) == [[2, 2, 1]]


def test_a_recording_again_and_again_cut_at_the_end():
    law = RecordedAcceptance.of(Recording(((4, 1, 0), (2, 3)), ((4, 4, 4), (4, 4)), 4, "by hand"))
    assert steps(sampled_rounds(law, 4, [12, 12, 2], 0)) == [[5, 2, 1, 4], [3, 4, 3, 2], [2]]
    assert steps(sampled_rounds(law, 2, [5], 0)) == [[3, 2]]


def literally(law: Acceptance, gamma: int, answers: list[int], seed: int) -> list[list[int]]:
    rates, row_of = law.stretch_rates(seed, len(answers), gamma, answer_tokens=answers)
    reach = np.cumsum(law.stretch_weights)
    found = []
    for request, answer in enumerate(answers):
        position, mine = 0, []
        while position < answer:
            state = 0
            for place in range(position + 1) if len(reach) > 1 else ():
                if place == 0 or uniform(seed, request, place, STRETCH_BEGINS) < 1.0 / law.stretch_tokens[state]:
                    state = int(np.searchsorted(reach[:-1], uniform(seed, request, place, STRETCH_STATE), side="right"))
            drafts = gamma if law.stretch_proposes[state] else 0
            if law.stretch_proposes.all() and law.match_probability < 1.0:
                drafts = gamma if uniform(seed, request, position, 0) < law.match_probability else 0
            kept = 0
            while kept < drafts and uniform(seed, request, position, kept + 1) < rates[row_of[request], state, kept]:
                kept += 1
            mine.append(min(kept + 1, answer - position))
            position += kept + 1
        found.append(mine)
    return found


LAWS = [
    Acceptance((0.8, 0.6)),
    Acceptance((0.8, 0.6), request_icc=0.2, match_probability=0.7),
    Acceptance((0.8, 0.6), 0.2, 1.0, 0.3, 6.0),
    Acceptance((0.8, 0.6), 0.2, 0.5, match_tokens=6.0),
    Acceptance((0.7,), 0.2, 1.0, 0.2, 5.0, None, AnswerLength(correlation=0.5, median_tokens=30, log_std=1.0),
               Repetition(every_tokens=25.0, tokens=20.0, conditional=0.95)),
]  # fmt: skip


@settings(max_examples=40)
@given(
    st.sampled_from(LAWS), st.integers(1, 4), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 99)
)
def test_the_definition_in_plain_python(law, gamma, answers, seed):
    assert steps(sampled_rounds(law, gamma, answers, seed)) == literally(law, gamma, answers, seed)


@pytest.mark.parametrize("law", LAWS[:4])
def test_rates_over_rounds_are_the_closed_form_s(law):
    rounds = sampled_rounds(law, 3, np.full(3000, 400), 5)
    whole = ~rounds.is_last
    found = np.add.reduceat(rounds.tokens * whole, rounds.first[:-1]) / np.maximum(rounds.steps - 1, 1)
    assert abs(found.mean() - law.expected_tokens(3)) < 4 * found.std() / np.sqrt(len(found)) + 2e-3


@given(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.integers(1, 5), st.sampled_from(LAWS))
def test_every_answer_has_its_tokens(answers, gamma, law):
    rounds = sampled_rounds(law, gamma, answers, 1)
    assert rounds.answer_tokens.tolist() == answers
    assert rounds.tokens.min() >= 1
    assert np.all(rounds.tokens <= rounds.drafted + 1)
