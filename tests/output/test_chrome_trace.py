"""The timeline as Perfetto reads it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from simulator.cost.streaming import Overlap
from simulator.decoding import DecodeResult
from simulator.output.chrome_trace import TRACKS, chrome_trace


def events(step: DecodeResult, overlap: Overlap) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(chrome_trace(step, step.timeline(overlap)))["traceEvents"]
    return loaded


@pytest.mark.parametrize("overlap", ["stream", "wipe", "prefetch"])
def test_events_of_a_track_are_in_order_and_do_not_overlap(step: DecodeResult, overlap: Overlap) -> None:
    for thread in (1, 2):
        track = [e for e in events(step, overlap) if e["ph"] == "X" and e["tid"] == thread]
        assert len(track) > 16
        for before, after in pairwise(track):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-6  # µs; far below the last digit written


def test_the_tracks_are_named(step: DecodeResult) -> None:
    names = [e["args"]["name"] for e in events(step, "stream") if e["name"] == "thread_name"]
    assert names == list(TRACKS)


def test_the_loads_carry_all_bytes_and_the_trace_lasts_as_long_as_the_pass(step: DecodeResult) -> None:
    spans = [e for e in events(step, "stream") if e["ph"] == "X"]
    moved = sum(e["args"].get("bytes", 0) for e in spans)
    assert moved == pytest.approx(step.pass_cost.total("bytes_"), rel=1e-6)
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(step.pass_cost.seconds * 1e6, rel=1e-6)


def test_the_conditions_are_in_it(step: DecodeResult) -> None:
    other = json.loads(chrome_trace(step, step.timeline("wipe")))["otherData"]
    assert (other["model"], other["gpu"], other["batch"], other["overlap"]) == ("llama-3.2-1b", "h100-sxm", 2, "wipe")
