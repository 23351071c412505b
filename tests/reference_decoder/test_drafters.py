"""Drafters by hand."""

import pytest
import torch

from simulator.reference_decoder.drafters import EarlyExit, NGram, SmallModel, look_up
from simulator.reference_decoder.speculative import Decoding, View, generate
from simulator.reference_decoder.token_tree import Tree
from tests.reference_decoder.models import successor, target


@pytest.mark.parametrize(
    ("history", "gamma", "found"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, [9, 1, 2]),  # the last three tokens occurred before
        ([1, 2, 3, 9, 1, 2, 3], 1, [9]),
        ([7, 2, 3, 9, 1, 2, 3], 2, [9, 1]),  # only the last two did
        ([5, 3, 8, 1, 2, 3], 2, [8, 1]),  # only the last one did
        ([3, 8, 3, 9, 3], 2, [9, 3]),  # the latest occurrence counts
        ([4, 4, 4], 3, [4]),  # what follows may be short
        ([1, 2, 3], 2, []),
        ([1], 2, []),
    ],
)
def test_look_up_by_hand(history, gamma, found):
    assert look_up(history, gamma, range(3, 0, -1)) == found


def view(histories):
    last = torch.tensor([h[-1] for h in histories])
    lengths = torch.tensor([len(h) - 1 for h in histories])
    live = max(map(len, histories)) - 1
    return View(len(histories), live, lengths, last, last, histories, 0.0, torch.Generator())


def test_n_gram_says_which_rows_found_a_draft():
    proposal = NGram(2).propose(view([[1, 2, 1], [1, 2, 3]]))
    assert proposal.tokens.tolist() == [[1, 2, 1], [3, 0, 0]]
    assert proposal.drafted.tolist() == [True, False]


def test_n_gram_without_any_match_is_a_plain_step():
    proposal = NGram(2).propose(view([[1, 2, 3]]))
    assert proposal.tree.nodes == 1
    assert proposal.tokens.tolist() == [[3]]


def test_n_gram_on_a_repeating_text_is_always_accepted():
    loop = successor(4)  # 0 1 2 3 0 1 2 3 ...
    row = generate(loop, [[0, 1, 2, 3, 0]], 21, drafter=NGram(4))[0]
    assert row.output == [(1 + i) % 4 for i in range(21)]
    assert row.accepted == [4, 4, 4, 4]


def test_a_row_without_a_match_drafts_nothing():
    decoding = Decoding(successor(50), 2, 40, drafter=NGram(2))
    decoding.admit([[7, 8, 7], [20]], 5)
    step = decoding.step()  # 8 after 7 is known to row 0; row 1 has seen only 20 and 21
    assert step.drafted == [2, 0]
    assert step.accepted[1] == 0


def test_a_model_drafts_a_tree_of_its_best_guesses():
    table = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(4, 1).roll(0)
    model = SmallModel(successor(4), Tree.branching([2, 1]))
    model.model.table = table  # after any token: 1, then 2
    decoding = Decoding(successor(4), 1, 20, drafter=model)
    decoding.admit([[0]], 8)
    proposal = model.propose(view([[0, 1]]))
    assert proposal.tokens.tolist() == [[1, 1, 2, 1, 1]]
    assert proposal.probs is None


def test_drafters_refuse_what_makes_no_draft():
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        SmallModel(target(), Tree.chain(0))
    with pytest.raises(ValueError, match="layers=0 must be at least 1"):
        EarlyExit(target(), Tree.chain(2), 0)
    with pytest.raises(ValueError, match="gamma=0 must be at least 1"):
        NGram(0)
