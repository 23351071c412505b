"""Maps carry the speed-ups of their cells; the best is outlined, what is not carried is hatched, and pages draw them."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.deployment import deploy
from simulator.figures import crossover
from simulator.figures.crossover_page import crossover_page
from simulator.planning.load_map import LEAST_GAIN, LoadAxis, chains, load_map
from simulator.planning.simulated_map import SimulatedMap
from simulator.planning.work import Work
from simulator.speculation.acceptance import Acceptance


@pytest.fixture(scope="module")
def found():
    served, law = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b"), Acceptance((0.6,))
    works = [Work.of_context(c) for c in (512, 16_384)]
    return load_map(served, chains(served, law, (1, 4, 8)), works, LoadAxis.of("users", [1, 8, 64, 256]))


@pytest.fixture(scope="module")
def simulated(found):
    """Rows as a simulation would leave them, with the closed form's figures."""

    def row(state, k):
        return {
            "tpot_s": float(state.tpot_s[k]), "requests_per_s": float(state.requests_per_s[k]), "tpot_half_width_s": 1e-4,
            "capacity_per_s": float(state.requests_per_s[k]), "goodput_per_s": float(state.goodput_per_s[k]), "ttft_s": 1.0, "carried": bool(state.carried[k]),
        }  # fmt: skip

    loads = range(len(found.loads))
    plain = tuple(tuple(row(s, k) for k in loads) for s in found.plain_states)
    rows = tuple(tuple(tuple(row(s, k) for k in loads) for s in line) for line in found.states)
    return SimulatedMap(found.axis, found.draftings, found.works, 2000, 1.0, plain, rows, 0, 1)


def test_cells_are_the_speedups_and_the_best_is_outlined(found):
    figure = crossover.speed_map(found, 0)
    (heat,) = figure.data
    assert 2.0 ** np.array(heat.z, dtype=float) == pytest.approx(found.speedup[:, 0])
    outlined = {(round(s.x0 + 0.47), round(s.y0 + 0.45)) for s in figure.layout.shapes if s.line.width == 4}
    expected = {(k, int(found.best[0, k])) for k in range(4) if found.best[0, k] >= 0}
    assert outlined == expected
    assert expected


def test_what_is_not_carried_is_hatched_and_said(found):
    figure = crossover.speed_map(found, 1)
    carried = found.carried[:, 1] & found.plain_states[1].carried
    assert not carried.all()
    hatches = [s for s in figure.layout.shapes if s.type == "line" and s.line.width == 1]
    assert len(hatches) == 2 * int((~carried).sum())
    assert "hatched" in figure.layout.meta["tag"]
    whole = crossover.speed_map(found, 0)
    assert ("hatched" in whole.layout.meta["tag"]) == (not (found.carried[:, 0] & found.plain_states[0].carried).all())


def test_the_line_of_break_even_parts_gains_from_losses(found):
    figure = crossover.speed_map(found, 0)
    edges = [s for s in figure.layout.shapes if s.type == "line" and s.line.width == 2]
    above = found.speedup[:, 0] > 1.0
    changes = int((above[:, 1:] != above[:, :-1]).sum() + (above[1:] != above[:-1]).sum())
    assert len(edges) == changes > 0


def test_the_best_map_names_the_best(found):
    (heat,) = crossover.best_map(found).data
    for j, line in enumerate(heat.text):
        for k, text in enumerate(line):
            i = found.best[j, k]
            assert text == ("–" if i < 0 else str(found.draftings[i].shape.depth))


def test_crossings_and_their_intervals(found):
    lines = crossover.crossing_figure(found).data
    assert len(lines) == 2
    for j, line in enumerate(lines):
        ends = [found.crossing(i, j).load for i in range(3)]
        assert list(line.y) == [found.loads[-1] if e is None else e for e in ends]
        assert all(v >= 0 for v in (*line.error_y.array, *line.error_y.arrayminus))


def test_lines_in_closed_form_beside_simulated_markers(found, simulated):
    figure = crossover.agreement_figure(found, simulated, 0)
    lines, marks = figure.data[::2], figure.data[1::2]
    for i, (line, mark) in enumerate(zip(lines, marks, strict=True)):
        assert list(line.y) == pytest.approx(list(found.speedup[i, 0]))
        assert list(mark.y) == pytest.approx(list(simulated.speedup[i, 0]))
    assert "0 loads of the map apart" in figure.layout.meta["finding"]


def test_the_finding_says_up_to_where_it_pays(found):
    finding = crossover.speed_map(found, 0).layout.meta["finding"]
    pays = np.nanmax(found.speedup[:, 0], axis=0) > LEAST_GAIN
    last = found.axis.text(float(found.loads[np.flatnonzero(pays)[-1]]))
    assert f"up to {last}" in finding or "at every load" in finding


def test_a_page_has_every_map(found, simulated):
    page = crossover_page(found, simulated, [], "some schedule", "memwall crossover --model x")
    assert page.count("<figure") == 1 + 2 + 1 + 2 + 2
    assert "some schedule" in page
    assert "memwall crossover --model x" in page
    assert "pays" in page
