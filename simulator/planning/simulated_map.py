"""The map of `load_map` once more, every cell simulated: the same seed everywhere, so that neighbours meet the same luck."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from simulator.cost.tables import FastTables
from simulator.deployment import Deployment
from simulator.errors import InputError, MemwallError
from simulator.operators import FloatArray
from simulator.planning.cell_store import CellStore, Row, key_of
from simulator.planning.load_map import LEAST_GAIN, LoadAxis, LoadMap
from simulator.planning.step_prices import PLAIN_DECODING, Drafting
from simulator.planning.work import Work
from simulator.scenario import Scenario
from simulator.serving.cluster import run_cluster
from simulator.serving.drafts import Drafts
from simulator.serving.fleets import plan
from simulator.serving.requests import Requests
from simulator.serving.simulation import Run, Variant, context_limit, judged
from simulator.serving.traffic import AnyTraffic, ClosedLoop, Gamma, Poisson, generate, with_load
from simulator.speculation.policies import always
from simulator.speculation.tree_law import TreeAcceptance

REQUESTS = 2000
"""Requests of each cell."""
_LEAST_WARMUP, _MOST_WARMUP = 0.05, 0.5
_CYCLES = 1.5
"""Requests of each user of a closed loop that are left out: all begin at once, and it takes them a while to fall out of step."""
_QUEUED = 0.05
"""Share of a request's stay that it may wait to be started where its load is said to be carried: `steady_state.QUEUED`, and the
step that runs when it comes."""

Progress = Callable[[int, int], None]
"""Called with cells finished and cells in all."""


@dataclass(frozen=True)
class RememberedDeployment(Deployment):
    """A deployment whose tables are made once: cells of a map differ in load, and tables do not depend on it."""

    known: dict[Any, FastTables] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, deployment: Deployment) -> RememberedDeployment:
        """The same deployment."""
        return cls(**{name: getattr(deployment, name) for name in Deployment.__dataclass_fields__})

    def target_tables(
        self, max_tokens: int, max_rows: int, per_sequence: int = 1, *, sampled: bool = False
    ) -> FastTables:
        """As `Deployment.target_tables`."""
        same = self.engine.settings.graph_sizes_of == "tokens"
        key = ("target", max_tokens, max_rows, 1 if same else per_sequence, sampled)
        if key not in self.known:
            self.known[key] = super().target_tables(max_tokens, max_rows, per_sequence, sampled=sampled)
        return self.known[key]

    def draft_tables(self, max_tokens: int, max_rows: int, *, sampled: bool = False) -> FastTables | None:
        """As `Deployment.draft_tables`."""
        if self.draft is None:
            return None
        key = ("draft", max_tokens, max_rows, sampled)
        if key not in self.known:
            made = super().draft_tables(max_tokens, max_rows, sampled=sampled)
            assert made is not None
            self.known[key] = made
        return self.known[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}}  # a worker makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True)
class Cell:
    """One simulation of a map."""

    drafting: Drafting
    work: Work | None
    """None: the scenario's own traffic."""
    load: float


