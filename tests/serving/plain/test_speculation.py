"""Rounds, drafts and what they cost, written down by hand."""

import pytest

from simulator.randomness import uniform
from simulator.serving import state
from tests.serving.plain.rig import run, story, tables, workload

FIRST = {"prefill_first": 1}


def counts(requests):
    return [requests[name].tolist() for name in ("rounds", "drafted_tokens", "accepted_tokens")]


def test_a_round_delivers_accepted_drafts_and_one_more():
    # Prompt 1 s + drafting 3 passes of 0.25 s; then 4 tokens per round of 1.75 s; the last round drafts nothing more.
    requests, (replica,) = run(workload([0.0], [4], [9]), gamma=3, rates=[1.0], draft=tables(0.25))
    assert [event[::3] for event in story(replica, (state.EMITTED,))] == [(1.75, 1), (3.5, 4), (4.5, 4)]
    assert counts(requests) == [[2], [6], [6]]
    assert replica.counters.draft_s == 1.5


def test_no_draft_kept_still_yields_the_targets_own_token():
    requests, _ = run(workload([0.0], [4], [4]), gamma=2, rates=[0.0, 1.0], draft=tables(0.25))
    assert counts(requests) == [[3], [6], [0]]
    assert requests[0].generated_tokens == 4


def test_tokens_beyond_the_answers_end_are_waste():
    # 9 tokens verified, 2 of the 8 drafts reach the user: 6/9 of the pass's FLOP (1 per token).
    requests, (replica,) = run(workload([0.0], [4], [3]), gamma=8, rates=[1.0], draft=tables(0.25))
    assert counts(requests) == [[1], [8], [2]]
    assert replica.counters.wasted_flop == 9 * (8 - 2) / 9


def test_look_ahead_slots_are_charged_and_kept():
    # 7 cached + 1 + 4 drafts = 12 tokens, 3 blocks; 8 tokens are valid then, and the third block stays.
    _, (replica,) = run(workload([0.0], [7], [3]), gamma=4, rates=[0.0], draft=tables(0.25))
    assert [step.used_blocks for step in replica.steps] == [2, 3, 4]


def test_look_ahead_slots_preempt():
    # 4 blocks; each has 4 cached and wants 1 + 4 more: 3 blocks. Plain decoding would fit both.
    work = workload([0.0, 0.0], [4, 4], [2, 2])
    assert run(work, total_blocks=4)[0]["preemptions"].tolist() == [0, 0]
    assert run(work, total_blocks=4, gamma=4, rates=[0.0])[0]["preemptions"].tolist() == [0, 1]


def test_acceptance_is_drawn_by_counter():
    # Draws of (seed, request, position, depth + 1) below the rate, up to the first that is not.
    n, rates = 5, [0.7, 0.5, 0.6]
    requests, _ = run(workload([0.0] * n, [4] * n, [12] * n), gamma=3, rates=rates, seed=9)
    for index in range(n):
        position, accepted = 1, 0
        while position < 12:
            depths = [uniform(9, index, position, depth + 1) < rates[depth] for depth in range(3)]
            kept = depths.index(False) if False in depths else 3
            accepted += min(kept, 12 - position)
            position += kept + 1
        assert requests[index].accepted_tokens == accepted


def test_every_request_has_its_own_rates():
    requests, _ = run(workload([0.0, 0.0], [4, 4], [5, 5]), gamma=3, rates=[[1.0] * 3, [0.0] * 3])
    assert counts(requests) == [[1, 4], [3, 12], [3, 0]]


def test_without_a_match_an_ngram_drafter_verifies_one_token():
    requests, _ = run(workload([0.0], [4], [5]), gamma=4, rates=[1.0], match_probability=0.0)
    assert counts(requests) == [[0], [0], [0]]
    assert (requests[0].decode_rounds, requests[0].finish_s) == (4, 5.0)


def test_matches_are_drawn_by_counter_and_position():
    requests, _ = run(workload([0.0], [4], [40]), gamma=2, rates=[0.0], match_probability=0.3, seed=3)
    assert requests[0].rounds == sum(uniform(3, 0, position, 0) < 0.3 for position in range(1, 40))


def test_recorded_rounds_come_back_in_order_and_start_again():
    # 1 + (2 + 1) + (0 + 1) + (3 + 1) and the first again, of which one token is needed.
    recorded = [[(3, 2), (3, 0), (3, 3)]]
    requests, _ = run(workload([0.0], [4], [10]), gamma=3, recorded=recorded)
    assert counts(requests) == [[4], [12], [2 + 0 + 3 + 1]]


def test_of_fewer_drafts_the_first_recorded_ones_are_kept():
    requests, _ = run(workload([0.0], [4], [9]), gamma=2, recorded=[[(3, 2), (3, 0), (3, 3)]])
    assert counts(requests) == [[4], [8], [2 + 0 + 2 + 1]]


def test_a_recorded_round_without_drafts_is_no_verification():
    requests, _ = run(workload([0.0], [4], [7]), gamma=4, recorded=[[(4, 1), (0, 0), (4, 2)]])
    assert counts(requests) == [[2], [8], [3]]
    assert requests[0].decode_rounds == 3


