"""A workload on a cluster, to the end: the request clock.

Between two events of `control` (SimPy) the compiled pools advance. One pool needs no more than that. Prefill and decode pools are
joined by `handover`: what prefill replicas hand over is an arrival of the decode pool. Nobody in the decode pool may be
advanced beyond what is yet to be handed over. Where ends cause arrivals (closed loops, sessions), neither pool may be
advanced beyond the next step of the other: of the two, and of the hand-overs, always the earliest goes on, up to the next
of the others or until a request has left. Either way results do not depend on how time is cut into calls.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state
from simulator.serving.control import Control, Controller, Happening, held_s
from simulator.serving.handover import Transfers
from simulator.serving.model import Fleet, Workload
from simulator.serving.pool import Pool
from simulator.serving.stages import Breath, Joined, Single

Progress = Callable[[int, int], None]
"""Called now and then with requests that have ended and requests in all."""

INTERRUPTED = "interrupted"
"""Why a simulation is incomplete that Ctrl-C or another thread has ended."""

SLICE_STEPS = 200_000
"""Steps between two looks at the keyboard: a tenth of a second, or a few."""


@dataclass(frozen=True)
class ClusterRun:
    """What became of a workload; its request records are filled in."""

    pools: tuple[Pool, ...]
    """One, or prefill and decode."""
    transfers: Transfers | None
    """Between two pools."""
    happened: tuple[Happening, ...]
    """Changes of replicas' states, in order of time."""
    held_s: NDArray[np.float64]
    """How long the GPUs of each replica were held, from the first arrival to the last end, s [replicas], pools in order."""
    end_s: float
    """The last end; of an interrupted simulation the time up to which everything has been simulated."""
    interrupted: str
    """Why requests are left that have no end; empty: none is."""

    @property
    def replicas(self) -> list[Any]:
        """Records of `state.REPLICA`, pools in order."""
        return [replica for pool in self.pools for replica in pool.replicas]


def run_cluster(
    fleets: Sequence[Fleet],
    workload: Workload,
    control: Control | None = None,
    *,
    progress: Progress | None = None,
    slice_steps: int = SLICE_STEPS,
    events: int = 0,
    stop: threading.Event | None = None,
) -> ClusterRun:
    """Simulates until every request of `workload` has ended, and fills in its records.

    `fleets` is one, or those of the prefill replicas (`config.prefill_only`, no drafter) and of the decode replicas, joined by
    `control.links`. Ctrl-C stops between two slices of `slice_steps`, and so does `stop` once another thread has set it; what
    has been reached by then is kept.
    """
    control = control or Control()
    simulation = _Simulation(fleets, workload, control, progress, slice_steps, events, stop)
    with interruptible(simulation.breath):
        simulation.run()
    return simulation.outcome()


class _Simulation:
    def __init__(
        self,
        fleets: Sequence[Fleet],
        workload: Workload,
        control: Control,
        progress: Progress | None,
        slice_steps: int,
        events: int,
        stop: threading.Event | None,
    ):
        requests = workload.requests
        requests["replica"] = -1  # who is routed nowhere yet can be lost by nobody
        self.workload = workload
        self.total = int((requests["status"] != state.REJECTED).sum())
        acts = bool(control.failures or control.scaled)
        if len(fleets) == 1:
            pool = Pool(fleets[0], workload, events=events, later=acts)
            self.stage: Single | Joined = Single(pool, slice_steps)
        elif len(fleets) == 2 and control.links is not None:
            prefill = Pool(fleets[0], workload, events=events, later=True)
            alone = replace(workload, admitted=_NOBODY, next_turn=None, think_s=None, users=0, backlog=_NOBODY)
            decode = Pool(fleets[1], alone, events=events, later=True, first_number=len(prefill.replicas))
            self.stage = Joined(prefill, decode, workload, control.links, slice_steps)
        else:
            raise ValueError(f"{len(fleets)} fleets; one, or two with links between them, make a cluster")
        self.controller = Controller(self.stage.pools, control) if acts else None
        tell = progress or (lambda done, of: None)
        self.breath = Breath(
            lambda: tell(self.stage.ended, self.total),
            lambda: INTERRUPTED if stop is not None and stop.is_set() else "",
        )

    def run(self) -> None:
        controller = self.controller
        while True:
            at_s = controller.next_s if controller else math.inf
            if not self.stage.advance(at_s, self.breath) or not self.stage.pending:
                break
            if controller is None or not math.isfinite(at_s):
                raise RuntimeError("requests are left and nothing is going to happen")
            controller.act()
            self.breath.reason = self.breath.reason or controller.stopped
        if not self.breath.reason:
            self.breath.tell()

    def outcome(self) -> ClusterRun:
        requests, controller = self.workload.requests, self.controller
        interrupted = self.breath.reason
        if interrupted:
            for pool in self.stage.pools:
                pool.store_running()
            end_s = self.stage.reached_s
            requests["status"][requests["status"] == state.HANDED_OVER] = state.WAITING
        else:
            for pool in self.stage.pools:
                pool.serve()  # who finished last gives back what it holds
            if np.isin(requests["status"], (state.WAITING, state.RUNNING, state.HANDED_OVER)).any():
                raise RuntimeError("the simulation has ended and some requests have not")
            end_s = float(requests["finish_s"].max(initial=0.0))
        requests["scheduled_s"] = np.maximum(requests["scheduled_s"], 0.0)
        known = np.isfinite(requests["arrival_s"]) & (requests["status"] != state.ABANDONED)
        start_s = min(float(requests["arrival_s"][known].min(initial=math.inf)), end_s)
        replicas = sum(len(pool.replicas) for pool in self.stage.pools)
        held = np.full(replicas, end_s - start_s)
        if controller:
            controller.finish()
            held = held_s(controller.members, start_s, end_s)
        return ClusterRun(
            pools=self.stage.pools,
            transfers=self.stage.transfers,
            happened=tuple(sorted(controller.happened, key=lambda h: h.time_s)) if controller else (),
            held_s=held,
            end_s=end_s,
            interrupted=interrupted,
        )


_NOBODY = np.zeros(0, dtype=np.int64)


@contextmanager
def interruptible(breath: Breath) -> Iterator[None]:
    """Ctrl-C ends the simulation at its next breath, with every array whole; pressed again, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def pressed(*_: Any) -> None:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        breath.reason = INTERRUPTED

    signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
