"""Layers cut into stages: vLLM's rule by hand, nothing lost, and who has which kind of layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.errors import InputError
from simulator.pipeline import pipeline_stages, stage_layers


@pytest.mark.parametrize(
    ("layers", "pp", "expected"),
    [
        (80, 4, [20, 20, 20, 20]),
        (61, 4, [15, 15, 16, 15]),  # one layer more, in the middle
        (62, 4, [15, 16, 16, 15]),
        (63, 4, [16, 16, 16, 15]),  # the last stage is the last to get one
        (5, 2, [3, 2]),
        (7, 1, [7]),
        (4, 4, [1, 1, 1, 1]),
    ],
)
def test_what_is_left_over_goes_to_the_middle(layers, pp, expected):
    assert stage_layers(layers, pp) == expected


@given(st.integers(1, 200), st.integers(1, 64))
def test_no_layer_is_lost_and_stages_differ_by_one(layers, pp):
    if pp > layers:
        return
    found = stage_layers(layers, pp)
    assert sum(found) == layers
    assert len(found) == pp
    assert max(found) - min(found) <= 1
    assert found[-1] == min(found)


def test_one_stage_is_the_model():
    for name in ("llama-3.1-8b", "gemma-3-27b", "deepseek-v3"):
        decoder = load_decoder(name)
        (stage,) = pipeline_stages(decoder, 1)
        assert stage.counts == tuple(kind.count for kind in decoder.layer_kinds)
        assert stage.first
        assert stage.last


def test_first_dense_layers_are_in_the_first_stage():
    # DeepSeek-V3: three dense layers, then 58 with experts.
    assert [s.counts for s in pipeline_stages(load_decoder("deepseek-v3"), 4)] == [(3, 12), (0, 15), (0, 16), (0, 15)]


def test_alternating_windows_are_in_every_stage():
    # gpt-oss-20b: 24 layers, every other one with a window.
    assert [s.counts for s in pipeline_stages(load_decoder("gpt-oss-20b"), 4)] == [(3, 3)] * 4
    # Gemma 3 27B: every sixth of 62 layers sees everything: layers 5, 11 | 17, 23, 29 | 35, 41 | 47, 53, 59.
    assert [s.counts for s in pipeline_stages(load_decoder("gemma-3-27b"), 4)] == [(13, 2), (13, 3), (14, 2), (12, 3)]


@pytest.mark.parametrize("pp", [0, -1, 33])
def test_every_stage_needs_a_layer(pp):
    with pytest.raises(InputError, match=f"pp={pp} must be between 1 and the 32 layers of llama-3.1-8b"):
        pipeline_stages(load_decoder("llama-3.1-8b"), pp)
