"""Text of the command line → numbers, grids and mappings; every refusal is one sentence that names the option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from simulator.errors import InputError, MemwallError, UnknownName, nearest
from simulator.speculation.acceptance_text import fields_of_text as acceptance
from simulator.speculation.acceptance_text import number

if TYPE_CHECKING:
    from simulator.deployment import Deployment

__all__ = [
    "Parser", "acceptance", "add_batches", "add_deployment", "add_files", "check_files", "count", "deployment", "grid", "quantity",
    "share", "write_files", "written",
]  # fmt: skip

MOST = 10**7
"""Largest count any option takes; each command draws its own, narrower lines."""
MOST_POINTS = 1000
"""Longest grid a list may describe."""
_MOST_BATCH = 1 << 16
"""The bound of `planning.crossover`, which is too heavy to import for a help text; it checks it again."""


class _Formatter(argparse.HelpFormatter):
    """Sets the commands at the margin of their heading; argparse indents them without counting that in their width."""

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        yield from getattr(action, "_get_subactions", tuple)()


class Parser(argparse.ArgumentParser):
    """Raises instead of printing usage; says which known name is nearest."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """Every complaint of argparse as ours."""
        raise MemwallError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse would list all choices but never name the nearest.
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[-1].lstrip("-") if action.option_strings else action.dest
            raise UnknownName(name, str(value), [str(c) for c in action.choices], kind=name)

    def unknown(self, arguments: list[str]) -> MemwallError:
        """The error for arguments that this parser does not know."""
        first = arguments[0]
        options = [o for action in self._actions for o in action.option_strings]
        hint = nearest(first.partition("=")[0], options) if first.startswith("-") else None
        what = "option" if first.startswith("-") else "argument"
        return MemwallError(
            f"unknown {what} {first!r}" + (f"; did you mean {hint}?" if hint else f" (see {self.prog} --help)")
        )


def count(field: str, *, least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if re.fullmatch(r"\d{1,20}", text.strip(), re.ASCII) is None or not least <= int(text) <= most:
            raise InputError(field, text, f"be a whole number from {least} to {most}")
        return int(text)

    return parse


def share(field: str) -> Callable[[str], float]:
    """A type for argparse: a number from 0 to 1."""

    def parse(text: str) -> float:
        value = number(text)
        if value is None or not 0.0 <= value <= 1.0:
            raise InputError(field, text, "be a number from 0 to 1")
        return value

    return parse


def quantity(field: str, dimension: str) -> Callable[[str], float]:
    """A type for argparse: a positive number with a unit of `dimension`, e.g. "10 GB"; without one, SI."""

    def parse(text: str) -> float:
        from simulator import units

        value = units.parse(text, dimension, field=field)
        if value <= 0:
            raise InputError(field, text, "be greater than 0")
        return value

    return parse


def grid(field: str, *, least: int = 1, most: int = MOST) -> Callable[[str], tuple[int, ...]]:
    """A type for argparse: ``1,2,4`` | ``1..8`` | ``1,2,4,…,512`` | ``1,2,4..512``, whole numbers.

    Dots after three or more numbers go on as these do, doubling or stepping; dots between two numbers count by one.
    """
    whole = count(field, least=least, most=most)

    def parse(text: str) -> tuple[int, ...]:
        # "4..512" is the number 4, dots, and the number 512; so is "4,…,512".
        items = [i.strip() for i in re.sub(r"\s*(…|\.{2,3})\s*", ",…,", text).split(",")]
        items = [item for i, item in enumerate(items) if item or not _beside_dots(items, i)]
        points: list[int] = []
        literal: list[int] = []  # numbers written out since the last dots
        dots = False
        for item in items:
            if item == "…":
                if dots or not points:
                    raise InputError(field, text, "have numbers on both sides of the dots")
                dots = True
                continue
            value = whole(item)
            if dots:
                points += _continued(field, text, literal, value)
                literal, dots = [], False
            else:
                points.append(value)
            literal.append(value)
            if len(points) > MOST_POINTS:
                raise InputError(field, text, f"describe at most {MOST_POINTS} values")
        if dots:
            raise InputError(field, text, "have numbers on both sides of the dots")
        return tuple(sorted(set(points)))

    return parse


def _beside_dots(items: list[str], i: int) -> bool:
    return "…" in items[max(0, i - 1) : i + 2]


def _continued(field: str, text: str, literal: list[int], end: int) -> list[int]:
    """The numbers after the last of `literal` up to and with `end`."""
    last = literal[-1]
    if end <= last:
        raise InputError(field, text, "rise")
    factor, step = 1, 1
    if len(literal) >= 3:
        a, b, c = literal[-3:]
        if a < b < c and b * b == a * c and c % b == 0:
            factor, step = c // b, 0
        elif a < b < c and b - a == c - b:
            step = c - b
    following = [last * factor + step]
    while following[-1] < end and len(following) <= MOST_POINTS:
        following.append(following[-1] * factor + step)
    if len(following) > MOST_POINTS:
        raise InputError(field, text, f"describe at most {MOST_POINTS} values")
    if following[-1] != end:
        raise InputError(field, text, "end on a number of its own series", suggestion=str(following[-1]))
    return following


def written(*files: str | None) -> list[str]:
    """The last line of a command's output: the files it wrote, if any."""
    named = [file for file in files if file is not None]
    return [f"Wrote {', '.join(named)}."] if named else []


