"""Maps of load, drafts and context: ratios, crossings that bracket, why, schedules and answers."""

import json
from itertools import pairwise

import numpy as np
import pytest
import yaml

from simulator.deployment import deploy
from simulator.errors import DoesNotFit, InputError
from simulator.planning.answers import kv_instead, oracle_gap, replica_instead, waste
from simulator.planning.load_map import (
    LEAST_GAIN,
    LoadAxis,
    chains,
    default_rates,
    last_paying_load,
    load_map,
    speed_ratio,
    trees,
)
from simulator.planning.reasons import reason, reason_at
from simulator.planning.schedule import gains_by_batch, schedule
from simulator.planning.work import Work
from simulator.scenario import Speculation
from simulator.slo import Slo
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.engine_config import read_vllm
from simulator.speculation.engine_flags import read_sglang

PAIR = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
EAGLE = deploy("llama-3.1-8b", "h100", draft="eagle-llama-3.1-8b")
LOOK_UP = deploy("llama-3.1-8b", "h100", draft="ngram")
LAW = Acceptance((0.7,))
USERS = LoadAxis.of("users", [1, 4, 16, 64, 128, 256])


def mapped(deployment=PAIR, law=LAW, gammas=(1, 4), contexts=(512,), axis=USERS, **options):
    works = [Work.of_context(c) for c in contexts]
    return load_map(deployment, chains(deployment, law, gammas), works, axis, **options)


FOUND = mapped(contexts=(512, 4096))


def test_speedup_is_a_ratio_of_times_per_token_where_both_sides_carry_the_load():
    for i, j in ((0, 0), (1, 1)):
        state, plain = FOUND.states[i][j], FOUND.plain_states[j]
        both = state.carried & plain.carried
        assert both[:3].all()
        assert FOUND.speedup[i, j][both] == pytest.approx((plain.tpot_s / state.tpot_s)[both])


def test_where_a_load_finds_no_room_requests_per_second_are_compared():
    found = mapped(contexts=(16_384,), gammas=(4,))
    state, plain = found.states[0][0], found.plain_states[0]
    assert not state.carried[-1]
    assert speed_ratio(state, plain)[-1] == pytest.approx(state.requests_per_s[-1] / plain.requests_per_s[-1])


def test_best_is_the_argmax_or_none():
    for j in range(2):
        for k in range(len(USERS.values)):
            column = FOUND.speedup[:, j, k]
            i = FOUND.best[j, k]
            assert (column.max() <= LEAST_GAIN) if i < 0 else column[i] == column.max()


@pytest.mark.parametrize("axis", [USERS, LoadAxis.of("rate", [1, 4, 16, 32, 48])])
def test_a_crossing_pays_and_the_load_after_it_does_not(axis):
    found = mapped(gammas=(2, 6), axis=axis, intervals=False)
    for i in range(2):
        end = found.crossing(i, 0).load
        assert end
        after = axis.fine[axis.fine > end]
        of, plain = found.curves[i][0], found.plain[0]
        at = np.array([end, *after])
        ratio = speed_ratio(axis.states(of, at, Slo()), axis.states(plain, at, Slo()))
        assert ratio[0] > LEAST_GAIN
        assert np.all(ratio[1:] <= LEAST_GAIN)


def test_where_the_gain_wavers_the_crossing_is_where_it_mostly_pays():
    loads = np.arange(1.0, 257.0)

    def last(pays):
        return last_paying_load(loads, np.where(pays, 1.1, 1.0))

    assert last(loads <= 100) == 100  # a single crossing stays where it is
    assert last((loads <= 100) | (loads == 110) | (np.abs(loads - 212) <= 2)) == 100
    assert last((loads <= 120) & (loads != 90) & (np.abs(loads - 105) > 1)) == 120
    assert last(loads > 200) is None
    assert last(loads > 300) == 0.0
    assert last(loads == 1.0) == 1.0


def test_the_crossing_lies_within_its_interval():
    for j in range(2):
        for i in range(2):
            crossing = FOUND.crossing(i, j)
            ends = [np.inf if x is None else x for x in (crossing.low, crossing.load, crossing.high)]
            assert ends == sorted(ends)


