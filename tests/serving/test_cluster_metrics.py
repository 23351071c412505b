"""Figures of clusters by hand: a step takes 1 s, whatever is in it."""

import numpy as np
import pytest

from simulator.deployment import deploy
from simulator.serving.cluster_config import Autoscaler, Failure, ReplicaPool
from simulator.serving.cluster_metrics import down_s, serving_over_time, summarise_cluster
from simulator.serving.control import Control, Happening, Scaled, State
from simulator.serving.fleets import Kind
from tests.serving.cluster_rig import serve, wire
from tests.serving.plain.rig import workload

TWO_GPUS = deploy("llama-3.1-8b", "h100-sxm", tp=2)
BUDGET = TWO_GPUS.fit()


def kind(replicas, role="both", autoscaler=None):
    return Kind(ReplicaPool(role=role, replicas=replicas, autoscaler=autoscaler), TWO_GPUS, None, BUDGET)


def judged(kinds, run, requests, *, fails=False):
    makespan_s = float(requests["finish_s"].max() - requests["arrival_s"].min())
    return summarise_cluster(kinds, run, makespan_s, fails=fails)


def test_a_replica_s_share_of_time_is_of_its_own():
    # Round robin: the first replica computes 4 steps with one request, the second 2; the first ends at 4 s.
    requests, run = serve(workload([0.0, 0.0], [3, 3], [4, 2]), replicas=2, router="round-robin")
    first, second = judged([kind(1), kind(1)], run, requests).kinds
    assert (first.held_s, second.held_s) == (4.0, 4.0)
    assert (first.gpu_busy_share, second.gpu_busy_share) == (1.0, 0.5)
    assert (first.mean_running, second.mean_running) == (1.0, 1.0)
    assert (first.output_tokens, second.output_tokens) == (4, 2)
    assert (first.prompt_tokens, second.prompt_tokens) == (3, 3)
    assert (first.gpus, second.gpus, first.kv_blocks) == (2, 2, BUDGET.kv_blocks(16))
    assert first.usd == pytest.approx(TWO_GPUS.gpu.price_usd_per_s * 2 * 4.0)


def test_blocks_in_use_are_averaged_over_busy_time():
    # Two requests of 4 tokens in blocks of 4, together: 2 blocks in the first step, 4 in the second (the fifth token), and no more.
    requests, run = serve(workload([0.0, 0.0], [4, 4], [2, 2]))
    (found,) = judged([kind(1)], run, requests).kinds
    assert found.most_running == 2
    assert found.mean_running == 2.0
    assert found.kv_occupancy_mean == pytest.approx((2 + 4) / 2 / found.kv_blocks)
    assert found.kv_occupancy_most == 4 / found.kv_blocks


def test_transfers_and_the_link_that_is_waited_for():
    # Both prompts are computed in the step to 1 s; 2 and 4 tokens cross one link at 1 s a token: 1 s to 3 s, then to 7 s.
    requests, run = serve(workload([0.0, 0.0], [2, 4], [2, 2]), wire(1.0), decode=1)
    found = judged([kind(1, "prefill"), kind(1, "decode")], run, requests).transfers
    assert requests["finish_s"].tolist() == [4.0, 8.0]
    assert (found.n, found.sent_bytes, found.links) == (2, 6.0, 1)
    assert (found.wait_s.mean, found.wait_s.largest) == (1.0, 2.0)
    assert (found.transfer_s.mean, found.transfer_s.largest) == (3.0, 4.0)
    assert (found.link_busy_share, found.busiest_link_share) == (6 / 8, 6 / 8)


def test_only_some_links_are_busy():
    requests, run = serve(workload([0.0], [2], [2]), wire(1.0, senders=2), replicas=2, decode=1)
    found = judged([kind(2, "prefill"), kind(1, "decode")], run, requests).transfers
    assert (found.links, found.busiest_link_share, found.link_busy_share) == (2, 2 / 4, 1 / 4)


