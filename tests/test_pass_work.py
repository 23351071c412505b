"""Whole passes: the target's are its priced passes, the drafter's is what it would be as a model of its own."""

from __future__ import annotations

import pytest

from simulator import decode, deploy
from simulator.cost.forward import Batch
from simulator.errors import InputError
from simulator.pass_work import pass_works


@pytest.fixture(scope="module")
def step():
    return decode(deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b"), batch=4, context_tokens=1000)


def test_plain_decoding_is_the_step_s_pass(step):
    (plain,) = pass_works(step)
    assert plain.seconds == step.pass_cost.seconds
    assert plain.flop_per_byte == step.pass_cost.total("flop") / step.pass_cost.total("bytes_")
    assert plain.flop_per_s * plain.seconds == pytest.approx(step.pass_cost.total("flop"))


def test_verification_multiplies_for_each_token_and_reads_the_weights_once(step):
    plain, verify, _ = pass_works(step, 4)
    cost = step.deployment.target.pass_cost(Batch.decode(4, 1000, 5))
    assert (verify.seconds, verify.flop) == (cost.seconds, cost.total("flop"))
    assert verify.flop == pytest.approx(5 * plain.flop, rel=0.01)
    assert verify.bytes_ == pytest.approx(plain.bytes_, rel=0.02)
    assert verify.name == "verifying 5 tokens"


def test_a_draft_pass_is_one_of_the_drafter_as_a_model(step):
    draft = pass_works(step, 4)[-1]
    alone = decode(deploy("llama-3.2-1b", "h100"), batch=4, context_tokens=1000).pass_cost
    assert draft.kind == "draft"
    assert draft.flop == pytest.approx(alone.total("flop"))
    assert draft.bytes_ == pytest.approx(alone.total("bytes_"))
    assert draft.seconds == pytest.approx(alone.seconds, rel=0.1)  # passes back to back find some of it in L2
    assert draft.seconds <= alone.seconds


@pytest.mark.parametrize("drafter", ["ngram", None])
def test_without_a_drafting_model_nothing_drafts(drafter):
    found = pass_works(decode(deploy("llama-3.1-8b", "h100", draft=drafter)), 3)
    assert [work.kind for work in found] == ["plain", "verify"]


def test_a_pipeline_verifies_micro_batches():
    step = decode(deploy("llama-3.1-8b", "h100", pp=2), batch=7, context_tokens=1000)
    plain, verify = pass_works(step, 2)
    assert plain.seconds == step.pass_cost.seconds
    assert verify.flop == step.deployment.target.pass_cost(Batch.decode(4, 1000, 3)).total("flop")


@pytest.mark.parametrize("gamma", [-1, 10**6])
def test_impossible_gammas(step, gamma):
    with pytest.raises(InputError, match=f"gamma={gamma} must be from 0 to"):
        pass_works(step, gamma)
