"""The step loop: trajectories written down by hand, which the compiled loop and its specification both follow; conservation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import state
from tests.serving import rig
from tests.serving.rig import recording, tables, traffic


def test_one_request_prefills_then_decodes_one_token_per_step(run):
    requests, (replica,) = run(traffic([0.5], [10], [4]))
    assert (requests[0].scheduled_s, requests[0].first_token_s, requests[0].finish_s) == (0.5, 1.5, 4.5)
    assert requests[0].chunks == 3
    assert replica.steps == 4


def test_a_request_joins_the_batch_at_the_next_step_boundary(run):
    requests, _ = run(traffic([0.0, 0.25], [4, 4], [3, 2]))
    # 0–1 prompt of A; 1–2 A's second token with the prompt of B; 2–3 A's third, B's second.
    assert requests["first_token_s"].tolist() == [1.0, 2.0]
    assert requests["finish_s"].tolist() == [3.0, 3.0]


def test_a_long_prompt_is_chunked_under_the_token_budget(run):
    requests, _ = run(traffic([0.0], [25], [1]), max_batched_tokens=10)
    assert requests[0].finish_s == 3.0  # 10 + 10 + 5 tokens


def test_decode_goes_before_prefill_in_the_budget(run):
    # A decodes (1 token); B's prompt of 12 gets the 7 that are left, then 5.
    requests, _ = run(traffic([0.0, 0.5], [4, 12], [5, 1]), max_batched_tokens=8)
    assert requests["first_token_s"].tolist() == [1.0, 3.0]
    assert requests[0].finish_s == 5.0


def test_no_more_than_max_sequences_run_and_the_rest_wait_in_order(run):
    requests, (replica,) = run(traffic([0.0, 0.0, 0.0], [1, 1, 1], [2, 2, 2]), max_sequences=1)
    assert requests["finish_s"].tolist() == [2.0, 4.0, 6.0]
    assert replica.most_running == 1


def test_admission_waits_for_kv_blocks(run):
    # 5 blocks of 4 tokens: A takes 3 for its prompt of 12 and never needs a fourth; B needs 3.
    requests, (replica,) = run(traffic([0.0, 0.0], [11, 12], [2, 1]), total_blocks=5)
    assert requests["scheduled_s"].tolist() == [0.0, 2.0]
    assert replica.most_blocks <= 5


def test_the_youngest_is_preempted_and_recomputed_without_losing_tokens(run):
    # Both prompts fill one block each (of 3). Each needs a second block for its second token: the younger one gives way.
    requests, (replica,) = run(traffic([0.0, 0.0], [4, 4], [3, 3]), total_blocks=3)
    assert requests["preemptions"].tolist() == [0, 1]
    assert requests["finish_s"].tolist() == [3.0, 5.0]
    assert requests["generated_tokens"].tolist() == [3, 3]
    assert replica.used_blocks == 0


def test_what_nobody_has_overwritten_is_found_again(run):
    # 6 blocks of 4: A's prompt takes 2, B's 4. A's second token needs a block, so B gives way: 4 whole blocks of 16 tokens.
    # A takes one of them, B's last. B needs 5 for its 16 + 1 tokens, which are free when A has finished at t = 3 (3 tokens
    # of 1 s); 3 blocks are still B's own, so 17 − 12 tokens are computed once more.
    work = traffic([0.0, 0.0], [8, 16], [3, 2])
    requests, (replica,) = run(work, total_blocks=6, target=tables(1.0, 0.125))
    assert requests["preemptions"].tolist() == [0, 1]
    assert requests[1].recomputed_tokens == 16 - 12
    assert replica.prefill_tokens == 8 + 16 + 5
    # 24 prompt tokens take 1 + 3 s, two steps of one token 1.125 s each, the 5 tokens 1.625 s.
    assert requests["finish_s"].tolist() == [6.25, 6.25 + 1.625]

    without, (replica,) = run(work, total_blocks=6, target=tables(1.0, 0.125), prefix_caching=0)
    assert without[1].recomputed_tokens == 16
    assert replica.prefill_tokens == 8 + 16 + 17


def test_the_last_to_be_preempted_keeps_the_most(run):
    # 9 blocks of 4, three prompts of 3 blocks. A needs a fourth and C gives way (A takes C's third block); B takes C's
    # second. Four tokens later A takes C's first, and B must give way to itself: it keeps its whole blocks until A's next.
    requests, _ = run(traffic([0.0] * 3, [12, 12, 12], [9, 9, 9]), total_blocks=9, target=tables(1.0, 0.125))
    assert requests["preemptions"].tolist() == [0, 1, 1]
    assert requests["recomputed_tokens"].tolist() == [0, 0, 12]


def test_blocks_are_taken_chunk_by_chunk_but_the_whole_prompt_must_fit(run):
    # Budget 8, 10 blocks of 4. A's prompt of 24 takes 2 blocks in each of 3 steps; then B's needs 5 where only 4 are free.
    requests, (replica,) = run(traffic([0.0, 0.0], [24, 20], [2, 1]), total_blocks=10, max_batched_tokens=8)
    assert [replica.at("kv_block_s", second) for second in range(4)] == [2, 4, 6, 7]
    assert requests["scheduled_s"].tolist() == [0.0, 4.0]


def test_a_round_delivers_accepted_drafts_and_one_more(run):
    draft = tables(0.25)
    requests, (replica,) = run(traffic([0.0], [4], [9]), gamma=3, rates=[1.0, 1.0, 1.0], draft=draft)
    # Prompt 1 s + drafting 3 passes of 0.25 s; then 4 tokens per round of 1.75 s; the last round drafts nothing more.
    assert requests[0].first_token_s == 1.75
    assert requests[0].finish_s == 1.75 + 1.75 + 1.0
    assert (requests[0].drafted_tokens, requests[0].accepted_tokens, requests[0].rounds) == (6, 6, 2)
    assert replica.draft_s == 1.5


def test_no_draft_accepted_still_yields_the_targets_own_token(run):
    requests, _ = run(traffic([0.0], [4], [4]), gamma=2, rates=[0.0, 1.0], draft=tables(0.25))
    assert requests[0].generated_tokens == 4
    assert (requests[0].rounds, requests[0].accepted_tokens, requests[0].drafted_tokens) == (3, 0, 6)


def test_tokens_beyond_the_answers_end_are_waste(run):
    requests, _ = run(traffic([0.0], [4], [3]), gamma=8, rates=[1.0] * 8, draft=tables(0.25))
    assert (requests[0].generated_tokens, requests[0].accepted_tokens, requests[0].drafted_tokens) == (3, 2, 8)


def test_look_ahead_slots_are_charged(run):
    # 7 cached + 1 + 4 drafts = 12 tokens = 3 blocks.
    _, (replica,) = run(traffic([0.0], [7], [2]), gamma=4, rates=[0.0], draft=tables(0.25))
    assert replica.most_blocks == 3
    assert replica.used_blocks == 0


def test_look_ahead_slots_are_kept_when_their_drafts_are_not(run):
    # The prompt of 6 fills 2 blocks of 4; 6 + 1 + 6 drafts need 4; then rounds without drafts keep what 8 and 9 tokens do not need.
    rounds = recording([[0, 0, 0]], 6, drafted=[[6, 0, 0]])
    _, (replica,) = run(traffic([0.0], [6], [4]), gamma=6, recorded=rounds)
    assert [replica.at("kv_block_s", second) for second in range(4)] == [2, 4, 4, 4]


def test_without_a_match_an_ngram_drafter_verifies_one_token(run):
    requests, _ = run(traffic([0.0], [4], [5]), gamma=4, rates=[1.0], match_probability=0.0)
    assert requests[0].rounds == 0
    assert requests[0].finish_s == 5.0


def test_ngram_rounds_come_at_the_match_rate(run):
    n, p = 400, 0.3
    _, (replica,) = run(
        traffic([0.0] * n, [1] * n, [50] * n), gamma=2, rates=[0.0], match_probability=p, max_sequences=64
    )
    share = replica.sequence_rounds / (49 * n)
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / (49 * n)) ** 0.5)


workloads = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12).map(
    lambda rows: tuple(zip(*sorted(rows), strict=True))
)
knobs = st.fixed_dictionaries(
    {
        "max_sequences": st.integers(1, 5),
        "max_batched_tokens": st.integers(5, 40),
        "total_blocks": st.integers(14, 40),
        "watermark_blocks": st.integers(0, 2),
        "prefix_caching": st.integers(0, 1),
        "prefill_first": st.integers(0, 1),
        "prompts_per_pass": st.integers(1, 4),
        "prefill_chunk_tokens": st.integers(1, 40),
        "draft_first": st.integers(0, 1),
        "gamma": st.integers(0, 4),
    }
)


@settings(max_examples=60)
@given(workloads, knobs, st.floats(0, 1))
def test_conservation(workload, knobs, alpha):
    requests, (replica,) = rig.run(traffic(*workload), rates=[alpha], draft=tables(0.1), **knobs)
    assert (requests["status"] == state.FINISHED).all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    assert replica.emitted_tokens == requests["output_tokens"].sum()
    assert replica.prefill_tokens >= requests["prompt_tokens"].sum()
    assert replica.used_blocks == replica.running == replica.stacked == 0
    assert replica.most_blocks <= knobs["total_blocks"]
    assert replica.most_running <= knobs["max_sequences"]
    assert (requests["arrival_s"] <= requests["scheduled_s"]).all()
    assert (requests["scheduled_s"] < requests["first_token_s"]).all()
    assert (requests["first_token_s"] <= requests["finish_s"]).all()
    assert (requests["accepted_tokens"] <= requests["drafted_tokens"]).all()
    assert replica.sum_of("output_tokens") == replica.emitted_tokens
    assert replica.sum_of("busy_s") == pytest.approx(replica.busy_s)


def test_series_buckets_widen_without_losing_anything(run):
    n = 200
    requests, (replica,) = run(traffic(np.arange(n) * 37.0, [3] * n, [5] * n))
    assert replica.bucket_s * state.BUCKETS > requests["finish_s"].max() - 1
    assert replica.sum_of("output_tokens") == 5 * n