def test_intervals_are_of_ratios_whose_common_errors_cancel():
    assert np.all(FOUND.log_sd[np.isfinite(FOUND.log_sd)] < 0.2)
    assert FOUND.log_sd.max() > 0.0
    assert np.all(mapped(intervals=False).log_sd == 0.0)


def test_never_accepted_never_pays():
    found = mapped(law=Acceptance((0.0,)), intervals=False)
    assert found.last_paying(0) == 0
    assert np.all(found.best == -1)
    assert reason(found, 1, 0).gained == pytest.approx(0.0)


def test_better_acceptance_pays_longer():
    ends = [mapped(LOOK_UP, Acceptance((a,)), (4,), intervals=False).crossing(0, 0).load for a in (0.3, 0.5, 0.7)]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


def test_goodput_crosses_where_plain_decoding_keeps_the_objective_and_drafts_do_not():
    slo = Slo(tpot_s=0.02)
    found = mapped(gammas=(1, 8), slo=slo, intervals=False)
    end = found.crossing(1, 0, "goodput").load
    assert end is not None
    state, plain = (found.axis.states(c, np.array([end + 2]), slo) for c in (found.curves[1][0], found.plain[0]))
    assert state.goodput_per_s[0] < plain.goodput_per_s[0]


def test_trees_are_one_more_way_to_draft():
    ways = trees(PAIR, LAW, [8, 16], 4)
    found = load_map(PAIR, [*chains(PAIR, LAW, [4]), *ways], [Work.of_context(512)], USERS, intervals=False)
    assert [d.name for d in found.draftings] == ["γ = 4", "tree of 8", "tree of 16"]
    assert (
        found.draftings[2].tokens_per_round > found.draftings[1].tokens_per_round > found.draftings[0].tokens_per_round
    )
    assert found.crossing(2, 0).load < found.crossing(0, 0).load  # 17 tokens to verify become dear first


def test_a_chain_as_a_tree_is_the_chain():
    (tree,) = trees(PAIR, LAW, [1], 1)
    (alone,) = chains(PAIR, LAW, [1])
    assert tree.shape == alone.shape
    assert tree.tokens_per_round == pytest.approx(alone.tokens_per_round)


def test_default_rates_end_beyond_what_is_carried():
    works = [Work.of_context(512)]
    rates = default_rates(PAIR, works)
    found = mapped(axis=LoadAxis.of("rate", rates), intervals=False)
    assert found.plain_states[0].carried[0]
    assert not found.plain_states[0].carried[-1]


# --- why --------------------------------------------------------------------------------------------------------------
def test_a_reason_names_the_largest_part_and_its_figures():
    found = mapped(LOOK_UP, gammas=(4,), intervals=False, axis=LoadAxis.of("users", [1, 256]))
    why = reason(found, 0, 0)
    assert why.cause == max(why.beyond, key=lambda c: why.beyond[c]) == "verification"
    assert "verification is compute-bound at batch" in why.sentence
    assert "5 tokens cost" in why.sentence
    # Beyond the crossing a round costs about as much as it yields, or more.
    assert sum(why.beyond.values()) == pytest.approx(why.gained, rel=0.25)


@pytest.mark.parametrize("context", [512, 4096])
@pytest.mark.parametrize("users", [1.0, 16.0, 40.0])
def test_what_a_round_takes_and_yields_is_its_speed_up(context, users):
    found = mapped(contexts=(context,), gammas=(3,), intervals=False)
    states = [found.axis.states(c, np.array([users]), Slo()) for c in (found.curves[0][0], found.plain[0])]
    assert all(state.carried for state in states)
    why = reason_at(found, 0, 0, users)
    took = 1.0 + sum(why.beyond.values()) - why.beyond["kv room"]
    assert (1.0 + why.gained) / took == pytest.approx(float(speed_ratio(*states)[0]), rel=1e-6)


def test_prompts_beside_a_round_are_the_reason_where_they_take_most():
    found = mapped(contexts=(8192,), gammas=(1,), intervals=False)
    why = reason_at(found, 0, 0, 40.0)
    assert why.cause == "prompts"
    assert "fewer rounds per answer have more prompts each" in why.sentence


def test_a_heavy_drafter_is_the_reason():
    found = mapped(deploy("llama-3.1-8b", "h100", draft="llama-3.1-8b"), Acceptance((0.5,)), (4,), intervals=False)
    why = reason_at(found, 0, 0, 1.0)
    assert why.cause == "drafter"
    assert "the drafter's passes take" in why.sentence


