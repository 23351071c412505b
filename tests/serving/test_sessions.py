import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import STREAM_OUTPUT_TOKENS, STREAM_PROMPT_TOKENS, STREAM_THINK_TIME, uniform
from simulator.serving.sessions import Turns
from simulator.serving.traffic import generate, generate_chunks, parse_traffic, with_load

SEED = 20250203
Z = 3.29  # 99.9 % two-sided
LENGTHS = {"prompt": {"kind": "uniform", "low": 1, "high": 100}, "output": {"kind": "uniform", "low": 1, "high": 50}}
TALK = {"turns": {"kind": "geometric", "mean": 4}, "think_time_s": 20}


def talk(**fields):
    data = {"kind": "poisson", "rate_per_s": 2, "requests": 1000, "lengths": LENGTHS, "conversation": TALK, **fields}
    return parse_traffic(data, "test")


# Literal, by hand


def test_turns_by_hand():
    turns = Turns.of(np.array([2, 1, 3]))
    assert turns.conversation.tolist() == [0, 0, 1, 2, 2, 2]
    assert turns.number.tolist() == [0, 1, 0, 0, 1, 2]
    assert turns.history_tokens(np.array([5, 7, 11, 13, 17, 19])).tolist() == [0, 5, 0, 0, 13, 30]


def test_a_conversation_by_hand():
    requests = generate(talk(conversation={"turns": 3, "think_time_s": 20}, system_prompt=1000), SEED)
    assert requests.follows[:6].tolist() == [-1, 0, 1, -1, 3, 4]
    assert requests.session[:6].tolist() == [0, 0, 0, 1, 1, 1]
    history = 1000
    for turn in range(3):
        question = 1 + int(100 * uniform(SEED, 1, STREAM_PROMPT_TOKENS, turn))
        answer = 1 + int(50 * uniform(SEED, 1, STREAM_OUTPUT_TOKENS, turn))
        assert requests.prompt_tokens[3 + turn] == history + question
        assert requests.output_tokens[3 + turn] == answer
        think_s = -20 * math.log(1 - uniform(SEED, 1, STREAM_THINK_TIME, turn)) if turn else 0
        assert requests.think_s[3 + turn] == pytest.approx(think_s)
        history += question + answer


# Theory, with a confidence interval


def test_turns_and_think_times_are_as_asked():
    requests = generate(talk(requests=40_000), SEED)
    turns = np.bincount(requests.session)[:-1]  # the last conversation is cut short
    # Geometric of mean m: variance m(m - 1).
    assert abs(turns.mean() - 4) < Z * math.sqrt(12 / len(turns))
    alone = np.mean(turns == 1)
    assert abs(alone - 1 / 4) < Z * math.sqrt(0.25 * 0.75 / len(turns))
    think_s = requests.think_s[requests.follows >= 0]
    assert abs(think_s.mean() - 20) < Z * 20 / math.sqrt(len(think_s))
    first_s = requests.arrival_s[requests.follows < 0]
    assert abs(first_s[-1] / len(first_s) - 0.5) < Z * 0.5 / math.sqrt(len(first_s))


# Limits


def test_one_turn_is_no_conversation():
    single, plain = (
        generate(talk(conversation={"turns": 1, "think_time_s": 20}), SEED),
        generate(talk(conversation=None), SEED),
    )
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(single, name), getattr(plain, name))
    assert plain.follows is None
    assert plain.session is None
    assert (single.follows == -1).all()


def test_one_conversation_longer_than_the_run_is_cut():
    requests = generate(talk(conversation={"turns": 10**8, "think_time_s": 0}, requests=50), SEED)
    assert set(requests.session) == {0}
    assert len(requests) == 50


# Conservation


@given(n=st.integers(1, 300), more=st.integers(0, 100), rate=st.floats(0.1, 100), turns=st.floats(1, 30))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(n, more, rate, turns):
    conversation = {"turns": {"kind": "geometric", "mean": turns}, "think_time_s": 3}
    traffic = talk(conversation=conversation, rate_per_s=rate, requests=n, system_prompt={"tokens": 9, "groups": 3})
    few, many = generate(traffic, SEED), generate(with_load(traffic, requests=n + more), SEED)
    assert len(few) == n
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "think_s", "follows", "session"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:n])
    np.testing.assert_array_equal(few.shared.source, many.shared.source[:n])


@given(limit=st.integers(60, 2000), size=st.integers(1, 400))
def test_what_does_not_fit_takes_the_rest_of_its_conversation_with_it(limit, size):
    traffic = talk(requests=400)
    everything, some = generate(traffic, SEED), generate(traffic, SEED, max_context_tokens=limit)
    fits = everything.prompt_tokens + everything.output_tokens <= limit
    assert (some.rows_read, sum(some.dropped.values())) == (400, 400 - len(some))
    np.testing.assert_array_equal(some.row, np.flatnonzero(fits))
    # Each follows the turn that it followed before, under its new number.
    followed = some.follows >= 0
    np.testing.assert_array_equal(some.row[some.follows[followed]], everything.follows[some.row[followed]])
    np.testing.assert_array_equal(np.isnan(some.arrival_s), followed)
    chunks = list(generate_chunks(traffic, SEED, max_context_tokens=limit, size=size))
    np.testing.assert_array_equal(np.concatenate([c.follows for c in chunks]), some.follows)


def test_every_prompt_contains_the_turn_before():
    requests = generate(talk(system_prompt={"tokens": {"kind": "uniform", "low": 5, "high": 50}, "groups": 4}), SEED)
    later = np.flatnonzero(requests.follows >= 0)
    before = requests.follows[later]
    assert (before < later).all()
    assert (requests.session[before] == requests.session[later]).all()
    new = requests.prompt_tokens[later] - requests.prompt_tokens[before] - requests.output_tokens[before]
    assert new.min() >= 1
    assert new.max() <= 100
    assert np.isnan(requests.arrival_s[later]).all()
    assert (np.diff(requests.arrival_s[requests.follows < 0]) >= 0).all()
    np.testing.assert_array_equal(requests.shared.source[later], requests.shared.source[before])


def test_classes_talk_or_do_not():
    chat = {"name": "chat", "share": 1, "lengths": LENGTHS, "conversation": TALK}
    batch = {"name": "batch", "share": 1, "lengths": LENGTHS}
    requests = generate(talk(lengths=None, conversation=None, classes=[chat, batch], requests=5000), SEED)
    sizes = np.bincount(requests.session)
    kind = requests.class_of[np.flatnonzero(requests.follows < 0)]
    assert set(sizes[kind == 1]) == {1}
    assert sizes[kind == 0].mean() > 3
    # The share is one of conversations.
    assert abs((kind == 1).mean() - 0.5) < Z * math.sqrt(0.25 / len(kind))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: talk(conversation={"turns": 3}), r"conversation.think_time_s='\(absent\)' must be given"),
        (lambda: talk(conversation={"turns": 0, "think_time_s": 1}), "tokens=0 must be greater than"),
        (lambda: talk(conversation={"turns": 3, "think_time": 1}), "did you mean think_time_s"),
        (
            lambda: parse_traffic(
                {"kind": "closed-loop", "users": 3, "think_time_s": 1, "requests": 5, "lengths": LENGTHS}
                | {"conversation": TALK},
                "test",
            ),
            "conversation='.given.' must be left out for closed-loop",
        ),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        change()
