"""Prompts in passes of their own, as the reference decoder, vLLM V0 and SGLang run them; drafts made in their own round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving import rig
from tests.serving.cluster_rig import batch_means, poisson
from tests.serving.rig import tables, traffic

FIRST = {"prefill_first": 1, "prompts_per_pass": 1}


def times(requests):
    return requests["first_token_s"].tolist(), requests["finish_s"].tolist()


def test_prompts_one_by_one_then_a_round_of_all(run):
    # 0–1 A's prompt, 1–2 B's; C has come at 1.5, so 2–3 is C's; 3–4 a round of all three, 4–5 one of A and B.
    requests, (replica,) = run(traffic([0.0, 0.0, 1.5], [4, 4, 4], [3, 3, 2]), **FIRST)
    assert times(requests) == ([1.0, 2.0, 3.0], [5.0, 5.0, 4.0])
    assert requests["scheduled_s"].tolist() == [0.0, 1.0, 2.0]
    assert replica.steps == 5


def test_whoever_comes_during_a_round_waits_for_its_end_only(run):
    # 0–1 prompt of A, 1–2 a round, then B's prompt (come at 1.25) before A's third token.
    requests, _ = run(traffic([0.0, 1.25], [4, 4], [3, 1]), **FIRST)
    assert times(requests) == ([1.0, 3.0], [4.0, 3.0])


def test_several_prompts_in_one_pass(run):
    # 0–1 both prompts; nobody waits at 1, so 1–2 is a round; 2–3 C's prompt; 3–4 a round of three.
    requests, _ = run(traffic([0.0, 0.0, 1.5], [4, 4, 4], [3, 3, 2]), prefill_first=1, prompts_per_pass=2)
    assert times(requests) == ([1.0, 1.0, 3.0], [4.0, 4.0, 4.0])


def test_the_budget_limits_the_prompts_of_a_pass(run):
    # Budget 10: A and six tokens of B; then the other two of B, with all of C.
    requests, _ = run(traffic([0.0] * 3, [4, 8, 8], [1, 1, 1]), prefill_first=1, max_batched_tokens=10)
    assert times(requests)[1] == [1.0, 2.0, 2.0]


def test_an_answer_of_one_token_frees_its_row_for_the_next_prompt(run):
    # One row: A 0–2; B's prompt 2–3 is its whole answer; C's prompt follows at once, then its round.
    requests, _ = run(traffic([0.0] * 3, [4, 4, 4], [2, 1, 2]), max_sequences=1, **FIRST)
    assert times(requests) == ([1.0, 3.0, 4.0], [2.0, 3.0, 5.0])


def test_a_long_prompt_runs_through_in_chunks_while_everybody_waits(run):
    # B's 25 tokens in three passes of at most 10, C's prompt after them, then A's four rounds.
    work = traffic([0.0, 0.5, 0.5], [4, 25, 4], [5, 1, 1])
    requests, _ = run(work, prefill_chunk_tokens=10, **FIRST)
    assert times(requests) == ([1.0, 4.0, 5.0], [9.0, 4.0, 5.0])
    # Two prompts to a pass: C's goes along with B's first chunk.
    requests, _ = run(work, prefill_chunk_tokens=10, prefill_first=1, prompts_per_pass=2)
    assert times(requests) == ([1.0, 4.0, 2.0], [8.0, 4.0, 2.0])


def test_mixed_batches_may_chunk_prompts_too(run):
    # Four tokens of a prompt in a step at most: A and B side by side, three steps each; then A's round.
    requests, _ = run(traffic([0.0, 0.0], [12, 9], [2, 1]), prefill_chunk_tokens=4)
    assert times(requests) == ([3.0, 3.0], [4.0, 3.0])


def test_decoding_sequences_cost_nothing_in_a_prompt_s_pass(run):
    # 1 s + 1/8 s per token. A: 1.5; round 1.125 (to 2.625); B's prompt of 8 alone: 2 s, not 2.125; round of two 1.25.
    requests, (replica,) = run(traffic([0.0, 2.0], [4, 8], [3, 2]), target=tables(1.0, 0.125), **FIRST)
    assert times(requests) == ([1.5, 4.625], [5.875, 5.875])
    assert replica.prefill_tokens == 12


@pytest.mark.parametrize(("first", "end", "drafting"), [(1, 4.75, 1.75), (0, 4.5, 1.5)])
def test_when_a_model_drafts(run, first, end, drafting):
    # All of 3 drafts are accepted, 1 + 4 + 4 tokens. Target 1 s, draft pass 0.25 s.
    # Before: the drafter reads the prompt (0.25 s) beside the target, and each of two rounds makes its own drafts (0.75 s).
    # After: reading the prompt is the first draft pass; drafts for two rounds, none after the last.
    work = traffic([0.0], [4], [9])
    requests, (replica,) = run(work, gamma=3, rates=[1.0], draft=tables(0.25), draft_first=first, **FIRST)
    assert times(requests) == ([1.25 if first else 1.75], [end])
    assert replica.draft_s == drafting


def test_tokens_of_the_draft_passes(run):
    # A draft pass takes 0.25 s + 0.125 s per token: 0.75 s for the prompt of 4, then 2 tokens of each row, then 1 + 1.
    draft = tables(0.25, 0.125)
    requests, _ = run(traffic([0.0, 0.0], [4, 4], [5, 5]), gamma=3, rates=[1.0], draft=draft, draft_first=1, **FIRST)
    round_s = 1.0 + (0.25 + 4 * 0.125) + 2 * (0.25 + 2 * 0.125)
    assert times(requests) == ([1.75, 3.5], [3.5 + round_s, 3.5 + round_s])


def test_draft_passes_wait_for_the_host(run):
    # One pass for the prompt, three for the round's drafts.
    requests, _ = run(
        traffic([0.0], [4], [5]),
        gamma=3,
        rates=[1.0],
        draft=tables(0.25),
        draft_first=1,
        host_draft_pass_s=0.5,
        **FIRST,
    )
    assert times(requests) == ([1.75], [1.75 + 1.0 + 3 * 0.75])


def test_drafts_made_in_their_round_share_a_mixed_step_with_a_prompt(run):
    # A: prompt 1.25 s. B has come at 1: A's round and B's prompt in one step, B's prompt in the drafter's first pass: 1.75 s.
    requests, _ = run(traffic([0.0, 1.0], [4, 4], [5, 1]), gamma=3, rates=[1.0], draft=tables(0.25), draft_first=1)
    assert times(requests) == ([1.25, 3.0], [3.0, 3.0])


@pytest.mark.parametrize(("first", "end"), [(1, 1.0 + 4 * 1.5), (0, 5 * 1.5)])
def test_a_look_up_belongs_to_the_round(run, first, end):
    requests, _ = run(
        traffic([0.0], [4], [5]),
        gamma=2,
        rates=[1.0],
        match_probability=0.0,
        draft_first=first,
        host_ngram_per_sequence_s=0.5,
        **FIRST,
    )
    assert requests[0].finish_s == end


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_prompts_alone_are_an_md1_queue(load):
    # Answers of one token: however many rows there are, prompts are served one by one, 1 s each.
    n = 30_000
    requests, _ = rig.run(traffic(poisson(n, load), [4] * n, [1] * n), **FIRST)
    mean, half_width = batch_means((requests["scheduled_s"] - requests["arrival_s"])[2000:])
    assert mean == pytest.approx(load / (2 * (1 - load)), abs=half_width)


def test_a_lone_user_does_not_notice(run):
    work = traffic([0.0, 100.0, 200.0], [30, 7, 19], [5, 1, 9])
    mixed, _ = run(work, target=tables(1.0, 0.125))
    first, _ = run(work, target=tables(1.0, 0.125), **FIRST)
    assert mixed.tobytes() == first.tobytes()


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), min_size=1, max_size=12), st.integers(5, 40))
def test_without_rounds_there_is_nothing_to_keep_apart(rows, budget):
    arrivals, prompts = zip(*sorted(rows), strict=True)
    work = traffic(arrivals, prompts, [1] * len(rows))
    mixed, _ = rig.run(work, target=tables(1.0, 0.125), max_batched_tokens=budget)
    first, _ = rig.run(work, target=tables(1.0, 0.125), max_batched_tokens=budget, prefill_first=1)
    assert mixed.tobytes() == first.tobytes()


def test_prompts_first_means_earlier_first_tokens_and_longer_gaps():
    n = 400
    work = traffic(poisson(n, 0.8), [64] * n, [8] * n)
    target = tables(0.05, 0.005)
    mixed, _ = rig.run(work, target=target, max_batched_tokens=64)
    first, _ = rig.run(work, target=target, max_batched_tokens=64, prefill_first=1)

    def ttft(requests):
        return np.mean(requests["first_token_s"] - requests["arrival_s"])

    # A mixed step leaves a prompt less than the budget where anybody decodes, so that it takes one step more.
    assert ttft(first) < ttft(mixed)
    assert first["longest_gap_s"].max() >= 0.05 + 64 * 0.005
