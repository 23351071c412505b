"""Acceptance of scripted and real models, by hand."""

import pytest
import torch

from simulator.reference_decoder.acceptance import Trace, of_output, of_text, repeated_share, summary
from simulator.reference_decoder.drafters import EarlyExit, NGram, SmallModel
from simulator.reference_decoder.graphs import Graphed
from simulator.reference_decoder.model import Decoder
from simulator.reference_decoder.shapes import Shape
from simulator.reference_decoder.speculative import Decoding, generate
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.training import Course, train
from tests.reference_decoder.models import PROMPTS, draft, successor, target


def test_rates_by_depth_by_hand():
    # Depth 1: five drafted rounds, three accepted; depth 2: three reached, two accepted; depth 3: two reached, one.
    trace = Trace([[3, 0, 1], [2, 0, 0]], [[3, 3, 3], [3, 3, 0]], [[1] * 20, list(range(20))])
    found = summary(trace, 4)
    assert found["rounds_by_depth"] == [5, 3, 2, 0]
    assert found["acceptance_by_depth"] == [3 / 5, 2 / 3, 1 / 2, None]
    assert found["tokens_per_round"] == 1 + 6 / 6
    assert (found["tokens_per_round_min"], found["tokens_per_round_max"]) == (1 + 2 / 3, 1 + 4 / 3)
    assert found["tokens_per_round_median"] == pytest.approx(2.0)
    assert found["repeated_share"] == 8 / 18  # nine 12-grams each: of the ones all but the first


def test_the_product_of_rates_is_the_mean_accepted():
    rows = generate(target(), PROMPTS, 40, drafter=EarlyExit(target(), Tree.chain(5), 2))
    found = summary(Trace([r.accepted for r in rows], [r.drafted for r in rows], [r.output for r in rows]), 5)
    mean, reached = 0.0, 1.0
    for rate in found["acceptance_by_depth"]:
        reached *= rate or 0.0
        mean += reached
    assert found["tokens_per_round"] == pytest.approx(1.0 + mean)


def test_repeated_share_by_hand():
    assert repeated_share([[1, 2, 3]]) == 0.0
    assert repeated_share([list(range(12)) * 2]) == pytest.approx(1 / 13)  # the last of 13 windows is the first one
    assert repeated_share([[7] * 13, list(range(12))]) == pytest.approx(1 / 3)


def test_held_out_text_is_followed_whatever_the_target_says():
    # The target continues t with t + 1, and so does its drafter; the text does so within runs of four.
    text = [(i // 4) * 10 + i % 4 for i in range(60)]
    model = successor(200)
    trace = of_text(model, SmallModel(successor(200), Tree.chain(2)), [text], 8, 30)
    # Draft and target agree always, though the text does not: two accepted, three further, ten times.
    assert trace == Trace([[2] * 10], [[2] * 10], [text[8:38]])
    trace = of_text(model, SmallModel(successor(200, step=2), Tree.chain(2)), [text], 8, 30)
    assert trace.accepted == [[0] * 30]


class Recorder(NGram):
    """Never finds a draft; remembers what it was shown."""

    def __init__(self):
        super().__init__(2)
        self.seen = []

    def propose(self, view):
        self.seen.append([list(history) for history in view.histories])
        return super().propose(view._replace(histories=[[]] * len(view.histories)))


def test_rounds_start_from_the_true_text():
    texts = [[5, 6, 7, 8, 9, 10], [1, 1, 2, 2, 3, 3]]
    recorder = Recorder()
    trace = of_text(successor(20), recorder, texts, 2, 3)
    assert recorder.seen == [[[5, 6, 7], [1, 1, 2]], [[6, 7, 8], [1, 2, 2]], [[7, 8, 9], [2, 2, 3]]]
    assert trace.accepted == trace.drafted == [[0, 0, 0]] * 2


@pytest.mark.parametrize("kind", ["small", "early_exit"])
def test_held_out_rounds_are_those_of_a_fresh_decoder_at_each_place(kind):
    model, tree = target(), Tree.chain(3)
    texts = [[(7 * i * i + 3 * r) % 61 for i in range(20)] for r in range(3)]

    def drafter():
        return SmallModel(draft(), tree) if kind == "small" else EarlyExit(model, tree, 2)

    trace = of_text(model, drafter(), texts, 6, 10)
    for text, accepted in zip(texts, trace.accepted, strict=True):
        place = 6
        for count in accepted:
            context = text[place - 6 : place + 1]
            ours = generate(model, [context], 3)[0].output
            theirs = (
                generate(draft(), [context], 3)[0].output if kind == "small" else exits(model, context, 2, 3)
            )  # fmt: skip
            agreed = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), 3)
            assert count == agreed
            place += count + 1
        assert place >= 16


