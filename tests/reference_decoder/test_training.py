"""Training: the pass that learns is the pass that decodes; losses are known where theory says them."""

import math
import pickle

import pytest
import torch

from simulator.reference_decoder import pair as pairs
from simulator.reference_decoder.checkpoint import load, save, set_weights, weights_of
from simulator.reference_decoder.corpus import standard_library
from simulator.reference_decoder.model import Decoder
from simulator.reference_decoder.pair import RECIPES
from simulator.reference_decoder.shapes import SHAPES, ConfigError, Shape
from simulator.reference_decoder.speculative import generate
from simulator.reference_decoder.training import Course, TooLong, _rate, bits_per_byte, logits_of, train
from tests.reference_decoder.models import toy_pair

SMALL = Shape(2, 32, 4, 2, 8, 64, 256)
SHAPES_TO_TRAIN = [
    SMALL,
    Shape(1, 24, 3, 1, 8, 32, 256, tied_head=True),
    Shape(2, 24, 2, 2, 12, 32, 256, qkv_bias=True, qk_norm=True),
]
COURSE = Course(steps=30, batch=4, tokens=32, learning_rate=1e-2)


@pytest.mark.parametrize("shape", SHAPES_TO_TRAIN, ids=["grouped", "tied", "biased"])
def test_the_differentiable_pass_equals_the_decoder_s(shape):
    model = Decoder(shape, seed=3)
    tokens = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(17).expand(3, -1)
    expected = model.forward(tokens, positions, model.new_cache(3, 17), 17)
    torch.testing.assert_close(logits_of(model, tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES_TO_TRAIN, ids=["grouped", "tied", "biased"])
def test_every_weight_learns_and_none_waits_for_gradients_afterwards(shape):
    model, before = Decoder(shape, seed=3), weights_of(Decoder(shape, seed=3))
    train(model, [bytes(range(256)) * 4], COURSE)
    for name, weight in weights_of(model).items():
        assert not torch.equal(weight, before[name]), name
        assert not weight.requires_grad
        assert weight.grad is None
    if not shape.tied_head:
        # Plain and graphed decoding write into caches: no result may hold on to a gradient.
        assert not model.forward(*two_tokens(model), 2).requires_grad


def two_tokens(model):
    return torch.tensor([[1, 2]]), torch.tensor([[0, 1]]), model.new_cache(1, 2)


def test_a_course_gives_the_same_weights_every_time():
    text = [b"the same text again and again, " * 20]
    twins = [Decoder(SMALL, seed=1) for _ in range(3)]
    for model, seed in zip(twins, (5, 5, 6), strict=True):
        train(model, text, COURSE, seed=seed)
    same, again, other = (weights_of(model)["layers.0.qkv"] for model in twins)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_text_that_repeats_is_learned():
    # A cycle of eight bytes: known from the second byte on.
    model, text = Decoder(SMALL, seed=1), [b"abcdefgh" * 60]
    train(model, text, Course(steps=120, batch=4, tokens=32, learning_rate=1e-2))
    assert bits_per_byte(model, text, 32) < 0.3
    row = generate(model, [list(b"abcdefghab")], 8)[0]
    assert bytes(row.output) == b"cdefghab"


def test_a_model_that_knows_nothing_takes_eight_bits():
    model = Decoder(SMALL, seed=1)
    model.head.zero_()
    assert bits_per_byte(model, [bytes(range(256)) * 2], 16) == pytest.approx(8.0, abs=1e-5)


def test_a_course_that_would_take_too_long_is_not_run():
    with pytest.raises(TooLong, match="training would take about"):
        train(Decoder(SMALL), [bytes(1000)], Course(10**9, 1, 8, 1e-3), limit_s=1.0)


def test_a_checkpoint_comes_back(tmp_path):
    model, path = Decoder(SMALL, seed=1), tmp_path / "model.pt"
    save(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    other = Decoder(SMALL, seed=2)
    load(other, path)
    for name, weight in weights_of(other).items():
        assert torch.equal(weight, weights_of(model)[name])
    half = Decoder(SMALL, seed=2, dtype=torch.bfloat16)
    load(half, path)
    assert half.norm.dtype == torch.bfloat16


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("damage", ["pickle", "object", "cut", "text", "empty", "list", "missing"])
def test_a_file_that_is_no_checkpoint_is_refused_and_never_executed(tmp_path, damage):
    path = tmp_path / "model.pt"
    save(Decoder(SMALL), path)
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Explosive()))
    elif damage == "object":
        torch.save({"norm": Explosive()}, path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_text("weights")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.unlink()
    with pytest.raises(ConfigError, match=r"model.pt must (hold|be a checkpoint that holds)"):
        load(Decoder(SMALL), path)


def test_weights_of_another_shape_are_refused():
    weights = weights_of(Decoder(SMALL))
    with pytest.raises(ConfigError, match=r"layers.1.attention_norm"):
        set_weights(Decoder(SMALL.sliced(1)), weights)
    with pytest.raises(ConfigError, match="weights must have head"):
        set_weights(Decoder(SMALL), {name: weight for name, weight in weights.items() if name != "head"})
    with pytest.raises(ConfigError, match=r"norm is \(31,\) and must be \(32,\)"):
        set_weights(Decoder(SMALL), weights | {"norm": torch.zeros(31)})


def test_the_toy_pair_learns_what_text_looks_like():
    pair = toy_pair()
    fields = pair.fields()
    assert fields["corpus_sha256"] == standard_library().sha256
    # Better than bytes by their frequencies alone, on files never seen; and not by learning them by heart.
    frequencies = torch.bincount(torch.tensor(list(b"".join(pair.corpus.held_out)))) / sum(
        map(len, pair.corpus.held_out)
    )
    entropy = -float((frequencies * frequencies.clamp(min=1e-12).log2()).sum())
    assert 1.0 < fields["target_bits_per_byte"] < entropy
    assert fields["target_bits_per_byte"] < fields["draft_bits_per_byte"] < 8.0
    assert fields["target_training_bits_per_byte"] == pytest.approx(fields["target_bits_per_byte"], abs=0.5)
    half = toy_pair(torch.bfloat16).target  # the same course once more, then rounded
    assert half.norm.dtype == torch.bfloat16
    torch.testing.assert_close(half.head.float(), pair.target.head, rtol=0.01, atol=1e-3)


def test_recipes_fit_their_shapes():
    for name, recipe in RECIPES.items():
        target, draft = SHAPES[name], SHAPES[recipe.draft]
        assert target.vocab == draft.vocab == 256
        assert draft.parameters < target.parameters / 4
        assert target.layers >= 2  # for an early exit


def test_the_command_writes_both_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "toy", pairs.Recipe("toy-draft", Course(3, 2, 16, 1e-3)))
    assert pairs.main(["toy", "--out", str(tmp_path / "new"), "--device", "cpu"]) == 0
    assert "bits per byte" in capsys.readouterr().err
    for name in ("toy", "toy-draft"):
        load(Decoder(SHAPES[name]), tmp_path / "new" / f"{name}.pt")
    (tmp_path / "file").write_text("")
    assert pairs.main(["toy", "--out", str(tmp_path / "file"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_the_rate_rises_and_falls():
    rates = [_rate(step, 1000) for step in range(1000)]
    top = rates.index(max(rates))
    assert 40 <= top <= 60
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.0 < rates[-1] < 0.03
    assert math.isclose(max(rates), 1.0, abs_tol=0.01)
