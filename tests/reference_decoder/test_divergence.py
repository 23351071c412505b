"""Divergence: none in fp32 (asserted); in bf16 it is counted, with the margin at the place."""

import pytest
import torch

from simulator.reference_decoder.divergence import compare, first_difference, margins_of
from simulator.reference_decoder.drafters import SmallModel
from simulator.reference_decoder.model import Decoder
from simulator.reference_decoder.pair import passages
from simulator.reference_decoder.shapes import SHAPES
from simulator.reference_decoder.speculative import generate
from simulator.reference_decoder.token_tree import Tree
from tests.reference_decoder.models import PROMPTS, successor, target, toy_pair


def outputs(target, small, prompts, tokens):
    drafter = SmallModel(small, Tree.chain(4))
    return [[row.output for row in generate(target, prompts, tokens, drafter=d)] for d in (None, drafter)]


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_fp32_never_diverges(weights):
    pair = toy_pair()
    prompts = passages(pair.corpus, 12, 24)
    random = Decoder(SHAPES["toy"], seed=4), Decoder(SHAPES["toy-draft"], seed=5)
    models = (pair.target, pair.draft) if weights == "trained" else random
    found = compare(models[0], prompts, *outputs(*models, prompts, 40))
    assert (found["diverged"], found["positions"], found["margins"]) == (0, [], [])
    assert found["median_margin"] > 0.0


def test_bf16_divergence_is_reported_where_it_occurs():
    half = toy_pair(torch.bfloat16)
    prompts = passages(half.corpus, 24, 24)
    plain, other = outputs(half.target, half.draft, prompts, 40)
    found = compare(half.target, prompts, plain, other)
    differ = [ours != theirs for ours, theirs in zip(plain, other, strict=True)]
    assert found["diverged"] == sum(differ) == len(found["positions"]) == len(found["margins"])
    assert all(0 <= place < 40 for place in found["positions"])


def test_margins_by_hand():
    model = successor(5)
    model.table = torch.tensor([[0.0, 4.0, 1.0, 0.0, 0.0]] * 4 + [[9.0, 0.0, 8.5, 0.0, 0.0]])
    assert margins_of(model, [0, 0], [1, 4, 0]) == [3.0, 3.0, 0.5]
    found = compare(model, [[0, 0]] * 2, [[1, 4, 0]] * 2, [[1, 4, 0], [1, 4, 2]])
    assert found == {"diverged": 1, "positions": [2], "margins": [0.5], "median_margin": 3.0}


def test_margins_are_those_that_decoding_saw():
    model = target()
    row = generate(model, PROMPTS[:1], 12)[0]
    margins = margins_of(model, PROMPTS[0], row.output)
    assert len(margins) == 12
    assert all(margin > 0.0 for margin in margins)


@pytest.mark.parametrize(
    ("ours", "theirs", "place"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [0, 2], 0), ([1, 2], [1, 2, 3], None), ([], [], None)],
)
def test_first_difference(ours, theirs, place):
    assert first_difference(ours, theirs) == place
