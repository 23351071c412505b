"""A timeline as Chrome trace events, the JSON that Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format", Google, 2016: complete events ("X") with ts and dur in µs, metadata events ("M") for names.
"""

from __future__ import annotations

import json
from typing import Any

from simulator import __version__
from simulator.decoding import DecodeResult, Timeline

TRACKS = ("HBM load", "SM compute")
_PID = 1


def chrome_trace(result: DecodeResult, timeline: Timeline) -> str:
    """One track for HBM loads, one for SM compute; events of a track are in order and do not overlap."""
    target = result.deployment.target
    title = f"{target.decoder.name} on {target.gpus} x {target.gpu.name}, one of {target.gpus} ranks"
    events: list[dict[str, Any]] = [_name("process_name", 0, title)]
    for thread, track in enumerate(TRACKS, start=1):
        events.append(_name("thread_name", thread, track))
        events.append(
            {"ph": "M", "pid": _PID, "tid": thread, "name": "thread_sort_index", "args": {"sort_index": thread}}
        )
    for span in timeline.spans():
        # Start and end are rounded, not the length: neighbours that touch then still touch, and never overlap.
        start_us, end_us = round(span.start_s * 1e6, 3), round(span.end_s * 1e6, 3)
        loads = span.track == TRACKS[0]
        events.append({
            "ph": "X",
            "pid": _PID,
            "tid": 1 + TRACKS.index(span.track),
            "ts": start_us,
            "dur": round(end_us - start_us, 3),
            "name": span.name,
            "cat": "load" if loads else "compute",
            "args": {"bytes": span.bytes_} if loads else {},
        })  # fmt: skip
    return json.dumps(
        {"displayTimeUnit": "ns", "otherData": _conditions(result, timeline), "traceEvents": events},
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )


def _name(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PID, "tid": thread, "name": kind, "args": {"name": name}}


def _conditions(result: DecodeResult, timeline: Timeline) -> dict[str, Any]:
    target = result.deployment.target
    return {
        "memwall": __version__,
        "model": target.decoder.name,
        "gpu": target.gpu.name,
        "tp": target.tp,
        "pp": target.pp,
        "engine": result.deployment.engine.name,
        "batch": result.batch,
        "context_tokens": result.context_tokens,
        "overlap": timeline.overlap,
        "desk_bytes": timeline.desk_bytes,
        "pass_s": timeline.seconds,
        "host_s": result.host_s,
        "times": target.efficiency.label,
    }
