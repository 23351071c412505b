"""Per-request rows: Parquet and CSV say the same, twice the same, and in the promised order."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator import __version__, load_scenario
from simulator.errors import InputError
from simulator.output.columns import check_suffix, request_columns, write_mappings, write_requests
from simulator.serving.simulation import SimulationResult
from tests.output.conftest import small_simulation

COLUMNS = [
    "variant", "row", "status", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "last_token_s", "longest_gap_s",
    "prompt_tokens", "output_tokens", "generated_tokens", "chunks", "rounds", "drafted_tokens", "accepted_tokens",
    "preemptions", "recomputed_tokens", "replica", "measured", "ttft_s", "tpot_s", "e2e_s", "queue_s",
]  # fmt: skip


def test_parquet_read_back_equals_csv(simulation: SimulationResult, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_requests(simulation, str(tmp_path / "a.parquet"))
    write_requests(simulation, str(tmp_path / "a.csv"))
    table = pq.read_table(tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert table.column_names == COLUMNS == list(rows[0])
    assert len(rows) == table.num_rows == 40
    for parquet_row, csv_row in zip(table.to_pylist(), rows, strict=True):
        for name, value in parquet_row.items():
            assert csv_row[name] == ("" if value is None else str(value))  # str of a float reads back as that float


def test_both_variants_stand_below_each_other_in_the_order_of_the_rows(simulation: SimulationResult) -> None:
    columns = request_columns(simulation)
    assert list(columns["variant"]) == ["speculation"] * 20 + ["plain"] * 20
    assert list(columns["row"]) == [*range(20), *range(20)]
    assert columns["drafted_tokens"][:20].sum() > 0 == columns["drafted_tokens"][20:].sum()


def test_files_of_two_runs_are_byte_identical(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = small_simulation()
        for suffix in (".csv", ".parquet"):
            write_requests(result, str(tmp_path / (name + suffix)))
    for suffix in (".csv", ".parquet"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_parquet_carries_the_version_and_a_scenario_that_loads(simulation: SimulationResult, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_requests(simulation, str(tmp_path / "a.parquet"))
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    assert metadata[b"memwall.version"].decode() == __version__
    again = load_scenario(yaml.safe_load(metadata[b"memwall.scenario"]))
    assert again == simulation.scenario


def test_a_rejected_request_has_no_times(tmp_path: Path) -> None:
    # 15.5 GB of weights of 85.9 GB of HBM: 0.21 leaves a KV cache of a few hundred tokens.
    lengths = {
        "prompt": {"kind": "quantiles", "probabilities": [0, 0.5, 0.51, 1], "values": [10, 10, 60000, 60000]},
        "output": 5,
    }
    result = small_simulation(
        speculation=None,
        traffic={"kind": "poisson", "rate_per_s": 5, "requests": 20, "lengths": lengths},
        engine={"name": "ideal", "memory_utilization": 0.21, "max_batched_tokens": 64, "max_sequences": 4},
    )
    columns = request_columns(result)
    rejected = columns["status"] == "rejected"
    assert 0 < rejected.sum() < 20
    assert np.isnan(columns["finish_s"][rejected]).all()
    assert not np.isnan(columns["finish_s"][~rejected]).any()
    write_requests(result, str(tmp_path / "a.csv"))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert {row["finish_s"] == "" for row in csv.DictReader(file) if row["status"] == "rejected"} == {True}


def test_the_name_must_say_the_format() -> None:
    check_suffix("a.PARQUET", "--rows")
    check_suffix(None, "--rows")
    with pytest.raises(InputError, match=r"end in \.parquet or \.csv"):
        check_suffix("a.xlsx", "--rows")


def test_mappings_become_a_header_and_rows(tmp_path: Path) -> None:
    write_mappings([{"a": 1, "b_s": 0.1}, {"a": 2, "b_s": math.pi}], str(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text() == "a,b_s\n1,0.1\n2,3.141592653589793\n"
