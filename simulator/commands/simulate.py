"""``memwall simulate``: a scenario with many users, with speculation and without."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.commands.arguments import count, quantity, written
from simulator.commands.engine_options import (
    acceptance_doubt,
    add_engine_options,
    as_changes,
    engine_speculation,
    own_engine,
    remarks,
)
from simulator.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from simulator.scenario import Scenario
    from simulator.serving.intervals import Intervals
    from simulator.serving.replications import Replications
    from simulator.serving.simulation import SimulationResult

DEFAULT_SCENARIO = "chat-70b-h200"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
_QUIET_S = 1.0
"""A progress bar that would be gone sooner only flickers."""


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "simulate",
        help="many users over time, with speculation and without",
        description="Simulates a scenario on the same requests and the same luck with speculation and without.",
        epilog="example: memwall simulate chat-70b-h200 --rate 4 --set engine.max_sequences=64 --rows out.parquet",
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs="?", default=DEFAULT_SCENARIO,
        help=f"bundled scenario (memwall list scenarios) or path of a YAML file ({DEFAULT_SCENARIO})",
    )  # fmt: skip
    group = parser.add_argument_group("changes to the scenario")
    group.add_argument("--trace", metavar="FILE", help="replay this trace instead of the scenario's traffic and load")
    group.add_argument("--requests", metavar="N", type=count("requests"), help="how many requests")
    group.add_argument("--rate", metavar="R", type=quantity("rate", "per_s"), help="arrivals per second, or '30 /min'")
    group.add_argument("--users", metavar="N", type=count("users"), help="users of a closed loop")
    group.add_argument(
        "--seed", metavar="S", type=count("seed", least=0, most=2**63 - 1), help="seed of all randomness"
    )
    group.add_argument("--gamma", metavar="G", type=count("gamma", most=64), help="tokens drafted per round")
    group.add_argument("--replicas", metavar="N", type=count("replicas", most=1024), help="copies of the model")
    group.add_argument("--tp", metavar="N", type=count("tp", most=1024), help="GPUs that share every layer")
    group.add_argument("--pp", metavar="N", type=count("pp", most=1024), help="stages of a pipeline")
    group.add_argument("--ep", metavar="N", type=count("ep", most=1024), help="GPUs over which experts are spread")
    group.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="changes",
        help="any field by its dotted name, e.g. engine.max_sequences=64 or speculation=null",
    )  # fmt: skip
    add_engine_options(parser)
    group = parser.add_argument_group("files")
    group.add_argument("--rows", metavar="FILE", help="one row per request and variant, .parquet or .csv")
    group.add_argument("--json", metavar="FILE", help="scenario and summary as JSON")
    group.add_argument("--html", metavar="FILE", help="report with figures, works offline")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="keep no requests in memory: the same figures, rows written while they come into being (beyond two million "
        "requests, unless --html, --intervals or --replications ask for them again)",
    )  # fmt: skip
    parser.add_argument(
        "--intervals", action=argparse.BooleanOptionalAction,
        help="prediction intervals, some six simulations more (up to 20,000 requests)",
    )  # fmt: skip
    parser.add_argument(
        "--replications", metavar="N", type=count("replications", least=2, most=1000),
        help="simulate N seeds in all, and say how far the figures depend on the draw",
    )  # fmt: skip
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> int:
    """Runs the command. Exit code 0, or 130 where Ctrl-C left a part of it undone; what there is is written either way."""
    from simulator.output.files import check_writable

    check_writable([("--rows", args.rows), ("--json", args.json), ("--html", args.html)], [args.scenario, args.trace])
    scenario = changed_scenario(args)
    from simulator.commands.streamed import simulate_rows, streams
    from simulator.output.columns import check_suffix
    from simulator.output.simulation_report import simulation_report
    from simulator.output.tables import print_blocks
    from simulator.serving.cluster import INTERRUPTED as STOPPED
    from simulator.serving.compiled import is_cold
    from simulator.serving.first_call import compile_step_loop
    from simulator.serving.fleets import kinds_of
    from simulator.serving.simulation import simulate, variants_of

    check_suffix(args.rows, "--rows")
    streamed = streams(args, scenario)
    # What cannot be served is said at once, not after the compilation.
    asked = variants_of(scenario, scenario.deployment())[0]
    kinds_of(scenario, asked.deployment, asked.drafts)
    if is_cold() and not args.no_progress:
        print("memwall: compiling the step loop, once, some fifteen seconds …", file=sys.stderr, flush=True)
    compile_step_loop()
    started_s = time.perf_counter()
    with ProgressBar(shown=not args.no_progress and sys.stderr.isatty()) as bar:
        result = simulate_rows(args, scenario, bar.tell) if streamed else simulate(scenario, bar.tell, partial=True)
        wall_s = time.perf_counter() - started_s
        interrupted = result.interrupted_s is not None
        extra = Extras()
        if not interrupted and not streamed:
            extra = extras(args, result, bar.tell)
        notes = acceptance_doubt(scenario)
        notes += remarks(args, engine_speculation(args, scenario.model), scenario.engine.name)
        write_files(args, result, extra, bar.tell, rows=None if streamed else args.rows, notes=notes)
    blocks = simulation_report(result, wall_s, extra.intervals, extra.replications)
    if extra.left_out:
        blocks.append(f"Interrupted: {extra.left_out} left out; the simulation itself is complete.")
    print_blocks([*blocks, *notes, *written(args.rows, args.json, args.html)])
    if extra.left_out or any(run.interrupted == STOPPED for run in result.runs):
        print("memwall: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


class Extras(NamedTuple):
    """What takes further simulations."""

    intervals: Intervals | None = None
    replications: Replications | None = None
    left_out: str = ""
    """What Ctrl-C has prevented."""


def extras(args: argparse.Namespace, result: SimulationResult, tell: Tell) -> Extras:
    """Intervals and replications, as far as they are asked for and nobody interrupts them."""
    from simulator.serving.intervals import MOST_REQUESTS, simulation_intervals
    from simulator.serving.replications import replicate

    found = Extras()
    try:
        if args.replications is not None:
            found = found._replace(replications=replicate(result.scenario, args.replications, tell))
        if args.intervals or (args.intervals is None and len(result.traffic) <= MOST_REQUESTS):
            found = found._replace(intervals=simulation_intervals(result, tell))
    except KeyboardInterrupt:
        missing = "prediction intervals"
        if args.replications is not None and found.replications is None:
            missing = "replications and prediction intervals"
        return found._replace(left_out=missing)
    return found


def write_files(
    args: argparse.Namespace,
    result: SimulationResult,
    extra: Extras,
    tell: Tell,
    *,
    rows: str | None,
    notes: Sequence[str] = (),
) -> None:
    """The files that were asked for, the quickest first, `rows` among them where they are not there yet. Raises InputError."""
    from simulator.output.files import write_text

    if args.json is not None:
        from simulator.output.documents import simulation_document, to_json

        document = simulation_document(result, extra.intervals, extra.replications)
        write_text(args.json, to_json(document), "--json")
    if args.html is not None:
        from simulator.figures.page import simulation_page

        write_text(args.html, simulation_page(result, extra.intervals, notes), "--html")
    if rows is not None:
        from simulator.output.columns import write_requests

        write_requests(result, rows, "--rows", tell)


def changed_scenario(args: argparse.Namespace) -> Scenario:
    """The scenario with the changes that the options ask for. Raises MemwallError."""
    from simulator import catalog
    from simulator.records import read_mapping
    from simulator.scenario import load_scenario

    path = catalog.locate("scenario", args.scenario)
    data = read_mapping(path)
    flags = {
        "load.requests": args.requests, "load.rate_per_s": args.rate, "load.users": args.users, "seed": args.seed,
        "replicas": args.replicas, "tp": args.tp, "pp": args.pp, "ep": args.ep, "speculation.gamma": args.gamma,
    }  # fmt: skip
    model = data.get("model")
    read = engine_speculation(args, model if isinstance(model, str) else None)
    changes = [] if read is None else as_changes(read, data.get("speculation"))
    if read is not None and data.get("engine") is None:
        data["engine"] = own_engine(args)
    changes += [_parsed(text) for text in args.changes]
    if args.trace is not None:
        # The load belongs to the traffic that is replaced: a trace brings its own.
        changes += [("load", {}), ("traffic", {"kind": "trace", "path": str(Path(args.trace).absolute())})]
    changes += [(key, value) for key, value in flags.items() if value is not None]
    for key, value in changes:
        _assign(data, key, value, path.parent)
    _check_pools(data.get("cluster"), {name: getattr(args, name) for name in ("replicas", "tp", "pp", "ep")})
    return load_scenario(data, base=path.parent, where=str(path))


def _check_pools(cluster: Any, given: dict[str, int | None]) -> None:
    """Raises InputError where an option would change nothing, as every pool has its own number."""
    pools = cluster.get("pools") if isinstance(cluster, dict) else None
    if not isinstance(pools, list) or not pools:
        return
    for name, value in given.items():
        if value is not None and all(isinstance(pool, dict) and pool.get(name) is not None for pool in pools):
            raise InputError(name, value, "be left out where each pool of the cluster has its own")


def _parsed(text: str) -> tuple[str, Any]:
    """``a.b=value``, the value in YAML."""
    import yaml

    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise InputError("set", text, "look like engine.max_sequences=64")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            "set", text, f"have a YAML value ({getattr(error, 'problem', None) or 'unreadable'})"
        ) from None


def _assign(data: dict[str, Any], key: str, value: Any, base: Path) -> None:
    """Sets the field of `data` that the dotted `key` names; mappings on the way are made where there are none."""
    first, *rest = key.split(".")
    if rest and isinstance(data.get(first), str) and first in ("engine", "traffic"):
        data[first] = _expanded(first, data[first], base)
    if key == "speculation.gamma" and data.get("speculation") is None:
        raise InputError("gamma", value, "be left out for a scenario without speculation")
    place = data
    *folders, last = key.split(".")
    for name in folders:
        inner = place.get(name)
        if inner is None:
            inner = place[name] = {}
        if not isinstance(inner, dict):
            raise InputError("set", key, f"not go below {name}, which is a single value here")
        place = inner
    place[last] = value


def _expanded(field: str, name: str, base: Path) -> dict[str, Any]:
    """An engine or a traffic that is given by name, as the mapping the name stands for."""
    if field == "engine":
        return {"name": name}
    from simulator.serving.traffic import load_traffic

    return load_traffic(name, base).model_dump(mode="json")


class ProgressBar:
    """A bar on stderr that appears after a second, and only where `shown`."""

    def __init__(self, shown: bool):
        self._shown = shown
        self._started_s = time.perf_counter()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tell(self, variant: str, done: int, of: int) -> None:
        """Called by the simulation now and then."""
        if not self._shown or (self._progress is None and time.perf_counter() - self._started_s < _QUIET_S):
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._progress.start()
        if variant not in self._tasks:
            self._tasks[variant] = self._progress.add_task(variant, total=of)
        self._progress.update(self._tasks[variant], completed=done, refresh=True)
