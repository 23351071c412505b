"""The KV cache: its queue of free blocks, its table, and what preempted and later requests find in it."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.plain.blocks import BlockPool, blocks_for
from simulator.serving.plain.replica import Replica
from simulator.serving.plain.sequence import Sequence
from tests.serving.plain.rig import run, step_model, story, tables, workload

ADMITTED, PREEMPTED = state.ADMITTED, state.PREEMPTED_


def test_blocks_are_taken_from_the_head_and_come_back_last_first():
    pool = BlockPool(5)
    assert pool.take(3) == [0, 1, 2]
    pool.give_back([0, 1, 2])
    assert list(pool.queue) == [3, 4, 2, 1, 0]
    assert pool.take(4) == [3, 4, 2, 1]


def test_taking_a_block_forgets_what_was_in_it():
    pool = BlockPool(2)
    pool.take(2)
    pool.enter(0, "a")
    pool.enter(1, "b")
    pool.give_back([0, 1])
    assert pool.leading(["a", "b"]) == [0, 1]
    assert pool.take(1) == [1]
    assert pool.leading(["a", "b"]) == [0]


def test_the_same_content_is_entered_once():
    pool = BlockPool(2)
    pool.take(2)
    pool.enter(0, "a")
    pool.enter(1, "a")
    pool.give_back([0, 1])
    assert pool.leading(["a"]) == [0]
    pool.take(1)  # block 1, which is in no table
    assert pool.leading(["a"]) == [0]


def test_a_block_that_others_use_stays():
    pool = BlockPool(3)
    pool.take(1)
    pool.hold([0])
    pool.give_back([0])
    assert pool.used_blocks == 1
    pool.give_back([0])
    assert list(pool.queue) == [1, 2, 0]


def test_a_found_block_leaves_the_queue_from_its_middle():
    pool = BlockPool(3)
    pool.hold([1])
    assert list(pool.queue) == [0, 2]


@given(st.integers(0, 10_000), st.integers(1, 64), st.integers(1, 3000), st.floats(0, 1))
def test_blocks_of_a_windowed_model(tokens, block_tokens, window_tokens, share):
    whole = SimpleNamespace(block_tokens=block_tokens, window_tokens=0, windowed_share=share)
    hybrid = SimpleNamespace(block_tokens=block_tokens, window_tokens=window_tokens, windowed_share=share)
    blocks = blocks_for(whole, tokens)
    assert (blocks - 1) * block_tokens < tokens <= blocks * block_tokens
    # Never more than without, never fewer than the layers that keep everything need, or the window.
    least = max(min(tokens, window_tokens), tokens * (1 - share))
    assert least / block_tokens - 1e-9 <= blocks_for(hybrid, tokens) <= blocks
    assert blocks_for(hybrid, tokens) <= blocks_for(hybrid, tokens + 1)


def test_hybrid_kv_by_hand():
    # Window 8, half the layers: 20 tokens keep 8 + 12/2 = 14, 4 blocks of 4 instead of 5.
    hybrid = SimpleNamespace(block_tokens=4, window_tokens=8, windowed_share=0.5)
    assert [blocks_for(hybrid, tokens) for tokens in (0, 8, 9, 16, 20)] == [0, 2, 3, 3, 4]


def test_what_nobody_has_overwritten_is_found_again():
    # 6 blocks of 4: A's prompt takes 2, B's 4. A's second token needs a block, so B gives way: 4 whole blocks of 16 tokens.
    # A takes one of them, B's last. B needs 5 for its 16 + 1 tokens, free when A has finished at 6.25 s; 3 blocks are still
    # B's own, so 17 − 12 tokens are computed once more.
    work = workload([0.0, 0.0], [8, 16], [3, 2])
    requests, (replica,) = run(work, total_blocks=6, target=tables(1.0, 0.125))
    assert story(replica, (ADMITTED, PREEMPTED))[2:] == [(4.0, PREEMPTED, 1, 0), (6.25, ADMITTED, 1, 12)]
    assert requests[1].recomputed_tokens == 16 - 12
    # 24 prompt tokens take 1 + 3 s, two steps of one token 1.125 s each, the 5 tokens 1.625 s.
    assert requests["finish_s"].tolist() == [6.25, 7.875]
    without, (replica,) = run(work, total_blocks=6, target=tables(1.0, 0.125), prefix_caching=0)
    assert without[1].recomputed_tokens == 16
    assert replica.counters.prefill_tokens == 8 + 16 + 17


def test_the_last_to_be_preempted_keeps_the_most():
    # 9 blocks of 4, three prompts of 3 blocks. A needs a fourth and C gives way (A takes C's third block); B takes C's
    # second. Four tokens later A takes C's first, and B gives way to itself: it keeps its whole blocks until A's next.
    requests, _ = run(workload([0.0] * 3, [12, 12, 12], [9, 9, 9]), total_blocks=9)
    assert requests["preemptions"].tolist() == [0, 1, 1]
    assert requests["recomputed_tokens"].tolist() == [0, 0, 12]


def test_blocks_scheduled_but_not_computed_are_not_found():
    # 8 tokens are computed, 4 more were in the step in which the sequence is preempted.
    work = workload([0.0], [20], [1])
    replica = Replica(0, step_model(1))
    sequence = Sequence(0, 0, work.requests[0], work.source, work.end_tokens)
    sequence.computed_tokens = 8
    sequence.blocks = replica.pool.take(3)
    replica.enter(sequence, 12)
    assert len(replica.found(sequence, 20)) == 3
    replica.release(sequence)
    assert len(replica.found(sequence, 20)) == 2


def test_a_shared_beginning_is_found():
    # 10 tokens in common, of which 2 whole blocks of 4 can be found; B computes 12 − 8.
    work = workload([0.0, 1.5], [12, 12], [1, 1], pieces=[[(7, 10)], [(7, 10)]])
    requests, (replica,) = run(work, shares=1, target=tables(1.0, 0.125))
    assert story(replica, (ADMITTED,)) == [(0.0, ADMITTED, 0, 0), (2.5, ADMITTED, 1, 8)]
    assert requests["cached_tokens"].tolist() == [0, 8]
    assert requests["finish_s"].tolist() == [2.5, 4.0]
    assert replica.counters.cached_tokens == 8
    assert run(work, shares=1, prefix_caching=0)[0]["cached_tokens"].tolist() == [0, 0]
    assert run(work, shares=1, window_tokens=64)[0]["cached_tokens"].tolist() == [0, 0]


def test_blocks_in_use_are_shared_in_the_same_step():
    # Both at once: B finds what A will have computed by the end of this step, and 4 blocks hold both (3 + 3 − 2).
    work = workload([0.0, 0.0], [12, 12], [2, 2], pieces=[[(7, 8)], [(7, 8)]])
    requests, (replica,) = run(work, shares=1, total_blocks=6)
    assert requests["cached_tokens"].tolist() == [0, 8]
    assert [step.used_blocks for step in replica.steps] == [4, 6]
    assert replica.pool.used_blocks == 0


def test_one_token_is_always_left_to_compute():
    # The whole prompt of 8 is in the cache; its second block is not taken from there.
    work = workload([0.0, 1.5], [8, 8], [1, 1], pieces=[[(7, 8)], [(7, 8)]])
    requests, _ = run(work, shares=1)
    assert requests[1].cached_tokens == 4


def test_pieces_are_found_up_to_the_first_that_differs():
    # Blocks end at 4, 8, 12 in pieces 1, 2 or 3, then 4 or 5.
    work = workload(
        [0.0, 1.5, 3.0], [13] * 3, [1] * 3, pieces=[[(1, 4), (2, 12)], [(1, 4), (3, 12)], [(1, 4), (2, 12)]]
    )
    requests, _ = run(work, shares=1)
    assert requests["cached_tokens"].tolist() == [0, 4, 12]


def test_a_later_turn_finds_question_and_answer():
    # First turn: 6 + 6 tokens, of which the last is known but was never computed: 11 tokens, 2 whole blocks. A stranger finds none.
    work = workload([0.0, 10.0, 20.0], [6, 14, 14], [6, 1, 1], session=[3, 3, 4])
    requests, _ = run(work, shares=1)
    assert requests["cached_tokens"].tolist() == [0, 8, 0]


def test_blocks_filled_by_accepted_drafts_are_found():
    # All of 3 drafts are kept: 4 + 4 + 4 tokens of which the last is not computed; blocks of 4 are full at 4 and 8.
    work = workload([0.0, 20.0], [4, 14], [9, 1], session=[1, 1])
    requests, _ = run(work, shares=1, gamma=3, rates=[1.0])
    assert requests[1].cached_tokens == 12


def test_the_least_recently_freed_is_overwritten_first():
    # 4 blocks. A and B leave 2 each behind, A first; C takes 2: those of A that stand first in the queue, its last one first.
    pieces = [[(1, 8)], [(2, 8)], [(3, 8)], [(2, 8)], [(1, 8)]]
    work = workload([0.0, 2.0, 4.0, 6.0, 8.0], [8] * 5, [1] * 5, pieces=pieces)
    requests, _ = run(work, shares=1, total_blocks=4)
    # D has B's prompt, the first block of which may be used (one token is left to compute); E finds nothing of A's.
    assert requests["cached_tokens"].tolist() == [0, 0, 0, 4, 0]


def test_the_beginning_of_a_sequence_is_overwritten_last():
    # 3 blocks hold A's 12 tokens; B's single block takes A's last; C finds the first two.
    work = workload([0.0, 2.0, 4.0], [12, 4, 12], [1] * 3, pieces=[[(1, 12)], [(2, 4)], [(1, 12)]])
    requests, _ = run(work, shares=1, total_blocks=3)
    assert requests[2].cached_tokens == 8


def test_found_blocks_that_nobody_uses_count_as_room_taken():
    # 4 blocks. A's 2 stay behind. C runs on the 2 others when B, whose 8 tokens A computed, needs 3 blocks in all: 1 found and
    # idle, 2 more, of 2 free ones. It waits for C.
    work = workload([0.0, 2.0, 2.5], [8, 7, 9], [1, 2, 1], pieces=[[(1, 8)], [(2, 4)], [(1, 8)]])
    requests, _ = run(work, shares=1, total_blocks=4)
    assert requests["scheduled_s"].tolist() == [0.0, 2.0, 4.0]


def test_swapped_tokens_come_back_over_pcie():
    # As above B gives way at 1 s, with 4 tokens. Out at 1 s, in at 3 s: 4 tokens of 0.125 s each. It has 4 + 1 tokens as goal
    # and computes one of them.
    work = workload([0.0, 0.0], [4, 4], [3, 3])
    requests, (replica,) = run(work, total_blocks=3, swap_blocks=1, swap_s_per_token=0.125)
    assert story(replica, (ADMITTED, PREEMPTED))[2:] == [(1.0, PREEMPTED, 1, 1), (3.5, ADMITTED, 1, 4)]
    assert [(step.seconds, step.tokens) for step in replica.steps] == [(1.0, 8), (1.5, 1), (1.0, 1), (1.5, 1), (1.0, 1)]
    assert requests["recomputed_tokens"].tolist() == [0, 0]
    assert (replica.counters.swaps, replica.counters.swap_s) == (1, 1.0)


@pytest.mark.parametrize(("swap_blocks", "swaps"), [(0, 0), (2, 0), (3, 1), (6, 1), (7, 2)])
def test_swap_space_may_be_too_small(swap_blocks, swaps):
    # C gives way with 12 tokens, 3 blocks, and B with 16.
    requests, (replica,) = run(workload([0.0] * 3, [12] * 3, [9] * 3), total_blocks=9, swap_blocks=swap_blocks)
    assert requests["preemptions"].sum() == 2
    assert replica.counters.swaps == swaps
    assert (requests["recomputed_tokens"] > 0).sum() <= 2 - swaps
