"""Drafters by name, by file and as plain models; who may draft for whom; on how many GPUs."""

import json
from dataclasses import replace

import pytest
import yaml

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.errors import InputError, UnknownName
from simulator.speculation.drafters import Drafter, check_pair, load_drafter
from simulator.speculation.shape import PLAIN, DraftShape

TARGET = load_decoder("llama-3.1-8b")


@pytest.mark.parametrize("name", catalog.names("drafter"))
def test_every_bundled_drafter_loads_and_fits_its_targets(name):
    drafter = load_drafter(name)
    assert drafter.name == name
    assert (drafter.decoder is not None) == (drafter.kind in ("model", "eagle", "eagle3"))
    for target in drafter.targets:
        check_pair(load_decoder(target), drafter)


def test_any_model_may_draft_independently():
    drafter = load_drafter("qwen3-0.6b")
    assert (drafter.kind, drafter.decoder, drafter.acceptance) == ("model", load_decoder("qwen3-0.6b"), None)
    check_pair(load_decoder("qwen3-8b"), drafter)


def own_file(tmp_path, **changes) -> Drafter:
    data = {"name": "mine", "title": "Mine", "kind": "model", "model": "llama-3.2-1b", **changes}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return load_drafter(str(path))


def test_own_file_with_acceptance_and_formats(tmp_path):
    drafter = own_file(tmp_path, acceptance=0.7, quantization={"weights": "fp8"}, tp=1)
    assert drafter.acceptance.law().rates == (0.7,)
    assert (drafter.quantization.weights, drafter.tp) == ("fp8", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "ngram"}, "must be given for model, eagle and eagle3"),
        ({"model": None}, "must be given for model, eagle and eagle3"),
        ({"model": "lama-3.2-1b"}, "did you mean llama-3.2-1b?"),
        ({"kind": "eagel"}, "did you mean eagle?"),
        ({"quantization": "int4"}, "quantization='int4' must be a mapping of fields to values"),
        ({"kind": "medusa", "model": None}, "heads='(absent)' must be given for a drafter of kind medusa"),
        ({"kind": "early-exit", "model": None}, "exit_layer='(absent)' must be given"),
        ({"kind": "sparse-kv", "model": None}, "kv_budget_tokens='(absent)' must be given"),
        ({"heads": 4}, "heads=4 must be left out for a drafter of kind model"),
        ({"kind": "mtp", "model": None, "modules": 0}, "modules=0 must be between 1 and"),
        ({"kind": "ngram", "model": None, "parallel": {"hit": 0.5}}, "must be left out for a drafter of kind ngram"),
        ({"parallel": {"hit": 1.5}}, "hit"),
        ({"parallel": {"gpus": 0, "hit": 0.5}}, "gpus"),
        ({"parallel": {"gpus": 2}}, "hit"),
        ({"parallel": {"hit": 0.5}, "tp": 1}, "tp=1 must be left out where the drafter has GPUs of its own"),
        ({"acceptance": 1.5}, "alpha=1.5 must be between 0 and 1"),
        ({"gamma": 3}, "gamma must be a known field"),
    ],
)
def test_impossible_files(tmp_path, changes, said):
    with pytest.raises(InputError) as caught:
        own_file(tmp_path, **changes)
    assert said in str(caught.value)


def test_unknown_names_are_looked_for_among_drafters_and_models():
    with pytest.raises(UnknownName, match="draft='ngrm' must be a known drafter or model") as caught:
        load_drafter("ngrm")
    assert {"ngram", "llama-3.1-8b"} <= set(caught.value.known)
    assert caught.value.suggestion == "ngram"


@pytest.mark.parametrize(
    ("target", "drafter", "said"),
    [
        ("llama-3.1-8b", "qwen3-0.6b", "must share the target's vocabulary, but has 151936 tokens"),
        ("llama-3.1-70b", "eagle-llama-3.1-8b", "must have the hidden size 8192 of llama-3.1-70b, not 4096"),
        ("vicuna-7b", "eagle-llama-3.1-8b", "must have at most the 32000 tokens of vicuna-7b"),
    ],
)
def test_pairs_that_do_not_match(target, drafter, said):
    with pytest.raises(InputError) as caught:
        check_pair(load_decoder(target), load_drafter(drafter))
    assert said in str(caught.value)


def test_pairs_that_need_not_match():
    check_pair(TARGET, load_drafter("ngram"))
    # EAGLE-3's head knows 32000 of the 128256 tokens.
    check_pair(TARGET, load_drafter("eagle3-llama-3.1-8b"))
    assert load_drafter("eagle3-llama-3.1-8b").decoder.head_vocab_size == 32_000


def test_a_model_without_prediction_modules_has_none_to_draft_with(tmp_path):
    with pytest.raises(InputError, match=r"the config of llama-3\.1-8b names none"):
        check_pair(TARGET, load_drafter("mtp"))
    check_pair(load_decoder("deepseek-v3"), load_drafter("mtp"))
    check_pair(TARGET, own_file(tmp_path, kind="mtp", model=None, modules=1))  # trained by its user


