"""The decoder against arithmetic in numpy, against itself fed in pieces, and built from config files."""

import contextlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simulator.reference_decoder.model import Decoder, TreeMask, attend, first_argmax, load_weights, rotate
from simulator.reference_decoder.shapes import SHAPES, ConfigError, Llama3Rope, Shape
from simulator.reference_decoder.token_tree import Tree
from tests.reference_decoder.models import TARGET_SHAPE, target

CONFIGS = Path(__file__).resolve().parents[2] / "workloads" / "models"
TINY = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "tie_word_embeddings": True,
}


def run(model, tokens, pieces, **kwargs):
    """Logits of `tokens` [batch, n], fed in pieces of these sizes."""
    cache = model.new_cache(tokens.shape[0], tokens.shape[1])
    out, start = [], 0
    for size in pieces:
        stop = start + size
        positions = torch.arange(start, stop).expand(tokens.shape[0], -1)
        out.append(model.forward(tokens[:, start:stop], positions, cache, stop, **kwargs))
        start = stop
    return torch.cat(out, dim=1), cache


def weights(model):
    head = [] if model.shape.tied_head else [model.head]
    return [model.embedding, model.norm, *head, *(w for layer in model.layers for w in layer if w is not None)]


def numpy_forward(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    """One row's logits, written out in double precision with loops."""
    s = model.shape

    def norm(x, w):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + s.norm_eps) * w.double().numpy()

    def turn(x, position):
        half = s.head_dim // 2
        angle = position * s.rope_theta ** (-np.arange(half) / half)
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    x = model.embedding.double().numpy()[tokens]
    for layer in model.layers:
        qkv = norm(x, layer.attention_norm) @ layer.qkv.double().numpy().T
        heads = qkv.reshape(len(tokens), s.heads + 2 * s.kv_heads, s.head_dim)
        out = np.zeros((len(tokens), s.heads, s.head_dim))
        for t in range(len(tokens)):
            for h in range(s.heads):
                kv = s.heads + h // (s.heads // s.kv_heads)
                q = turn(heads[t, h], t)
                scores = np.array([q @ turn(heads[j, kv], j) for j in range(t + 1)]) / math.sqrt(s.head_dim)
                p = np.exp(scores - scores.max())
                out[t, h] = (p / p.sum()) @ heads[: t + 1, kv + s.kv_heads]
        x = x + out.reshape(len(tokens), -1) @ layer.out.double().numpy().T
        up = norm(x, layer.mlp_norm) @ layer.gate_up.double().numpy().T
        gate, up = up[:, : s.width], up[:, s.width :]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down.double().numpy().T
    return norm(x, model.norm) @ model.head.double().numpy().T


def test_logits_equal_a_decoder_written_out_in_numpy():
    model, tokens = target(), torch.tensor([[5, 1, 60, 7, 7, 2]])
    logits, _ = run(model, tokens, [6])
    np.testing.assert_allclose(logits[0].numpy(), numpy_forward(model, tokens[0].numpy()), atol=2e-5)


@pytest.mark.parametrize("pieces", [[1] * 8, [5, 1, 2], [3, 5]])
def test_tokens_fed_in_pieces_give_the_same_logits_and_cache(pieces):
    tokens = torch.arange(16).view(2, 8)
    whole, cache = run(target(), tokens, [8])
    parts, cache_of_parts = run(target(), tokens, pieces)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache_of_parts.data, cache.data, atol=1e-5, rtol=1e-5)


def test_rows_at_different_positions_do_not_disturb_each_other():
    model, tokens = target(), torch.arange(12).view(2, 6)
    whole, _ = run(model, tokens, [6])
    cache = model.new_cache(2, 6)
    model.forward(tokens[:, :4], torch.arange(4).expand(2, -1), cache, 4)
    # Row 0 takes its token 4; row 1 goes back to token 2, over what it has already written.
    now = torch.stack((tokens[0, 4:6], tokens[1, 2:4]))
    logits = model.forward(now, torch.tensor([[4, 5], [2, 3]]), cache, 6)
    torch.testing.assert_close(logits, torch.stack((whole[0, 4:6], whole[1, 2:4])), atol=1e-5, rtol=1e-5)


