"""Single requests for people: the slowest in order, beside themselves without speculation; all of them in columns."""

from __future__ import annotations

import numpy as np

from simulator import load_scenario, simulate
from simulator.output.columns import request_columns
from simulator.output.request_table import GRID, request_grid, slowest_section


def test_the_slowest_requests_come_first_with_themselves_without_speculation():
    result = simulate(load_scenario("chat-8b-h100-eagle", load={"requests": 300}))
    section = slowest_section(result, 10)
    took_s = result.main.requests["finish_s"] - result.main.requests["arrival_s"]
    order = np.argsort(-took_s)[:10]
    assert [row[0] for row in section.table.rows] == [f"{result.main.rows[i]}" for i in order]
    assert section.title == "The 10 slowest requests"
    first = dict(zip(section.table.headers, section.table.rows[0], strict=True))
    plain = result.plain.requests[order[0]]
    assert float(first["E2E"].split()[0]) == float(f"{took_s[order[0]]:.3g}")
    assert float(first["E2E off"].split()[0]) == float(f"{plain.finish_s - plain.arrival_s:.3g}")
    assert first["output"] == f"{result.main.requests[order[0]]['output_tokens']:,}"


def test_alone_there_is_no_column_to_compare_and_nobody_finished_is_no_table():
    result = simulate(load_scenario("mixed-classes", load={"requests": 200}))
    assert "E2E off" not in slowest_section(result).table.headers
    run = result.main.__class__(**{**vars(result.main), "requests": result.main.requests[:0]})
    assert slowest_section(result.__class__(result.scenario, result.deployment, result.traffic, (run,))) is None


def test_the_grid_is_a_part_of_the_file():
    result = simulate(load_scenario("chat-8b-h100-eagle", load={"requests": 60}))
    grid, columns = request_grid(result), request_columns(result)
    assert tuple(grid) == GRID
    for name, values in grid.items():
        assert np.array_equal(values, columns[name], equal_nan=values.dtype.kind == "f")