@dataclass(frozen=True)
class Grid:
    """All that the cells of a map have in common."""

    scenario: Scenario
    """Engine, objectives and seed; its traffic where cells have no work of their own."""
    deployment: Deployment
    axis: LoadAxis
    requests: int = REQUESTS
    burstiness: float = 1.0
    """Of arrivals at a rate: 1 is Poisson, less is burstier (coefficient of variation 1/√b)."""

    def traffic(self, work: Work | None, load: float) -> AnyTraffic:
        """What arrives in a cell."""
        users = self.axis.kind == "users"
        if work is None:
            changed = {"users": int(load)} if users else {"rate_per_s": load}
            return with_load(self.scenario.traffic, requests=self.requests, **changed)
        common = {"requests": self.requests, "lengths": work.lengths}
        if users:
            return ClosedLoop.model_validate({"kind": "closed-loop", "users": int(load), "think_time_s": 0.0, **common})
        if self.burstiness == 1.0:
            return Poisson.model_validate({"kind": "poisson", "rate_per_s": load, **common})
        return Gamma.model_validate({"kind": "gamma", "rate_per_s": load, "burstiness": self.burstiness, **common})

    def warmup(self, load: float) -> float:
        """Share of the requests that a cell leaves out."""
        if self.axis.kind == "rate":
            return max(_LEAST_WARMUP, self.scenario.warmup)
        return min(_MOST_WARMUP, _LEAST_WARMUP + _CYCLES * load / self.requests)

    @cached_property
    def serving(self) -> bytes:
        """What decides how long steps take and how much fits, as bytes to be hashed."""
        tokens = self.deployment.engine.settings.max_batched_tokens
        target, draft = self.deployment.target_tables(tokens, tokens), self.deployment.draft_tables(tokens, tokens)
        parts = [self.deployment.engine, self.deployment.drafter, self.deployment.fit()]
        found = b"".join(repr(part).encode() for part in parts)
        for tables in (target, draft):
            if tables is not None:
                found += tables.linear.tobytes() + tables.head.tobytes() + tables.extra_host_s.tobytes()
                found += repr((tables.kinds, tables.decode_rates, tables.prefill_rates, tables.pipeline)).encode()
        return found

    def key(self, cell: Cell) -> str:
        """Hash of everything that decides the cell's outcome."""
        scenario = self.scenario
        traffic = self.traffic(cell.work, cell.load).model_dump(mode="json")
        drafting = [repr(cell.drafting.shape), repr(cell.drafting.law)]
        rest = [
            scenario.seed,
            self.warmup(cell.load),
            scenario.max_context_tokens,
            scenario.slo.model_dump(mode="json"),
        ]
        return key_of(self.serving, drafting, traffic, rest)

    def run(self, cell: Cell) -> Run:
        """Simulates the cell on one replica. Raises MemwallError."""
        drafting = cell.drafting
        deployment = self.deployment if drafting.shape.nodes else self.deployment.plain()
        scenario = self.scenario.model_copy(
            update={
                "traffic": self.traffic(cell.work, cell.load), "warmup": self.warmup(cell.load),
                "replicas": 1, "cluster": None,
            }
        ).with_base(self.scenario.base)  # fmt: skip
        limit = context_limit(scenario, deployment)
        traffic = generate(scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit)
        return run_one(scenario, traffic, deployment, drafting)


def run_one(scenario: Scenario, traffic: Requests, deployment: Deployment, drafting: Drafting) -> Run:
    """One variant of `scenario` on `traffic`. Raises KeyboardInterrupt where Ctrl-C ended it."""
    law, drafts = drafting.law, None
    if drafting.shape.nodes and law is not None:
        tree = law.through if isinstance(law, TreeAcceptance) else None
        base = law.base if isinstance(law, TreeAcceptance) else law
        drafts = Drafts(always(drafting.shape), base, (None, tree))
    variant = Variant("speculation" if drafts else "plain", deployment, drafts)
    planned = plan(scenario, traffic, deployment, drafts)
    done = run_cluster(planned.fleets, planned.workload, planned.control)
    if done.interrupted:
        raise KeyboardInterrupt
    requests = planned.workload.requests
    return judged(scenario, traffic, variant, planned, done, requests, requests=requests, rows=traffic.row)


def row_of(run: Run, key: str, cell: Cell, *, overload_drains: bool) -> Row:
    """What a map keeps of a run. `overload_drains`: arrivals end before an overload is served, so that what it serves per second is
    told by the whole run; while they come the batch only fills."""
    found = run.summary
    half = found.confidence.get("tpot_s.mean")
    queued = found.queue_s.mean / found.e2e_s.mean if found.e2e_s.mean > 0 else 0.0
    return {
        "key": key,
        "drafting": cell.drafting.name,
        "context_tokens": round(cell.work.context_tokens) if cell.work else None,
        "load": cell.load,
        "measured": found.measured,
        "tpot_s": found.tpot_s.mean,
        "tpot_half_width_s": half.half_width if half else None,
        "ttft_s": found.ttft_s.mean,
        "e2e_s": found.e2e_s.mean,
        "queued_share": queued,
        "requests_per_s": found.requests_per_s,
        "capacity_per_s": found.requests["finished"] / found.makespan_s if overload_drains else found.requests_per_s,
        "goodput_per_s": found.goodput_per_s,
        "output_tokens_per_s": found.output_tokens_per_s,
        "mean_running": found.mean_running,
        "preemptions": found.preemptions,
        "tokens_per_round": found.tokens_per_round if run.gamma else None,
        "wasted_flop_share": found.wasted_flop_share,
        "draft_time_share": found.draft_time_share,
        "carried": queued <= _QUEUED and found.stability.stable is not False,
    }


