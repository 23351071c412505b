"""Which drafts count, with scripted logits and against the distribution that sampling must keep."""

import pytest
import torch

from simulator.reference_decoder.drafters import NGram, SmallModel
from simulator.reference_decoder.speculative import Decoding
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.verification import ForcedAlpha, ForcedScript, Proposal, draw_tokens, greedy, sampled
from tests.reference_decoder.models import Scripted, successor

CPU = torch.device("cpu")


def logits_choosing(*choices: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(choices), 10).float()


def test_greedy_accepts_up_to_the_first_difference():
    proposal = Proposal(torch.tensor([[0, 1, 2, 3], [0, 1, 9, 3], [0, 9, 2, 3]]), Tree.chain(3))
    verdict = greedy(logits_choosing([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]), proposal)
    assert verdict.accepted.tolist() == [3, 1, 0]  # row 1: what follows a wrong token does not count
    assert verdict.token.tolist() == [4, 2, 1]
    assert verdict.path.tolist() == [[0, 1, 2, 3]] * 3


def test_greedy_takes_the_deepest_matching_branch():
    tree = Tree((-1, 0, 0, 1, 2, 2))
    proposal = Proposal(torch.tensor([[0, 5, 6, 7, 8, 9]]), tree)
    verdict = greedy(logits_choosing([6, 7, 9, 1, 1, 3]), proposal)
    assert (verdict.accepted.tolist(), verdict.path.tolist(), verdict.token.tolist()) == ([2], [[0, 2, 5]], [3])


def test_of_equal_siblings_the_one_with_the_longer_branch_counts():
    proposal = Proposal(torch.tensor([[0, 5, 5, 7, 8]]), Tree((-1, 0, 0, 1, 2)))
    verdict = greedy(logits_choosing([5, 1, 8, 1, 2]), proposal)
    assert verdict.path.tolist() == [[0, 2, 4]]


def test_rows_without_a_draft_accept_nothing():
    proposal = Proposal(torch.tensor([[0, 1], [0, 1]]), Tree.chain(1), torch.tensor([True, False]))
    assert greedy(logits_choosing([1, 2], [1, 2]), proposal).accepted.tolist() == [1, 0]
    even = torch.zeros(2, 2, 10)
    even[:, :, 1] = 50.0
    assert sampled(even, proposal, 1.0, torch.Generator()).accepted.tolist() == [1, 0]


def chi_square_p(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Upper tail of the chi-square distribution; scipy is not among what the reference decoder needs."""
    keep = expected > 0
    assert counts[~keep].sum() == 0
    statistic = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    freedom = torch.tensor((int(keep.sum()) - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic.double() / 2.0))


VOCAB = 6
torch_random = torch.Generator().manual_seed(7)
TARGET = Scripted(torch.randn(VOCAB, VOCAB, generator=torch_random) * 1.5)
DRAFT = Scripted(torch.randn(VOCAB, VOCAB, generator=torch_random) * 1.5)
# A drafter that never offers three of the tokens: its tree of three children must run out of them.
NARROW = Scripted(torch.where(torch.arange(VOCAB) < 2, DRAFT.table, float("-inf")))


@pytest.mark.parametrize(
    "drafter",
    [
        lambda: None,
        lambda: SmallModel(DRAFT, Tree.chain(3)),
        lambda: SmallModel(TARGET, Tree.chain(2)),
        lambda: SmallModel(DRAFT, Tree.branching([3, 2])),
        lambda: SmallModel(NARROW, Tree.branching([3, 2])),
        lambda: NGram(3),
    ],
    ids=["plain", "chain", "perfect", "tree", "narrow tree", "n-gram"],
)
def test_sampled_tokens_follow_the_target_s_distribution(drafter):
    temperature, rows = 0.9, 8000
    decoding = Decoding(TARGET, rows, 12, drafter=drafter(), temperature=temperature, seed=1)
    decoding.admit([[2, 0, 1, 2]] * rows, 6)
    finished = []
    while min(len(row.output) for row in finished + decoding.rows) < 3:  # rounds differ in length, rows finish early
        decoding.step()
        finished += decoding.retire()
    transition = torch.softmax(TARGET.table.double() / temperature, dim=-1)
    outputs = [row.output[:3] for row in finished + decoding.rows]
    a, b, c = torch.tensor(outputs).T
    counts = torch.bincount((a * VOCAB + b) * VOCAB + c, minlength=VOCAB**3).double()
    expected = rows * (transition[2][:, None, None] * transition[:, :, None] * transition[None]).flatten()
    # Cells too rare for the test's approximation are taken together.
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    assert chi_square_p(counts, expected) > 1e-4


def test_the_chi_square_test_notices_a_wrong_distribution():
    expected = torch.tensor([4000.0, 4000.0])
    assert chi_square_p(torch.tensor([4000.0, 4000.0]), expected) == pytest.approx(1.0)
    assert chi_square_p(torch.tensor([4200.0, 3800.0]), expected) < 1e-4


def test_a_sure_rejection_never_returns_the_rejected_token():
    p = torch.tensor([0.5, 0.5, 0.0]).log().repeat(2000, 2, 1)
    proposal = Proposal(torch.tensor([[0, 2]]).repeat(2000, 1), Tree.chain(1))
    verdict = sampled(p, proposal, 1.0, torch.Generator().manual_seed(0))
    assert verdict.accepted.sum() == 0
    assert set(verdict.token.tolist()) == {0, 1}


def test_drawing_without_replacement():
    probs = torch.tensor([0.7, 0.2, 0.1]).repeat(20000, 1)
    drawn = draw_tokens(probs, 2, torch.Generator().manual_seed(0))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    first, second = (torch.bincount(column, minlength=3) / 20000 for column in drawn.T)
    assert first.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.015)
    # P(second = 0) = 0.2 · 0.7/0.8 + 0.1 · 0.7/0.9
    assert float(second[0]) == pytest.approx(0.2 * 0.7 / 0.8 + 0.1 * 0.7 / 0.9, abs=0.015)


def test_forced_acceptance_holds_under_sampling_too():
    model = successor(20)
    decoding = Decoding(
        model, 2, 60, drafter=SmallModel(model, Tree.chain(3)), temperature=1.0, forced=ForcedScript([[1, 3], [0, 2]])
    )
    decoding.admit([[1], [2]], 40)
    assert [decoding.step().accepted for _ in range(2)] == [[1, 3], [0, 2]]


def test_what_forces_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        ForcedAlpha(1.5)
    with pytest.raises(ValueError, match="sum of at most 1"):
        ForcedAlpha((0.7, 0.6))
    with pytest.raises(ValueError, match="one number for each of 3 rows"):
        ForcedScript([[1, 2]]).mask(3, Tree.chain(2), CPU)
