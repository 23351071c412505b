"""Logs of speculative decoding: rounds by request where they tell them, counts by position where they only count.

What is read, told by content:

- Spec-Bench answers, JSON lines with ``tokens_per_step``: tokens of each step, the target's own included, over all turns of a
  question (also ``accept_lengths`` within ``choices``, as Spec-Bench itself writes them);
- measurement files of the reference decoder and other JSON with ``accepted_by_request`` (`simulator.speculation.recording`);
- responses of vLLM with ``metrics.speculative_decoding`` in detail (``per_step_accepted``, ``per_step_drafted``), JSON lines;
- CSV with columns request, step (optional), tokens or accepted, drafted (optional);
- vLLM's counters ``spec_decode_num_drafts``, ``…_num_draft_tokens``, ``…_num_accepted_tokens``,
  ``…_num_accepted_tokens_per_pos``: Prometheus text of ``/metrics``, or one JSON object of these names;
- histograms of drafts kept by step: ``acceptance_histogram`` of vLLM's responses, ``spec_accept_histogram`` of SGLang's ``meta_info``.

The last two have lost which round belonged to which request, and when: they fit the first two rungs only.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError, nearest
from simulator.speculation.ladder.counters import PositionCounts, counts_of_histogram, counts_of_object, counts_of_text
from simulator.speculation.recording import MAX_FILE_BYTES, MOST_DRAFTS, Recording, recording_of

LAYOUTS = (
    "tokens_per_step, accepted_by_request or metrics.speculative_decoding by line, CSV of request and tokens or accepted, "
    "or counters spec_decode_num_…"
)

_NAMES = (
    "tokens_per_step", "accept_lengths", "accepted_by_request", "speculative_decoding", "per_step_accepted", "request", "tokens",
    "accepted", "acceptance_histogram", "spec_accept_histogram", "spec_decode_num_accepted_tokens_per_pos",
)  # fmt: skip


@dataclass(frozen=True)
class _Request:
    """One request's rounds as a log tells them."""

    accepted: list[int]
    drafted: list[int] | None
    """None where the log does not say."""
    at: str
    """Where it stands."""


def read_log(path: str | Path, gamma: int | None = None) -> Recording | PositionCounts:
    """What a log tells of acceptance. `gamma`: drafts per round where the log does not say; left out, the most ever kept.

    Raises InputError for a file that cannot be read, holds no acceptance, or has impossible counts.
    """
    if not str(path):
        raise InputError("log", "", "name a file")
    text, place = _text(Path(path)), str(path)
    if gamma is not None and not 1 <= gamma <= MOST_DRAFTS:
        raise InputError("gamma", gamma, f"be 1 to {MOST_DRAFTS}")
    first = text.lstrip()[:1]
    if first not in ("{", "["):
        if "spec_decode_num" in text:
            return _with_gamma(counts_of_text(text, place), gamma)
        return _recording(list(_csv(text, place)), gamma, place)
    return _from_objects(list(_objects(text, place)), gamma, place)


def _from_objects(
    found: list[tuple[Mapping[str, Any], str]], gamma: int | None, place: str
) -> Recording | PositionCounts:
    recordings = [(data, at) for data, at in found if "accepted_by_request" in data]
    if len(recordings) > 1:
        rule = f"hold one recording to fit, not {len(recordings)}: keep one line"
        raise InputError("log", place, rule)
    if recordings:
        return recording_of(*recordings[0])
    counted = [counts_of_object(data, at) for data, at in found]
    whole = [counts for counts in counted if counts is not None]
    if whole:
        return _with_gamma(PositionCounts.added(whole), gamma)
    requests = [request for data, at in found for request in _requests(data, at)]
    if requests:
        return _recording(requests, gamma, place)
    histograms = [counts for data, at in found if (counts := counts_of_histogram(data, at)) is not None]
    if histograms:
        return _with_gamma(PositionCounts.added(histograms), gamma)
    raise _no_log({str(name) for data, _ in found for name in data}, place)


