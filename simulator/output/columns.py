"""Tables of numbers as files: per-request rows as Parquet or CSV, the grid of speed-ups as CSV.

One row per request and variant, those of the scenario's own variant first, in the order of arrival. A time that a
request never had (rejected) is empty: null in Parquet, nothing between the commas in CSV. Units are the names' suffixes.
Rows can be written while they come into being: the file is the same however they are cut into chunks.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator import __version__
from simulator.errors import InputError
from simulator.output.files import replacing, write_text
from simulator.output.rows import interruption
from simulator.serving import state
from simulator.serving.class_metrics import UNFINISHED
from simulator.serving.metrics import request_metrics
from simulator.serving.outcomes import ENDED
from simulator.serving.simulation import Run, SimulationResult

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from simulator.serving.streaming import Stream

SUFFIXES = (".parquet", ".csv")
FIELDS = (
    "arrival_s", "scheduled_s", "first_token_s", "finish_s", "last_token_s", "longest_gap_s", "prompt_tokens",
    "output_tokens", "generated_tokens", "cached_tokens", "chunks", "decode_rounds", "rounds", "drafted_tokens",
    "accepted_tokens", "preemptions", "recomputed_tokens", "retries", "replica", "measured",
)  # fmt: skip
"""Fields of a request's record that become columns."""
ROW_GROUP = 1 << 16
"""Rows that are kept until they are written together."""
_CHUNK_ROWS = 20_000


def check_suffix(path: str | None, option: str) -> None:
    """Raises InputError unless the name says which of the two formats is wanted."""
    if path is not None and PurePath(path).suffix.lower() not in SUFFIXES:
        raise InputError(option, path, f"end in {' or '.join(SUFFIXES)}")


class Names:
    """A column of a few words, by number."""

    def __init__(self, codes: NDArray[np.integer[Any]], words: Sequence[str]):
        self.codes, self.words = codes, words

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(np.array(self.words, dtype=dtype)[self.codes])


Columns = Mapping[str, NDArray[Any] | Names]
Extra = Mapping[str, NDArray[Any]]


def request_rows(variant: str, requests: Any, rows: NDArray[np.int64], classes: Sequence[str]) -> Columns:
    """Columns of records of `state.REQUEST`; `rows` are their indices in trace or generator, `classes` the names of theirs."""
    plain = np.asarray(requests).view(np.ndarray)
    status = plain["status"]
    found: dict[str, NDArray[Any] | Names] = {
        "variant": Names(np.zeros(len(plain), dtype=np.int8), [variant]),
        "row": rows,
        "class": Names(plain["class_of"], classes),
        "status": Names(status, STATUS_NAMES),
    }
    found |= {name: plain[name].copy() for name in FIELDS}
    ended, finished = np.isin(status, ENDED) & (status != state.REJECTED), status == state.FINISHED
    started = finished | (ended & (plain["generated_tokens"] > 0))
    for name, has in {
        "scheduled_s": finished | (ended & (plain["scheduled_s"] > 0)),
        "first_token_s": started,
        "last_token_s": started,
        "longest_gap_s": started,
        "finish_s": ended,
    }.items():
        found[name] = np.where(has, plain[name], np.nan)
    return found | request_metrics(plain)


STATUS_NAMES = [name if k in (*ENDED, state.ABANDONED) else UNFINISHED for k, name in enumerate(state.STATUS)]
"""Of `state.STATUS` those that are no end are called unfinished: the simulation was interrupted."""


def request_columns(result: SimulationResult) -> dict[str, NDArray[Any]]:
    """Per-request columns of all variants, one below the other."""
    names = _class_names(result)
    parts = [
        {**request_rows(run.variant, run.requests, run.rows, names), **transfer_columns(run)} for run in result.runs
    ]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def transfer_columns(run: Run) -> Extra:
    """Where there are prefill and decode replicas, who computed the prompt (−1: nobody handed over), when the KV cache could
    leave, how long its link was taken by others, and how long it took from there; `replica` is who decoded."""
    sent = run.transfers
    if sent is None:
        return {}
    return {
        "prefill_replica": sent.prefill_replica, "handed_over_s": sent.handed_over_s, "kv_wait_s": sent.wait_s,
        "kv_transfer_s": sent.transfer_s,
    }  # fmt: skip