def add_batches(parser: argparse.ArgumentParser, batches: tuple[int, ...], shown: str) -> None:
    """The options of a steady load: batches (those left out are `shown` in the help) and context."""
    group = parser.add_argument_group("load")
    group.add_argument(
        "--batch", metavar="LIST", type=grid("batch", most=_MOST_BATCH), default=batches, help=f"sequences ({shown})"
    )
    group.add_argument("--context", metavar="N", type=count("context"), default=1024, help="tokens each holds (1024)")


def add_files(parser: argparse.ArgumentParser, *, csv: str, json: str, html: str) -> None:
    """The options that name files, with what each holds."""
    group = parser.add_argument_group("files")
    for name, held in (("csv", csv), ("json", json), ("html", html)):
        group.add_argument(f"--{name}", metavar="FILE", help=held)


def check_files(args: argparse.Namespace) -> None:
    """Raises InputError where a file that `add_files` was given cannot be written."""
    from simulator.output.files import check_writable

    check_writable([("--csv", args.csv), ("--json", args.json), ("--html", args.html)])


def write_files(
    args: argparse.Namespace,
    cells: Callable[[], Sequence[dict[str, Any]]],
    document: Callable[[], dict[str, Any]],
    page: Callable[[], str],
) -> list[str]:
    """Writes those that were asked for, each made only then; returns what `written` says."""
    from simulator.output.documents import to_json
    from simulator.output.files import write_text

    if args.csv is not None:
        from simulator.output.columns import write_mappings

        write_mappings(cells(), args.csv, "--csv")
    if args.json is not None:
        write_text(args.json, to_json(document()), "--json")
    if args.html is not None:
        write_text(args.html, page(), "--html")
    return written(args.csv, args.json, args.html)


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """The options that say what serves."""
    group = parser.add_argument_group("what serves")
    group.add_argument("--model", metavar="NAME", help="bundled model (memwall list models) or path of a config.json")
    group.add_argument("--gpu", metavar="NAME", help="bundled GPU (memwall list gpus) or path of a profile")
    group.add_argument(
        "--tp", metavar="N", type=count("tp", most=1024), default=1, help="GPUs that share the model (1)"
    )
    group.add_argument("--pp", metavar="N", type=count("pp", most=1024), default=1, help="stages of a pipeline (1)")
    group.add_argument(
        "--ep", metavar="N", type=count("ep", most=1024), help="GPUs over which whole experts are spread (none)"
    )
    group.add_argument("--weights", metavar="FORMAT", help="bf16, fp16, fp8, int8, int4, mxfp4 (the checkpoint's)")
    group.add_argument("--kv", metavar="FORMAT", help="format of the KV cache (the checkpoint's)")
    group.add_argument(
        "--activations", metavar="FORMAT", help="format of the matrix products' inputs (by the weights')"
    )
    group.add_argument(
        "--engine", metavar="NAME", help="serving engine (vllm; with an engine's own configuration, that one)"
    )
    group.add_argument("--link", metavar="NAME", help="link between the GPUs (the GPU's own)")


def deployment(
    args: argparse.Namespace, draft: str | None = None, *, engine: dict[str, Any] | None = None, **drafter: Any
) -> Deployment:
    """What `add_deployment`'s options describe, with a drafter and settings of the engine; `drafter`: ``draft_tp`` and
    ``draft_quantization`` of `deploy`. Raises MemwallError."""
    from simulator.deployment import EngineChoice, deploy
    from simulator.quantization import Quantization
    from simulator.records import validate

    formats = {
        name: getattr(args, name) for name in ("weights", "kv", "activations") if getattr(args, name) is not None
    }
    quantization = validate(Quantization, formats, "")
    return deploy(
        args.model, args.gpu, tp=args.tp, pp=args.pp, ep=args.ep, quantization=quantization,
        engine=validate(EngineChoice, {"name": args.engine or "vllm", **(engine or {})}, "engine"),
        draft=draft, link=args.link, **drafter,
    )  # fmt: skip
