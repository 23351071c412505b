"""``memwall measure``: the reference decoder on the user's own device, and at once what it is good for."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from simulator.errors import MemwallError

_EXAMPLE = "example: memwall measure --device cuda --budget 8m --out mine.jsonl --profile mine.yaml --html mine.html"
_PASSED_ON = ("device", "budget", "out", "kinds", "dtype", "threads", "attention")
_FLAGS = ("resume", "fuse", "toy")


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "measure",
        help="time a real decoder on your own GPU or CPU",
        description="Times kernels, steps, drafts, speculative rounds and small serving runs of a real PyTorch decoder.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what to measure (a GPU where there is one)")
    parser.add_argument("--budget", metavar="TIME", help="how long to measure: 90s, 8m, 1h (8m)")
    parser.add_argument("--out", metavar="FILE", help="file of JSON lines")
    parser.add_argument("--resume", action="store_true", help="continue the file, measuring only what it lacks")
    parser.add_argument("--kinds", metavar="LIST", help="only these kinds of measurements, comma-separated")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of the models (bf16)")
    parser.add_argument("--threads", metavar="N", help="of a CPU run (1: more disturb each other on a shared machine)")
    parser.add_argument("--attention", choices=("auto", "sdpa", "matmul"), help="how attention is computed (auto)")
    parser.add_argument("--fuse", action="store_true", help="fuse norms, rotary and activation with torch.compile")
    parser.add_argument(
        "--toy", action="store_true", help="tiny shapes, to check that everything works; no real speeds"
    )
    group = parser.add_argument_group("and then")
    group.add_argument("--profile", metavar="FILE", help="calibrate from what was measured")
    group.add_argument("--html", metavar="FILE", help="page of predicted against measured")
    parser.set_defaults(run=run, needs=("out",))


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from simulator.output.files import check_writable

    check_writable([("--out", args.out), ("--profile", args.profile), ("--html", args.html)])
    if importlib.util.find_spec("torch") is None:
        raise MemwallError("measure needs PyTorch: pip install 'memwall[torch]', or a build of it for your device")
    from simulator.reference_decoder import measure

    given = {name: getattr(args, name) for name in _PASSED_ON}
    argv = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    code = measure.main([*argv, *(f"--{flag}" for flag in _FLAGS if getattr(args, flag))])
    if code:
        raise SystemExit(code)
    if args.profile is not None or args.html is not None:
        from simulator.calibration.sources import Options
        from simulator.commands.calibrate import calibrate

        calibrate(args.out, args.profile, args.html, Options())
