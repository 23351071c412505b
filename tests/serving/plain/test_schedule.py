"""Who gets how many tokens in a step: rules a, b and c of docs/engine-rules.md, as trajectories written down by hand."""

import numpy as np
import pytest

from simulator.serving import state
from tests.serving.plain.rig import run, story, workload

FIRST = {"prefill_first": 1}
ADMITTED, PREEMPTED, EMITTED, LEFT = state.ADMITTED, state.PREEMPTED_, state.EMITTED, state.LEFT


def shares(replica):
    """Tokens scheduled in each step, and those of prompts among them."""
    return [(step.tokens, step.prompt_tokens) for step in replica.steps]


def test_a_prompt_and_then_one_token_per_step():
    requests, (replica,) = run(workload([0.5], [10], [4]))
    assert (requests[0].scheduled_s, requests[0].first_token_s, requests[0].finish_s) == (0.5, 1.5, 4.5)
    assert (requests[0].chunks, requests[0].decode_rounds, requests[0].rounds) == (3, 3, 0)
    assert story(replica) == [
        (0.5, ADMITTED, 0, 0),
        (1.5, EMITTED, 0, 1),
        (2.5, EMITTED, 0, 1),
        (3.5, EMITTED, 0, 1),
        (4.5, EMITTED, 0, 1),
        (4.5, LEFT, 0, state.FINISHED),
    ]


def test_a_request_joins_at_the_next_boundary():
    # 0–1 prompt of A; 1–2 A's second token beside the prompt of B; 2–3 A's third, B's second.
    requests, _ = run(workload([0.0, 0.25], [4, 4], [3, 2]))
    assert requests["first_token_s"].tolist() == [1.0, 2.0]
    assert requests["finish_s"].tolist() == [3.0, 3.0]


def test_a_long_prompt_is_cut_by_the_budget():
    _, (replica,) = run(workload([0.0], [25], [1]), max_batched_tokens=10)
    assert shares(replica) == [(10, 10), (10, 10), (5, 5)]


def test_a_long_prompt_is_cut_into_chunks():
    # Two prompts at once, 4 tokens of each in a step.
    _, (replica,) = run(workload([0.0, 0.0], [10, 6], [1, 1]), prefill_chunk_tokens=4)
    assert shares(replica) == [(8, 8), (6, 6), (2, 2)]


def test_who_decodes_goes_before_prompts_wherever_it_stands():
    # B ranks first but comes when A decodes: A has its token first all the same, B what is left of a budget of 8.
    work = workload([0.0, 0.5], [4, 12], [5, 1], rank=[1, 0])
    requests, (replica,) = run(work, max_batched_tokens=8, ranked=1)
    assert shares(replica) == [(4, 4), (8, 7), (6, 5), (1, 0), (1, 0)]
    assert requests["first_token_s"].tolist() == [1.0, 3.0]


def test_prompts_first_keep_rounds_and_prompts_apart():
    # A's prompt; B's two chunks while A waits; then both decode.
    requests, (replica,) = run(workload([0.0, 0.5], [4, 12], [3, 2]), max_batched_tokens=8, **FIRST)
    assert shares(replica) == [(4, 4), (8, 8), (4, 4), (2, 0), (1, 0)]
    assert requests["finish_s"].tolist() == [5.0, 4.0]


@pytest.mark.parametrize("first", [0, 1])
def test_prompts_in_one_step_are_limited(first):
    # Three prompts of 4, two to a step; the first two answer one token each and are gone.
    requests, (replica,) = run(workload([0.0] * 3, [4] * 3, [1] * 3), prompts_per_pass=2, prefill_first=first)
    assert shares(replica) == [(8, 8), (4, 4)]
    assert requests["scheduled_s"].tolist() == [0.0, 0.0, 1.0]


def test_a_prompt_that_has_begun_counts_among_them():
    # One prompt to a step: B waits until A's second chunk is through.
    requests, (replica,) = run(workload([0.0, 0.0], [6, 4], [1, 1]), prompts_per_pass=1, prefill_chunk_tokens=4)
    assert shares(replica) == [(4, 4), (2, 2), (4, 4)]
    assert requests["scheduled_s"].tolist() == [0.0, 2.0]


