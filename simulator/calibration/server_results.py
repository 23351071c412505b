"""Result files of the serving benchmarks people already run, read into `ServerResult`. The content tells the format:

    vLLM      ``vllm bench serve --save-result [--save-detailed] [--append-result]``: a JSON object per run (`server_bench`)
    SGLang    ``python -m sglang.bench_serving --output-file [--output-details]``: a JSON line per run (`server_bench`)
    GuideLLM  ``benchmarks.json``: every load of a sweep is a run (`server_guidellm`)
    CSV       a row per request with arrival_s, prompt_tokens, output_tokens, and ttft_s, e2e_s or both; tpot_s in place of
              e2e_s; _ms, _us or _ns in place of _s; whatever stands in the column error marks a failed request

What a file does not say stays None; what it contradicts is refused by field. Failed requests are dropped and counted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.calibration import csv_table
from simulator.calibration.server_bench import bench_result, is_bench_result
from simulator.calibration.server_guidellm import guidellm_results, is_guidellm_report
from simulator.calibration.server_record import CSV, FAILED, NO_OUTPUT, ServerRequests, ServerResult, Statistic, check
from simulator.errors import InputError
from simulator.serving.lengths import ABSURD_TOKENS, FloatArray
from simulator.serving.traces import find_columns

__all__ = ["ServerResult", "read_server_results"]

MOST_BYTES = 256 * 2**20
"""Python holds a JSON number in some 30 bytes, so this takes 1 GB; a detailed vLLM result of 10 million output tokens is
as large."""
SUPPORTED = "vllm bench serve, SGLang bench_serving or GuideLLM (JSON), or a CSV with a row per request"

_BLANK = re.compile(r"\s*")
_COUNTS = ("prompt_tokens", "output_tokens")
_TIMES = ("ttft", "e2e", "tpot")
_SUMMARY: tuple[tuple[str, float | None], ...] = (
    ("mean", None), ("percentile", 50.0), ("percentile", 90.0), ("percentile", 95.0), ("percentile", 99.0),
)  # fmt: skip


def read_server_results(path: Path) -> tuple[ServerResult, ...]:
    """The runs in the file at `path`, in its order. Raises InputError, naming the field."""
    text, where = csv_table.read_text(path, MOST_BYTES), str(path)
    if not text.strip():
        raise InputError("content", "(empty)", f"be a result of {SUPPORTED}", where=where)
    if text.lstrip()[0] not in "{[":
        return (check(_table(csv_table.parse_csv(text, where))),)
    documents = list(_documents(text, where))
    results: list[ServerResult] = []
    for number, document in enumerate(documents, 1):
        place = where if len(documents) == 1 else f"{where}: run {number}"
        if is_guidellm_report(document):
            results += guidellm_results(document, place)
        elif is_bench_result(document):
            results.append(bench_result(document, place))
        else:
            keys = ", ".join(list(document)[:4]) if isinstance(document, dict) else type(document).__name__
            raise InputError("content", keys or "(no fields)", f"be a result of {SUPPORTED}", where=place)
    return tuple(check(result) for result in results)


def _documents(text: str, where: str) -> Iterator[Any]:
    """JSON values one behind the other: both clients append runs to a file."""
    decoder, place = json.JSONDecoder(), 0
    while (place := _after_blank(text, place)) < len(text):
        try:
            document, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            rule = f"be valid JSON ({error.msg}); is the file cut short?"
            raise InputError("content", f"line {error.lineno}", rule, where=where) from None
        except (ValueError, RecursionError):  # a number of thousands of digits; brackets a thousand deep
            raise InputError("content", "(a value)", "be JSON of ordinary numbers and depth", where=where) from None
        yield document


def _after_blank(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    return match.end() if match else place


def _table(table: csv_table.CsvTable) -> ServerResult:
    """A row per request. A table has no summary, so that of its rows stands for it."""
    times = csv_table.time_columns(table, _TIMES)
    spellings = [f"{stem}_{unit}" for stem in _TIMES for unit in csv_table.UNITS_PER_S]
    if "ttft" not in times and "e2e" not in times:
        csv_table.unused_columns(table, (), spellings)
        rule = f"hold ttft or e2e with its unit, such as {spellings[0]}; otherwise give a result of {SUPPORTED}"
        raise InputError("columns", ", ".join(table.columns), rule, where=table.where)
    try:
        roles = find_columns(table.columns, {}, table.where)
    except InputError as error:
        rule = error.rule.split(", or be named")[0]  # there is nobody here to name it
        raise InputError(error.field, error.value, rule, suggestion=error.suggestion, where=table.where) from None
    arrival_per_s = next((v for u, v in csv_table.UNITS_PER_S.items() if roles["arrival"].endswith(f"_{u}")), 1.0)
    used = [*roles.values(), *(column for column, _ in times.values()), "error"]
    unused = csv_table.unused_columns(table, used, [*spellings, *_COUNTS, "error"])
    dropped = Counter({"broken row": table.broken} if table.broken else {})
    rows: list[tuple[float, ...]] = []
    for cells in table.rows:
        texts = [cells[roles[role]] for role in ("prompt", "output", "arrival")]
        values = [csv_table.number(text) for text in texts]
        values += [csv_table.number(cells[times[stem][0]]) if stem in times else math.nan for stem in _TIMES]
        failed = cells.get("error", "").lower() not in ("", "0", "false", "none")
        row = tuple(math.inf if value is None else value for value in values)
        reason = FAILED if failed else _fault(row)
        if reason:
            dropped[reason] += 1
            continue
        prompt, output, arrival, *given = row
        in_s = [value / times[stem][1] if stem in times else value for stem, value in zip(_TIMES, given, strict=True)]
        if math.isnan(in_s[1]):
            in_s[1] = in_s[0] + in_s[2] * (output - 1)
        if in_s[1] < in_s[0]:
            dropped["answered in full before its first token"] += 1
        else:
            rows.append((prompt, output, arrival / arrival_per_s, *in_s[:2]))
    if not rows:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in dropped.most_common())
        text = f"0 usable of {table.rows_read} rows" + f" ({reasons})" * bool(reasons)
        raise InputError("content", text, "hold at least one answered request", where=table.where)
    requests = _requests(sorted(rows, key=lambda row: row[2]))
    notes = [f"the statistics are those of the {len(requests)} rows"]
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}")
    return _summarised(requests, table.where, dict(dropped), notes)


def _fault(row: tuple[float, ...]) -> str | None:
    """Why a row of prompt, output, arrival and times cannot be used; None if it can. Unreadable cells are infinite, times
    without a column NaN."""
    prompt, output, _, ttft, e2e, tpot = row
    if any(map(math.isinf, row)):
        return "missing or not a number"
    if prompt != int(prompt) or output != int(output) or max(prompt, output) > ABSURD_TOKENS:
        return "not a number of tokens"
    if prompt < 1 or output < 1:
        return "no prompt tokens" if output >= 1 else NO_OUTPUT
    # A TPOT of 0 is how answers of one token are written down.
    return "no positive time" if ttft <= 0 or e2e <= 0 or tpot < 0 else None


def _requests(rows: list[tuple[float, ...]]) -> ServerRequests:
    prompt, output, arrival_s, ttft_s, e2e_s = np.array(rows, float).T
    times: list[FloatArray | None] = [None if np.isnan(column).any() else column for column in (ttft_s, e2e_s)]
    return ServerRequests(prompt.astype(np.int64), output.astype(np.int64), arrival_s - arrival_s[0], *times)


def _summarised(requests: ServerRequests, where: str, dropped: dict[str, int], notes: list[str]) -> ServerResult:
    statistics = []
    for metric in _TIMES:
        values: FloatArray | None = getattr(requests, f"{metric}_s")
        kept = np.empty(0) if values is None else values[~np.isnan(values)]
        for kind, percentile in _SUMMARY if len(kept) else ():
            blank = Statistic(metric, kind, 0.0, metric, percentile)
            statistics.append(replace(blank, value_s=blank.of(kept)))
    rates, duration_s = {}, None
    if requests.e2e_s is not None and requests.sent_s is not None:
        duration_s = float((requests.sent_s + requests.e2e_s).max())
        tokens = float(requests.output_tokens.sum())
        rates = {"requests_per_s": len(requests) / duration_s, "output_tokens_per_s": tokens / duration_s}
    return ServerResult(
        tool=CSV, source=where, completed=len(requests), requests=requests, lengths=None, statistics=statistics,
        rates=rates, duration_s=duration_s, dropped=dropped, notes=notes,
    )  # fmt: skip
