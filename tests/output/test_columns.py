"""Per-request rows: Parquet and CSV say the same, twice the same, and in the promised order."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator import __version__, load_scenario
from simulator.errors import InputError
from simulator.output import columns as output_columns
from simulator.output.columns import check_suffix, request_columns, row_stream, write_mappings, write_requests
from simulator.serving import state
from simulator.serving.simulation import SimulationResult
from tests.output.conftest import small_simulation
from tests.serving.served import random_records, records

COLUMNS = [
    "variant", "row", "class", "status", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "last_token_s",
    "longest_gap_s", "prompt_tokens", "output_tokens", "generated_tokens", "cached_tokens", "chunks", "decode_rounds", "rounds",
    "drafted_tokens", "accepted_tokens", "preemptions", "recomputed_tokens", "retries", "replica", "measured", "ttft_s", "tpot_s",
    "e2e_s", "queue_s",
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


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_are_the_same_however_they_come(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, in pieces smaller and larger than a row group, over two variants."""
    monkeypatch.setattr(output_columns, "ROW_GROUP", 300)
    requests, index = random_records(1000, classes=2), np.arange(1000)
    files = []
    for cuts in ((0, 1000), (0, 1, 299, 300, 301, 950, 1000), (0, 500, 500, 1000)):
        path = tmp_path / f"{len(files)}{suffix}"
        with row_stream(str(path), classes=["a", "b"], metadata={"memwall.traffic": "made up"}) as stream:
            for variant in ("speculation", "plain"):
                for start, end in pairwise(cuts):
                    chunk = requests[start:end].copy()
                    stream.write(variant, chunk, index[start:end])
                    chunk["status"] = 0  # a record that is used again must not change what was written
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_streamed_rows_are_those_of_the_result(simulation: SimulationResult, tmp_path: Path) -> None:
    write_requests(simulation, str(tmp_path / "whole.csv"))
    with row_stream(str(tmp_path / "streamed.csv")) as stream:
        for run in simulation.runs:
            for i in range(len(run.requests)):
                stream.write(run.variant, run.requests[i : i + 1], run.rows[i : i + 1])
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "streamed.csv").read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_stream_that_fails_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"

    def interrupted() -> None:
        with row_stream(str(path)) as stream:
            stream.write("plain", random_records(10), np.arange(10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_stream_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for name in ("a.csv", "a.parquet"):
        with row_stream(str(tmp_path / name)):
            pass
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert pq.read_table(tmp_path / "a.parquet").column_names == COLUMNS


def test_an_interrupted_run_says_so_in_its_rows(cut_short: SimulationResult, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_requests(cut_short, str(tmp_path / "a.parquet"))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    said = file.metadata.metadata[b"memwall.interrupted"].decode()
    assert said.startswith("speculation interrupted at t = 150 s after ")
    assert said.endswith(" of 3,000 requests; plain decoding not simulated")
    status = np.array(file.read(["status"]).column("status").to_pylist())
    unfinished = cut_short.main.requests["status"] == 0
    assert (status == "unfinished").sum() == unfinished.sum() > 0
    assert set(status) >= {"finished", "unfinished", "abandoned"}


def test_times_that_a_request_never_had(tmp_path: Path) -> None:
    """Cancelled after its first token, dropped while it waited, rejected at once."""
    requests = records((1, 2, 3, 4, 9), (1, 0, 0, 6, 9), (1, 0, 0, 0, 9))
    requests["status"] = state.CANCELLED, state.TIMED_OUT, state.REJECTED
    requests["generated_tokens"] = 5, 0, 0
    requests["last_token_s"] = 3.5, 0, 0
    with row_stream(str(tmp_path / "a.csv")) as stream:
        stream.write("plain", requests, np.arange(3))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("status", "scheduled_s", "first_token_s", "last_token_s", "finish_s", "e2e_s")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("cancelled", "2.0", "3.0", "3.5", "4.0", ""), ("timed out", "", "", "", "6.0", ""), ("rejected", "", "", "", "", ""),
    ]  # fmt: skip


def test_classes_are_named(with_classes: SimulationResult) -> None:
    columns = request_columns(with_classes)
    assert set(columns["class"]) == {"kind 0", "kind 1", "kind 2"}
    assert (columns["class"][:3000] == columns["class"][3000:]).all()
