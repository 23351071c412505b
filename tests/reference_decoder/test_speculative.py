"""Exactness: what speculation puts out is what plain decoding puts out, token for token, and so is the cache."""

import itertools

import pytest
import torch

from simulator.reference_decoder.drafters import EarlyExit, NGram, SmallModel
from simulator.reference_decoder.speculative import Decoding, generate
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.verification import ForcedAlpha, ForcedScript
from tests.reference_decoder.models import PROMPTS, draft, successor, target

TARGET, DRAFT = target(), draft()
PLAIN = [row.output for row in generate(TARGET, PROMPTS, 32)]
TREES = [Tree.chain(1), Tree.chain(3), Tree.chain(7), Tree.branching([3]), Tree.branching([2, 2, 1]),
         Tree((-1, 0, 0, 0, 1, 1, 3, 4))]  # fmt: skip


def drafters(tree):
    yield SmallModel(DRAFT, tree)  # hardly ever right
    yield SmallModel(TARGET, tree)  # always right
    yield EarlyExit(TARGET, tree, 2)  # sometimes right
    yield EarlyExit(TARGET, tree, 3)
    if tree.is_chain:
        yield NGram(tree.depth)


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_greedy_output_is_plain_output(tree):
    for drafter in drafters(tree):
        rows = generate(TARGET, PROMPTS, 32, drafter=drafter)
        assert [row.output for row in rows] == PLAIN
        for row in rows:
            assert all(0 <= a <= d <= tree.depth for a, d in zip(row.accepted, row.drafted, strict=True))


def test_a_row_decodes_as_it_would_alone():
    for prompt, expected in zip(PROMPTS, PLAIN, strict=True):
        assert generate(TARGET, [prompt], 32)[0].output == expected
        assert generate(TARGET, [prompt], 32, drafter=EarlyExit(TARGET, TREES[4], 2))[0].output == expected


def test_a_perfect_drafter_is_always_accepted_and_saves_rounds():
    rows = generate(TARGET, PROMPTS, 33, drafter=SmallModel(TARGET, Tree.chain(3)))
    # The prefill gives one token, each of 8 rounds four.
    assert [row.accepted for row in rows] == [[3] * 8] * 4


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 5, 6, 7])
def test_the_end_of_a_sequence_stops_a_row_wherever_it_falls_in_a_round(position):
    eos = PLAIN[2][position]
    plain = [row.output for row in generate(TARGET, PROMPTS, 32, eos=eos)]
    assert plain[2] == PLAIN[2][: PLAIN[2].index(eos) + 1]
    for drafter in (SmallModel(TARGET, Tree.chain(5)), EarlyExit(TARGET, Tree.branching([2, 2]), 2)):
        assert [row.output for row in generate(TARGET, PROMPTS, 32, drafter=drafter, eos=eos)] == plain


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_no_row_exceeds_its_output(limit):
    rows = generate(TARGET, PROMPTS, limit, drafter=SmallModel(TARGET, Tree.chain(3)))
    assert [row.output for row in rows] == [output[:limit] for output in PLAIN]