def write_requests(
    result: SimulationResult,
    path: str,
    option: str = "--rows",
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Per-request rows in the format that the name of `path` says; `progress` is told how many are written. Raises
    InputError."""
    with row_stream(path, option, classes=_class_names(result), metadata=metadata(result)) as stream:
        _write_runs(result, stream, progress)


def request_bytes(result: SimulationResult, suffix: Literal["parquet", "csv"]) -> bytes:
    """The file that `write_requests` would write, byte for byte."""
    file = io.BytesIO()
    sink = _CsvSink(file) if suffix == "csv" else _ParquetSink(file, metadata(result))
    stream = RowStream(sink, _class_names(result))
    _write_runs(result, stream)
    stream.finish()
    return file.getvalue()


def _write_runs(
    result: SimulationResult, stream: RowStream, progress: Callable[[str, int, int], None] | None = None
) -> None:
    done, of = 0, sum(len(run.requests) for run in result.runs)
    for run in result.runs:
        for start in range(0, len(run.requests), ROW_GROUP):
            end = min(start + ROW_GROUP, len(run.requests))
            more = {name: values[start:end] for name, values in transfer_columns(run).items()}
            stream.write(run.variant, run.requests[start:end], run.rows[start:end], more)
            done += end - start
            if progress is not None:
                progress("rows", done, of)
    if sentence := interruption(result):
        stream.note("interrupted", sentence)


@contextmanager
def row_stream(
    path: str, option: str = "--rows", *, classes: Sequence[str] = ("all",), metadata: Mapping[str, str] | None = None
) -> Iterator[RowStream]:
    """A .parquet or .csv file of request rows, written while they come into being. It is there when the block has ended, and
    not at all where the block failed. Raises InputError."""
    check_suffix(path, option)
    with replacing(path, option) as file:
        sink = _CsvSink(file) if PurePath(path).suffix.lower() == ".csv" else _ParquetSink(file, metadata or {})
        stream = RowStream(sink, classes)
        try:
            yield stream
            stream.finish()
        except BaseException:
            sink.abandon()
            raise


class RowStream:
    """Keeps rows until `ROW_GROUP` of them are there, so that the file does not depend on how they came; see `row_stream`."""

    def __init__(self, sink: _CsvSink | _ParquetSink, classes: Sequence[str]):
        self._sink, self._classes = sink, classes
        self._notes: dict[str, str] = {}
        self._held: list[tuple[str, Any, NDArray[np.int64], Extra]] = []
        self._rows_held = 0

    def write(self, variant: str, requests: Any, rows: NDArray[np.int64], more: Extra | None = None) -> None:
        """Adds records of `state.REQUEST`; `rows` as in `request_rows`, `more` columns that every call has. They may be
        overwritten afterwards."""
        plain = np.asarray(requests).view(np.ndarray)
        start = 0
        while start < len(plain):
            end = min(len(plain), start + ROW_GROUP - self._rows_held)
            also = {name: np.array(values[start:end]) for name, values in (more or {}).items()}
            self._held.append((variant, plain[start:end].copy(), np.array(rows[start:end]), also))
            self._rows_held += end - start
            start = end
            if self._rows_held == ROW_GROUP:
                self._flush()

    def note(self, name: str, text: str) -> None:
        """What turned out only while writing; ``memwall.<name>`` of a Parquet file's metadata. CSV has no place for it."""
        self._notes[f"memwall.{name}"] = text

    def finish(self) -> None:
        """Writes what is kept; a file without rows has a header all the same."""
        if self._rows_held or not self._sink.begun:
            self._flush()
        self._sink.close(self._notes)

    def _flush(self) -> None:
        nothing: tuple[str, Any, NDArray[np.int64], Extra] = (
            "", state.records(state.REQUEST, 0), np.zeros(0, dtype=np.int64), {},
        )  # fmt: skip
        parts = [
            {**request_rows(variant, requests, rows, self._classes), **more}
            for variant, requests, rows, more in self._held or [nothing]
        ]
        self._sink.write({name: [part[name] for part in parts] for name in parts[0]})
        self._held.clear()
        self._rows_held = 0


class _ParquetSink:
    def __init__(self, file: IO[bytes], metadata: Mapping[str, str]):
        self._file, self._metadata = file, metadata
        self._writer: pq.ParquetWriter | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a header."""
        return self._writer is not None

    def write(self, columns: Mapping[str, Sequence[NDArray[Any] | Names]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        chunks = {name: pa.chunked_array([_arrow(v) for v in values]) for name, values in columns.items()}
        table = pa.table(chunks).replace_schema_metadata({k: v.encode() for k, v in self._metadata.items()})
        if self._writer is None:
            # Hardly two times are equal: looking for repetitions among them is a third of the writing.
            repeating = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", use_dictionary=repeating)
        self._writer.write_table(table)

    def close(self, notes: Mapping[str, str]) -> None:
        if self._writer is not None:
            if notes:
                self._writer.add_key_value_metadata(dict(notes))
            self._writer.close()

    def abandon(self) -> None:
        self.close({})


class _CsvSink:
    def __init__(self, file: IO[bytes]):
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text, lineterminator="\n")
        self.begun = False

    def write(self, columns: Mapping[str, Sequence[NDArray[Any] | Names]]) -> None:
        if not self.begun:
            self._writer.writerow(columns)
            self.begun = True
        for part in zip(*columns.values(), strict=True):
            for start in range(0, len(part[1]), _CHUNK_ROWS):
                self._writer.writerows(zip(*(_cells(v, slice(start, start + _CHUNK_ROWS)) for v in part), strict=True))

    def close(self, notes: Mapping[str, str]) -> None:
        self._text.flush()
        self._text.detach()

    def abandon(self) -> None:
        self._text.detach()


def _arrow(values: NDArray[Any] | Names) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, Names):
        return pa.DictionaryArray.from_arrays(pa.array(values.codes), pa.array(values.words, pa.string())).cast(
            pa.string()
        )
    return pa.array(values, from_pandas=True)


def _cells(values: NDArray[Any] | Names, here: slice) -> Sequence[Any]:
    if isinstance(values, Names):
        return [values.words[code] for code in values.codes[here].tolist()]
    chosen = values[here]
    cells: list[Any] = chosen.tolist()
    if chosen.dtype.kind == "f" and np.isnan(chosen).any():
        return [None if math.isnan(value) else value for value in cells]
    return cells


def write_columns(columns: Mapping[str, NDArray[Any]], path: str, option: str = "--rows") -> None:
    """`columns` as .parquet or .csv, by the name's ending. Raises InputError."""
    check_suffix(path, option)
    with replacing(path, option) as file:
        sink = _CsvSink(file) if PurePath(path).suffix.lower() == ".csv" else _ParquetSink(file, {})
        sink.write({name: [values] for name, values in columns.items()})
        sink.close({})


def metadata(result: SimulationResult | Stream) -> dict[str, str]:
    """What a Parquet file of `result` says about where its rows come from."""
    import yaml

    scenario = result.scenario.model_dump(mode="json", exclude_none=True)
    return {
        "memwall.version": __version__,
        "memwall.scenario": yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True),
        "memwall.traffic": result.traffic.source,
        "memwall.times": result.deployment.target.efficiency.label,
    }


def _class_names(result: SimulationResult) -> list[str]:
    return [c.name for c in result.traffic.classes]


def write_mappings(rows: Iterable[Mapping[str, Any]], path: str, option: str = "--csv") -> None:
    """Mappings with the same keys as a CSV file with a header. Raises InputError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for index, row in enumerate(rows):
        if index == 0:
            writer.writerow(row)
        writer.writerow(row.values())
    write_text(path, text.getvalue(), option)
