"""Policies, trees and drafters that lag: trajectories written down by hand, by both loops.

Unless said otherwise the target's pass takes 1 s, the drafter's 0.25 s and 0.125 s per token, and all drafts are kept.
"""

import pytest

from simulator.speculation.policies import BY_ORACLE, BY_PAST, always, by_table, off_above
from simulator.speculation.shape import PLAIN, DraftShape, chain
from tests.serving.rig import recording, tables, traffic

DRAFT = {"draft": tables(0.25, 0.125), "rates": [1.0]}
LOOKED_UP = {"rates": [1.0]}
TREE = DraftShape(6, 2, (1, 3))
ONE = traffic([0.0], [4], [7])
WHILE_ALONE = off_above(chain(2), 1)
TWO = traffic([0.0, 0.0], [4, 4], [9, 3])
"""The second leaves after its third token; from then on the first is alone, with six tokens to go."""


def counts(requests):
    return [requests[name].tolist() for name in ("decode_rounds", "rounds", "drafted_tokens", "accepted_tokens")]


# Trees


def test_a_tree_verifies_its_nodes_and_keeps_a_path(run):
    # Passes of 4 + 3, then 3 + 3 tokens; each round verifies 6 nodes and 1, and yields 2 + 1.
    requests, (replica,) = run(ONE, plan=always(TREE), target=tables(1.0, 0.125), **DRAFT)
    prompt_s = 1.0 + 4 * 0.125 + (0.25 + 4 * 0.125) + (0.25 + 3 * 0.125)
    round_s = 1.0 + 7 * 0.125 + (0.25 + 3 * 0.125) + (0.25 + 3 * 0.125)
    assert requests[0].finish_s == prompt_s + round_s + (1.0 + 7 * 0.125)
    assert counts(requests) == [[2], [2], [12], [4]]
    # One FLOP per token: 4 of 7 in each of two passes are for nobody.
    assert replica.wasted_flop == 2 * (6 - 2)


def test_look_ahead_slots_are_for_all_nodes(run):
    # 4 + 7 tokens are 3 blocks of 4, then 7 + 7 are 4; a chain as deep needs 2 and 3.
    assert run(ONE, plan=always(TREE), **DRAFT)[1][0].most_blocks == 4
    assert run(ONE, plan=always(chain(2)), **DRAFT)[1][0].most_blocks == 3


def test_look_ahead_slots_of_a_tree_preempt(run):
    # 5 blocks: two chains of 2 have 2 each, two trees want 3 each.
    work = traffic([0.0, 0.0], [4, 4], [4, 4])
    assert run(work, total_blocks=5, plan=always(chain(2, 0)), **LOOKED_UP)[0]["preemptions"].tolist() == [0, 0]
    tree = always(DraftShape(6, 2, ()))
    assert run(work, total_blocks=5, plan=tree, **LOOKED_UP)[0]["preemptions"].tolist() == [0, 1]


def test_all_nodes_count_against_the_token_budget(run):
    # 7 of 10 tokens; the second tree has to pause for one step.
    requests, _ = run(
        traffic([0.0, 0.0], [4, 4], [4, 4]), plan=always(DraftShape(6, 2, ())), max_batched_tokens=10, **LOOKED_UP
    )
    assert requests["finish_s"].tolist() == [2.0, 3.0]


def test_no_more_is_kept_than_the_tree_is_deep(run):
    # An answer of 31: 30 tokens by rounds of 3, whatever the nodes.
    requests, _ = run(traffic([0.0], [4], [31]), plan=always(DraftShape(12, 2, ())), **LOOKED_UP)
    assert counts(requests) == [[10], [10], [120], [20]]


def test_masks_and_moved_tokens_take_time(run):
    # 0.5 s a step, 7² pairs of 1/64 s, and 0.25 s for each of two tokens that are kept.
    requests, _ = run(
        ONE, plan=always(DraftShape(6, 2, ())), tree_attention=1.0, tree_step_s=0.5, tree_mask_s=1 / 64,
        tree_move_s=0.25, **LOOKED_UP,
    )  # fmt: skip
    assert requests[0].finish_s == 1.0 + 2 * (1.0 + 0.5 + 49 / 64 + 0.5)


def test_a_chain_has_no_mask(run):
    requests, _ = run(
        traffic([0.0], [4], [4]), plan=always(chain(2, 0)), tree_attention=1.0, tree_step_s=0.5, tree_mask_s=1.0,
        tree_move_s=1.0, **LOOKED_UP,
    )  # fmt: skip
    assert requests[0].finish_s == 2.0


