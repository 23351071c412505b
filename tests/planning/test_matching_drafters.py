"""What is offered can draft for the model, and nothing is a head, another vocabulary's or as large as the target."""

import pytest

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.planning.matching_drafters import drafters_for
from simulator.speculation.drafters import check_pair, load_drafter


@pytest.mark.parametrize("name", catalog.names("model"))
def test_all_that_is_offered_goes_with_the_model(name):
    target = load_decoder(name)
    found = drafters_for(target)
    assert len(found) == len(set(found))
    assert "ngram" in found  # which goes with any
    for draft in map(load_drafter, found):
        check_pair(target, draft)
        if draft.kind == "model":
            assert draft.decoder is not None
            assert draft.decoder.parameters < target.parameters
            assert not draft.decoder.feature_size


def test_published_ones_come_first():
    found = drafters_for(load_decoder("llama-3.1-70b"))
    assert found[0] == "eagle3-llama-3.1-70b"
    assert found.index("llama-3.1-8b") < found.index("eagle-llama-3.1-70b") < found.index("ngram")


def test_only_models_of_the_same_family_are_taken_to_share_its_vocabulary():
    # Mistral 7B and Llama 2 have 32,000 tokens each, and not the same ones.
    assert "mistral-7b" not in drafters_for(load_decoder("llama-2-70b"))
    assert "llama-2-7b" in drafters_for(load_decoder("llama-2-70b"))
    assert {"qwen3-0.6b", "qwen3-8b"} <= set(drafters_for(load_decoder("qwen3-32b")))


def test_multi_token_prediction_goes_with_models_that_have_it():
    assert drafters_for(load_decoder("deepseek-v3"))[:2] == ["mtp-deepseek-v3", "mtp"]
    assert "mtp" not in drafters_for(load_decoder("llama-3.1-8b"))
