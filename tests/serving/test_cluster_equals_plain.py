"""Clusters that fail and hand over, against the same told one event after the other: the same records to the last bit."""

import os
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.cluster import run_cluster
from simulator.serving.cluster_config import Autoscaler, Failure
from simulator.serving.control import Control, Scaled
from simulator.serving.handover import Links, Wire
from simulator.serving.model import ROUTERS
from tests.serving.cluster_rig import fresh
from tests.serving.plain import rig
from tests.serving.plain_cluster import PlainCluster
from tests.serving.test_equals_plain import models, workloads

EXAMPLES = int(os.environ.get("MEMWALL_EXAMPLES", "60"))
quick = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@st.composite
def clusters(draw):
    """(fleets, workload, control) of one pool or two."""
    work = draw(workloads(feedback=True))
    n = len(work.requests)
    chosen = draw(models(n))
    shares = bool(work.requests["pieces"].any()) or len(np.unique(work.requests["session"])) < n
    chosen["shares"] = int(chosen["prefix_caching"] == 1 and (shares or draw(st.booleans())))
    if not chosen["ranked"]:
        work.requests["rank"] = 0
    fleets = [rig.fleet(n, replicas=draw(st.integers(1, 3)), router=draw(st.sampled_from(ROUTERS)), **chosen)]
    links = None
    if draw(st.booleans()):
        prompts = {**chosen, "gamma": 0, "prefill_only": 1}
        for name in ("rates", "draft"):
            prompts.pop(name, None)
        fleets.insert(
            0, rig.fleet(n, replicas=draw(st.integers(1, 3)), router=draw(st.sampled_from(ROUTERS)), **prompts)
        )
        senders = len(fleets[0].model_of)
        wire = Wire(draw(st.sampled_from([4.0, 64.0, 1e9])), draw(st.sampled_from([0.0, 0.125, 1.0])))
        of = list(range(senders)) if draw(st.booleans()) else [0] * senders
        links = Links([wire] * (max(of) + 1), of, 1.0)
    count = sum(len(fleet.model_of) for fleet in fleets)
    times = st.sampled_from([k * 0.5 for k in range(50)])
    failures = draw(
        st.lists(st.builds(Failure, replica=st.integers(0, count - 1), at_s=times, down_s=st.sampled_from([0.25, 2.0, 7.5])),
                 max_size=5)
    )  # fmt: skip
    return fleets, work, Control(failures=failures, retry_delay_s=draw(st.sampled_from([0.0, 1.0])), links=links)


@quick
@given(clusters())
def test_records_are_those_of_one_event_after_the_other(cluster):
    fleets, work, control = cluster
    work, other = fresh(work), fresh(work)
    run = run_cluster(fleets, work, control)
    plain = PlainCluster(
        fleets, other, failures=control.failures, retry_delay_s=control.retry_delay_s, links=control.links
    )
    plain.run()
    other.requests["scheduled_s"] = np.maximum(other.requests["scheduled_s"], 0.0)
    for name in work.requests.dtype.names:
        np.testing.assert_array_equal(work.requests[name], other.requests[name], err_msg=name)
    replicas = [replica for pool in plain.pools for replica in pool.replicas]
    for record, replica in zip(run.replicas, replicas, strict=True):
        for name in ("steps", "emitted_tokens", "prefill_tokens", "preemptions", "swaps", "busy_s"):
            assert record[name] == getattr(replica.counters, name), name


@quick
@given(clusters())
def test_nobody_is_lost_and_tokens_balance(cluster):
    fleets, work, control = cluster
    work = fresh(work)
    run = run_cluster(fleets, work, control)
    requests = work.requests
    ends = (state.FINISHED, state.REFUSED, state.TIMED_OUT, state.CANCELLED, state.ABANDONED)
    assert np.isin(requests["status"], ends).all()
    done = requests["status"] == state.FINISHED
    assert (requests["generated_tokens"][done] == requests["output_tokens"][done]).all()
    assert sum(replica.emitted_tokens for replica in run.replicas) == requests["generated_tokens"].sum()
    for replica in run.replicas:
        assert replica.submitted == replica.left
        assert replica.used_blocks == replica.running == replica.fresh == replica.stacked == replica.swapped_blocks == 0
    assert not run.interrupted
    assert (requests["first_token_s"][done] <= requests["finish_s"][done]).all()
    assert (requests["scheduled_s"][done] >= requests["arrival_s"][done]).all()


@quick
@given(clusters(), st.sampled_from([0.2, 0.7, 3.1]), st.integers(1, 9))
def test_how_time_is_cut_does_not_matter(cluster, look_s, slice_steps):
    """Cut by a number of steps, and by an autoscaler that looks at replicas and never finds anything to do."""
    fleets, work, control = cluster
    whole, cut = fresh(work), fresh(work)
    one = run_cluster(fleets, whole, control)
    count = sum(len(fleet.model_of) for fleet in fleets)
    idle = Autoscaler(min=count, max=count, target=1.0, startup_s=0.0, interval_s=look_s)
    other = run_cluster(fleets, cut, replace(control, scaled=[Scaled(idle, 0, count)]) if not control.failures else control,
                        slice_steps=slice_steps)  # fmt: skip
    assert whole.requests.tobytes() == cut.requests.tobytes()
    assert one.end_s == other.end_s
    for a, b in zip(one.pools, other.pools, strict=True):
        assert a.arrays.records.series.tobytes() == b.arrays.records.series.tobytes()
        assert a.arrays.records.gaps.tobytes() == b.arrays.records.gaps.tobytes()
        ours, theirs = a.replicas.copy(), b.replicas.copy()
        for name in ("gap_bin", "in_flight", "cancels"):  # where to begin to search; of no meaning where nobody is left
            ours[name] = theirs[name] = 0
        assert ours.tobytes() == theirs.tobytes()