def test_each_shape_has_its_own_rates(run):
    # Alone: one draft, never kept (column 0). Two of them: two drafts, both kept (columns 1 and 2).
    plan = by_table([PLAIN, chain(1, 0), chain(2, 0)], [1, 2], [0], [[1], [2]])
    own = {"plan": plan, "columns": [0, 0, 1], "rates": [0.0, 1.0, 1.0]}
    assert counts(run(traffic([0.0], [4], [3]), **own)[0]) == [[2], [2], [2], [0]]
    assert counts(run(traffic([0.0, 0.0], [4, 4], [4, 4]), **own)[0]) == [[1, 1], [1, 1], [2, 2], [2, 2]]


# Off above a batch, and what was missed


def test_a_drafter_that_was_off_reads_later(run):
    # Off while both run: 1 s each for the prompts and for a token. With the second's last token the first is alone: its drafter
    # reads the 4 tokens of its prompt and 2 of its answer, and drafts 2 after the third.
    requests, (replica,) = run(TWO, plan=WHILE_ALONE, **DRAFT)
    third_s = 1.0 + (0.25 + 6 * 0.125) + (0.25 + 0.125)
    fourth_s = 1.0 + (0.25 + 3 * 0.125) + (0.25 + 0.125)
    assert requests["finish_s"].tolist() == [2.0 + third_s + fourth_s + 1.0, 2.0 + third_s]
    assert counts(requests) == [[4, 2], [2, 0], [4, 0], [4, 0]]
    assert replica.draft_s == third_s + fourth_s - 2.0


def test_a_drafter_that_keeps_up_reads_in_every_step(run):
    # One pass for 8 tokens of prompt, one for 2 tokens; nothing is left to read when it drafts.
    requests, _ = run(TWO, plan=WHILE_ALONE, draft_keeps_up=1, host_draft_pass_s=0.5, **DRAFT)
    off_s = (1.0 + 0.25 + 8 * 0.125 + 0.5) + (1.0 + 0.25 + 2 * 0.125 + 0.5)
    third_s = 1.0 + (0.25 + 0.125) + (0.25 + 0.125) + 2 * 0.5
    fourth_s = 1.0 + (0.25 + 3 * 0.125) + (0.25 + 0.125) + 2 * 0.5
    assert requests["finish_s"].tolist() == [off_s + third_s + fourth_s + 1.0, off_s + third_s]


def test_a_drafter_without_a_cache_reads_nothing(run):
    # No prompt, nothing missed: one token in each of two passes.
    requests, _ = run(TWO, plan=WHILE_ALONE, draft_reads=0, **DRAFT)
    drafting_s = 2 * (0.25 + 0.125)
    assert requests["finish_s"].tolist() == [2.0 + 2 * (1.0 + drafting_s) + 1.0, 2.0 + 1.0 + drafting_s]
    alone, _ = run(traffic([0.0], [4], [4]), plan=WHILE_ALONE, draft_reads=0, **DRAFT)
    assert alone[0].finish_s == (1.0 + drafting_s) + 1.0


def test_a_drafter_of_this_very_round_reads_what_it_missed(run):
    # Before verification. Nobody decodes in the first step, which counts as one sequence: prompts are read, 8 tokens. Two
    # steps off. Then 2 tokens and a lag of 2, and after it 2 alone.
    requests, _ = run(TWO, plan=WHILE_ALONE, draft_first=1, **DRAFT)
    prompts_s = 1.0 + 0.25 + 8 * 0.125
    fourth_s = 1.0 + (0.25 + 4 * 0.125) + (0.25 + 0.125)
    last_s = 1.0 + (0.25 + 2 * 0.125) + (0.25 + 0.125)
    assert requests["finish_s"].tolist() == [prompts_s + 2.0 + fourth_s + last_s, prompts_s + 2.0]


def test_no_more_is_read_than_there_is(run):
    # Off for one sequence, on for two: the second's prompt is computed while the first decodes alone. At 2 s there are two, and
    # the drafter has read nothing: 4 + 1 tokens of the first in the cache and the next one, 4 of the second and the next one.
    plan = off_above(chain(1), 1)
    plan = by_table(list(plan.shapes), [1, 2], [0], [[0], [1]])
    requests, (replica,) = run(traffic([0.0, 0.5], [4, 4], [4, 3]), plan=plan, draft_first=1, **DRAFT)
    third_s = 1.0 + 0.25 + (6 + 5) * 0.125
    assert requests["finish_s"].tolist() == [2.0 + third_s] * 2
    assert replica.draft_s == third_s - 1.0


