"""``memwall validate``: predicted against measured."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from simulator.commands.arguments import written
from simulator.errors import InputError

_EXAMPLE = (
    "examples: memwall validate (everything bundled); memwall validate mine.jsonl --html mine.html; memwall validate "
    "bench.json --scenario my-server.yaml (a result of vllm bench serve, sglang bench_serving or guidellm)"
)


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "validate",
        help="predicted against measured",
        description="Holds predictions against measurements that they were not fitted on.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="*",
        help="measurement file, CSV of points, kernel tables, layer timings, an engine's run, published speeds, or the result "
        "file of a serving benchmark (everything bundled)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", metavar="NAME", help="GPU of the tables or run; of a measurement file, the profile to hold against it"
    )
    parser.add_argument("--link", metavar="NAME", help="link of the tables' collectives (the GPU's own)")
    parser.add_argument("--scenario", metavar="NAME", help="what served while a benchmark ran: bundled or a file")
    parser.add_argument("--salvage", action="store_true", help="read a damaged measurement file up to the damage")
    group = parser.add_argument_group("files")
    group.add_argument("--html", metavar="FILE", help="page with the figures")
    group.add_argument("--json", metavar="FILE", help="all statistics as JSON")
    group.add_argument("--rows", metavar="FILE", help="every point, .parquet or .csv")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.output.files import check_writable, write_text

    check_writable(
        [("--html", args.html), ("--json", args.json), ("--rows", args.rows)], [*args.sources, args.scenario]
    )
    from simulator import catalog
    from simulator.calibration.sources import Options, validations_of
    from simulator.output.tables import print_blocks
    from simulator.output.validation_report import validation_report
    from simulator.scenario import load_scenario

    scenario = load_scenario(args.scenario) if args.scenario is not None else None
    options = Options(args.gpu, args.link, scenario, args.salvage)
    sources = [Path(source) for source in args.sources]
    bundled = catalog.root() / "hardware_profiles" / "measurements"
    sources = sources or [*sorted(bundled.glob("*.jsonl")), *sorted(bundled.glob("published/*.csv"))]
    if not sources:
        raise InputError("source", "(absent)", "be given: no measurements are bundled here")
    found = [validation for source in sources for validation in validations_of(source, options)]
    if args.html is not None:
        from simulator.figures.validation_page import validation_page

        call = ["memwall", "validate", *map(str, args.sources)]
        call += [
            word
            for name in ("gpu", "link", "scenario")
            if (value := getattr(args, name))
            for word in (f"--{name}", value)
        ]
        write_text(args.html, validation_page(found, shlex.join(call)), "--html")
    if args.json is not None:
        from simulator.output.documents import to_json
        from simulator.output.validation_document import validation_document

        write_text(args.json, to_json(validation_document(found)), "--json")
    if args.rows is not None:
        from simulator.output.columns import write_columns
        from simulator.output.validation_document import comparison_columns

        write_columns(comparison_columns(found), args.rows, "--rows")
    print_blocks([*validation_report(found), *written(args.html, args.json, args.rows)])