def test_outages_count_what_was_thrown_out_and_the_time_down():
    # Replica 1 fails at the end of its step, 2 s, for 3 s; its request starts again on replica 0 and computes 4 steps more.
    control = Control(failures=[Failure(replica=1, at_s=1.5, down_s=3.0)])
    requests, run = serve(workload([0.0, 0.0], [1, 1], [8, 4]), control, replicas=2, router="round-robin")
    assert requests["retries"].tolist() == [0, 1]
    cluster = judged([kind(2)], run, requests, fails=True)
    assert (cluster.outages.n, cluster.outages.lost_requests, cluster.outages.down_s) == (1, 1, 3.0)
    assert cluster.end_s == 8.0
    assert cluster.kinds[0].held_s == 2 * 8.0 - 3.0
    assert cluster.outages.down_share == 3 / 16


def test_nothing_fails_where_nothing_is_to_fail():
    requests, run = serve(workload([0.0], [1], [1]))
    cluster = judged([kind(1)], run, requests)
    assert (cluster.outages, cluster.scaling, cluster.transfers) == (None, None, None)


def test_an_autoscaler_s_hours_are_those_its_replicas_were_held():
    # Five requests at 0 s: three replicas wanted at 1 s, ready at 4 s; the last answer is there at 8 s (see test_cluster_autoscaler).
    scaler = Autoscaler(min=1, max=4, target=2.0, startup_s=3.0, interval_s=1.0, scale_down_after_s=5.0)
    requests, run = serve(
        workload([0.0] * 5 + [3.5, 4.5], [1] * 7, [8] * 5 + [1, 1]), Control(scaled=[Scaled(scaler, 0, 1)]), replicas=4
    )
    kinds = [kind(1, autoscaler=scaler)]
    found = judged(kinds, run, requests).scaling
    assert found.gpu_hours == pytest.approx(2 * (8 + 7 + 7) / 3600)
    assert found.most_gpu_hours == pytest.approx(2 * 4 * 8 / 3600)
    assert found.mean_serving == pytest.approx((4 * 1 + 4 * 3) / 8)
    assert (found.fewest_serving, found.most_serving, found.starts, found.stops) == (1, 3, 2, 0)
    times_s, counts = serving_over_time(kinds, run.happened)
    assert times_s.tolist() == [0.0, 1.0, 1.0, 4.0, 4.0]
    assert counts.tolist() == [1, 1, 1, 2, 3]


STORY = [
    Happening(2.0, 0, State.FAILED, 3), Happening(3.0, 2, State.DRAINING), Happening(5.0, 0, State.SERVING),
    Happening(6.0, 2, State.FAILED), Happening(7.0, 2, State.OFF), Happening(9.0, 1, State.FAILED),
]  # fmt: skip


def test_states_are_followed_through_failures_and_stops():
    times_s, counts = serving_over_time([kind(3)], STORY)
    assert counts.tolist() == [3, 2, 1, 2, 2, 2, 1]
    assert times_s.tolist() == [0.0, 2.0, 3.0, 5.0, 6.0, 7.0, 9.0]
    _, first = serving_over_time([kind(1), kind(2)], STORY, [0])
    assert first.tolist() == [1, 0, 1]


def test_time_down_is_counted_within_the_run_only():
    assert down_s(STORY, 0.0, 10.0) == 3.0 + 1.0 + 1.0
    assert down_s(STORY, 3.0, 9.5) == 2.0 + 1.0 + 0.5
    assert down_s([], 0.0, 10.0) == 0.0


def test_shares_of_nothing_are_not_numbers():
    requests, run = serve(workload([0.0], [1], [1]), replicas=2)
    first, idle = judged([kind(1), kind(1)], run, requests).kinds
    assert first.gpu_busy_share == 1.0
    assert idle.gpu_busy_share == 0.0
    assert np.isnan(idle.mean_running)