def test_a_preempted_request_goes_on_in_its_recording():
    # B gives way before its first round; its second token comes with its recomputed prompt, then the first recorded round.
    recorded = [[(1, 1), (1, 1)], [(1, 1), (1, 0)]]
    requests, _ = run(workload([0.0, 0.0], [4, 4], [3, 4]), gamma=1, recorded=recorded, total_blocks=3)
    assert requests["preemptions"].tolist() == [0, 1]
    assert counts(requests) == [[1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(("first", "end", "drafting"), [(1, 4.75, 1.75), (0, 4.5, 1.5)])
def test_when_a_model_drafts(first, end, drafting):
    # All of 3 drafts are kept, 1 + 4 + 4 tokens. Target 1 s, draft pass 0.25 s.
    # Before: the drafter reads the prompt (0.25 s) beside the target, and each of two rounds makes its own drafts (0.75 s).
    # After: reading the prompt is the first draft pass; drafts for two rounds, none after the last.
    requests, (replica,) = run(
        workload([0.0], [4], [9]), gamma=3, rates=[1.0], draft=tables(0.25), draft_first=first, **FIRST
    )
    assert requests[0].finish_s == end
    assert replica.counters.draft_s == drafting


def test_tokens_of_the_draft_passes_before_a_round():
    # A draft pass takes 0.25 s + 0.125 s per token: 8 for the prompts of 4, then 2 tokens of each row, then 1 + 1, twice.
    requests, _ = run(
        workload([0.0, 0.0], [4, 4], [5, 5]), gamma=3, rates=[1.0], draft=tables(0.25, 0.125), draft_first=1
    )
    prompt_s = 1.0 + (0.25 + 8 * 0.125)
    round_s = 1.0 + (0.25 + 4 * 0.125) + 2 * (0.25 + 2 * 0.125)
    assert requests["finish_s"].tolist() == [prompt_s + round_s] * 2


def test_tokens_of_the_draft_passes_after_a_round():
    # A's round of 3 kept drafts (4 tokens) beside B's prompt of 6; both go on, so two draft afterwards. Prompts cost 0.5 s more
    # in a draft pass.
    draft = tables(0.25, 0.125, prompt_s=0.5)
    _, (replica,) = run(workload([0.0, 0.5], [4, 6], [9, 9]), gamma=3, rates=[1.0], draft=draft)
    first = 0.5 + 0.25 + 4 * 0.125 + 2 * (0.25 + 0.125)
    second = 0.5 + 0.25 + (4 + 6) * 0.125 + 2 * (0.25 + 2 * 0.125)
    assert [step.seconds for step in replica.steps[:2]] == [1.0 + first, 1.0 + second]


def test_draft_passes_wait_for_the_host():
    # One pass for the prompt, three for the round's drafts, each 0.25 + 0.5 s.
    requests, _ = run(
        workload([0.0], [4], [5]), gamma=3, rates=[1.0], draft=tables(0.25), draft_first=1, host_draft_pass_s=0.5
    )
    assert requests[0].finish_s == 1.75 + 1.0 + 3 * 0.75


def test_host_time_of_a_speculative_round():
    # 0.5 s in the round that verifies, none in the prompt's step.
    requests, (replica,) = run(workload([0.0], [4], [4]), gamma=3, rates=[1.0], host_speculative_round_s=0.5)
    assert requests[0].finish_s == 1.0 + 1.5
    assert replica.counters.host_s == 0.5


@pytest.mark.parametrize(("first", "end"), [(1, 1.0 + 4 * 1.5), (0, 5 * 1.5)])
def test_a_look_up_belongs_to_the_round(first, end):
    requests, _ = run(
        workload([0.0], [4], [5]), gamma=2, rates=[1.0], match_probability=0.0, draft_first=first,
        host_ngram_per_sequence_s=0.5, **FIRST,
    )  # fmt: skip
    assert requests[0].finish_s == end


def test_padded_verification_charges_those_without_drafts():
    # Round 1: A verifies 3 drafts, B none; 4 + 1 tokens, padded 4 + 4. Round 2: nobody has drafts, nobody is padded.
    work, recorded = workload([0.0, 0.0], [4, 4], [3, 3]), [[(3, 0), (0, 0)], [(0, 0), (0, 0)]]
    target = tables(1.0, 0.125)
    _, (ragged,) = run(work, gamma=3, recorded=recorded, target=target)
    _, (padded,) = run(work, gamma=3, recorded=recorded, target=target, padded=1)
    assert [step.seconds for step in ragged.steps] == [2.0, 1.0 + 5 * 0.125, 1.25]
    assert [step.seconds for step in padded.steps] == [2.0, 1.0 + 8 * 0.125, 1.25]
    # Rows of logits alike (one byte each): 2 + 8 + 2. Blocks and budget are those of what is scheduled.
    assert padded.counters.hbm_bytes == 12
    assert ragged.counters.hbm_bytes == 9
    assert [step.used_blocks for step in ragged.steps] == [step.used_blocks for step in padded.steps]
    assert [step.tokens for step in padded.steps] == [8, 5, 2]


def test_padding_leaves_prompts_alone():
    # A's round with drafts beside B's prompt of 5 tokens: 4 + 5.
    _, (replica,) = run(
        workload([0.0, 0.5], [4, 5], [9, 1]),
        gamma=3,
        recorded=[[(3, 0)], [(3, 0)]],
        padded=1,
        target=tables(1.0, 0.125),
    )
    assert replica.steps[1].seconds == 1.0 + 9 * 0.125