def test_lost_cache_is_lost_to_the_drafter_too(run):
    # 4 blocks. The second is preempted for the first's ninth token; 8 tokens of each are in the cache, none were read. Alone,
    # the first's drafter reads 8 + 1. When the first has finished, the second computes its 9 tokens again, which are read along.
    work = traffic([0.0, 0.0], [4, 4], [9, 9])
    requests, _ = run(work, plan=WHILE_ALONE, total_blocks=4, prefix_caching=0, **DRAFT)
    reads_s = 1.0 + (0.25 + 9 * 0.125) + (0.25 + 0.125)
    assert requests["preemptions"].tolist() == [0, 1]
    assert requests["finish_s"].tolist() == [5.0 + reads_s + 1.0, 5.0 + reads_s + 1.0 + reads_s + 1.0]


def test_a_swapped_cache_is_read_when_it_is_back(run):
    # The same, but 8 tokens cross PCIe twice, 1/16 s each; one token is computed, and 8 + 1 are read.
    work = traffic([0.0, 0.0], [4, 4], [9, 9])
    requests, _ = run(
        work, plan=WHILE_ALONE, total_blocks=4, prefix_caching=0, swap_blocks=8, swap_s_per_token=1 / 16, **DRAFT
    )
    reads_s = 1.0 + (0.25 + 9 * 0.125) + (0.25 + 0.125) + 8 / 16
    assert requests["recomputed_tokens"].tolist() == [0, 0]
    assert requests["finish_s"].tolist() == [5.0 + reads_s + 1.0, 5.0 + reads_s + 1.0 + reads_s + 1.0]


def test_features_are_taken_in_once_a_round(run):
    # Half a second more in the first pass, none in the second; none in a step without a pass.
    more = {"plan": WHILE_ALONE, "intake": [0.0, *[0.5] * 20], **DRAFT}
    without, _ = run(TWO, **{**more, "intake": None})
    later, _ = run(TWO, **more)
    assert (later["finish_s"] - without["finish_s"]).tolist() == [2 * 0.5, 0.5]
    before, _ = run(TWO, **more, draft_first=1)
    assert before[0].finish_s - run(TWO, **{**more, "intake": None}, draft_first=1)[0][0].finish_s == 3 * 0.5
    always_on, _ = run(TWO, **more, draft_keeps_up=1)
    assert always_on[0].finish_s - run(TWO, **{**more, "intake": None}, draft_keeps_up=1)[0][0].finish_s == 4 * 0.5


def test_a_look_up_is_made_where_something_may_be_drafted(run):
    # Off for two. Looked up for both in the prompts' step (where nobody decodes it is as for one), and twice for the first alone.
    requests, (replica,) = run(TWO, plan=off_above(chain(2, 0), 1), host_ngram_per_sequence_s=0.25, **LOOKED_UP)
    assert requests["finish_s"].tolist() == [1.5 + 2.0 + 2 * 1.25, 1.5 + 2.0]
    assert replica.host_s == 0.5 + 2 * 0.25


