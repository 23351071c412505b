"""Prefill replicas that hand over to decode replicas: trajectories by hand, the link's queue, conservation."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.serving import state
from simulator.serving.cluster import run_cluster
from simulator.serving.cluster_config import Failure
from simulator.serving.control import Control
from tests.serving.cluster_rig import (
    batch_means,
    fresh,
    geometric,
    poisson,
    pollaczek_khinchine_s,
    serve,
    wire,
)
from tests.serving.plain.rig import fleet, tables, workload

# By hand: a step takes 1 s, whatever is in it.


def test_one_request_from_prompt_to_last_token():
    # Prompt 0–1 s, first token at 1 s; 8 tokens of KV take 0.5 + 8 · 0.125 s; two steps more from 2.5 s on.
    requests, run = serve(workload([0.0], [8], [3]), wire(0.125, 0.5), decode=1)
    (request,) = requests
    assert (request.scheduled_s, request.first_token_s, request.finish_s) == (0.0, 1.0, 4.5)
    assert (request.generated_tokens, request.replica, request.status) == (3, 1, state.FINISHED)
    assert request.recomputed_tokens == request.cached_tokens == request.carried_tokens == 0
    assert request.longest_gap_s == 2.5
    transfers = run.transfers
    assert (transfers.handed_over_s[0], transfers.wait_s[0], transfers.transfer_s[0]) == (1.0, 0.0, 1.5)
    assert (transfers.prefill_replica[0], transfers.sent_bytes, transfers.busy_s.tolist()) == (0, 1.0, [1.5])
    prefill, decode = run.replicas
    assert (prefill.steps, prefill.prefill_tokens, prefill.emitted_tokens) == (1, 8, 1)
    assert (decode.steps, decode.emitted_tokens) == (2, 2)


def test_transfers_go_one_after_the_other_in_order_of_hand_over():
    # All three prompts in one step: handed over at 1 s, in order of their numbers.
    requests, run = serve(workload([0.0] * 3, [8, 2, 4], [2, 2, 2]), wire(0.25), decode=3)
    assert run.transfers.wait_s.tolist() == [0.0, 2.0, 2.5]
    assert run.transfers.transfer_s.tolist() == [2.0, 0.5, 1.0]
    assert requests["finish_s"].tolist() == [4.0, 4.5, 5.5]


def test_a_link_for_each_prefill_replica_or_one_for_all():
    work = workload([0.0, 0.0], [8, 8], [2, 2])
    own, _ = serve(work, wire(0.25, senders=2), replicas=2, decode=2)
    shared, run = serve(work, wire(0.25, senders=2, shared=True), replicas=2, decode=2)
    assert own["finish_s"].tolist() == [4.0, 4.0]
    assert shared["finish_s"].tolist() == [4.0, 6.0]
    assert run.transfers.prefill_replica.tolist() == [0, 1]


def test_the_earlier_hand_over_goes_first_though_its_step_began_later():
    # The long prompt's pass runs from 0 to 8 s, the short one's on the other replica from 1 to 2 s.
    work = workload([0.0, 1.0], [8, 1], [2, 2])
    control = wire(1.0, senders=2, shared=True)
    _, run = serve(work, control, replicas=2, decode=1, target=tables(0.0, 1.0))
    assert run.transfers.handed_over_s.tolist() == [8.0, 2.0]
    assert run.transfers.wait_s.tolist() == [0.0, 0.0]


def test_an_answer_of_one_token_needs_no_decode_replica():
    requests, run = serve(workload([0.0], [8], [1]), wire(), decode=1)
    assert requests["finish_s"].tolist() == [1.0]
    assert np.isnan(run.transfers.handed_over_s[0])
    assert run.replicas[1].steps == 0


def test_a_user_of_a_closed_loop_asks_again_when_decoding_has_ended():
    # Prompt 1 s, transfer 2 s, one step more: 4 s each, and 0.5 s to think.
    work = workload([0.0, np.nan, np.nan], [8] * 3, [2] * 3, users=1, think_s=[0.0, 0.5, 0.5])
    requests, _ = serve(work, wire(0.25), decode=1)
    assert requests["arrival_s"].tolist() == [0.0, 4.5, 9.0]
    assert requests["finish_s"].tolist() == [4.0, 8.5, 13.0]


def test_the_next_turn_of_a_session_comes_when_decoding_has_ended():
    # Of the second turn's prompt the prefill replica has kept the first turn's 8 tokens, two blocks.
    work = workload([0.0, np.nan], [8, 12], [2, 2], follows=[-1, 0], think_s=1.0, session=[0, 0])
    requests, _ = serve(work, wire(0.25), decode=1, shares=1)
    assert requests["arrival_s"].tolist() == [0.0, 5.0]
    assert requests["finish_s"].tolist() == [4.0, 10.0]
    assert requests["cached_tokens"].tolist() == [0, 8]


def test_a_session_is_abandoned_where_decoding_does_not_end():
    # The first turn's user gives up at 3.5 s, while it decodes (from 3 s on).
    work = workload([0.0, 0.0], [8, 9], [9, 2], follows=[-1, 0], think_s=0.0, patience_s=[3.5, np.inf])
    requests, run = serve(work, wire(0.25), decode=1)
    assert requests["status"].tolist() == [state.CANCELLED, state.ABANDONED]
    assert requests["finish_s"].tolist() == [4.0, 4.0]
    assert not run.interrupted


def test_a_failed_decode_replica_loses_the_kv_that_came_over_the_link():
    # Decoding from 3 s on fails at 3.2 s, at the end of the step (4 s, second token); back at the router at 5 s, the other
    # decode replica computes 8 + 2 tokens and emits the third at 6 s, the fourth at 7 s.
    control = replace(wire(0.25), failures=[Failure(replica=1, at_s=3.2, down_s=100)], retry_delay_s=1.0)
    requests, run = serve(workload([0.0], [8], [4]), control, decode=2)
    (request,) = requests
    assert (request.finish_s, request.retries, request.recomputed_tokens) == (7.0, 1, 9)
    assert request.first_token_s == 1.0
    assert request.replica == 2
    assert [replica.emitted_tokens for replica in run.replicas] == [1, 1, 2]


def test_a_decode_replica_may_be_slower_than_a_prefill_replica():
    work = fresh(workload([0.0], [8], [3]))
    fleets = [fleet(1, prefill_only=1, target=tables(0.5)), fleet(1, target=tables(2.0))]
    run_cluster(fleets, work, wire(0.125))
    assert work.requests["finish_s"].tolist() == [0.5 + 1.0 + 2 * 2.0]


# The link is a queue.


@pytest.mark.parametrize("load", [0.4, 0.8])
def test_the_link_is_md1(load):
    # Steps of 1 µs: hand-overs are as good as a Poisson process; each takes the link for 1 s.
    n = 40_000
    work = workload(poisson(n, load), [4] * n, [2] * n)
    _, run = serve(work, wire(0.25), decode=1, target=tables(1e-6), max_sequences=64)
    mean, half_width = batch_means(run.transfers.wait_s[2000:])
    assert mean == pytest.approx(pollaczek_khinchine_s(load, 1.0, 1.0), abs=half_width)
    assert run.transfers.busy_s[0] == pytest.approx(n)


def test_the_link_is_mg1_where_prompts_differ():
    n, mean_tokens, load = 40_000, 50.0, 0.6
    prompts = geometric(n, mean_tokens)
    work = workload(poisson(n, load), prompts, [2] * n)
    settings = {"target": tables(1e-6), "max_sequences": 64, "total_blocks": 100_000, "max_batched_tokens": 4096}
    _, run = serve(work, wire(1 / mean_tokens), decode=1, **settings)
    mean, half_width = batch_means(run.transfers.wait_s[2000:])
    assert mean == pytest.approx(pollaczek_khinchine_s(load, 1.0, 2 - 1 / mean_tokens), abs=half_width)


# Conservation and limits


def test_tokens_and_requests_are_conserved():
    n = 2000
    work = workload(poisson(n, 1.0), geometric(n, 30, seed=5), geometric(n, 20, seed=6))
    requests, run = serve(work, wire(0.01, 0.001, senders=2), replicas=2, decode=3, target=tables(0.05, 0.001))
    assert (requests["status"] == state.FINISHED).all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    several = requests["output_tokens"] > 1
    transfers = run.transfers
    assert (np.isfinite(transfers.handed_over_s) == several).all()
    assert transfers.sent_bytes == pytest.approx(0.01 * requests["prompt_tokens"][several].sum())
    assert transfers.busy_s.sum() == pytest.approx(np.nansum(transfers.transfer_s))
    prefill, decode = run.replicas[:2], run.replicas[2:]
    assert sum(r.emitted_tokens for r in prefill) == n
    assert sum(r.emitted_tokens for r in decode) == (requests["output_tokens"] - 1).sum()
    assert sum(r.prefill_tokens for r in prefill) == requests["prompt_tokens"].sum()
    assert (requests["first_token_s"][several] == transfers.handed_over_s[several]).all()


def test_ttft_is_the_prefill_side_s():
    """Nobody's first token waits for whoever decodes: TTFT is that of prefill replicas alone."""
    n = 500
    work = workload(poisson(n, 2.0), [20] * n, [30] * n)
    apart, _ = serve(work, wire(0.001), decode=1, target=tables(0.05, 0.01))
    alone, _ = serve(workload(poisson(n, 2.0), [20] * n, [1] * n), target=tables(0.05, 0.01))
    assert (apart["first_token_s"] == alone["first_token_s"]).all()


