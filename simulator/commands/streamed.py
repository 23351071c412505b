"""When ``memwall simulate`` keeps no requests, and how their rows reach a file while they are simulated."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.scenario import Scenario
    from simulator.serving.simulation import SimulationResult

MOST_KEPT = 2_000_000
"""More requests than these are streamed unless something asks for them afterwards; so many take some 800 MB."""
_NEED_REQUESTS = ("html", "intervals", "replications")
"""Options that look at the requests again."""


def streams(args: argparse.Namespace, scenario: Scenario) -> bool:
    """Whether `scenario` is to be streamed. Raises InputError where it is asked for and cannot be."""
    from simulator.serving.streaming import refusal

    wanted = [name for name in _NEED_REQUESTS if getattr(args, name)]
    if args.stream is None:
        many = (scenario.traffic.requests or 0) > MOST_KEPT
        return many and not wanted and refusal(scenario) is None
    if args.stream and wanted:
        rule = "be left out with --stream, which keeps no requests"
        raise InputError(f"--{wanted[0]}", getattr(args, wanted[0]), rule)
    if args.stream and (found := refusal(scenario)) is not None:
        raise found
    return bool(args.stream)


def simulate_rows(
    args: argparse.Namespace, scenario: Scenario, tell: Callable[[str, int, int], None]
) -> SimulationResult:
    """Simulates and writes the rows that are asked for; on Ctrl-C what there is by then."""
    from simulator.output.columns import metadata, row_stream
    from simulator.output.rows import interruption
    from simulator.serving.streaming import Stream

    stream = Stream.of(scenario)
    if args.rows is None:
        return stream.run(progress=tell, partial=True)
    names = [c.name for c in stream.traffic.classes]
    with row_stream(args.rows, "--rows", classes=names, metadata=metadata(stream)) as rows:
        result = stream.run(rows, tell, partial=True)
        if sentence := interruption(result):
            rows.note("interrupted", sentence)
    return result
