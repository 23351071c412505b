"""The ``memwall`` command: which commands there are, and how every run of one ends.

Nothing here computes, and nothing heavy is imported before a command runs: ``memwall --help`` is instant.

Exit codes: 0 done, 2 a mistake of the user's (one sentence on stderr), 130 interrupted (what there was of a simulation is written),
141 the reader of our output left.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from simulator import __version__
from simulator.commands import (
    acceptance,
    calibrate,
    catalog,
    compare,
    crossover,
    decode,
    experiment,
    explore,
    measure,
    simulate,
    speculate,
    tree,
    validate,
)
from simulator.commands.arguments import Parser
from simulator.errors import EXIT_CODE, MemwallError
from simulator.output.files import discard_output

COMMANDS: tuple[Callable[[Any], None], ...] = (
    decode.add,
    speculate.add,
    tree.add,
    crossover.add,
    compare.add,
    acceptance.add,
    simulate.add,
    experiment.add,
    explore.add,
    measure.add,
    calibrate.add,
    validate.add,
    catalog.add_list,
    catalog.add_show,
)
"""Each adds one command's parser; its defaults are ``run``, a function of the arguments, and ``needs``, options it
cannot do without."""

INTERRUPTED, PIPE_CLOSED = 130, 141

# Matrices here have a dozen columns: threads in numpy's algebra only wait for each other, for seconds on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without γ gets a question mark, not a traceback
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except MemwallError as error:
        sentence = " ".join(str(error).split())
        print(f"memwall: error: {sentence}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("memwall: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on exit; let it go nowhere.
        discard_output()
        return PIPE_CLOSED
    except SystemExit as done:  # --help and --version
        return done.code if isinstance(done.code, int) else 0
    return code


def parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and those of the commands by name."""
    top = Parser(
        prog="memwall",
        description="GPU performance simulator for LLM decoding and multi-user speculative serving.",
        epilog="memwall COMMAND --help tells more.",
    )
    top.add_argument("--version", action="version", version=f"memwall {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for add in COMMANDS:
        add(commands)
    return top, dict(commands.choices)


def _run(argv: Sequence[str]) -> int:
    top, commands = parser()
    args, unknown = top.parse_known_args(_joined(argv))
    command = commands.get(args.command) if args.command else None
    if unknown:
        raise (command or top).unknown(unknown)
    if command is None:
        top.print_help()
        return 0
    missing = [f"--{name}" for name in args.needs if getattr(args, name) is None]
    if missing:
        raise MemwallError(f"{args.command} needs {' and '.join(missing)} (see {command.prog} --help)")
    return args.run(args) or 0  # a command that has no exit code of its own is done


def _joined(argv: Sequence[str]) -> list[str]:
    """`argv` with negative values, and another engine's flags, tied to their option: argparse would take -1GB and -inf for
    options of their own."""
    joined: list[str] = []
    for word in argv:
        negative = re.match(r"-(\.?\d|inf|nan)", word, re.IGNORECASE)
        if joined and re.fullmatch(r"--[a-z-]+", joined[-1]) and (negative or joined[-1] == "--sglang-flags"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


if __name__ == "__main__":
    sys.exit(main())
