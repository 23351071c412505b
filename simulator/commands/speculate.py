"""``memwall speculate``: speed-up of every γ at every batch, and where it stops paying."""

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
from simulator.commands.engine_options import add_engine_options, deployment_changes, engine_speculation, remarks
from simulator.errors import InputError, MemwallError

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.output.tables import Section
    from simulator.planning.acceptance_doubt import SpeedupDoubt
    from simulator.speculation.acceptance import AcceptanceConfig

_EXAMPLE = (
    "example: memwall speculate --model llama-3.1-70b --gpu h200 --tp 4 --draft llama-3.2-1b --gamma 1..8 "
    "--acceptance 0.8 --batch 1,2,4,…,512. Lists: 1,2,4 | 1..8 | 1,2,4,…,512 | 1,2,4..512 (doubling goes on)."
)
# The bound of `planning.crossover`, which is too heavy to import for a help text; it checks it again.
_MOST_GAMMA = 64


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
        help="drafted tokens (1..8, as far as the drafter goes)",
    )
    group.add_argument(
        "--acceptance", metavar="RATES", type=acceptance,
        help="0.8 at every depth; 0.8,0.7,… conditional by depth; marginal:0.7,0.5,… as engines log it; or one number and the γ "
        "it was measured at: length:2.9@4 tokens per verification, rate:0.63@3 accepted over drafted (the drafter's own)",
    )  # fmt: skip
    group.add_argument("--request-icc", metavar="X", type=share("request-icc"), help="correlation within a request (0)")
    group.add_argument(
        "--match-probability", metavar="X", type=share("match-probability"), help="share of rounds with any draft (1)"
    )
    add_engine_options(parser)
    add_batches(parser, tuple(2**i for i in range(10)), "1,2,4,…,512")
    add_files(parser, csv="one row per γ and batch", json="all figures as JSON", html="page with the figure")
    parser.set_defaults(run=run, needs=("model", "gpu"))


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_files(args)
    from simulator.output import documents
    from simulator.output.report import speculate_report
    from simulator.output.tables import print_blocks
    from simulator.planning.acceptance_doubt import speedup_doubt
    from simulator.planning.crossover import speculate
    from simulator.speculation.typical import acceptance_interval

    read = engine_speculation(args, args.model)
    fields = read.speculation if read is not None else {}
    if read is not None and args.draft is not None:
        raise InputError("draft", args.draft, "be left out where an engine's configuration names the drafter")
    draft = fields.get("draft", args.draft)
    if draft is None:
        raise MemwallError("speculate needs --draft (see memwall speculate --help)")
    serving = deployment(args, draft, **deployment_changes(args, read))
    most = min(8, serving.drafter.most_drafts) if serving.drafter else 8
    gammas = args.gamma or tuple(sorted({*range(1, most + 1), *([fields["gamma"]] if fields else [])}))
    config, kind = (
        _acceptance(args, serving, fields.get("acceptance")),
        serving.drafter.kind if serving.drafter else None,
    )
    result = speculate(serving, config.law(kind=kind), gammas=gammas, batches=args.batch, context_tokens=args.context)
    laws = acceptance_interval(config, kind)
    doubt = speedup_doubt(result, laws) if laws is not None else None
    blocks = speculate_report(result)
    more = [] if doubt is None else [_doubt_section(config, kind, doubt)]
    notes = remarks(args, read, serving.engine.name)
    if fields.get("tree") is not None:
        notes.insert(0, "The tree of the engine's configuration is left out here: chains are priced.")

    def document() -> dict[str, Any]:
        whole = documents.speculate_document(result)
        return whole if doubt is None else {**whole, "acceptance_doubt": [entry._asdict() for entry in doubt]}

    def page() -> str:
        from simulator.figures.page import speculate_page

        return speculate_page(result, more, notes)

    files = write_files(args, lambda: documents.speculate_cells(result), document, page)
    print_blocks([*blocks, *more, *notes, *files])


def _acceptance(args: argparse.Namespace, serving: Deployment, engine: Any) -> AcceptanceConfig:
    """What is given, else what the engine's configuration forces, else what is published of the drafter."""
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig

    drafter = serving.drafter
    if args.acceptance is not None:
        fields: dict[str, Any] = dict(args.acceptance)
    elif engine is not None:
        fields = dict(engine)
    elif drafter is not None and drafter.acceptance is not None:
        fields = drafter.acceptance.model_dump()
    else:
        name = drafter.name if drafter is not None else args.draft
        raise InputError("acceptance", "(absent)", f"be given, as none is published for the drafter {name}")
    given = {"request_icc": args.request_icc, "match_probability": args.match_probability}
    fields.update({name: value for name, value in given.items() if value is not None})
    return validate(AcceptanceConfig, fields, "acceptance")


def _doubt_section(config: AcceptanceConfig, kind: str | None, doubt: list[SpeedupDoubt]) -> Section:
    from simulator.output.rows import Table
    from simulator.output.tables import Section
    from simulator.speculation.typical import law_from_config

    laws = law_from_config(config, kind)
    source = laws.source if laws is not None else ""

    def named(gamma: int) -> str:
        return str(gamma) if gamma else "none"

    body = [
        (
            f"{entry.batch:,}", str(entry.gamma), f"{entry.speedup:.2f}", f"{entry.least:.2f}–{entry.most:.2f}",
            " / ".join(named(gamma) for gamma in entry.best_gammas),
        )
        for entry in doubt
    ]  # fmt: skip
    return Section(
        f"as far as one number at γ = {config.at_gamma} leaves acceptance open",
        Table(("batch", "γ", "speed-up", "from–to", "best γ if low / typical / high"), body),
        f"{source}; from–to: half as far again as the public rates that fall most and least with depth",
    )