@pytest.mark.parametrize("layers", [32, 100])
def test_an_early_exit_leaves_layers_out(tmp_path, layers):
    with pytest.raises(InputError, match=f"exit_layer={layers} must be at least 1 and below the 32 layers"):
        check_pair(TARGET, own_file(tmp_path, kind="early-exit", model=None, exit_layer=layers))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_s_own_config_will_do(tmp_path, kind):
    bundled = load_decoder(f"{kind}-llama-3.1-8b")
    config = json.loads(catalog.locate("model", bundled.name).read_text())
    bare = {key: value for key, value in config.items() if not key.startswith("memwall_")}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    drafter = own_file(tmp_path, kind=kind, model="config.json")
    assert replace(drafter.decoder, name=bundled.name) == bundled
    check_pair(TARGET, drafter)


# What the serving loop reads


@pytest.mark.parametrize(
    ("name", "reads", "catches_up", "looks_up"),
    [
        ("llama-3.2-1b", True, "later", False),
        ("eagle-llama-3.1-8b", True, "each-step", False),
        ("eagle3-llama-3.1-8b", True, "each-step", False),
        ("mtp-deepseek-v3", True, "each-step", False),
        ("medusa-vicuna-7b", False, "later", False),
        ("early-exit-llama-2-7b", False, "later", False),
        ("sparse-kv-512", False, "later", False),
        ("ngram", False, "later", True),
        ("suffix", False, "later", True),
        ("lookahead", False, "later", True),
    ],
)
def test_traits_of_each_kind(name, reads, catches_up, looks_up):
    drafter = load_drafter(name)
    assert (drafter.reads_prompts, drafter.catches_up, drafter.looks_up) == (reads, catches_up, looks_up)
    assert (drafter.exposed_share, drafter.draft_gpus) == (1.0, 0)


def test_a_drafter_apart_exposes_what_misses():
    drafter = load_drafter("parallel-llama-3.2-1b")
    assert (drafter.exposed_share, drafter.draft_gpus, drafter.tensor_parallel(8)) == (0.5, 1, 1)


@pytest.mark.parametrize(
    ("name", "gamma", "shape"),
    [
        ("llama-3.2-1b", 3, DraftShape(3, 3, (1, 1, 1))),
        ("eagle3-llama-3.1-8b", 2, DraftShape(2, 2, (1, 1))),
        ("mtp-deepseek-v3", 3, DraftShape(3, 3, (1, 1, 1))),
        ("medusa-vicuna-7b", 5, DraftShape(5, 5, (1,))),
        ("ngram", 4, DraftShape(4, 4, ())),
        ("suffix", 4, DraftShape(4, 4, ())),
        ("lookahead", 4, DraftShape(120, 4, ())),  # (15 + 15)·(5 − 1)
        ("early-exit-llama-2-7b", 2, DraftShape(2, 2, (1, 1))),
    ],
)
def test_the_shape_each_kind_verifies(name, gamma, shape):
    drafter = load_drafter(name)
    assert drafter.shape(gamma) == shape
    assert drafter.shape(0) == PLAIN


def test_a_file_is_named_by_its_name(tmp_path):
    drafter = own_file(tmp_path, name=None, title=None)
    assert (drafter.name, drafter.title) == ("mine", "mine")


def test_lookahead_verifies_no_more_than_there_is_room_for(tmp_path):
    drafter = own_file(tmp_path, kind="lookahead", model=None, window=100, guesses=56)
    assert drafter.most_drafts == 3
    assert drafter.shape(3).nodes == 468
    with pytest.raises(InputError, match=r"mine: \(window \+ guesses\)·γ=624 must be at most 512"):
        drafter.shape(4)


def test_medusa_has_no_more_drafts_than_heads():
    with pytest.raises(InputError, match="gamma=6 must be at most the 5 heads of medusa-vicuna-7b"):
        load_drafter("medusa-vicuna-7b").shape(6)
    assert load_drafter("medusa-vicuna-7b").most_drafts == 5


@pytest.mark.parametrize(
    ("drafter", "target_tp", "expected"),
    [("llama-3.2-1b", 4, 4), ("llama-68m", 8, 1), ("qwen2.5-7b", 4, 4), ("qwen2.5-7b", 8, 1), ("ngram", 8, 8)],
)
def test_the_drafter_is_shared_where_its_heads_allow(drafter, target_tp, expected):
    # llama-68m has 12 heads, qwen2.5-7b 28.
    assert load_drafter(drafter).tensor_parallel(target_tp) == expected


def test_a_fixed_number_of_gpus(tmp_path):
    drafter = own_file(tmp_path, tp=2)
    assert drafter.tensor_parallel(2) == 2
    with pytest.raises(InputError, match=r"drafter\.tp=2 must be 1 or the target's 4"):
        drafter.tensor_parallel(4)
