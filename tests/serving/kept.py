"""What simulations of whole scenarios are made of: their pools, kept for whoever wants to look inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from simulator import Scenario, catalog, load_scenario
from simulator.serving.model import Workload
from simulator.serving.pool import Pool
from tests.serving.rig import fresh


@contextmanager
def pools() -> Iterator[list[tuple[Pool, Workload]]]:
    """Every pool that is made within, in order, and its workload as it was before anything ran."""
    kept: list[tuple[Pool, Workload]] = []
    make = Pool.__init__

    def keep(pool: Pool, fleet, workload, **more) -> None:
        kept.append((pool, fresh(workload)))
        make(pool, fleet, workload, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "__init__", keep)
        yield kept


def is_lasting(scenario: Scenario) -> bool:
    """Whether every request stays at one replica, which is there all the time."""
    cluster = scenario.cluster
    if cluster is None:
        return True
    scales = cluster.autoscaler is not None or any(pool.autoscaler is not None for pool in cluster.pools)
    return not (scales or cluster.failures or any(pool.role != "both" for pool in cluster.pools))


BUNDLED = catalog.names("scenario")
LASTING = [name for name in BUNDLED if is_lasting(load_scenario(name))]
"""Bundled scenarios of that kind."""
