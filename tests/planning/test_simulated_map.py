"""Simulated maps: against the closed form, the same whoever computes them, and resumed where they stopped."""

import json
import math

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.planning.cell_store import CellStore, key_of
from simulator.planning.load_map import LoadAxis, chains, load_map, trees
from simulator.planning.simulated_map import Cell, Grid, RememberedDeployment, simulate_map, steps_apart
from simulator.planning.step_prices import PLAIN_DECODING
from simulator.planning.work import Work
from simulator.scenario import load_scenario
from simulator.serving.simulation import simulate
from simulator.speculation.acceptance import Acceptance

SCENARIO = load_scenario({
    "model": "llama-3.1-8b", "gpu": "h100", "speculation": {"draft": "ngram", "gamma": 2, "acceptance": 0.6},
    "traffic": {"kind": "poisson", "rate_per_s": 1, "requests": 10, "lengths": {"prompt": 10, "output": 10}},
})  # fmt: skip
DEPLOYMENT = SCENARIO.deployment()
LAW = Acceptance((0.6,))
WORKS = (Work.of_context(300, 64),)
USERS = LoadAxis.of("users", [1, 6, 24])


def made(path=None, jobs=1, gammas=(2,), axis=USERS, requests=120, works=WORKS, **options):
    grid = Grid(SCENARIO, DEPLOYMENT, axis, requests, options.pop("burstiness", 1.0))
    store = CellStore(str(path)) if path else None
    return simulate_map(grid, chains(DEPLOYMENT, LAW, gammas), works, jobs=jobs, store=store, **options)


# --- against the closed form --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "axis",
    [LoadAxis.of("users", [1, 8, 32, 64, 96, 128, 192, 256]), LoadAxis.of("rate", [2, 10, 20, 30, 40, 50, 60, 70])],
    ids=["users", "rate"],
)
def test_crossings_agree_within_one_load_of_the_grid(axis):
    works = (Work.of_context(600, 256),)
    draftings = chains(DEPLOYMENT, LAW, [2, 6])
    closed = load_map(DEPLOYMENT, draftings, works, axis, intervals=False)
    simulated, whole = made(axis=axis, gammas=[2, 6], requests=2000, works=works)
    assert whole
    assert np.all(np.abs(steps_apart(closed, simulated)) <= 1)
    carried = closed.carried[:, 0] & closed.plain_states[0].carried
    off = np.abs(simulated.speedup[:, 0] / closed.speedup[:, 0] - 1.0)[carried]
    assert np.median(off) < 0.03


def test_trees_are_simulated_too():
    draftings = trees(DEPLOYMENT, LAW, [4], 2)
    closed = load_map(DEPLOYMENT, draftings, WORKS, USERS, intervals=False)
    simulated, _ = simulate_map(Grid(SCENARIO, DEPLOYMENT, USERS, 1000), draftings, WORKS)
    assert simulated.speedup == pytest.approx(closed.speedup, rel=0.05)


def test_bursts_slow_everybody_down():
    axis = LoadAxis.of("rate", [40])
    steady, bursty = (made(axis=axis, requests=2000, burstiness=b)[0] for b in (1.0, 1.0 / 9.0))
    assert bursty.plain[0][0]["tpot_s"] > steady.plain[0][0]["tpot_s"]
    assert bursty.rows[0][0][0]["ttft_s"] > steady.rows[0][0][0]["ttft_s"]


def test_a_cell_is_the_scenario_simulated():
    grid = Grid(SCENARIO, DEPLOYMENT, LoadAxis.of("rate", [5]), 200)
    (drafting,) = chains(DEPLOYMENT, LAW, [2])
    run = grid.run(Cell(drafting, WORKS[0], 5.0))
    traffic = grid.traffic(WORKS[0], 5.0)
    whole = simulate(SCENARIO.model_copy(update={"traffic": traffic, "warmup": grid.warmup(5.0)}))
    assert run.summary.tpot_s == whole.main.summary.tpot_s
    plain = grid.run(Cell(PLAIN_DECODING, WORKS[0], 5.0))
    assert plain.summary.tpot_s == whole.plain.summary.tpot_s


def test_remembered_tables_are_the_deployments_own():
    known = RememberedDeployment.of(DEPLOYMENT)
    first = known.target_tables(64, 64, 3)
    assert known.target_tables(64, 64, 3) is first
    assert known.plain().target_tables(64, 64) is first  # of the same target
    assert np.array_equal(first.linear, DEPLOYMENT.target_tables(64, 64, 3).linear)


