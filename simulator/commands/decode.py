"""``memwall decode``: one decode step taken apart."""

from __future__ import annotations

import argparse
from typing import Any

from simulator.commands.arguments import add_deployment, count, deployment, quantity, written

_EXAMPLE = "example: memwall decode --model llama-3.1-70b --gpu h100-sxm --tp 4 --batch 1 --context 2048"


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "decode",
        help="milliseconds per token, and where they go",
        description="One decode step taken apart.",
        epilog=_EXAMPLE,
    )
    add_deployment(parser)
    group = parser.add_argument_group("the step")
    group.add_argument("--batch", metavar="N", type=count("batch", most=10**6), default=1, help="sequences (1)")
    group.add_argument("--context", metavar="N", type=count("context"), default=1024, help="tokens each holds (1024)")
    group = parser.add_argument_group("the layer pipeline")
    group.add_argument(
        "--desk", metavar="SIZE", type=quantity("desk", "bytes"), help="what if the SRAM were, say, 10GB"
    )
    group.add_argument(
        "--overlap", choices=("stream", "wipe", "prefetch"), help="how loading and multiplying overlap (stream)"
    )
    group = parser.add_argument_group("files")
    group.add_argument("--timeline", metavar="FILE", help="Chrome-trace JSON of loads and arithmetic, for Perfetto")
    group.add_argument("--html", metavar="FILE", help="page with the timeline as a figure")
    group.add_argument("--json", metavar="FILE", help="all figures as JSON")
    parser.set_defaults(run=run, needs=("model", "gpu"))


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.output.files import check_writable, write_text

    check_writable([("--timeline", args.timeline), ("--html", args.html), ("--json", args.json)])
    from simulator.decoding import decode
    from simulator.output.report import decode_report
    from simulator.output.tables import print_blocks

    result = decode(deployment(args), batch=args.batch, context_tokens=args.context)
    asked = args.desk is not None or args.overlap is not None or args.timeline is not None
    timeline = result.timeline(args.overlap or "stream", args.desk) if asked or args.html is not None else None
    if args.timeline is not None and timeline is not None:
        from simulator.output.chrome_trace import chrome_trace

        write_text(args.timeline, chrome_trace(result, timeline), "--timeline")
    if args.html is not None:
        from simulator.figures.page import decode_page

        write_text(args.html, decode_page(result, timeline), "--html")
    if args.json is not None:
        from simulator.output.documents import decode_document, to_json

        write_text(args.json, to_json(decode_document(result)), "--json")
    print_blocks([*decode_report(result, timeline if asked else None), *written(args.timeline, args.html, args.json)])