def _no_log(names: Collection[str], place: str) -> InputError:
    close = [
        (name, like) for name in sorted(names) if (like := nearest(name, _NAMES)) is not None and like not in names
    ]
    meant = f"{close[0][1]} (for {close[0][0]})" if close else None
    return InputError("log", place, f"tell of acceptance: {LAYOUTS}", suggestion=meant)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("log", str(path), f"be a file of at most {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError("log", str(path), f"be a readable file ({reason})") from None


def _objects(text: str, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """JSON objects of a document, of its list, or of its lines."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if whole is not None:
        entries = whole if isinstance(whole, list) else [whole]
        named = [(entry, f"{place}: entry {n}" if len(entries) > 1 else place) for n, entry in enumerate(entries, 1)]
    else:
        named = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                named.append((json.loads(line), f"{place}: line {number}"))
            except (ValueError, RecursionError):
                raise InputError("content", "(damaged)", "be JSON", where=f"{place}: line {number}") from None
    for entry, at in named:
        if not isinstance(entry, Mapping):
            raise InputError("content", type(entry).__name__, "be a JSON object", where=at)
        yield entry, at


def _requests(data: Mapping[str, Any], at: str) -> Iterator[_Request]:
    if "tokens_per_step" in data:
        tokens = _counts(data["tokens_per_step"], "tokens_per_step", at, least=1)
        _matches_totals(data, tokens, at)
        yield _Request([t - 1 for t in tokens], None, at)
        return
    choices = data.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, Mapping) and "accept_lengths" in choice:
            tokens = _counts(choice["accept_lengths"], "accept_lengths", at, least=1)
            yield _Request([t - 1 for t in tokens], None, at)
    metrics = data.get("metrics")
    detail = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else data.get("speculative_decoding")
    if isinstance(detail, Mapping) and "per_step_accepted" in detail:
        accepted = _counts(detail["per_step_accepted"], "per_step_accepted", at)
        drafted = _counts(detail["per_step_drafted"], "per_step_drafted", at) if "per_step_drafted" in detail else None
        yield _Request(accepted, drafted, at)


def _matches_totals(data: Mapping[str, Any], tokens: list[int], at: str) -> None:
    for name, found, what in (("decoding_steps", len(tokens), "steps"), ("new_tokens", sum(tokens), "tokens")):
        said = data.get(name)
        total = sum(said) if isinstance(said, list) and all(_is_count(n) for n in said) else said
        if _is_count(total) and total != found:
            raise InputError(name, total, f"be the {found} {what} of tokens_per_step", where=at)


def _csv(text: str, place: str) -> Iterator[_Request]:
    reader = csv.DictReader(io.StringIO(text))
    names = {name.strip().lower(): name for name in reader.fieldnames or [] if name is not None}
    counted = next((name for name in ("tokens", "accepted") if name in names), None)
    if "request" not in names or counted is None:
        raise _no_log(names, place)
    rows: dict[str, list[tuple[int, int, int | None, str]]] = {}
    try:
        for line in reader:
            at = f"{place}: line {reader.line_num}"
            kept = _cell(line, names[counted], at) - (1 if counted == "tokens" else 0)
            if kept < 0:
                raise InputError("tokens", kept + 1, "be at least 1: a step yields the target's own token", where=at)
            drafted = _cell(line, names["drafted"], at) if "drafted" in names else None
            mine = rows.setdefault(str(line[names["request"]]), [])
            step = _cell(line, names["step"], at) if "step" in names else len(mine)
            mine.append((step, kept, drafted, at))
    except csv.Error as error:
        raise InputError("log", place, f"be CSV ({error})") from None
    for mine in rows.values():
        mine.sort(key=lambda row: row[0])
        for before, after in itertools.pairwise(mine):
            if before[0] == after[0]:
                raise InputError("step", after[0], "stand once per request", where=after[3])
        drafts = [drafted for _, _, drafted, _ in mine if drafted is not None]
        for _, kept, drafted, at in mine:
            if drafted is not None and kept > drafted:
                raise InputError(counted, kept + (counted == "tokens"), _at_most(drafted, counted), where=at)
        yield _Request([row[1] for row in mine], drafts or None, mine[0][3])


def _cell(line: Mapping[str, Any], name: str, at: str) -> int:
    value = line.get(name)
    try:
        number = float(str(value).strip())
        count = int(number)
    except (ValueError, OverflowError):
        raise InputError(name, "(absent)" if value is None else str(value), "be a count", where=at) from None
    if count != number or not 0 <= count < 2**31:
        raise InputError(name, str(value), "be a count", where=at)
    return count


def _at_most(drafted: int, counted: str) -> str:
    return f"be at most the {drafted} drafted" + (" and the target's own" if counted == "tokens" else "")


def _counts(values: Any, name: str, at: str, least: int = 0) -> list[int]:
    if not isinstance(values, list):
        raise InputError(name, type(values).__name__, "be a list of counts, one per step", where=at)
    for step, value in enumerate(values):
        if not _is_count(value) or value < least:
            rule = (
                "be a count" if least == 0 else f"be a count of at least {least}: a step yields the target's own token"
            )
            raise InputError(f"{name}[{step}]", value, rule, where=at)
    return values


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _recording(requests: Iterable[_Request], gamma: int | None, place: str) -> Recording:
    every = list(requests)
    useful = [request for request in every if request.accepted]
    if not useful:
        raise InputError("log", place, "have at least one request with a step")
    kept = max(max(request.accepted) for request in useful)
    if kept == 0 and gamma is None and not any(any(request.drafted or []) for request in useful):
        rule = "be told, as no step kept a draft (--gamma, or gamma of a replay)"
        raise InputError("drafts per step", "(unknown)", rule, where=place)
    most = gamma if gamma is not None else max(1, *(max([kept, *(r.drafted or [])]) for r in useful))
    if most > MOST_DRAFTS:
        raise InputError("drafts", most, f"be at most {MOST_DRAFTS} per step", where=place)
    accepted, drafted = [], []
    for request in useful:
        mine = request.drafted if request.drafted is not None else [most] * len(request.accepted)
        if len(mine) != len(request.accepted):
            rule = f"have as many steps as the {len(request.accepted)} of what was accepted"
            raise InputError("drafted", f"{len(mine)} steps", rule, where=request.at)
        for step, (a, d) in enumerate(zip(request.accepted, mine, strict=True)):
            if a > d or d > most:
                rule = f"be at most the {d} drafted" if a > d else f"be at most γ = {most}"
                raise InputError(
                    f"accepted[{step}]" if a > d else f"drafted[{step}]", a if a > d else d, rule, where=request.at
                )
        accepted.append(tuple(request.accepted))
        drafted.append(tuple(mine))
    return Recording(tuple(accepted), tuple(drafted), most, place, len(every) - len(useful))


def _with_gamma(counts: PositionCounts, gamma: int | None) -> PositionCounts:
    if gamma is not None and gamma < len(counts.kept) and any(counts.kept[gamma:]):
        raise InputError(
            "gamma", gamma, f"be at least the {len(counts.kept)} positions that were counted", where=counts.source
        )
    return counts
