"""``memwall compare``: which speculative method is best for a model, GPU and engine, by batch."""

from __future__ import annotations

import argparse
from typing import Any

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

_EXAMPLE = (
    "example: memwall compare --model llama-3.1-8b --gpu h100-sxm --trees 8,32 --acceptance llama-3.2-1b=0.7 "
    "--acceptance ngram=marginal:0.8,0.7/match:0.4 --html compare.html"
)
# The bounds of what prices them, which is too heavy to import for a help text; it checks them again.
_MOST_GAMMA, _MOST_NODES = 64, 512


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "compare",
        help="which speculative method, by batch",
        description="Lines up every drafter that goes with a model, each at its best depth or tree: speed-up, memory, cost, and how "
        "far its acceptance is known. Acceptance is the published one unless you give yours.",
        epilog=_EXAMPLE,
    )
    add_deployment(parser)
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--drafts", metavar="NAMES", type=names,
        help="drafters, separated by commas (all bundled ones that are for the model, or for any)",
    )  # fmt: skip
    group.add_argument(
        "--gamma", metavar="LIST", type=grid("gamma", most=_MOST_GAMMA), default=tuple(range(1, 9)),
        help="drafts in a row that are tried (1..8)",
    )  # fmt: skip
    group.add_argument(
        "--trees", metavar="LIST", type=grid("trees", most=_MOST_NODES), default=(),
        help="also the best trees of so many nodes, as deep as the largest --gamma",
    )  # fmt: skip
    group.add_argument(
        "--acceptance", metavar="NAME=RATES", type=named_acceptance, action="append", default=[],
        help="of one drafter, as of memwall speculate; of look-ups with the share of rounds that find a draft: "
        "ngram=0.7/match:0.4; may be repeated (the published one)",
    )  # fmt: skip
    add_batches(parser, (1, 8, 32, 128), "1,8,32,128")
    add_files(parser, csv="one row per batch and drafter", json="all figures as JSON", html="page with the figure")
    parser.set_defaults(run=run, needs=("model", "gpu"))


def names(text: str) -> tuple[str, ...]:
    """A type for argparse: names, separated by commas."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise InputError("drafts", text, "be names, separated by commas")
    return found


def named_acceptance(text: str) -> tuple[str, dict[str, Any]]:
    """A type for argparse: ``NAME=RATES`` or ``NAME=RATES/match:0.5``."""
    name, equals, rates = text.partition("=")
    if not (name.strip() and equals and rates):
        raise InputError(
            "acceptance", text, "be a drafter and its rates, such as llama-3.2-1b=0.8 or ngram=0.7/match:0.4"
        )
    rates, slash, match = rates.partition("/")
    fields = acceptance(rates)
    if slash:
        word, colon, number = match.partition(":")
        if word != "match" or not colon:
            raise InputError("acceptance", text, "end in the share of rounds with a draft, such as /match:0.4")
        fields["match_probability"] = share("match")(number)
    return name.strip(), fields


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_files(args)
    from simulator.output.compare_report import compare_cells, compare_document, compare_report
    from simulator.output.tables import print_blocks
    from simulator.planning.which_drafter import compare_drafters
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig

    given = {name: validate(AcceptanceConfig, fields, "acceptance") for name, fields in args.acceptance}
    if len(given) < len(args.acceptance):
        raise InputError("acceptance", " ".join(name for name, _ in args.acceptance), "be given once for each drafter")
    found = compare_drafters(
        deployment(args), names=args.drafts or (), acceptance=given, gammas=args.gamma, trees=args.trees, batches=args.batch,
        context_tokens=args.context,
    )  # fmt: skip
    blocks = compare_report(found)

    def page() -> str:
        from simulator.figures.compare import compare_page

        return compare_page(found, _command(args))

    files = write_files(args, lambda: compare_cells(found), lambda: compare_document(found), page)
    print_blocks([*blocks, *files])


_TOLD = ("model", "gpu", "tp", "pp", "ep", "weights", "kv", "activations", "engine", "link", "drafts", "gamma", "trees")


def _command(args: argparse.Namespace) -> str:
    """The line that gives the page again."""
    import shlex

    words = ["memwall", "compare"]
    for name in (*_TOLD, "batch", "context"):
        value = getattr(args, name)
        if value is None or value == ():
            continue
        text = ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)
        words += [f"--{name}", text]
    for name, fields in args.acceptance:
        words += ["--acceptance", f"{name}={_rates_text(fields)}"]
    return shlex.join(words)


def _rates_text(fields: dict[str, Any]) -> str:
    match = f"/match:{fields['match_probability']!r}" if "match_probability" in fields else ""
    at = fields.get("at_gamma")
    kind, value = next((k, v) for k, v in fields.items() if k not in ("at_gamma", "match_probability"))
    if isinstance(value, tuple):
        return f"{kind}:" + ",".join(f"{rate!r}" for rate in value) + match
    return (f"{kind}:{value!r}@{at}" if at is not None else f"{value!r}") + match
