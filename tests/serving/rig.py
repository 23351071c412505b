"""A cluster on a test bench, by either loop: step times given by hand instead of by a GPU, so that trajectories can be written down.

The bench itself is `tests.serving.plain.rig`; here its results look alike, whichever loop made them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.serving import model, plain, state
from simulator.serving.plain.series import gap_counts, time_series
from simulator.serving.pool import Pool
from simulator.serving.step_model import replayed
from simulator.speculation.acceptance import RecordedAcceptance
from simulator.speculation.recording import Recording
from tests.serving.plain import rig
from tests.serving.plain.rig import tables

__all__ = ["LOOPS", "fresh", "recording", "run", "tables", "traffic"]

LOOPS = ("compiled", "plain")

traffic = rig.workload
"""Requests by hand."""


@dataclass(frozen=True)
class Outcome:
    """What a replica has done; its totals are attributes, under the names of `state.REPLICA`."""

    totals: Any
    series: Any
    """Sums by time bucket [state.SERIES, BUCKETS]."""
    bucket_s: float
    gaps: Any
    """Histogram of gaps [GAP_BINS]."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.totals, name)

    def at(self, name: str, time_s: float) -> float:
        """One of `state.SERIES` per second of the step that began at `time_s`."""
        bucket = self.series[:, int(time_s / self.bucket_s)]
        return float(bucket[state.SERIES.index(name)] / bucket[state.SERIES.index("busy_s")])

    def sum_of(self, name: str) -> float:
        """Sum over all time of one of `state.SERIES`."""
        return float(self.series[state.SERIES.index(name)].sum())


def fresh(work: model.Workload) -> model.Workload:
    """`work` with records of its own, byte for byte: a plain copy leaves what lies between fields to chance."""
    requests = state.records(state.REQUEST, len(work.requests))
    requests[:] = work.requests
    return replace(work, requests=requests)


def recording(accepted, gamma, drafted=None) -> Recording:
    """Rounds as if they had been recorded: drafts kept (and verified, else γ) by request and round."""
    drafted = drafted or [[gamma] * len(row) for row in accepted]
    return Recording(tuple(map(tuple, accepted)), tuple(map(tuple, drafted)), gamma, "by hand")


def run(
    work,
    *,
    loop="compiled",
    recorded=None,
    replicas=1,
    router="least-outstanding",
    slack=4,
    seed=0,
    cuts=(),
    **settings,
):
    """Simulates `work`, which stays as it is; returns (request records, outcome of each replica).

    `settings` are those of `plain.rig.step_model`; `recorded` rounds take the place of luck; `cuts` are instants at which the
    compiled loop is left and entered again.
    """  # fmt: skip
    work = fresh(work)
    n = len(work.requests)
    if recorded:
        rates, row_of = RecordedAcceptance.of(recorded).per_request(0, n, settings["gamma"])
        one = replace(rig.step_model(n, seed=seed, **settings), acceptance=rates[:, None, :], row_of=row_of)
        one = replayed(one, recorded)
    else:
        one = rig.step_model(n, seed=seed, **settings)
    fleet = model.Fleet([one], np.zeros(replicas, dtype=np.int64), model.ROUTERS.index(router), slack, seed)
    return work.requests, _specified(fleet, work) if loop == "plain" else _compiled(fleet, work, cuts)


def _compiled(fleet, work, cuts) -> list[Outcome]:
    pool = Pool(fleet, work)
    for cut_s in sorted(cuts):
        pool.serve(cut_s)
    pool.serve()
    records = pool.arrays.records
    return [Outcome(row, records.series[r], row.bucket_s, records.gaps[r]) for r, row in enumerate(pool.replicas)]


@dataclass(frozen=True)
class _Totals:
    """A plain replica's counters and state as one."""

    replica: Any

    def __getattr__(self, name: str) -> Any:
        if name == "used_blocks":
            return sum(users > 0 for users in self.replica.pool.users)
        if name == "running":
            return len(self.replica.running)
        owner = self.replica if name in ("clock_s", "swapped_blocks") else self.replica.counters
        return getattr(owner, name)


def _specified(fleet, work) -> list[Outcome]:
    outcomes = []
    for replica in plain.simulate(fleet, work).replicas:
        series, bucket_s = time_series(replica.steps)
        outcomes.append(Outcome(_Totals(replica), np.array(series), bucket_s, np.array(gap_counts(replica.gaps_s))))
    return outcomes