def test_no_more_than_max_sequences_run():
    requests, (replica,) = run(workload([0.0] * 3, [1] * 3, [2] * 3), max_sequences=1)
    assert requests["finish_s"].tolist() == [2.0, 4.0, 6.0]
    assert replica.counters.most_running == 1


def test_who_finds_no_budget_pauses():
    # γ = 3 takes 4 tokens of each of two sequences, the budget is 7: one round per step, and the first in line goes first.
    work = workload([0.0, 0.0], [3, 4], [3, 2])
    requests, (replica,) = run(work, gamma=3, rates=[0.0], max_batched_tokens=7)
    assert shares(replica) == [(7, 7), (4, 0), (4, 0), (4, 0)]
    assert requests["finish_s"].tolist() == [3.0, 4.0]


def test_blocks_are_taken_chunk_by_chunk_but_the_whole_prompt_must_fit():
    # Budget 8, 10 blocks of 4. A's prompt of 24 takes 2 blocks in each of 3 steps; then B's needs 5 where only 4 are free.
    requests, (replica,) = run(workload([0.0, 0.0], [24, 20], [2, 1]), total_blocks=10, max_batched_tokens=8)
    assert [step.used_blocks for step in replica.steps] == [2, 4, 6, 7, 2, 4, 5]
    assert requests["scheduled_s"].tolist() == [0.0, 4.0]


def test_the_watermark_is_kept_free_unless_nobody_runs():
    # 4 blocks, 1 of them spare. A needs all 4 and gets them; of B and C, 2 blocks each, C would touch the spare one.
    work = workload([0.0, 5.0, 5.0], [16, 7, 7], [1, 1, 1])
    requests, _ = run(work, total_blocks=4, watermark_blocks=1)
    assert requests["scheduled_s"].tolist() == [0.0, 5.0, 6.0]
    requests, _ = run(work, total_blocks=4, watermark_blocks=0)
    assert requests["scheduled_s"].tolist() == [0.0, 5.0, 5.0]


def test_who_does_not_fit_holds_up_those_behind():
    # A runs on 3 of 5 blocks; B needs 4, C 1.
    requests, _ = run(workload([0.0, 0.5, 0.5], [12, 16, 4], [1, 1, 1]), total_blocks=5, watermark_blocks=0)
    assert requests["scheduled_s"].tolist() == [0.0, 1.0, 1.0]
    requests, _ = run(workload([0.0, 0.5, 0.5], [11, 16, 4], [2, 1, 1]), total_blocks=5)
    assert requests["scheduled_s"].tolist() == [0.0, 2.0, 2.0]


def test_the_last_in_line_is_preempted_and_recomputed():
    # Both prompts fill one block each (of 3). Each needs a second block for its second token: the later one gives way.
    requests, (replica,) = run(workload([0.0, 0.0], [4, 4], [3, 3]), total_blocks=3, prefix_caching=0)
    assert story(replica, (ADMITTED, PREEMPTED)) == [
        (0.0, ADMITTED, 0, 0),
        (0.0, ADMITTED, 1, 0),
        (1.0, PREEMPTED, 1, 0),
        (3.0, ADMITTED, 1, 0),
    ]
    # Its prompt and first token are computed in one step, which makes the second token.
    assert shares(replica) == [(8, 8), (1, 0), (1, 0), (5, 5), (1, 0)]
    assert requests["finish_s"].tolist() == [3.0, 5.0]
    assert requests[1].recomputed_tokens == 4


def test_nobody_is_admitted_in_a_step_that_preempted():
    # C, first in line, would fit as soon as B has made room for A's second block at 1 s; it is admitted a step later.
    work = workload([0.0, 0.0, 0.5], [4, 8, 3], [3, 2, 1], rank=[1, 1, 0])
    requests, (replica,) = run(work, total_blocks=3, ranked=1)
    assert story(replica, (PREEMPTED,)) == [(1.0, PREEMPTED, 1, 0)]
    assert requests["scheduled_s"].tolist() == [0.0, 0.0, 2.0]