def exits(model, context, layers, count):
    """Greedy tokens of the first layers, each from the whole text anew."""
    tokens = list(context)
    for _ in range(count):
        positions = torch.arange(len(tokens))[None]
        cache = model.new_cache(1, len(tokens))
        logits = model.forward(torch.tensor([tokens]), positions, cache, len(tokens), layers=layers)
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(context) :]


def test_requests_that_are_through_leave_no_trace():
    loop, step = [0, 1, 2, 3] * 10, list(range(40))
    trace = of_text(successor(50), NGram(4), [loop, step], 8, 12)
    assert sum(a + 1 for a in trace.accepted[0]) >= 12
    assert sum(a + 1 for a in trace.accepted[0][:-1]) < 12
    assert trace.accepted[1] == [0] * 12
    assert [len(text) for text in trace.texts] == [12, 12]


def test_greedy_and_sampled_output():
    loop = successor(4)
    greedy = of_output(loop, NGram(4), [[0, 1, 2, 3, 0]], 21, temperature=0.0)
    assert greedy.accepted == [[4, 4, 4, 4]]
    flat = successor(4)
    flat.table = torch.zeros(4, 4)
    one = of_output(flat, SmallModel(flat, Tree.chain(3)), [[0]] * 20, 30, temperature=1.0, pad=True)
    # A drafter that is the target is always accepted, whatever is drawn.
    assert {a for rounds in one.accepted for a in rounds} == {3}
    assert len({tuple(text) for text in one.texts}) == 20
    assert one == of_output(flat, SmallModel(flat, Tree.chain(3)), [[0]] * 20, 30, temperature=1.0, pad=True)


def test_sampled_acceptance_is_the_overlap_of_the_two_distributions():
    # Lossless rejection accepts with probability sum(min(p, q)) (arXiv:2211.17192, corollary 3.6), at any depth.
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    ours, theirs = successor(3), successor(3)
    ours.table, theirs.table = p.log().repeat(3, 1), q.log().repeat(3, 1)
    trace = of_output(ours, SmallModel(theirs, Tree.chain(2)), [[0]] * 100, 60, temperature=1.0)
    found = summary(trace, 2)
    for rate, rounds in zip(found["acceptance_by_depth"], found["rounds_by_depth"], strict=True):
        assert rounds > 1500
        assert rate == pytest.approx(0.6, abs=4 * (0.6 * 0.4 / rounds) ** 0.5)


def test_texts_need_two_tokens_and_room():
    decoding = Decoding(target(), 1, 10)
    with pytest.raises(ValueError, match="texts must be 1 to 1 rows of at least two tokens"):
        decoding.admit_texts([[1]])
    with pytest.raises(ValueError, match="texts must be 1 to 1 rows"):
        decoding.admit_texts([[1, 2]] * 2)


def test_a_trained_model_can_be_graphed():
    """Its weights ask for no gradients, so that a captured pass writes caches in place; see test_graphs for replays."""
    model = Decoder(Shape(2, 32, 4, 2, 8, 64, 256))
    train(model, [bytes(range(200))], Course(2, 1, 16, 1e-3))
    wrapped = Graphed.__new__(Graphed)
    wrapped.model, wrapped._live_step, wrapped._longest_query, wrapped._graphs = model, 8, 0, {}
    texts = [list(range(40))]
    assert of_text(wrapped, EarlyExit(wrapped, Tree.chain(2), 1), texts, 8, 12) == of_text(
        model, EarlyExit(model, Tree.chain(2), 1), texts, 8, 12
    )
