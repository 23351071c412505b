"""JSON documents: strict, sorted, versioned, and equal for equal inputs."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
import pytest

from simulator.decoding import DecodeResult
from simulator.output import documents
from simulator.planning.crossover import SpeculateResult
from simulator.serving.replications import Replicated, Replications
from simulator.serving.simulation import SimulationResult
from tests.output.conftest import small_simulation


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    loaded: dict[str, Any] = json.loads(text, parse_constant=refuse)
    assert list(loaded) == sorted(loaded)
    return loaded


def test_what_json_has_no_word_for_is_null() -> None:
    text = documents.to_json(
        {"b": float("nan"), "a": [float("inf"), np.float64(1.5), np.int64(2)], 3: (None, True, "γ")}
    )
    assert (
        text
        == '{\n  "3": [\n    null,\n    true,\n    "γ"\n  ],\n  "a": [\n    null,\n    1.5,\n    2\n  ],\n  "b": null\n}\n'
    )


def test_decode(step: DecodeResult) -> None:
    loaded = strict(documents.to_json(documents.decode_document(step)))
    assert loaded["schema"] == "memwall.decode/1"
    assert sum(loaded["by_cause_s"].values()) == pytest.approx(loaded["step_s"])
    operators = sum(o["repeat"] * o["total_s"] for o in loaded["operators"])
    assert operators + loaded["by_cause_s"]["host"] == pytest.approx(loaded["step_s"])


def test_speculate(grid: SpeculateResult) -> None:
    loaded = strict(documents.to_json(documents.speculate_document(grid)))
    assert loaded["schema"] == "memwall.speculate/1"
    assert [(c["gamma"], c["batch"]) for c in loaded["cells"]] == [(1, 1), (1, 64), (3, 1), (3, 64)]
    for cell in loaded["cells"]:
        assert cell["speedup"] == pytest.approx(cell["plain_tpot_s"] / cell["tpot_s"])
        assert cell["round_s"] == pytest.approx(cell["verify_s"] + cell["draft_s"] + cell["host_s"])
    assert [c["best"] for c in loaded["cells"] if c["batch"] == 1].count(True) <= 1


def test_simulate(simulation: SimulationResult) -> None:
    loaded = strict(documents.to_json(documents.simulation_document(simulation)))
    assert loaded["schema"] == "memwall.simulate/1"
    assert [run["variant"] for run in loaded["runs"]] == ["speculation", "plain"]
    assert loaded["runs"][1]["summary"]["tokens_per_round"] is None
    assert loaded["traffic"]["rows_read"] == loaded["traffic"]["rows_used"] == 20


def test_a_whole_run_is_complete(simulation: SimulationResult) -> None:
    loaded = strict(documents.to_json(documents.simulation_document(simulation)))
    assert (loaded["complete"], loaded["interrupted"]) == (True, None)
    for run, shown in zip(simulation.runs, loaded["runs"], strict=True):
        assert sum(shown["summary"]["requests"].values()) == loaded["traffic"]["rows_read"]
        line = shown["timeline"]
        assert {len(values) for name, values in line.items() if name != "width_s"} == {len(line["time_s"])}
        output = sum(line["output_tokens_per_s"]) * line["width_s"]
        assert output == pytest.approx(run.requests["output_tokens"].sum(), rel=1e-4)
        assert [c["name"] for c in shown["summary"]["classes"]] == ["all"]
        assert shown["summary"]["stability"]["stable"] is not False
    room = loaded["kv_concurrency"]
    assert room["context_tokens"] == 112
    assert 0 < room["speculative"] < room["plain"]


def test_an_interrupted_run_is_marked(cut_short: SimulationResult) -> None:
    loaded = strict(documents.to_json(documents.simulation_document(cut_short)))
    assert loaded["complete"] is False
    assert loaded["interrupted"].startswith("speculation interrupted at t = 150 s after")
    assert loaded["runs"][0]["summary"]["interrupted_s"] == 150.0
    assert loaded["runs"][0]["summary"]["requests"]["unfinished"] > 0


def test_classes_half_widths_and_verdicts_are_in_the_document(
    with_classes: SimulationResult, growing: SimulationResult
) -> None:
    loaded = strict(documents.to_json(documents.simulation_document(with_classes)))
    (_, kind, _) = loaded["runs"][0]["summary"]["classes"]
    assert (kind["name"], kind["slo"]) == ("kind 1", {"tpot_s": 0.015})
    width = loaded["runs"][0]["summary"]["confidence"]["ttft_s.mean"]
    assert set(width) == {"half_width", "batches", "batch_size", "correlation"}
    loaded = strict(documents.to_json(documents.simulation_document(growing)))
    assert [run["summary"]["stability"]["stable"] for run in loaded["runs"]] == [True, False]
    assert any("The queue only grows: 12.0 requests/s arrive, 9.3/s leave" in s for s in loaded["statements"])


def test_replications_stand_by_variant_and_figure(simulation: SimulationResult) -> None:
    found = Replications(5, {("ratio", "tpot_s.mean"): Replicated(0.6, 0.01)})
    loaded = strict(documents.to_json(documents.simulation_document(simulation, None, found)))
    assert loaded["replications"] == {"n": 5, "of": {"ratio.tpot_s.mean": {"half_width": 0.01, "mean": 0.6}}}


def test_two_runs_are_byte_identical(simulation: SimulationResult) -> None:
    again = small_simulation()
    first, second = (documents.to_json(documents.simulation_document(r)) for r in (simulation, again))
    assert first == second
