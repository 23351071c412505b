"""Who waits, who is turned away, who gives up: boundaries written down by hand."""

import numpy as np
import pytest

from simulator.serving import state
from tests.serving.plain.rig import run, story, tables, workload

LEFT = (state.LEFT,)


def ends(replica):
    """(time, request, status) of everybody who left."""
    return [(time_s, request, state.STATUS[value]) for time_s, _, request, value in story(replica, LEFT)]


def test_whoever_finds_the_line_full_is_refused():
    # One runs, two may wait. C comes at 0.3 as the third in line and is refused at the boundary at 1 s, when A leaves.
    work = workload([0.0, 0.1, 0.2, 0.3], [1] * 4, [1] * 4)
    requests, (replica,) = run(work, max_sequences=1, max_waiting=2)
    assert ends(replica) == [(1.0, 0, "finished"), (1.0, 3, "refused"), (2.0, 1, "finished"), (3.0, 2, "finished")]
    assert requests[3].finish_s == 1.0
    assert replica.counters.left == 4


def test_a_preempted_request_takes_nobodys_place_in_the_line():
    # At 2 s B needs a second block, which A has: it gives way to itself, and waits. C may wait beside it, D not.
    work = workload([0.0, 0.5, 2.5], [4, 4, 4], [5, 3, 1])
    requests, (replica,) = run(work, total_blocks=3, max_waiting=1)
    assert requests["preemptions"].tolist() == [0, 1, 0]
    assert [status for _, _, status in ends(replica)] == ["finished"] * 3
    _, (replica,) = run(workload([0.0, 0.5, 2.5, 2.6], [4] * 4, [5, 3, 1, 1]), total_blocks=3, max_waiting=1)
    assert ends(replica)[0] == (3.0, 3, "refused")


def test_whoever_waits_too_long_is_dropped():
    # A runs until 3 s. B has waited 2 s at the boundary at 3 s, C not yet.
    work = workload([0.0, 1.0, 1.5], [1] * 3, [3, 1, 1])
    requests, (replica,) = run(work, max_sequences=1, queue_timeout_s=2.0)
    assert ends(replica) == [(3.0, 0, "finished"), (3.0, 1, "timed out"), (4.0, 2, "finished")]
    assert requests[1].finish_s == 3.0


def test_time_outs_go_in_order_of_submission_and_spare_the_preempted():
    # Rank puts D before C in line. B was preempted at 1 s and stays, however long ago it came.
    work = workload([0.0, 0.0, 0.5, 0.6], [4] * 4, [9, 3, 1, 1], rank=[0, 0, 2, 1])
    _, (replica,) = run(work, total_blocks=3, queue_timeout_s=1.0, ranked=1, max_sequences=2)
    assert ends(replica)[:2] == [(2.0, 2, "timed out"), (2.0, 3, "timed out")]
    assert ends(replica)[2:] == [(9.0, 0, "finished"), (11.0, 1, "finished")]


def test_a_user_gives_up_while_waiting():
    work = workload([0.0, 0.0, 0.0], [1] * 3, [3, 1, 1], patience_s=[np.inf, 1.5, np.inf])
    requests, (replica,) = run(work, max_sequences=1)
    assert ends(replica) == [(2.0, 1, "cancelled"), (3.0, 0, "finished"), (4.0, 2, "finished")]
    assert (requests[1].generated_tokens, requests[1].finish_s) == (0, 2.0)


def test_a_user_gives_up_at_the_boundary_exactly():
    _, (replica,) = run(workload([0.0, 0.0], [1, 1], [3, 1], patience_s=[np.inf, 2.0]), max_sequences=1)
    assert ends(replica)[0] == (2.0, 1, "cancelled")


def test_a_user_gives_up_while_it_runs_and_its_blocks_are_free_at_once():
    # A holds all 3 blocks, B needs 3. A is cancelled at 2 s and B admitted in that step. A's tokens stay: two.
    work = workload([0.0, 0.5], [9, 9], [9, 1], patience_s=[1.25, np.inf])
    requests, (replica,) = run(work, total_blocks=3)
    assert ends(replica) == [(2.0, 0, "cancelled"), (3.0, 1, "finished")]
    assert requests[0].generated_tokens == 2
    assert requests[1].scheduled_s == 2.0


@pytest.mark.parametrize("swap_blocks", [0, 10])
def test_a_user_gives_up_while_preempted(swap_blocks):
    # B is preempted at 1 s, recomputed later or swapped out; its user gives up at 1.5.
    work = workload([0.0, 0.0], [4, 4], [5, 3], patience_s=[np.inf, 1.5])
    requests, (replica,) = run(work, total_blocks=3, swap_blocks=swap_blocks)
    assert requests["preemptions"].tolist() == [0, 1]
    assert ends(replica) == [(2.0, 1, "cancelled"), (5.0, 0, "finished")]
    assert replica.swapped_blocks == 0


def test_who_gives_up_first_leaves_first():
    # All at the boundary at 2 s: D at 1.1, then B and C at 1.2 in order of their index.
    work = workload([0.0] * 4, [1] * 4, [2] * 4, patience_s=[np.inf, 1.2, 1.2, 1.1])
    _, (replica,) = run(work, max_sequences=1, target=tables(2.0))
    assert [request for _, request, status in ends(replica) if status == "cancelled"] == [3, 1, 2]


def test_an_idle_replica_waits_for_the_next_one():
    requests, (replica,) = run(workload([0.0, 7.5], [1, 1], [1, 1]))
    assert requests["finish_s"].tolist() == [1.0, 8.5]
    assert replica.counters.busy_s == 2.0


def test_a_later_hand_over_is_heard_when_it_is_ready():
    work = workload([0.0, 0.0], [1, 1], [4, 1], ready_s=[0.0, 1.5])
    requests, _ = run(work)
    assert requests["scheduled_s"].tolist() == [0.0, 2.0]
