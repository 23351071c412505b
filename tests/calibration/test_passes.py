"""Passes taken apart cost what `ForwardCost` says, and rounds are made of the passes that the reference decoder runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.calibration.measured import rows_of
from simulator.calibration.passes import Kernels, Pass, Terms
from simulator.cost.efficiency import load_efficiency
from simulator.cost.forward import Batch, ForwardCost
from simulator.hardware import load_gpu

MODELS = {name: load_decoder(name) for name in ("llama-3.1-8b", "llama-3.2-1b", "qwen2.5-7b")}
GPUS = {name: load_gpu(name) for name in ("h100-sxm", "rtx-4090", "cpu-generic")}


def kernels_of(gpu):
    e = load_efficiency(gpu)
    return Kernels(e.matmul, e.decode_attention, e.prefill_attention, e.elementwise)


@given(
    gpu=st.sampled_from(sorted(GPUS)), model=st.sampled_from(sorted(MODELS)), sequences=st.integers(1, 300),
    new=st.integers(1, 40), cached=st.integers(0, 20_000), repeated=st.booleans(),
)  # fmt: skip
def test_a_pass_costs_what_forward_cost_says(gpu, model, sequences, new, cached, repeated):
    device, decoder = GPUS[gpu], MODELS[model]
    terms = Terms.of([Pass(model, sequences, new, cached, sequences * new, repeated=repeated)], MODELS, device)
    forward = ForwardCost(decoder, device, back_to_back=repeated)
    expected = forward.seconds(Batch.decode(sequences, cached, new))
    assert terms.seconds(kernels_of(device), device)[0] == pytest.approx(expected, rel=1e-9)


def test_layers_are_counted_once_each():
    """Time is linear in the layers that a pass runs: the head and the edges stay."""
    gpu = GPUS["h100-sxm"]
    passes = [Pass("llama-3.1-8b", 4, 1, 512, 4, layers) for layers in (1, 2, 3, None, 99)]
    one, two, three, every, more = Terms.of(passes, MODELS, gpu).seconds(kernels_of(gpu), gpu)
    assert three - two == pytest.approx(two - one, rel=1e-9)
    assert every == pytest.approx(one + 31 * (two - one), rel=1e-9)
    assert more == every


def test_passes_of_several_models_keep_their_places():
    gpu = GPUS["h100-sxm"]
    passes = [Pass("llama-3.1-8b", 1, 1, 64, 1), Pass("llama-3.2-1b", 8, 1, 64, 8), Pass("llama-3.1-8b", 2, 5, 64, 10)]
    together = Terms.of(passes, MODELS, gpu).seconds(kernels_of(gpu), gpu)
    alone = [Terms.of([p], MODELS, gpu).seconds(kernels_of(gpu), gpu)[0] for p in passes]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def line(**fields):
    return {"median_s": 1.0, "batch": 2, "context_tokens": 100, "tokens_per_round": 1.0, "graphs": False} | fields


def passes_of(**fields):
    rows = rows_of([line(**fields)])
    return [
        (p.model, p.new_tokens, p.head_rows, p.layers, often) for p, often in zip(rows.passes, rows.times, strict=True)
    ]


def test_a_chain_is_two_tokens_then_one_at_a_time_then_verified():
    """γ = 4: the first draft pass also takes the token before the pending one; B = 2 rows."""
    found = passes_of(kind="round", model="t", drafter="small", draft_model="d", gamma=4)
    assert found == [("d", 2, 4, None, 1.0), ("d", 1, 2, None, 3.0), ("t", 5, 10, None, 1.0)]


def test_early_exit_drafts_with_the_targets_first_layers():
    found = passes_of(kind="round", model="t", drafter="early_exit", draft_model=None, gamma=2, exit_layers=3)
    assert found == [("t", 1, 2, 3, 1.0), ("t", 1, 2, 3, 1.0), ("t", 3, 6, None, 1.0)]


def test_a_tree_drafts_level_by_level():
    """Widths 3, 2, 1: levels of 1, 3, 6 and 6 nodes; the last is not drafted from, and all 16 are verified."""
    found = passes_of(kind="round", model="t", drafter="tree", draft_model="d", gamma=3, widths=[3, 2, 1])
    assert found == [("d", 2, 4, None, 1.0), ("d", 3, 6, None, 1.0), ("d", 6, 12, None, 1.0), ("t", 16, 32, None, 1.0)]


def test_a_plain_round_is_one_pass_with_the_context_of_the_middle_round():
    rows = rows_of([line(kind="round", model="t", drafter="plain", draft_model=None, gamma=0)])
    assert [(p.new_tokens, p.cached_tokens) for p in rows.passes] == [(1, 108)]


def test_rows_keep_what_was_measured():
    rows = rows_of([line(kind="step", model="t", tokens=3), line(kind="draft", model="d", gamma=3, median_s=2.0)])
    assert rows.measured_s.tolist() == [1.0, 2.0]
    assert np.bincount(rows.row, rows.times).tolist() == [1.0, 3.0]
    assert rows.where(np.array([False, True])).label("gamma").tolist() == [3]
