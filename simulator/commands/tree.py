"""``memwall tree``: which token tree to draft at which batch, and what it looks like."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from simulator.commands.arguments import (
    acceptance,
    add_batches,
    add_deployment,
    add_files,
    check_files,
    deployment,
    grid,
    share,
    write_files,
)
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.speculation.acceptance import Acceptance
    from simulator.speculation.ranks import RankLaw

_EXAMPLE = (
    "example: memwall tree --model llama-3.1-8b --gpu h200 --draft eagle-llama-3.1-8b --nodes 1,2,4,…,64 --depth 1..8 "
    "--batch 1,2,4,…,128. Lists: 1,2,4 | 1..8 | 1,2,4,…,512 | 1,2,4..512 (doubling goes on)."
)
# The bounds of `speculation.tree_size`, which is too heavy to import for a help text; it checks them again.
_MOST_NODES, _MOST_DEPTH = 512, 64


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "tree",
        help="token trees by size and batch",
        description="The token tree that gives most tokens per second at each batch, beside the best chain and plain decoding.",
        epilog=_EXAMPLE,
    )
    add_deployment(parser)
    group = parser.add_argument_group("trees")
    group.add_argument("--draft", metavar="NAME", help="bundled drafter (memwall list drafters), any model, or a path")
    group.add_argument(
        "--nodes", metavar="LIST", type=grid("nodes", most=_MOST_NODES), default=tuple(2**i for i in range(7)),
        help="drafted tokens (1,2,4,…,64)",
    )  # fmt: skip
    group.add_argument(
        "--depth", metavar="LIST", type=grid("depth", most=_MOST_DEPTH), default=tuple(range(1, 9)), help="levels at most (1..8)"
    )  # fmt: skip
    group.add_argument(
        "--tree",
        metavar="NAME",
        help="a tree to price and draw beside the best: bundled (memwall list trees) or a file",
    )
    group.add_argument(
        "--acceptance", metavar="RATES", type=acceptance,
        help="of first candidates: 0.8 at every depth; 0.8,0.7,… conditional by depth; marginal:0.7,0.5,… (the drafter's own)",
    )  # fmt: skip
    group.add_argument(
        "--ranks", metavar="RATES", type=rank_table,
        help="of all candidates by rank, depths apart by semicolons: '0.6,0.1,0.05; 0.5,0.12' (typical ones)",
    )  # fmt: skip
    group.add_argument("--request-icc", metavar="X", type=share("request-icc"), help="correlation within a request (0)")
    add_batches(parser, tuple(2**i for i in range(8)), "1,2,4,…,128")
    add_files(
        parser,
        csv="one row per batch and tree size",
        json="all figures and the tree as JSON",
        html="page with the drawn tree and the figures",
    )
    parser.set_defaults(run=run, needs=("model", "gpu", "draft"))


def rank_table(text: str) -> tuple[tuple[float, ...], ...]:
    """A type for argparse: probabilities of candidates by rank, depth after depth: ``0.6,0.1,0.05; 0.5,0.12``."""
    try:
        return tuple(tuple(float(number) for number in row.split(",")) for row in text.split(";"))
    except ValueError:
        rule = "be numbers from 0 to 1 by rank, depths apart by semicolons, such as '0.6,0.1,0.05; 0.5,0.12'"
        raise InputError("ranks", text, rule) from None


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_files(args)
    from simulator.output.tables import print_blocks
    from simulator.output.tree_report import tree_cells, tree_document, tree_report
    from simulator.speculation.tree_config import load_tree
    from simulator.speculation.tree_size import tree_sizes

    serving = deployment(args, args.draft)
    law, ranks = _laws(args, serving)
    named = None
    if args.tree is not None:
        from pathlib import Path

        named = (Path(args.tree).stem, load_tree(args.tree)[0])
    sizes = tree_sizes(
        serving, law, nodes=args.nodes, depths=args.depth, batches=args.batch, context_tokens=args.context, ranks=ranks,
        named=named,
    )  # fmt: skip
    blocks = tree_report(sizes)

    def page() -> str:
        from simulator.figures.tree import tree_page

        return tree_page(sizes)

    files = write_files(args, lambda: tree_cells(sizes), lambda: tree_document(sizes), page)
    print_blocks([*blocks, *files])


def _laws(args: argparse.Namespace, serving: Deployment) -> tuple[Acceptance, RankLaw | None]:
    """The law of first candidates, and the measured one of all, where it is given."""
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig
    from simulator.speculation.ranks import RankLaw

    drafter, ranks = serving.drafter, None
    if args.ranks is not None:
        if args.acceptance is not None:
            raise InputError("acceptance", "(given)", "be left out with ranks, which say it themselves")
        ranks = RankLaw.measured(args.ranks)
        fields: dict[str, Any] = {"conditional": ranks.top1}
    elif args.acceptance is not None:
        fields = dict(args.acceptance)
    elif drafter is not None and drafter.acceptance is not None:
        fields = drafter.acceptance.model_dump()
    else:
        raise InputError("acceptance", "(absent)", f"be given, as none is published for the drafter {args.draft}")
    if args.request_icc is not None:
        fields["request_icc"] = args.request_icc
    config = validate(AcceptanceConfig, fields, "acceptance")
    return config.law(kind=drafter.kind if drafter else None), ranks