# --- the file of cells --------------------------------------------------------------------------------------------------
def test_a_finished_map_is_not_simulated_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    first, _ = made(path)
    before = path.read_bytes()
    again, _ = made(path)
    assert (first.made, first.reused) == (6, 0)
    assert (again.made, again.reused) == (0, 6)
    assert path.read_bytes() == before
    assert again.rows == first.rows


def test_a_map_that_was_cut_short_goes_on(tmp_path):
    whole_path, path = tmp_path / "whole.jsonl", tmp_path / "cells.jsonl"
    made(whole_path)

    def tired(done, of):
        if done == 3:
            raise KeyboardInterrupt

    cut, whole = made(path, progress=tired)
    assert not whole
    assert cut.made == 3
    assert len(path.read_text().splitlines()) == 3
    assert np.isnan(cut.speedup).any()
    rest, whole = made(path)
    assert whole
    assert (rest.made, rest.reused) == (3, 3)
    assert path.read_bytes() == whole_path.read_bytes()


def test_two_workers_make_the_same_file_as_one(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    alone, _ = made(one)
    together, _ = made(two, jobs=2)
    assert one.read_bytes() == two.read_bytes()
    assert alone.rows == together.rows


def test_a_killed_run_leaves_a_file_that_can_be_gone_on_with(tmp_path):
    path = tmp_path / "cells.jsonl"
    made(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # in the middle of a line
    rest, _ = made(path)
    assert 0 < rest.made < 6
    assert path.read_bytes() == whole


def test_a_larger_map_takes_what_is_there(tmp_path):
    path = tmp_path / "cells.jsonl"
    made(path)
    larger, _ = made(path, gammas=(2, 4))
    assert (larger.made, larger.reused) == (3, 6)
    again, _ = made(path)
    assert again.made == 0


def test_a_change_of_anything_is_another_cell():
    grid = Grid(SCENARIO, DEPLOYMENT, USERS, 120)
    (two,), (four,) = chains(DEPLOYMENT, LAW, [2]), chains(DEPLOYMENT, LAW, [4])
    cell = Cell(two, WORKS[0], 6.0)
    others = [
        grid.key(Cell(four, WORKS[0], 6.0)),
        grid.key(Cell(two, WORKS[0], 7.0)),
        grid.key(Cell(two, Work.of_context(301, 64), 6.0)),
        grid.key(Cell(*chains(DEPLOYMENT, Acceptance((0.61,)), [2]), WORKS[0], 6.0)),
        Grid(SCENARIO, DEPLOYMENT, USERS, 121).key(cell),
        Grid(SCENARIO.model_copy(update={"seed": 1}), DEPLOYMENT, USERS, 120).key(cell),
        Grid(SCENARIO.model_copy(update={"gpu": "a100"}), SCENARIO.model_copy(update={"gpu": "a100"}).deployment(), USERS, 120).key(cell),
    ]  # fmt: skip
    assert len({grid.key(cell), *others}) == 8
    assert grid.key(cell) == Grid(SCENARIO, SCENARIO.deployment(), USERS, 120).key(cell)


def test_a_store_refuses_what_is_no_file_of_cells(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not cells\nat all\n")
    with pytest.raises(InputError, match="hold cells; line 1 is none"):
        CellStore(str(path))


def test_a_store_keeps_rows_of_other_maps_behind_its_own(tmp_path):
    path = tmp_path / "cells.jsonl"
    store = CellStore(str(path))
    for key in ("c", "b", "a"):
        store.append({"key": key, "x": 1.5})
    store.finish(["b"])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["b", "a", "c"]
    assert CellStore(str(path)).rows == store.rows


def test_keys_tell_parts_apart():
    assert key_of("a", "b") != key_of("ab") != key_of("a", b"b")
    assert key_of([1, 2.5]) == key_of([1, 2.5])


def test_requests_that_do_not_fit_are_left_out():
    axis = LoadAxis.of("users", [1])
    work = Work(130_000.0, 64.0, 130_030.0, 0.3)
    found, whole = made(axis=axis, works=(work,), requests=64)
    assert whole
    assert math.isnan(found.speedup[0, 0, 0]) == (found.rows[0][0][0] is None)


@pytest.mark.parametrize(
    "change",
    [{"tpot_s": "x"}, {"tpot_s": None}, {"carried": 3}, {"load": True}, {"tpot_half_width_s": []}, {"refused": 1}],
)
def test_a_cell_that_was_changed_is_not_taken_for_one(change, tmp_path):
    path = tmp_path / "cells.jsonl"
    made(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), **change}), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match="hold cells as they were simulated"):
        made(path)