def test_a_slow_host_is_the_reason():
    found = mapped(deploy("llama-3.2-1b", "h100", draft="ngram"), Acceptance((0.3,)), (1,), intervals=False)
    assert reason_at(found, 0, 0, 64.0).cause == "host"


def test_prompts_that_fill_the_budget_are_the_reason():
    works = [Work.of_context(4096, 16)]
    found = load_map(LOOK_UP, chains(LOOK_UP, LAW, [4]), works, LoadAxis.of("users", [1, 64]), intervals=False)
    why = reason_at(found, 0, 0, 64.0)
    assert why.cause == "prompts"
    assert "faster than the token budget reads them" in why.sentence


def test_what_pays_throughout_has_no_reason():
    found = mapped(LOOK_UP, Acceptance((1.0,)), (1,), intervals=False, axis=LoadAxis.of("users", [1, 4]))
    assert found.crossing(0, 0).load is None
    assert reason(found, 0, 0) is None


# --- schedules --------------------------------------------------------------------------------------------------------
def test_a_schedule_has_the_best_gamma_of_each_batch():
    found = mapped(gammas=range(1, 7), contexts=(512, 4096), intervals=False)
    made = schedule(found)
    assert made.batches[0] == 1
    assert made.contexts[0] == 0
    gains = gains_by_batch(found, 0, 256)
    for i, batch in enumerate(made.batches):
        if batch in (1, made.batches[-1]):
            gamma = made.gamma[i][0]
            row = 0 if gamma == 0 else [d.shape.depth for d in found.draftings].index(gamma) + 1
            assert gains[row, batch - 1] >= 0.97 * gains[:, batch - 1].max()


def test_a_schedule_is_a_policy_of_ours_and_one_of_vllms():
    made = schedule(mapped(EAGLE, gammas=range(1, 7), contexts=(512, 4096), intervals=False))
    ours = Speculation(**yaml.safe_load(made.yaml())["speculation"])
    assert ours.policy.table.gamma == made.gamma
    config = made.vllm()
    ranges = config["num_speculative_tokens_per_batch_size"]
    assert ranges[0][0] == 1
    assert ranges[-1][1] == 256
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges))
    assert config["num_speculative_tokens"] == max(r[2] for r in ranges)
    back = read_vllm(config, "llama-3.1-8b").speculation
    assert back["draft"] == "eagle-llama-3.1-8b"


def test_a_schedule_for_sglang_has_a_slot_per_range():
    made = schedule(mapped(EAGLE, gammas=range(1, 7), intervals=False))
    flags, slots = made.sglang()
    assert "--speculative-adaptive" in flags
    assert list(slots) == [str(b) for b, _ in made.flat]
    assert [s["candidate_steps"] for s in slots.values()] == [[g] for _, g in made.flat]
    flags, slots = schedule(mapped(gammas=range(1, 7), intervals=False)).sglang()
    assert slots is None
    assert "STANDALONE" in flags


