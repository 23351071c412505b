import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.serving.prefixes import Chains, SharedPrefixes
from simulator.serving.traffic import generate, parse_traffic

SEED = 20250204
Z = 3.29  # 99.9 % two-sided


def prompted(system_prompt, **fields):
    data = {"kind": "poisson", "rate_per_s": 2, "requests": 20_000, "lengths": {"prompt": 100, "output": 5}}
    return generate(parse_traffic({**data, "system_prompt": system_prompt, **fields}, "test"), SEED)


def chains(*prompts, block=4):
    built = Chains(block)
    for ids, tokens in prompts:
        built.add(ids, tokens)
    return built


# Literal, by hand


def test_block_ids_by_hand():
    shared = chains(([7, 8], 6), ([7, 8], 8), ([7, 9], 8), ([8], 4), ([7], 4)).finished()
    assert shared.first_piece.tolist() == [0, 2, 4, 6, 7, 8]
    assert shared.end_tokens.tolist() == [4, 6, 4, 8, 4, 8, 4, 4]
    # The same block in the same place; the partial block, another block, and a block elsewhere are others.
    assert shared.source.tolist() == [0, 1, 0, 2, 0, 3, 4, 0]


def test_an_id_for_several_prefixes_is_told_apart_by_what_is_before_it():
    built = chains(([1, 2, 3], 12), ([9, 2, 3], 12))
    source = built.finished().source.reshape(2, 3)
    assert len(set(source.ravel())) == 6
    assert built.ambiguous == 2  # 2 and 3


@pytest.mark.parametrize(
    ("ids", "tokens", "kept", "cut"),
    [
        (None, 9, 0, 0),
        ([], 9, 0, 0),
        ([1, 2], 9, 2, 0),
        ([1, 2, 3, 4], 9, 3, 1),
        ("123", 9, 0, 1),
        ([1, None, 3], 9, 1, 1),
        ([1, True, 3], 9, 1, 1),
        (["a", "b"], 9, 2, 0),
    ],
)
def test_block_ids_that_cannot_be_are_cut(ids, tokens, kept, cut):
    built = chains((ids, tokens))
    assert (len(built.finished().source), built.unreadable) == (kept, cut)


def test_taking_prompts_by_hand():
    shared = SharedPrefixes(np.array([0, 2, 2, 3]), np.array([5, 6, 5]), np.array([4, 9, 4]))
    taken = shared.take(np.array([2, 0, 0, 1]))
    assert taken.first_piece.tolist() == [0, 1, 3, 5, 5]
    assert taken.source.tolist() == [5, 5, 6, 5, 6]
    assert taken.end_tokens.tolist() == [4, 4, 9, 4, 9]
    common = shared.common()
    assert common.first_piece.tolist() == [0, 1, 1, 2]
    assert common.source.tolist() == [5, 5]
    joined = SharedPrefixes.joined([shared, shared])
    assert joined.first_piece.tolist() == [0, 2, 2, 3, 5, 5, 6]


def test_one_system_prompt():
    requests = prompted(1200)
    assert set(requests.prompt_tokens) == {1300}
    assert set(requests.shared.source) == {0}
    assert set(requests.shared.end_tokens) == {1200}
    assert requests.shared.first_piece.tolist() == list(range(20_001))
    assert requests.session is None


# Theory, with a confidence interval


@pytest.mark.parametrize(
    ("system_prompt", "shares"),
    [
        ({"tokens": 5, "groups": 3, "zipf": 1}, [6 / 11, 3 / 11, 2 / 11]),
        ({"tokens": 5, "groups": 4}, [0.25] * 4),
        ({"tokens": 5, "weights": [1, 0, 3]}, [0.25, 0, 0.75]),
    ],
)
def test_system_prompts_are_as_popular_as_asked(system_prompt, shares):
    source = prompted(system_prompt).shared.source
    found = np.bincount(source, minlength=len(shares)) / len(source)
    for share, measured in zip(shares, found, strict=True):
        assert abs(measured - share) <= Z * math.sqrt(share * (1 - share) / len(source))


def test_each_system_prompt_has_its_own_length():
    requests = prompted({"tokens": {"kind": "uniform", "low": 1, "high": 10**6}, "groups": 50})
    lengths = {}
    for source, tokens in zip(requests.shared.source, requests.shared.end_tokens, strict=True):
        assert lengths.setdefault(source, tokens) == tokens
    assert len(set(lengths.values())) == 50
    np.testing.assert_array_equal(requests.prompt_tokens, 100 + requests.shared.end_tokens)


def test_classes_share_with_their_own_kind_only():
    def named(name, system_prompt):
        return {"name": name, "share": 1, "lengths": {"prompt": 9, "output": 9}, "system_prompt": system_prompt}

    classes = [named("a", {"tokens": 50, "groups": 2}), named("b", None), named("c", 70)]
    requests = prompted(None, lengths=None, classes=classes)
    pieces = np.diff(requests.shared.first_piece)
    np.testing.assert_array_equal(pieces, requests.class_of != 1)
    per_piece = requests.class_of[pieces == 1]
    assert set(requests.shared.source[per_piece == 0]) == {0, 1}
    assert set(requests.shared.source[per_piece == 2]) == {2}
    assert set(requests.prompt_tokens[requests.class_of == 1]) == {9}


# Conservation


@given(
    prompts=st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 30)), min_size=1, max_size=30),
    block=st.integers(1, 8),
)
def test_equal_sources_are_equal_prefixes(prompts, block):
    shared = chains(*prompts, block=block).finished()
    assert len(shared) == len(prompts)
    seen = {}
    for i, (ids, tokens) in enumerate(prompts):
        pieces = range(shared.first_piece[i], shared.first_piece[i + 1])
        assert len(pieces) == min(len(ids), -(-tokens // block))
        ends = [int(shared.end_tokens[p]) for p in pieces]
        assert ends == [min(block * (j + 1), tokens) for j in range(len(ends))]
        for place, piece in enumerate(pieces):
            prefix = (tuple(ids[: place + 1]), tuple(ends[: place + 1]))
            assert seen.setdefault(int(shared.source[piece]), prefix) == prefix
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize(
    ("system_prompt", "sentence"),
    [
        ({"tokens": 5, "groups": 3, "weights": [1, 2]}, "either weights or groups"),
        ({"tokens": 5, "weights": [0, 0]}, "have a weight above 0"),
        ({"tokens": 5, "group": 3}, "did you mean groups"),
        ({"groups": 3}, r"system_prompt.tokens='\(absent\)' must be given"),
        (0, "tokens=0 must be greater than"),
    ],
)
def test_mistakes_are_one_sentence(system_prompt, sentence):
    with pytest.raises(InputError, match=sentence):
        prompted(system_prompt)