@dataclass(frozen=True)
class SimulatedMap:
    """Rows over ways to draft, works and loads, plain decoding apart."""

    axis: LoadAxis
    draftings: tuple[Drafting, ...]
    works: tuple[Work, ...]
    requests: int
    burstiness: float
    plain: tuple[tuple[Row | None, ...], ...]
    """[works][loads]; None: not simulated (it does not fit, or Ctrl-C came first)."""
    rows: tuple[tuple[tuple[Row | None, ...], ...], ...]
    """[draftings][works][loads]."""
    reused: int
    """Cells that were in the file already."""
    made: int
    """Cells that were simulated now."""

    @property
    def complete(self) -> bool:
        """Whether every cell that fits is there."""
        return all(row is not None for line in self.plain for row in line) and self.made + self.reused > 0

    @cached_property
    def speedup(self) -> FloatArray:
        """As `LoadMap.speedup` [draftings, works, loads]."""
        return self._ratio(_speed)

    @cached_property
    def goodput(self) -> FloatArray:
        """As `LoadMap.goodput` [draftings, works, loads]."""
        return self._ratio(lambda with_, without: _over(with_["goodput_per_s"], without["goodput_per_s"]))

    @cached_property
    def noise(self) -> FloatArray:
        """Half-width of the speed-up's 90 % interval, relative, as far as these runs' lengths go [draftings, works, loads];
        common luck makes it smaller."""

        def both(with_: Row, without: Row) -> float:
            parts = [
                row["tpot_half_width_s"] / row["tpot_s"] if row["tpot_half_width_s"] is not None else math.nan
                for row in (with_, without)
            ]
            return math.hypot(*parts)

        return self._ratio(both)

    def _ratio(self, of: Callable[[Row, Row], float]) -> FloatArray:
        found = np.full((len(self.draftings), len(self.works), len(self.axis.values)), np.nan)
        for i, block in enumerate(self.rows):
            for j, line in enumerate(block):
                for k, row in enumerate(line):
                    without = self.plain[j][k]
                    if row is not None and without is not None:
                        found[i, j, k] = of(row, without)
        return found

    def last_paying(self, drafting: int, work: int) -> int:
        """Place of the last load of the map at which the drafting pays; −1 where none does."""
        return last_paying(self.speedup[drafting, work])


def last_paying(speedup: FloatArray) -> int:
    """Place of the last load at which `speedup` [loads] pays; −1 where it never does."""
    pays = np.flatnonzero(np.nan_to_num(speedup) > LEAST_GAIN)
    return int(pays[-1]) if len(pays) else -1


