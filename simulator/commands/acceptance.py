"""``memwall acceptance``: a law of acceptance from an engine's logs, and how well it predicts requests it has not seen."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from simulator.commands.arguments import count, written
from simulator.errors import UnknownName

_EXAMPLE = (
    "example: memwall acceptance fit answers.jsonl --yaml acceptance.yaml. Logs: JSON lines with tokens_per_step or "
    "accept_lengths (Spec-Bench), accepted_by_request (memwall measure), or vLLM's metrics.speculative_decoding in detail; CSV of "
    "request and tokens or accepted (and drafted); vLLM's counters spec_decode_num_… as Prometheus text or JSON; histograms of "
    "vLLM and SGLang."
)
_ACTIONS = ("fit",)


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "acceptance",
        help="a law of acceptance from an engine's logs",
        description="Fits laws of acceptance to the logs of an engine, and says what each misses on requests held out.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("action", metavar="fit", help="the only action")
    parser.add_argument("log", metavar="LOG", help="file of steps by request, or of counts by position")
    parser.add_argument(
        "--gamma", metavar="N", type=count("gamma"), help="drafts per step (as logged, else the most ever kept)"
    )
    parser.add_argument("--folds", metavar="N", type=count("folds"), default=5, help="parts held out in turn (5)")
    parser.add_argument(
        "--seed", metavar="N", type=count("seed", least=0), default=0, help="of the division into parts (0)"
    )
    parser.add_argument(
        "--rung", metavar="NAME",
        help="law for the scenario: rate, depths, requests, stretches, loops, matches or replay (the lowest that is good enough)",
    )  # fmt: skip
    group = parser.add_argument_group("files")
    group.add_argument("--yaml", metavar="FILE", help="the law as a scenario's acceptance")
    group.add_argument("--json", metavar="FILE", help="all figures as JSON")
    group.add_argument("--html", metavar="FILE", help="page with the figures")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.commands.simulate import ProgressBar
    from simulator.output.files import check_writable, write_text

    if args.action not in _ACTIONS:
        raise UnknownName("action", args.action, _ACTIONS, kind="action of memwall acceptance")
    check_writable([("--yaml", args.yaml), ("--json", args.json), ("--html", args.html)], [args.log])
    from simulator.output.acceptance_report import acceptance_document, acceptance_report, acceptance_yaml
    from simulator.output.documents import to_json
    from simulator.output.tables import print_blocks
    from simulator.speculation.ladder.logs import read_log
    from simulator.speculation.ladder.result import fit_log

    log = read_log(args.log, args.gamma)
    with ProgressBar(shown=sys.stderr.isatty()) as bar:
        fit = fit_log(
            log, args.log, folds=args.folds, seed=args.seed, rung=args.rung,
            tell=lambda done, of: bar.tell("fitting", done, of),
        )  # fmt: skip
    if args.yaml is not None:
        write_text(args.yaml, acceptance_yaml(fit), "--yaml")
    if args.json is not None:
        write_text(args.json, to_json(acceptance_document(fit)), "--json")
    if args.html is not None:
        from simulator.figures.acceptance import acceptance_page

        write_text(args.html, acceptance_page(fit, _again(args)), "--html")
    print_blocks([*acceptance_report(fit), *written(args.yaml, args.json, args.html)])


def _again(args: argparse.Namespace) -> str:
    import shlex

    words = ["memwall", "acceptance", "fit", args.log]
    for name, default in (("gamma", None), ("folds", 5), ("seed", 0), ("rung", None)):
        value = getattr(args, name)
        if value != default:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
