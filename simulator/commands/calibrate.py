"""``memwall calibrate``: measurements → the profile of the device they were taken on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.commands.arguments import written

if TYPE_CHECKING:
    from simulator.calibration.sources import Options

_EXAMPLE = (
    "example: memwall calibrate mine.jsonl -o mine.yaml, and then memwall decode --gpu mine.yaml --engine reference …; "
    "kernel tables: memwall calibrate TABLES --gpu h100-sxm -o h100.yaml"
)


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a device's efficiencies to measurements",
        description="Fits a device's efficiencies to measurements, and says what the fit misses on what it did not see.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="measurement file, CSV of points with named columns, folder of kernel tables or of layer timings",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="PROFILE", help="YAML file to write; its path works as --gpu")
    parser.add_argument("--gpu", metavar="NAME", help="GPU of the tables or points (measurement files know theirs)")
    parser.add_argument("--link", metavar="NAME", help="link of the tables' collectives (the GPU's own)")
    parser.add_argument("--salvage", action="store_true", help="read a damaged measurement file up to the damage")
    parser.add_argument("--html", metavar="FILE", help="page of predicted against measured")
    parser.set_defaults(run=run, needs=("output",))


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.calibration.sources import Options
    from simulator.output.files import check_writable

    check_writable([("--output", args.output), ("--html", args.html)], [args.source])
    calibrate(args.source, args.output, args.html, Options(gpu=args.gpu, link=args.link, salvage=args.salvage))


def calibrate(source: str, output: str | None, html: str | None, options: Options) -> None:
    """Fits, writes what was asked for, and prints the validation."""
    from simulator.calibration.device_profile import profile_name
    from simulator.calibration.sources import profile_from
    from simulator.output.files import write_text
    from simulator.output.tables import print_blocks
    from simulator.output.validation_report import validation_report

    text, validation = profile_from(Path(source), profile_name(output or source), options)
    if output is not None:
        write_text(output, text, "--output")
    if html is not None:
        from simulator.figures.validation_page import validation_page

        write_text(
            html, validation_page(validation, f"memwall calibrate {source} -o {output or 'PROFILE.yaml'}"), "--html"
        )
    print_blocks([*validation_report(validation), *written(output, html)])