@pytest.mark.parametrize("tree", TREES[1:5], ids=str)
def test_the_cache_after_each_round_is_that_of_a_plain_run(tree):
    drafter = EarlyExit(TARGET, tree, 2)
    decoding = Decoding(TARGET, 4, 64, drafter=drafter)
    decoding.admit(PROMPTS, 24)
    for _ in range(5):
        decoding.step()
        for i, row in enumerate(decoding.rows):
            tokens = torch.tensor([row.tokens[:-1]])  # the pending token is not in the cache yet
            n = tokens.shape[1]
            plain = TARGET.new_cache(1, n)
            TARGET.forward(tokens, torch.arange(n)[None], plain, n)
            assert int(decoding._lengths[i]) == n
            torch.testing.assert_close(decoding.cache.data[:, :, i, :, :n], plain.data[:, :, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tree", TREES[1:5], ids=str)
def test_a_drafter_s_own_cache_keeps_up(tree):
    # Drafting for itself it is always right: only a hole or a misplaced entry in its cache could make it miss.
    rows = generate(TARGET, PROMPTS, 32, drafter=SmallModel(TARGET, tree))
    assert all(a == tree.depth for row in rows for a in row.accepted)


def test_rows_come_and_go():
    """A continuous batch: every request puts out what it puts out alone, whatever row it was moved to."""
    for drafter in (None, SmallModel(DRAFT, Tree.chain(2)), EarlyExit(TARGET, Tree.branching([2, 2]), 2), NGram(3)):
        decoding = Decoding(TARGET, 3, 48, drafter=drafter, pad_to=(1, 2, 3))
        waiting, done = list(enumerate(PROMPTS)), []
        lengths = [5, 30, 11, 17]
        while waiting or decoding.rows:
            while waiting and len(decoding.rows) < 3:
                request, prompt = waiting.pop(0)
                decoding.admit([prompt], lengths[request], first_request=request)
            decoding.step()
            done += decoding.retire()
        assert len(done) == 4
        for row in done:
            assert row.output == PLAIN[row.request][: lengths[row.request]]


def test_padding_rows_change_nothing():
    for pad_to in ((), (4,), (2, 4)):
        decoding = Decoding(TARGET, 4, 40, drafter=SmallModel(TARGET, Tree.chain(2)), pad_to=pad_to)
        decoding.admit(PROMPTS[:1], 20)
        while decoding.rows:
            decoding.step()
            finished = decoding.retire()
        assert finished[0].output == PLAIN[0][:20]


def test_padding_by_rows_that_are_done_stays_inside_the_cache():
    # The second row is done in one round, which takes it beyond its last token, and then pads the batch.
    decoding = Decoding(TARGET, 2, 21, drafter=SmallModel(TARGET, Tree.chain(7)), pad_to=(2,))
    decoding.admit([PROMPTS[1], (PROMPTS[2] * 3)[:15]], [20, 6])
    done = []
    while decoding.rows:
        decoding.step()
        done += decoding.retire()
    assert [len(row.output) for row in done] == [6, 20]
    assert done[1].output == PLAIN[1][:20]


def test_padding_does_not_advance_however_much_it_accepts():
    drafter, forced = SmallModel(TARGET, Tree.chain(7)), ForcedScript([[0, 7]])
    decoding = Decoding(TARGET, 2, 21, drafter=drafter, pad_to=(2,), forced=forced)
    decoding.admit([PROMPTS[1]], 20)
    while not decoding.rows[0].done:
        decoding.step()
    assert decoding.rows[0].output == PLAIN[1][:20]


def test_rows_that_are_done_must_leave_before_the_next_round():
    decoding = Decoding(TARGET, 1, 8)
    decoding.admit([[1]], 1)
    with pytest.raises(RuntimeError, match="retire"):
        decoding.step()


@pytest.mark.parametrize("tree", [Tree.chain(4), Tree.branching([2, 2, 1])], ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_scripted_acceptance_is_what_the_rounds_report(tree, count):
    script = [[count, 4, 0, 1], [0, 1, 2, 3]]
    decoding = Decoding(TARGET, 4, 80, drafter=SmallModel(DRAFT, tree), forced=ForcedScript(script))
    decoding.admit(PROMPTS, 50)
    for expected in script * 2:
        step = decoding.step()
        assert step.accepted == [min(a, tree.depth) for a in expected]
        assert step.emitted == [a + 1 for a in step.accepted]
        assert step.drafted == [tree.depth] * 4


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 3), (0.3, 4), (0.8, 5), (1.0, 4)])
def test_forced_acceptance_yields_the_geometric_sum(alpha, gamma):
    model, rounds, batch = successor(50), 60, 64
    decoding = Decoding(
        model, batch, 600, drafter=SmallModel(model, Tree.chain(gamma)), forced=ForcedAlpha(alpha, seed=3)
    )
    decoding.admit([[i % 50] for i in range(batch)], 500)
    emitted = torch.tensor([decoding.step().emitted for _ in range(rounds)], dtype=torch.float64)
    expected = gamma + 1 if alpha == 1.0 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    error = float(emitted.std()) / emitted.numel() ** 0.5
    assert float(emitted.mean()) == pytest.approx(expected, abs=4 * error + 1e-12)


def test_forced_ranks_of_a_tree_yield_the_sum_over_its_nodes():
    model, ranks, tree = successor(50), (0.5, 0.3), Tree.branching([2, 2])
    decoding = Decoding(model, 64, 400, drafter=SmallModel(model, tree), forced=ForcedAlpha(ranks, seed=5))
    decoding.admit([[i % 50] for i in range(64)], 300)
    emitted = torch.tensor([decoding.step().emitted for _ in range(60)], dtype=torch.float64)
    # τ = sum over nodes of the product of rank probabilities on the way: 1 + 0.8 + 0.8².
    assert float(emitted.mean()) == pytest.approx(1 + 0.8 + 0.64, abs=4 * float(emitted.std()) / emitted.numel() ** 0.5)


def test_a_synthetic_context_runs_like_a_real_one():
    decoding = Decoding(TARGET, 3, 200, drafter=SmallModel(DRAFT, Tree.chain(2)), forced=ForcedAlpha(0.5))
    decoding.admit_synthetic(3, 100, 60)
    for _ in range(5):
        decoding.step()
    assert [len(row.tokens) - 101 for row in decoding.rows] == [sum(row.accepted) + 5 for row in decoding.rows]


@pytest.mark.parametrize(
    ("prompts", "output", "said"),
    [([], 4, "at least one"), ([[]], 4, "at least one"), ([[1]] * 3, 4, "1 to 2 rows"), ([[1]], 0, "one to generate"),
     ([[1] * 9], 8, "max_len=16")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(prompts, output, said):
    with pytest.raises(ValueError, match=said):
        Decoding(TARGET, 2, 16, drafter=NGram(2)).admit(prompts, output)


def test_two_runs_are_identical():
    runs = [
        generate(TARGET, PROMPTS, 20, drafter=SmallModel(DRAFT, Tree.chain(3)), temperature=0.8, seed=11)
        for _ in range(2)
    ]
    for a, b in itertools.pairwise(runs):
        assert [(r.output, r.accepted) for r in a] == [(r.output, r.accepted) for r in b]