@pytest.mark.parametrize("block_tokens", [1, 2, 4, 8])
def test_look_ahead_slots_stay_while_the_drafter_is_off(run, block_tokens):
    # Alone 4 drafts, none kept: 1 s for the prompt, then a round at 4 tokens and one at 5 beside the second's prompt. From then on
    # both decode plainly, and the first, that holds blocks for 5 + 5 tokens, needs none before its eleventh. In the end, at 14 s, the
    # second is alone again, with 4 + 10 tokens and room for as many and 5 drafts.
    requests, (replica,) = run(
        traffic([0.0, 1.5], [4, 4], [12, 12]), plan=off_above(chain(4), 1), draft=tables(0.0), rates=[0.0],
        block_tokens=block_tokens, prefix_caching=0,
    )  # fmt: skip
    assert requests["finish_s"].tolist() == [12.0, 13.0 + 1.0]

    def blocks(tokens):
        return -(-tokens // block_tokens)

    first = [4, 9, 10, *(max(10, computed + 1) for computed in range(6, 15)), 0, 0]
    second = [0, 0, 4, *(computed + 1 for computed in range(4, 13)), 18, 19]
    assert replica.sum_of("kv_block_s") == sum(blocks(a) + blocks(b) for a, b in zip(first, second, strict=True))


# A drafter on GPUs of its own


@pytest.mark.parametrize(("hit", "waited"), [(0.0, (1.375, 1.0)), (0.5, (0.875, 0.5)), (1.0, (0.375, 0.0))])
def test_the_target_waits_for_what_is_longer_or_was_not_hit(run, hit, waited):
    # D is 1.375 s and 1 s beside a pass of 1 s: (1 − hit)·D + hit·max(0, D − 1).
    requests, (replica,) = run(TWO, plan=WHILE_ALONE, draft_share=1.0 - hit, **DRAFT)
    assert replica.draft_s == sum(waited)
    assert requests[0].finish_s == 5.0 + sum(waited)


# By context and batch


@pytest.mark.parametrize("drafter", [DRAFT, LOOKED_UP])
def test_gamma_follows_the_context(run, drafter):
    # 1 below 8 tokens, 3 from there on. After prompt and one token 5 are known and 4 computed, then 7 and 6, then 9 and 8.
    passes = None if drafter is DRAFT else 0
    plan = by_table([PLAIN, chain(1, passes), chain(3, passes)], [1], [0, 8], [[1, 2]])
    requests, _ = run(traffic([0.0], [4], [9]), plan=plan, **drafter)
    assert counts(requests) == [[3], [3], [1 + 1 + 3], [1 + 1 + 3]]


def test_the_context_is_the_mean_of_the_batch(run):
    # 4 and 12 tokens in the cache are 8 on average.
    plan = by_table([PLAIN, chain(1, 0), chain(3, 0)], [1], [0, 8], [[1, 2]])
    requests, _ = run(traffic([0.0, 0.0], [4, 12], [2, 2]), plan=plan, **LOOKED_UP)
    assert requests["drafted_tokens"].tolist() == [3, 3]
    requests, _ = run(traffic([0.0, 0.0], [4, 11], [2, 2]), plan=plan, **LOOKED_UP)
    assert requests["drafted_tokens"].tolist() == [1, 1]


def test_gamma_follows_the_batch_both_ways(run):
    # 3 alone, 1 together. The second's prompt beside the first's round does not count yet.
    plan = by_table([PLAIN, chain(3, 0), chain(1, 0)], [1, 2], [0], [[1], [2]])
    requests, _ = run(traffic([0.0, 0.5], [4, 4], [12, 2]), plan=plan, **LOOKED_UP)
    assert requests["finish_s"].tolist() == [5.0, 3.0]
    assert requests["drafted_tokens"].tolist() == [3 + 1 + 3 + 3, 1]


def test_drafts_made_ahead_are_those_of_the_batch_that_went_on(run):
    # With a model the second's first token has it counted at the end of that step: the drafts of both, one each.
    plan = by_table([PLAIN, chain(3), chain(1)], [1, 2], [0], [[1], [2]])
    requests, _ = run(traffic([0.0, 0.5], [4, 4], [12, 2]), plan=plan, draft=tables(0.0), rates=[1.0])
    assert requests["drafted_tokens"].tolist() == [3 + 1 + 3 + 3, 1]


# By each sequence's past


def past(gamma, passes=0):
    return always(chain(gamma, passes), BY_PAST)


def test_two_more_after_success_one_fewer_after_failure(run):
    # Three drafts are always kept, never a fourth: 6, 5, 4, 3 and up by 2 again.
    requests, _ = run(traffic([0.0], [4], [29]), plan=past(6), rates=[1.0, 1.0, 1.0, 0.0])
    assert counts(requests) == [[7], [7], [6 + 5 + 4 + 3 + 5 + 4 + 3], [7 * 3]]


def test_its_own_gamma_stays_between_one_and_the_scenario_s(run):
    requests, _ = run(traffic([0.0], [4], [21]), plan=past(4), rates=[1.0])
    assert counts(requests) == [[4], [4], [16], [16]]
    requests, _ = run(traffic([0.0], [4], [8]), plan=past(4), rates=[0.0])
    assert counts(requests) == [[7], [7], [4 + 3 + 2 + 1 + 1 + 1 + 1], [0]]


def test_passes_are_for_those_who_draft_so_deep(run):
    # The first keeps all of 4 and drafts 4, the second none of 4 and drafts 3, then 2.
    requests, _ = run(
        traffic([0.0, 0.0], [4, 4], [9, 4]), plan=past(4, None), draft=tables(0.25, 0.125), rates=[[1.0], [0.0]],
        target=tables(1.0, 0.125),
    )  # fmt: skip
    one_s, two_s = 0.25 + 0.125, 0.25 + 2 * 0.125
    prompts_s = 2.0 + (0.25 + 8 * 0.125) + 3 * two_s
    second_s = 1.0 + (5 + 5) * 0.125 + (0.25 + (5 + 1) * 0.125) + 2 * two_s + one_s
    third_s = 1.0 + (5 + 4) * 0.125 + 2 * one_s
    assert requests["finish_s"].tolist() == [prompts_s + second_s + third_s, prompts_s + second_s + third_s + 1.375]
    assert requests["drafted_tokens"].tolist() == [4 + 4, 4 + 3 + 2]


def test_who_is_admitted_again_has_no_past(run):
    # Blocks of 4, 6 of them. Seven rounds of 4, 3, 2, 1, 1, 1, 1 drafts fit; then 11 + 2 tokens want 4 blocks each, and the second
    # gives way, computes 12 tokens again when the first has finished, and drafts 4, 3, 2.
    requests, _ = run(traffic([0.0, 0.0], [4, 4], [9, 12]), plan=past(4), rates=[0.0], total_blocks=6, prefix_caching=0)
    assert requests["preemptions"].tolist() == [0, 1]
    assert requests["drafted_tokens"].tolist() == [13 + 1, 13 + 4 + 3 + 2]


# By its future


def test_the_oracle_verifies_what_is_kept_and_no_more(run):
    # 2, 0 and 3 drafts are kept; the answer's last token needs none. Rounds of 3, 1, 4 and 1 tokens.
    requests, (replica,) = run(
        traffic([0.0], [4], [10]), plan=always(chain(3, 0), BY_ORACLE), gamma=3, target=tables(1.0, 0.125),
        recorded=recording([[2, 0, 3]], 3),
    )  # fmt: skip
    assert requests[0].finish_s == 1.5 + 1.375 + 1.125 + 1.5 + 1.125
    assert counts(requests) == [[4], [2], [5], [5]]
    assert replica.wasted_flop == 0.0


def test_the_oracle_drafts_no_more_than_is_kept(run):
    # The same with a model: two passes for 2 drafts; none for none, but the 3 new tokens are read; three for 3; one token and
    # its reading before the last.
    requests, _ = run(
        traffic([0.0], [4], [10]), plan=always(chain(3), BY_ORACLE), gamma=3, recorded=recording([[2, 0, 3]], 3),
        draft=tables(0.25, 0.125), host_draft_pass_s=0.5,
    )  # fmt: skip
    one_s = 0.25 + 0.125 + 0.5
    prompt_s = 1.0 + (0.25 + 4 * 0.125 + 0.5) + one_s
    second_s = 1.0 + (0.25 + 3 * 0.125 + 0.5)
    third_s = 1.0 + 3 * one_s
    fourth_s = 1.0 + (0.25 + 4 * 0.125 + 0.5)
    assert requests[0].finish_s == prompt_s + second_s + third_s + fourth_s + 1.0
    assert counts(requests) == [[4], [2], [5], [5]]


def test_under_the_oracle_padding_is_to_the_widest_that_there_is(run):
    # 3 kept and 0: 4 + 1 tokens, padded 4 + 4, although the shape has 6 drafts.
    asked = {"plan": always(chain(6, 0), BY_ORACLE), "gamma": 6, "recorded": recording([[3], [0]], 6)}
    work = traffic([0.0, 0.0], [4, 4], [5, 2])
    for padded, tokens in ((0, 4 + 1), (1, 4 + 4)):
        requests, _ = run(work, target=tables(1.0, 0.125), padded=padded, **asked)
        assert requests[0].finish_s == 2.0 + 1.0 + tokens * 0.125


@pytest.mark.parametrize("first", [0, 1])
def test_off_is_off_for_the_oracle_too(run, first):
    plan = by_table([PLAIN, chain(3)], [1, 2], [0], [[1], [0]], BY_ORACLE)
    requests, _ = run(traffic([0.0, 0.0], [4, 4], [5, 5]), plan=plan, draft_first=first, **DRAFT)
    assert requests["drafted_tokens"].tolist() == [0, 0]
