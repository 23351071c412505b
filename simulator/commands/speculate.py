"""``memwall speculate``: speed-up of every γ at every batch, and where it stops paying."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from simulator.commands.arguments import acceptance, add_deployment, count, deployment, grid, share, written
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.speculation.acceptance import Acceptance

_EXAMPLE = (
    "example: memwall speculate --model llama-3.1-70b --gpu h200 --tp 4 --draft llama-3.2-1b --gamma 1..8 "
    "--acceptance 0.8 --batch 1,2,4,…,512. Lists: 1,2,4 | 1..8 | 1,2,4,…,512 | 1,2,4..512 (doubling goes on)."
)
# The bounds of `planning.crossover`, which is too heavy to import for a help text; it checks them again.
_MOST_GAMMA, _MOST_BATCH = 64, 1 << 16


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "speculate",
        help="speed-up by drafted tokens and batch",
        description="Speed-up of speculative decoding in closed form, and the batch at which it stops paying.",
        epilog=_EXAMPLE,
    )
    add_deployment(parser)
    group = parser.add_argument_group("speculation")
    group.add_argument("--draft", metavar="NAME", help="bundled drafter (memwall list drafters), any model, or a path")
    group.add_argument(
        "--gamma",
        metavar="LIST",
        type=grid("gamma", most=_MOST_GAMMA),
        default=tuple(range(1, 9)),
        help="drafted tokens (1..8)",
    )
    group.add_argument(
        "--acceptance", metavar="RATES", type=acceptance,
        help="0.8 at every depth; 0.8,0.7,… conditional by depth; marginal:0.7,0.5,… as engines log it (the drafter's own)",
    )  # fmt: skip
    group.add_argument("--request-icc", metavar="X", type=share("request-icc"), help="correlation within a request (0)")
    group.add_argument(
        "--match-probability", metavar="X", type=share("match-probability"), help="share of rounds with any draft (1)"
    )
    group = parser.add_argument_group("load")
    group.add_argument(
        "--batch", metavar="LIST", type=grid("batch", most=_MOST_BATCH), default=tuple(2**i for i in range(10)),
        help="sequences (1,2,4,…,512)",
    )  # fmt: skip
    group.add_argument("--context", metavar="N", type=count("context"), default=1024, help="tokens each holds (1024)")
    group = parser.add_argument_group("files")
    group.add_argument("--csv", metavar="FILE", help="one row per γ and batch")
    group.add_argument("--json", metavar="FILE", help="all figures as JSON")
    group.add_argument("--html", metavar="FILE", help="page with the figure")
    parser.set_defaults(run=run, needs=("model", "gpu", "draft"))


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.output.files import check_writable, write_text

    check_writable([("--csv", args.csv), ("--json", args.json), ("--html", args.html)])
    from simulator.output import documents
    from simulator.output.report import speculate_report
    from simulator.output.tables import print_blocks
    from simulator.planning.crossover import speculate

    serving = deployment(args, args.draft)
    result = speculate(serving, _law(args, serving), gammas=args.gamma, batches=args.batch, context_tokens=args.context)
    blocks = speculate_report(result)
    if args.csv is not None:
        from simulator.output.columns import write_mappings

        write_mappings(documents.speculate_cells(result), args.csv, "--csv")
    if args.json is not None:
        write_text(args.json, documents.to_json(documents.speculate_document(result)), "--json")
    if args.html is not None:
        from simulator.figures.page import speculate_page

        write_text(args.html, speculate_page(result), "--html")
    print_blocks([*blocks, *written(args.csv, args.json, args.html)])


def _law(args: argparse.Namespace, serving: Deployment) -> Acceptance:
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig

    drafter = serving.drafter
    if args.acceptance is not None:
        fields: dict[str, Any] = dict(args.acceptance)
    elif drafter is not None and drafter.acceptance is not None:
        fields = drafter.acceptance.model_dump()
    else:
        raise InputError("acceptance", "(absent)", f"be given, as none is published for the drafter {args.draft}")
    given = {"request_icc": args.request_icc, "match_probability": args.match_probability}
    fields.update({name: value for name, value in given.items() if value is not None})
    return validate(AcceptanceConfig, fields, "acceptance").law()