def test_open_loops_do_not_need_to_take_turns():
    """A closed loop of which everybody is asked at once is an open loop: taking turns comes to the same."""
    n = 300
    arrivals = poisson(n, 1.0)
    lengths = {"prompt_tokens": geometric(n, 30, seed=5), "output_tokens": geometric(n, 20, seed=6)}
    control = wire(0.02, 0.001, senders=2, shared=True)
    apart, one = serve(workload(arrivals, **lengths), control, replicas=2, decode=2, target=tables(0.05, 0.001))
    turns = workload(arrivals, **lengths, follows=[-1] * n, think_s=0.0)
    taken, other = serve(turns, control, replicas=2, decode=2, target=tables(0.05, 0.001))
    assert apart.tobytes() == taken.tobytes()
    assert one.transfers.wait_s.tobytes() == other.transfers.wait_s.tobytes()


def test_a_link_without_delay_costs_nothing_but_the_pools_being_apart():
    """Limit of an infinitely fast link, one request: the same times as on one replica that does both."""
    work = workload([0.0], [12], [6])
    apart, _ = serve(work, wire(0.0), decode=1)
    together, _ = serve(work)
    assert apart["first_token_s"] == together["first_token_s"]
    assert apart["finish_s"] == together["finish_s"]


def test_two_pools_need_links():
    work = fresh(workload([0.0], [4], [2]))
    with pytest.raises(ValueError, match="links"):
        run_cluster([fleet(1, prefill_only=1), fleet(1)], work, Control())
