"""Drafters by name, by file and as plain models; who may draft for whom; on how many GPUs."""

import pytest
import yaml

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.errors import InputError, UnknownName
from simulator.speculation.drafters import Drafter, check_pair, load_drafter

TARGET = load_decoder("llama-3.1-8b")


@pytest.mark.parametrize("name", catalog.names("drafter"))
def test_every_bundled_drafter_loads_and_fits_its_targets(name):
    drafter = load_drafter(name)
    assert drafter.name == name
    assert (drafter.decoder is None) == (drafter.kind == "ngram")
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
        ({"kind": "eagel"}, "kind='eagel' must be"),
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
    head = load_drafter("eagle-llama-3.1-8b")
    check_pair(
        TARGET, Drafter("e3", "E3", "eagle", load_decoder("eagle3-llama-3.1-8b"), None, head.quantization, None, ())
    )


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
