"""Steady load in closed form: steps as the analysis prices them, Little's law, limits, and rounds by brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.deployment import deploy
from simulator.errors import DoesNotFit
from simulator.hardware import load_gpu
from simulator.planning.attention_times import alike_s, knots, prompts_s
from simulator.planning.steady_state import closed_loop, curve, open_loop
from simulator.planning.step_prices import PLAIN_DECODING, DeploymentTables, Drafting, StepPrices
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.round import round_cost
from simulator.speculation.shape import PLAIN, chain

PAIR = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
LOOK_UP = deploy("llama-3.1-8b", "h100", draft="ngram")
WORK = Work.of_context(1024)
LAW = Acceptance((0.7,))


def curve_of(deployment, drafting, work=WORK):
    return curve(DeploymentTables(deployment, 12_000), drafting, work)


PLAIN_CURVE = curve_of(PAIR.plain(), PLAIN_DECODING)
ROUNDS = Drafting("γ = 4", chain(4), LAW)
CURVE = curve_of(PAIR, ROUNDS)


@pytest.mark.parametrize("new_tokens", [1, 5, 20])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-20b"])
def test_attention_of_equal_sequences_is_the_analysis_own(name, new_tokens):
    cost = deploy(name, "l40s").target
    tables = cost.tables(64, 64)
    found = alike_s(tables, np.array([0.0, 1.0, 8.0]), new_tokens, 700)
    assert found[0] == 0.0
    assert found[1:] == pytest.approx([cost.attention((new_tokens,) * n, (700,) * n) for n in (1, 8)])


def test_attention_beside_prompts_adds_up_to_the_analysis_own():
    cost = PAIR.target
    tables = cost.tables(64, 64)
    together = alike_s(tables, np.array([6.0]), 1, 900, beside_prompts=True) + prompts_s(
        tables, np.array([1.0]), 500, 1
    )
    assert together[0] == pytest.approx(cost.attention((1,) * 6 + (500,), (900,) * 6 + (0,)))


def test_knots_reach_from_nothing_to_the_most():
    for most in (1, 3, 5, 200, 256):
        assert knots(most)[0] == 0.0
        assert knots(most)[-1] == most
        assert np.all(np.diff(knots(most)) > 0)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_plain_steps_are_those_of_the_analysis(batch):
    prices = StepPrices(DeploymentTables(PAIR.plain(), 9000), PLAIN_DECODING, WORK, 256)
    nobody = np.zeros(1)
    step = prices.parts(np.array([float(batch)]), nobody, 0.0, 1)
    cost = round_cost(PAIR.target, PAIR.engine, sequences=batch, context_tokens=round(WORK.context_tokens))
    padded = PAIR.target_tables(512, 512).linear[0, 0, batch] - PAIR.target.linear(np.array([float(batch)]))[0]
    assert step.seconds[0] == pytest.approx(cost.seconds + padded, rel=1e-3)


@pytest.mark.parametrize("deployment", [PAIR, LOOK_UP])
@pytest.mark.parametrize("batch", [1, 16])
def test_rounds_are_those_of_the_analysis(deployment, batch):
    drafting = Drafting("γ = 4", deployment.drafter.shape(4), LAW)
    prices = StepPrices(DeploymentTables(deployment, 9000), drafting, WORK, 256)
    step = prices.parts(np.array([float(batch)]), np.zeros(1), 0.0, 1)
    cost = round_cost(
        deployment.target, deployment.engine, sequences=batch, context_tokens=round(WORK.context_tokens), gamma=4,
        acceptance=LAW, draft=deployment.draft, drafter=deployment.drafter,
    )  # fmt: skip
    assert step.seconds[0] == pytest.approx(cost.seconds, rel=0.02)


@given(st.floats(0.0, 0.95), st.integers(1, 6), st.integers(40, 300))
@settings(max_examples=30)
def test_rounds_of_an_answer_by_brute_force(alpha, gamma, tokens):
    law = Acceptance((alpha,))
    lengths = law.length_distribution(gamma)
    mean = np.zeros(tokens + 1)  # mean rounds until n more tokens have come
    for n in range(1, tokens + 1):
        mean[n] = 1.0 + sum(p * mean[max(0, n - x - 1)] for x, p in enumerate(lengths.tolist()))
    # The renewal process forgets where it began within a few rounds.
    assert Drafting("", chain(gamma), law).rounds(tokens) == pytest.approx(mean[tokens], rel=0.01)


@pytest.mark.parametrize("of", [PLAIN_CURVE, CURVE])
def test_littles_law_in_closed_loops(of):
    users = np.array([1.0, 3.0, 40.0, of.most, 3.0 * of.most])
    state = closed_loop(of, users)
    stay_s = state.ttft_s + state.tpot_s * (of.work.output_tokens - 1.0)
    assert state.requests_per_s * stay_s == pytest.approx(users)
    assert state.batch + state.waiting == pytest.approx(users)


@pytest.mark.parametrize("of", [PLAIN_CURVE, CURVE])
def test_littles_law_in_open_loops(of):
    top = of.requests_per_s[-1]
    rates = top * np.array([0.05, 0.5, 0.9, 0.97])
    state = open_loop(of, rates)
    # A request that has not joined yet, half a step on average, is in neither count.
    stay_s = state.ttft_s + state.tpot_s * (of.work.output_tokens - 1.0)
    assert state.batch + state.waiting == pytest.approx(rates * stay_s, rel=0.02)
    assert state.requests_per_s == pytest.approx(rates)
    assert np.all(np.diff(state.batch) > 0)


def test_a_lone_request_is_a_lone_user():
    lone = open_loop(CURVE, np.array([1e-6]))
    assert lone.tpot_s[0] == pytest.approx(closed_loop(CURVE, np.ones(1)).tpot_s[0], rel=1e-3)


def test_more_than_can_be_served_is_served_at_the_top_rate():
    state = open_loop(CURVE, np.array([100.0 * CURVE.requests_per_s[-1]]), Slo(ttft_s=10.0))
    assert state.requests_per_s[0] == CURVE.requests_per_s[-1]
    assert not state.carried[0]
    assert np.isinf(state.ttft_s[0])
    assert state.goodput_per_s[0] == 0.0


def test_nothing_drafted_is_plain_decoding():
    found = curve_of(LOOK_UP, Drafting("γ = 0", PLAIN, LAW))
    plain = curve_of(LOOK_UP.plain(), PLAIN_DECODING)
    assert np.array_equal(found.stay_s, plain.stay_s)
    assert np.array_equal(found.tpot_s, plain.tpot_s)
    assert found.room == plain.room


def test_drafts_that_all_fail_cost_time():
    never = curve_of(LOOK_UP, Drafting("γ = 4", LOOK_UP.drafter.shape(4), Acceptance((0.0,))))
    plain = curve_of(LOOK_UP.plain(), PLAIN_DECODING)
    shared = min(never.most, plain.most)
    assert np.all(never.tpot_s[:shared] > plain.tpot_s[:shared])
    assert never.rounds == pytest.approx(WORK.output_tokens - 1.0)


def test_where_bandwidth_is_free_there_is_less_to_win():
    slow = load_gpu("h100")
    gains = []
    for factor in (1.0, 10.0, 1000.0):
        gpu = replace(slow, hbm_bytes_per_s=factor * slow.hbm_bytes_per_s, hbm_latency_s=slow.hbm_latency_s / factor)
        served = deploy("llama-3.1-8b", gpu, draft="ngram", engine="ideal")
        with_ = curve_of(served, Drafting("γ = 4", served.drafter.shape(4), Acceptance((0.8,))))
        gains.append(curve_of(served.plain(), PLAIN_DECODING).tpot_s[127] / with_.tpot_s[127])
    assert gains[0] > gains[1] > gains[2]


def test_free_drafts_that_are_always_accepted_never_lose():
    served = deploy("llama-3.1-8b", "h100", draft="ngram", engine="ideal")
    plain = curve_of(served.plain(), PLAIN_DECODING)
    quicker = [
        curve_of(served, Drafting("", served.drafter.shape(g), Acceptance((1.0,)))).tpot_s[0] for g in (1, 2, 4, 8)
    ]
    gains = plain.tpot_s[0] / np.array(quicker)
    assert np.all(np.diff(gains) > 0)
    assert np.all(gains <= np.array([2.0, 3.0, 5.0, 9.0]))
    assert gains[0] > 1.8


def test_goodput_counts_requests_within_the_objectives():
    users = np.array([1.0, 8.0, 64.0])
    all_good = closed_loop(CURVE, users)
    assert all_good.goodput_per_s == pytest.approx(all_good.requests_per_s)
    none_good = closed_loop(CURVE, users, Slo(tpot_s=1e-6))
    assert np.all(none_good.goodput_per_s == 0.0)
    half = closed_loop(CURVE, users, Slo(tpot_s=float(all_good.tpot_s[1])))
    assert half.goodput_per_s[0] > 0.95 * half.requests_per_s[0]
    assert 0.3 < half.goodput_per_s[1] / half.requests_per_s[1] < 0.7
    assert half.goodput_per_s[2] < 0.05 * half.requests_per_s[2]


def test_requests_differ_more_where_luck_is_their_own():
    limit = Slo(tpot_s=float(CURVE.tpot_s[7] * 1.05))
    spread = curve_of(PAIR, Drafting("γ = 4", chain(4), Acceptance((0.7,), request_icc=0.2)))
    share = [
        float(s.goodput_per_s[0] / s.requests_per_s[0])
        for s in (closed_loop(c, np.array([8.0]), Slo(tpot_s=float(c.tpot_s[7] * 1.05))) for c in (CURVE, spread))
    ]
    assert limit.tpot_s is not None
    assert share[0] > share[1]


def test_no_room_for_one_sequence_is_said():
    tight = deploy("llama-3.1-70b", "h200", draft="llama-3.2-1b")
    with pytest.raises(DoesNotFit):
        curve(DeploymentTables(tight, 9000), ROUNDS, Work.of_context(100_000))