def test_what_is_written_for_sglang_is_read_back_with_its_slots(tmp_path, monkeypatch):
    made = schedule(mapped(EAGLE, gammas=range(1, 7), intervals=False))
    flags, slots = made.sglang()
    monkeypatch.chdir(tmp_path)
    without = read_sglang(flags, "llama-3.1-8b")  # a command of another machine, whose file is not here
    assert "policy" not in without.speculation
    assert any("adaptive" in option for option in without.unpriced)
    (tmp_path / "adaptive_spec.json").write_text(json.dumps(slots))
    read = read_sglang(flags, "llama-3.1-8b")
    table = read.speculation["policy"]["table"]
    assert list(zip(table["batches"], table["gamma"], strict=True)) == list(made.flat)
    assert read.unpriced == ()
    (tmp_path / "adaptive_spec.json").write_text(json.dumps({"1": {"candidate_steps": [1, 3]}}))
    assert "policy" not in read_sglang(flags, "llama-3.1-8b").speculation
    for wrong in ({"0": {"candidate_steps": [1]}}, {"1": {"candidate_steps": [-1]}}, {"1": [3]}, {"x": {}}):
        (tmp_path / "adaptive_spec.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="first batches as names, and candidate_steps"):
            read_sglang(flags, "llama-3.1-8b")


def test_where_nothing_pays_there_is_no_schedule():
    made = schedule(mapped(law=Acceptance((0.0,)), intervals=False))
    assert made.most == 0
    for write in (made.yaml, made.vllm, made.sglang):
        with pytest.raises(InputError, match="pays at none"):
            write()


def test_trees_alone_have_no_schedule():
    found = load_map(PAIR, trees(PAIR, LAW, [8], 4), [Work.of_context(512)], USERS, intervals=False)
    with pytest.raises(InputError, match="engines change γ"):
        schedule(found)


# --- answers ----------------------------------------------------------------------------------------------------------
def test_the_drafters_memory_is_room_for_requests():
    answer = kv_instead(FOUND, 1)
    assert answer.plain_room > answer.room
    assert answer.draft_bytes == FOUND.curves[0][1].budget.draft_weight_bytes > 0
    assert "instead of" in answer.sentence


def test_plain_replicas_cost_what_draft_gpus_do():
    answer = replica_instead(FOUND, FOUND.works[0])
    assert answer.replicas == 2.0  # one GPU serves, one drafts
    assert answer.supposed
    assert answer.tpot_s[0] < answer.plain_tpot_s[0]  # alone a user is served quicker with drafts
    assert answer.requests_per_s[-1] < answer.plain_requests_per_s[-1]  # a crowd by two replicas
    assert replica_instead(mapped(LOOK_UP, intervals=False), FOUND.works[0]) is None


def test_waste_counts_drafts_that_reach_nobody():
    (one, four) = waste(FOUND, 0, 8)
    assert one.wasted_tokens == pytest.approx(0.3 / 1.7)
    assert four.wasted_tokens > one.wasted_tokens
    assert four.flop > one.flop > 0
    assert one.round_joules < one.plain_joules


@pytest.mark.parametrize("deployment", [PAIR, EAGLE, LOOK_UP])
def test_nobody_beats_the_oracle(deployment):
    found = mapped(deployment, gammas=(1, 2, 4), intervals=False)
    gap = oracle_gap(found, 0, [1, 8, 64, 256])
    assert np.all(gap.oracle >= 0.999 * gap.best)
    assert gap.oracle[-1] >= 1.0  # it could leave drafting


def test_who_is_always_right_has_nothing_to_learn():
    found = mapped(LOOK_UP, Acceptance((1.0,)), (4,), intervals=False)
    gap = oracle_gap(found, 0, [1, 16])
    assert gap.gap == pytest.approx(np.ones(2), rel=0.01)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_the_oracle_may_leave_it(alpha):
    gap = oracle_gap(mapped(PAIR, Acceptance((alpha,)), (2,), intervals=False), 0, [1, 64])
    assert np.all(gap.oracle >= 1.0)
    assert np.all(gap.gap >= 1.0)


def test_the_oracle_s_drafter_works_ahead_too():
    apart = deploy("llama-3.1-8b", "h100", draft="parallel-llama-3.2-1b")
    together, ahead = (
        oracle_gap(mapped(d, Acceptance((0.8,)), (4,), intervals=False), 0, [1]).oracle[0] for d in (PAIR, apart)
    )
    assert ahead > together


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoadAxis.of("users", []), "load='(empty)' must name at least one value"),
        (lambda: LoadAxis.of("users", [1.5]), "load=1.5 must be a whole number from 1"),
        (lambda: LoadAxis.of("rate", [0.0]), "rate=0.0 must be above 0"),
        (lambda: LoadAxis.of("rate", [float("inf")]), "rate=inf must be above 0"),
        (lambda: chains(PAIR, LAW, [0]), "name at least one number of drafts above 0"),
        (lambda: chains(PAIR, LAW, [65]), "gamma=65 must be between 0 and 64"),
        (lambda: chains(PAIR.plain(), LAW, [1]), "draft='(absent)' must be given"),
        (lambda: mapped(contexts=(131_000,)), "model's context of 131072"),
    ],
)
def test_impossible_maps(make, said):
    with pytest.raises(InputError) as caught:
        make()
    assert said in str(caught.value)


def test_what_does_not_fit_is_said():
    with pytest.raises(DoesNotFit):
        mapped(deploy("llama-3-70b", "h100", draft="llama-3.1-8b"))