def test_tokens_of_a_preempted_sequence_go_back_to_the_budget():
    # Line: B, C inside their prompts, A decoding. Budget 4: A has 1 token, B a chunk of 2, C the last one. At 6 s A has got the
    # last of 6 blocks, B's third makes A give way, and A's token goes to C.
    work = workload([0.0, 1.5, 1.5], [4, 16, 12], [20, 1, 1], rank=[2, 0, 1])
    _, (replica,) = run(work, total_blocks=6, ranked=1, max_batched_tokens=4, prefill_chunk_tokens=2)
    assert shares(replica)[:7] == [(2, 2), (2, 2), (4, 3), (4, 3), (4, 3), (4, 3), (4, 4)]
    assert story(replica, (PREEMPTED,))[0] == (6.0, PREEMPTED, 0, 0)
    assert not [event for event in story(replica, (EMITTED,)) if event[0] == 7.0]


def test_a_zero_length_answer_ends_with_its_prompt():
    requests, (replica,) = run(workload([0.0], [25], [0]), max_batched_tokens=10)
    assert story(replica) == [(0.0, ADMITTED, 0, 0), (3.0, LEFT, 0, state.FINISHED)]
    assert requests[0].generated_tokens == 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_prefill_replica_hands_over_whoever_has_a_token(first):
    # A has its whole answer with its first token and finishes; B is handed over.
    work = workload([0.0, 0.0], [4, 8], [1, 5])
    requests, (replica,) = run(work, prefill_only=1, prefill_first=first, max_batched_tokens=8)
    assert story(replica, (EMITTED, LEFT)) == [
        (1.0, EMITTED, 0, 1),
        (1.0, LEFT, 0, state.FINISHED),
        (2.0, EMITTED, 1, 1),
        (2.0, LEFT, 1, state.HANDED_OVER),
    ]
    assert requests["generated_tokens"].tolist() == [1, 1]


def test_a_decode_replica_begins_with_what_was_sent_along():
    # The prompt's 8 tokens of KV came with it, and its first token is to be computed: 3 blocks, 1 token a step.
    past = {"scheduled_s": 0.5, "first_token_s": 1.5, "last_token_s": 1.5, "generated_tokens": 1}
    work = workload([0.5], [8], [3], ready_s=[2.0], carried_tokens=8, **past)
    requests, (replica,) = run(work)
    assert story(replica) == [
        (2.0, ADMITTED, 0, 8),
        (3.0, EMITTED, 0, 1),
        (4.0, EMITTED, 0, 1),
        (4.0, LEFT, 0, state.FINISHED),
    ]
    assert shares(replica) == [(1, 1), (1, 0)]
    assert replica.steps[0].used_blocks == 3
    assert (requests[0].scheduled_s, requests[0].first_token_s, requests[0].longest_gap_s) == (0.5, 1.5, 1.5)
    assert requests[0].carried_tokens == 0


@pytest.mark.parametrize(
    ("order", "starts"), [([0, 0, 0], [0.0, 1.0, 2.0]), ([2, 1, 0], [0.0, 2.0, 1.0]), ([5, 3, 3], [0.0, 1.0, 2.0])]
)
def test_smaller_ranks_are_admitted_first(order, starts):
    requests, _ = run(workload([0.0, 0.5, 0.5], [4, 4, 4], [1, 1, 1], rank=order), max_sequences=1, ranked=1)
    assert requests["scheduled_s"].tolist() == starts


def test_a_preempted_request_goes_back_to_its_place():
    # One more than fits; B is preempted and, submitted before C, goes before it. With a better rank C goes first.
    work = [0.0, 0.0, 0.5], [4, 4, 4], [3, 3, 1]
    requests, _ = run(workload(*work), total_blocks=3, prefix_caching=0)
    assert requests["finish_s"].tolist() == [3.0, 5.0, 4.0]
    assert requests["scheduled_s"].tolist() == [0.0, 0.0, 3.0]


def test_ranked_the_worst_rank_is_preempted():
    # A, first in time, has the worst rank: it is last in line, and it is A that gives way.
    requests, _ = run(workload([0.0, 0.0], [4, 4], [3, 3], rank=[1, 0]), total_blocks=3, ranked=1)
    assert requests["preemptions"].tolist() == [1, 0]
    assert requests["finish_s"].tolist() == [5.0, 3.0]
    assert np.all(requests["generated_tokens"] == 3)