def test_a_node_of_a_tree_sees_its_path_and_nothing_else():
    model, context = target(), [9, 8, 7]
    tree, tokens = Tree((-1, 0, 0, 1, 1, 2)), [6, 10, 20, 30, 40, 50]
    cache = model.new_cache(1, 16)
    model.forward(torch.tensor([context]), torch.arange(3)[None], cache, 3)
    t, start = tree.on(model.device), torch.tensor([3])
    logits = model.forward(
        torch.tensor([tokens]), start[:, None] + t.depth, cache, 9,
        tree=TreeMask(t.visible, start), slots=start[:, None] + torch.arange(6),
    )  # fmt: skip
    for node in range(tree.nodes):
        line = context + [tokens[i] for i in tree.path_to(node)]
        alone, _ = run(model, torch.tensor([line]), [len(line)])
        torch.testing.assert_close(logits[0, node], alone[0, -1], atol=1e-5, rtol=1e-5)


def test_early_exit_is_the_model_of_the_first_layers():
    model = target()
    cut = Decoder(TARGET_SHAPE.sliced(2), seed=1)
    cut.embedding, cut.layers, cut.norm, cut.head = model.embedding, model.layers[:2], model.norm, model.head
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(run(model, tokens, [5], layers=2)[0], run(cut, tokens, [5])[0])


def test_one_wanted_query_per_row_gives_that_query_s_logits():
    tokens = torch.arange(10).view(2, 5)
    whole, _ = run(target(), tokens, [5])
    one, _ = run(target(), tokens, [5], last=torch.tensor([4, 2]))
    torch.testing.assert_close(one[:, 0], torch.stack((whole[0, 4], whole[1, 2])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_attention_methods_agree(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16).to(dtype) for n in (4, 9, 9))
    mask = torch.zeros(2, 1, 4, 9, dtype=dtype)
    mask[1, :, :, 5:] = float("-inf")
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    results = [attend(q, k, v, mask, method) for method in ("sdpa", "matmul")]
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def test_rotation_by_a_quarter_turn():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)  # pairs (1, 3) and (2, 4)
    cos, sin = torch.zeros(1, 1, 1, 4), torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 1, 1, 4)
    assert rotate(x, cos, sin).flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_the_first_of_equal_scores_wins():
    assert first_argmax(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0] * 5])).tolist() == [1, 0]
    assert first_argmax(torch.zeros(3, 4096)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single(dtype):
    tokens = torch.arange(12).view(2, 6)
    model, half = target(), Decoder(TARGET_SHAPE, dtype=dtype)
    for ours, theirs in zip(weights(half), weights(model), strict=True):
        ours.copy_(theirs)
    logits = run(half, tokens, [6])[0]
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), run(model, tokens, [6])[0], atol=0.1, rtol=0.0)


def test_a_seed_gives_the_same_weights():
    assert torch.equal(target().layers[1].qkv, target().layers[1].qkv)
    assert not torch.equal(target().embedding, Decoder(TARGET_SHAPE, seed=9).embedding)


def test_model_of_a_tiny_config():
    shape = Shape.from_config(TINY)
    assert shape == Shape(2, 32, 4, 2, 16, 64, 97, tied_head=True, qk_norm=True)
    model = Decoder(shape)
    assert sum(w.numel() for w in weights(model)) == shape.parameters
    assert run(model, torch.tensor([[1, 2, 3]]), [3])[0].shape == (1, 3, 97)


