"""Tables of numbers as files: per-request rows as Parquet or CSV, the grid of speed-ups as CSV.

One row per request and variant, those of the scenario's own variant first, in the order of arrival. A time that a
request never had (rejected) is empty: null in Parquet, nothing between the commas in CSV. Units are the names' suffixes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import __version__
from simulator.errors import InputError
from simulator.output.files import replacing, write_text
from simulator.serving import state
from simulator.serving.simulation import SimulationResult

SUFFIXES = (".parquet", ".csv")
_TIMES = ("scheduled_s", "first_token_s", "finish_s", "last_token_s", "longest_gap_s")
_CHUNK_ROWS = 20_000


def check_suffix(path: str | None, option: str) -> None:
    """Raises InputError unless the name says which of the two formats is wanted."""
    if path is not None and PurePath(path).suffix.lower() not in SUFFIXES:
        raise InputError(option, path, f"end in {' or '.join(SUFFIXES)}")


def request_columns(result: SimulationResult) -> dict[str, NDArray[Any]]:
    """Per-request columns of all variants, one below the other."""
    parts = []
    for run in result.runs:
        columns = run.columns()
        finished = np.asarray(run.requests["status"]) == state.FINISHED
        for name in _TIMES:
            columns[name] = np.where(finished, columns[name], np.nan)
        parts.append(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_requests(result: SimulationResult, path: str, option: str = "--rows") -> None:
    """Per-request rows in the format that the name of `path` says. Raises InputError."""
    check_suffix(path, option)
    columns = request_columns(result)
    if PurePath(path).suffix.lower() == ".csv":
        _write_csv(columns, path, option)
    else:
        _write_parquet(columns, _metadata(result), path, option)


def write_columns(columns: Mapping[str, NDArray[Any]], path: str, option: str = "--rows") -> None:
    """`columns` as .parquet or .csv, by the name's ending. Raises InputError."""
    check_suffix(path, option)
    if path.endswith(".csv"):
        _write_csv(columns, path, option)
    else:
        _write_parquet(columns, {}, path, option)


def _metadata(result: SimulationResult) -> dict[str, str]:
    import yaml

    scenario = result.scenario.model_dump(mode="json", exclude_none=True)
    return {
        "memwall.version": __version__,
        "memwall.scenario": yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True),
        "memwall.traffic": result.traffic.source,
        "memwall.times": result.deployment.target.efficiency.label,
    }


def _write_parquet(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], path: str, option: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({k: v.encode() for k, v in metadata.items()})
    with replacing(path, option) as file:
        pq.write_table(table, file, compression="zstd")


def _write_csv(columns: Mapping[str, NDArray[Any]], path: str, option: str) -> None:
    n = len(next(iter(columns.values())))
    with replacing(path, option) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for start in range(0, n, _CHUNK_ROWS):
            chunk = [_cells(values[start : start + _CHUNK_ROWS]) for values in columns.values()]
            writer.writerows(zip(*chunk, strict=True))
        text.flush()
        text.detach()


def _cells(values: NDArray[Any]) -> Sequence[Any]:
    cells: list[Any] = values.tolist()
    if values.dtype.kind == "f" and np.isnan(values).any():
        return [None if math.isnan(value) else value for value in cells]
    return cells


def write_mappings(rows: Iterable[Mapping[str, Any]], path: str, option: str = "--csv") -> None:
    """Mappings with the same keys as a CSV file with a header. Raises InputError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for index, row in enumerate(rows):
        if index == 0:
            writer.writerow(row)
        writer.writerow(row.values())
    write_text(path, text.getvalue(), option)
