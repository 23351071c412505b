"""What rates are taken over, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.serving import state
from simulator.serving.outcomes import Outcomes
from simulator.serving.window import ARRIVALS, WHOLE_RUN, Window, in_system, meets, run_of, tally, window_of
from simulator.slo import Slo
from tests.serving.served import random_records, records


def windows(requests, *, service_s=0.5, bucket_s=0.01, until_s=np.inf):
    outcomes = Outcomes.of(requests)
    return window_of(outcomes, run_of(outcomes), service_s=service_s, bucket_s=bucket_s, until_s=until_s)


def test_from_the_first_measured_arrival_to_the_last_of_all():
    requests = records((0, 0, 1, 2, 5), (3, 3, 4, 5, 5), (7, 7, 8, 30, 5))
    requests[0].measured = 0
    found = windows(requests)
    assert (found.start_s, found.end_s, found.kind, found.seconds) == (3.0, 7.0, ARRIVALS, 4.0)


def test_who_arrives_last_may_be_refused():
    requests = records((0, 0, 1, 2, 5), (9, 0, 0, 9, 5))
    requests[1].status = state.REFUSED
    assert windows(requests).end_s == 9.0


@pytest.mark.parametrize(("service_s", "bucket_s"), [(8.0, 0.01), (0.5, 1.0)])
def test_a_burst_is_taken_whole(service_s, bucket_s):
    requests = records((1, 1, 2, 20, 5), (2, 2, 3, 40, 5), (8, 8, 9, 30, 5))
    found = windows(requests, service_s=service_s, bucket_s=bucket_s)
    assert (found.start_s, found.end_s, found.kind) == (1.0, 40.0, WHOLE_RUN)


def test_all_at_one_instant():
    found = windows(records((3, 3, 4, 5, 2), (3, 4, 5, 7, 2)))
    assert (found.start_s, found.end_s, found.kind) == (3.0, 7.0, WHOLE_RUN)


def test_turns_that_never_came_have_no_arrival():
    requests = records((1, 1, 2, 3, 5), (5, 5, 6, 7, 5), (np.nan, 0, 0, 0, 5), (0, 0, 0, 0, 5))
    requests["status"][2:] = state.ABANDONED
    found = windows(requests)
    assert (found.start_s, found.end_s) == (1.0, 5.0)


def test_an_interrupted_run_ends_where_it_was_interrupted():
    requests = records((1, 1, 2, 3, 5), (5, 5, 6, 7, 5), (6, 6, 0, 0, 5), (50, 0, 0, 0, 5))
    requests["status"][2:] = state.WAITING
    assert windows(requests, until_s=8.0).end_s == 6.0


def test_nobody_at_all():
    requests = records((1, 0, 0, 0, 5))
    requests["status"] = state.WAITING
    found = windows(requests, service_s=np.nan, until_s=0.5)
    assert (found.start_s, found.end_s, found.kind) == (0.0, 0.0, WHOLE_RUN)
    assert found.seconds > 0.0


def test_counts_by_hand():
    """Window 2 … 10. Served inside: those that end at 3 and 9; the one that ends at 12 is out; the refused one left at 6."""
    requests = records((0, 0, 1, 3, 5), (2, 2, 3, 9, 5), (6, 6, 6, 6, 5), (10, 10, 11, 12, 5))
    requests[0].measured = 0
    requests[2].status = state.REFUSED
    outcomes = Outcomes.of(requests)
    window = window_of(outcomes, run_of(outcomes), service_s=1.0, bucket_s=0.1, until_s=np.inf)
    counts = tally(outcomes, window, [Slo(e2e_s=5.0)])
    assert (window.start_s, window.end_s) == (2.0, 10.0)
    assert counts.served.tolist() == [2]
    assert counts.good.tolist() == [1]  # the second took 7 s
    assert counts.measured_ended.tolist() == [3]
    assert counts.measured_good.tolist() == [1]  # the last one, by arrival
    assert (counts.arrived, counts.left) == (2, 3)
    assert counts.ends.sum() == 4


def test_who_is_in_the_system_by_hand():
    """At 0, 5 and 10: whoever ends at an edge is gone, a turn that never came was never there, one without an end stays."""
    requests = records((0, 0, 1, 5, 5), (1, 1, 2, 9, 5), (4, 0, 0, 6, 5), (5, 0, 0, 0, 5), (3, 0, 0, 0, 5))
    requests["status"][2:] = state.CANCELLED, state.WAITING, state.ABANDONED
    assert in_system(Outcomes.of(requests), Window(0.0, 10.0, ARRIVALS), 2).tolist() == [1.0, 3.0, 1.0]


def test_a_single_user_is_not_counted_at_both_ends():
    """Asks again as soon as it is answered, every second: 1 request/s arrives and 1/s leaves."""
    requests = records(*((float(t), t, t + 0.5, t + 1.0, 5) for t in range(11)))
    requests[0].measured = 0
    outcomes = Outcomes.of(requests)
    window = window_of(outcomes, run_of(outcomes), service_s=1.0, bucket_s=0.1, until_s=np.inf)
    counts = tally(outcomes, window, [Slo()])
    assert (window.start_s, window.end_s) == (1.0, 10.0)
    assert (counts.arrived, counts.left, counts.served.tolist()) == (9, 9, [9])


def test_good_requests_meet_every_objective_that_applies():
    requests = Outcomes.of(records((0, 0, 1, 2, 11), (0, 0, 3, 4, 11), (0, 0, 1, 9, 11), (0, 0, 1, 1, 1)))
    assert meets(requests, [Slo(ttft_s=2.0, tpot_s=0.2)]).tolist() == [True, False, False, True]
    assert meets(requests, [Slo()]).all()
    assert meets(requests, [Slo(e2e_s="2 s")]).tolist() == [True, False, False, True]


def test_each_class_has_its_own_objectives():
    requests = records((0, 0, 1, 2, 11), (0, 0, 3, 4, 11), (0, 0, 1, 2, 11), (0, 0, 3, 4, 11))
    requests["class_of"] = [0, 0, 1, 1]
    assert meets(Outcomes.of(requests), [Slo(ttft_s=2.0), Slo()]).tolist() == [True, False, True, True]
    assert meets(Outcomes.of(requests), [Slo(), Slo(ttft_s=2.0)]).tolist() == [True, True, True, False]


def test_one_pass_counts_what_masks_count():
    """Many slices, several classes: against whole-array expressions."""
    requests = random_records(200_000, classes=3)
    outcomes = Outcomes.of(requests)
    slos = [Slo(ttft_s=1.0), Slo(tpot_s=0.015), Slo()]
    window = window_of(outcomes, run_of(outcomes), service_s=1.0, bucket_s=0.1, until_s=np.inf)
    counts = tally(outcomes, window, slos)
    good = meets(outcomes, slos)
    for c in range(3):
        mine = requests["class_of"] == c
        inside = (requests["finish_s"] >= window.start_s) & (requests["finish_s"] <= window.end_s)
        inside &= requests["status"] == state.FINISHED
        assert counts.ends[c].tolist() == np.bincount(requests["status"][mine], minlength=len(state.STATUS)).tolist()
        assert counts.good[c] == (good & mine & inside).sum()
        assert counts.served[c] == pytest.approx((mine & inside).sum(), abs=1)  # arrival + (finish − arrival) rounds
    assert counts.ends.sum() == 200_000
