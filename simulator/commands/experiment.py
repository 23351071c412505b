"""``memwall experiment``: the article's claims, tried one by one."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "experiment",
        help="the article's claims, tried one by one",
        description="Tries the claims of the article that memwall grew from, and says which hold.",
        epilog="example: memwall experiment 3-verification-is-free",
    )
    parser.add_argument("experiment", metavar="NAME", nargs="?", help="bundled experiment or path of a file (all)")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator import catalog
    from simulator.experiments import load_experiment, run_experiment
    from simulator.output.report import experiment_report
    from simulator.output.tables import print_blocks

    names = [args.experiment] if args.experiment else catalog.names("experiment")
    for number, name in enumerate(names):
        if number:
            print()
        print_blocks(experiment_report(run_experiment(load_experiment(name))))