def test_biases_of_qwen2_take_part():
    shape = Shape.from_config(TINY | {"model_type": "qwen2"})
    model, tokens = Decoder(shape), torch.tensor([[1, 2, 3]])
    before, _ = run(model, tokens, [3])
    model.layers[0].qkv_bias.zero_()
    assert shape.qkv_bias
    assert not torch.allclose(before, run(model, tokens, [3])[0])


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.55), ("llama-3.2-1b", 1.24), ("llama-2-7b", 6.74), ("qwen3-8b", 8.19),
     ("qwen3-32b", 32.76)],
)  # fmt: skip
def test_shapes_of_bundled_configs_count_the_published_parameters(name, billions):
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    assert Shape.from_config(config).parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_built_in_shapes_are_the_bundled_ones():
    for built_in, name in (("llama-8b", "llama-3.1-8b"), ("llama-1b", "llama-3.2-1b")):
        assert SHAPES[built_in] == Shape.from_config(json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")))
    assert 78e6 < SHAPES["cpu-82m"].parameters < 86e6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mixtral"}, r"model_type='mixtral' must be one of"),
        ({"hidden_size": None}, "hidden_size=None must be a whole number"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' must be 'silu'"),
        ({"num_key_value_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn' must be"),
    ],
)
def test_what_cannot_be_built_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        Shape.from_config(TINY | change)


def stored_as_hugging_face(model):
    """The tensors of a checkpoint, under the names that Hugging Face gives them."""
    s, d = model.shape, model.shape.head_dim
    named = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    if not s.tied_head:
        named["lm_head.weight"] = model.head
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        sizes = (s.heads * d, s.kv_heads * d, s.kv_heads * d)
        for name, part in zip("qkv", layer.qkv.split(sizes), strict=True):
            named[f"{at}self_attn.{name}_proj.weight"] = part
        if layer.qkv_bias is not None:
            for name, part in zip("qkv", layer.qkv_bias.split(sizes), strict=True):
                named[f"{at}self_attn.{name}_proj.bias"] = part
        for name, part in (("q_norm", layer.q_norm), ("k_norm", layer.k_norm), ("o_proj", layer.out)):
            if part is not None:
                named[f"{at}self_attn.{name}.weight"] = part
        for name, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
            named[f"{at}mlp.{name}_proj.weight"] = part
        named[f"{at}mlp.down_proj.weight"] = layer.down
        named[f"{at}input_layernorm.weight"] = layer.attention_norm
        named[f"{at}post_attention_layernorm.weight"] = layer.mlp_norm
    return named


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Stores a checkpoint in memory; the package that would read its file is a stand-in."""

    class Handle(dict):
        get_tensor = dict.__getitem__

    files = {}
    package = SimpleNamespace(safe_open=lambda path, framework: contextlib.nullcontext(files[path]))
    monkeypatch.setitem(sys.modules, "safetensors", package)

    def write(tensors):
        path = tmp_path / "model.safetensors"
        path.touch()
        files[str(path)] = Handle((name, tensor.clone()) for name, tensor in tensors.items())
        return tmp_path

    return write


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_of_a_checkpoint(checkpoint, family):
    shape = Shape.from_config(TINY | {"model_type": family, "tie_word_embeddings": family == "qwen3"})
    model, tokens = Decoder(shape, seed=5), torch.tensor([[1, 2, 3]])
    for weight in weights(model):  # norms too, which start as ones
        weight.add_(torch.randn_like(weight) * 0.1)
    loaded = Decoder(shape, seed=6)
    load_weights(loaded, checkpoint(stored_as_hugging_face(model)))
    assert torch.equal(run(loaded, tokens, [3])[0], run(model, tokens, [3])[0])


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoint, tmp_path):
    model = Decoder(Shape.from_config(TINY))
    with pytest.raises(ConfigError, match=r"must hold \*\.safetensors files"):
        load_weights(model, tmp_path)
    tensors = stored_as_hugging_face(model)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ConfigError, match=r"must hold the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_weights(model, checkpoint(tensors))


def test_fusing_compiles_what_lies_between_the_matrices(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f.__name__) or f)
    tokens = torch.tensor([[1, 2, 3]])
    fused = Decoder(TARGET_SHAPE, seed=1, fuse=True)
    assert compiled == ["add_norm", "rotate", "swiglu"]
    assert torch.equal(run(fused, tokens, [3])[0], run(target(), tokens, [3])[0])


def test_a_sliding_window_bounds_the_cache():
    model = Decoder(Shape.from_config(TINY | {"model_type": "mistral", "sliding_window": 64}))
    assert model.new_cache(1, 64).max_len == 64
    with pytest.raises(ConfigError, match="max_len=65 must be at most 64"):
        model.new_cache(1, 65)


def test_llama3_rotary_keeps_fast_frequencies_and_slows_the_slow_ones():
    plain = Shape(1, 8, 1, 1, 64, 8, 8, rope_theta=500000.0)
    scaled = Shape(1, 8, 1, 1, 64, 8, 8, rope_theta=500000.0, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 8192))
    ratio = Decoder(scaled)._frequencies / Decoder(plain)._frequencies
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.125
    assert (ratio.diff() <= 0).all()