def steps_apart(closed: LoadMap, simulated: SimulatedMap) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """By how many loads of the grid the simulated crossing lies beyond the one in closed form [draftings, works]."""
    shape = (len(closed.draftings), len(closed.works))
    found = np.zeros(shape, dtype=np.int64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            found[i, j] = simulated.last_paying(i, j) - last_paying(closed.speedup[i, j])
    return found


def _speed(with_: Row, without: Row) -> float:
    if with_["carried"] and without["carried"]:
        return float(without["tpot_s"] / with_["tpot_s"])
    return _over(with_["capacity_per_s"], without["capacity_per_s"])


def _over(a: float, b: float) -> float:
    return float(a / b) if b > 0 else math.inf if a > 0 else math.nan


def simulate_map(
    grid: Grid,
    draftings: Sequence[Drafting],
    works: Sequence[Work],
    *,
    own_traffic: bool = False,
    jobs: int = 1,
    store: CellStore | None = None,
    progress: Progress | None = None,
) -> tuple[SimulatedMap, bool]:
    """Simulates every cell that `store` does not have. `own_traffic`: the scenario's, `works` is then one and says what it means.

    Returns the map and whether it ran to its end: on Ctrl-C the cells that are finished by then are kept, in the store too.
    Raises MemwallError; cells whose sequences do not fit are left out.
    """
    store = store or CellStore()
    grid = replace(grid, deployment=RememberedDeployment.of(grid.deployment))
    cells, keys = [], []
    for drafting in (PLAIN_DECODING, *draftings):
        for work in works:
            for load in grid.axis.values:
                cells.append(Cell(drafting, None if own_traffic else work, load))
                keys.append(grid.key(cells[-1]))
    for key in keys:
        if key in store.rows and not _is_row(store.rows[key]):
            rule = f"hold cells as they were simulated; the one with key {key} was changed"
            raise InputError(store.option, store.path, rule)
    todo = [i for i, key in enumerate(keys) if key not in store.rows]
    todo = list({keys[i]: i for i in reversed(todo)}.values())[::-1]
    reused, made, whole = len(cells) - len(todo), 0, True
    tell = progress or (lambda done, of: None)
    tell(reused, len(cells))
    with _results(grid, [(cells[i], keys[i]) for i in todo], jobs) as rows:
        try:
            for row in rows:
                store.append(row)
                made += 1
                tell(reused + made, len(cells))
        except KeyboardInterrupt:
            whole = False
    if whole:
        store.finish(keys)
    found = iter([store.rows.get(key) for key in keys])
    shape = [[[next(found) for _ in grid.axis.values] for _ in works] for _ in (PLAIN_DECODING, *draftings)]
    blocks = tuple(tuple(tuple(_present(row) for row in line) for line in block) for block in shape)
    result = SimulatedMap(
        grid.axis, tuple(draftings), tuple(works), grid.requests, grid.burstiness, blocks[0], blocks[1:], reused, made
    )  # fmt: skip
    return result, whole


def _is_row(row: Row) -> bool:
    if "refused" in row:
        return isinstance(row["refused"], str)
    numbers = [row.get(name) for name in ("tpot_s", "capacity_per_s", "goodput_per_s", "load", "measured")]
    half = row.get("tpot_half_width_s")
    known = all(
        isinstance(n, int | float) and not isinstance(n, bool)
        for n in [*numbers, *([half] if half is not None else [])]
    )
    return known and isinstance(row.get("carried"), bool)


def _present(row: Row | None) -> Row | None:
    return None if row is None or "refused" in row else row


@contextmanager
def _results(grid: Grid, cells: Sequence[tuple[Cell, str]], jobs: int) -> Iterator[Iterator[Row]]:
    """Rows of `cells` as they come, by `jobs` processes or, if there is one, this one."""
    if jobs == 1 or len(cells) < 2:
        yield (_made(grid, cell, key) for cell, key in cells)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(cells)), context, initializer=_begin, initargs=(grid,)) as pool:
        futures: list[Future[Row | None]] = [pool.submit(_work, cell, key) for cell, key in cells]

        def rows() -> Iterator[Row]:
            for future in as_completed(futures):
                row = future.result()
                if row is None:
                    raise KeyboardInterrupt
                yield row

        try:
            yield rows()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _made(grid: Grid, cell: Cell, key: str) -> Row:
    try:
        return row_of(grid.run(cell), key, cell, overload_drains=grid.axis.kind == "rate")
    except MemwallError as error:  # no room for a single sequence: as much of a result as any
        return {"key": key, "drafting": cell.drafting.name, "load": cell.load, "refused": str(error)}


_GRID: list[Grid] = []


def _begin(grid: Grid) -> None:
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _GRID[:] = [replace(grid, deployment=RememberedDeployment.of(grid.deployment))]


def _end_with_parent() -> None:
    # A worker waits for cells on a pipe that it holds open itself, so a parent that is killed would leave it waiting for good.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cell: Cell, key: str) -> Row | None:
    try:
        return _made(_GRID[0], cell, key)
    except KeyboardInterrupt:
        return None
