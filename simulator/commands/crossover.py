"""``memwall crossover``: where speculation pays over load, drafts and context, why it stops, and what to configure."""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.commands.arguments import acceptance, add_deployment, count, grid, quantity, share, written
from simulator.errors import InputError, MemwallError
from simulator.speculation.acceptance_text import text_of_fields

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.planning.load_map import LoadAxis, LoadMap
    from simulator.planning.simulated_map import SimulatedMap
    from simulator.planning.step_prices import Drafting
    from simulator.planning.work import Work
    from simulator.scenario import Scenario
    from simulator.speculation.acceptance import Acceptance

INTERRUPTED = 130
_EXAMPLE = (
    "example: memwall crossover --model llama-3.1-70b --gpu h200 --tp 4 --draft llama-3.2-1b --acceptance 0.7 "
    "--gamma 0..8 --load 1,2,4..256 --context 512,2048,8192 --simulate --out cells.jsonl --html map.html --schedule vllm"
)
_MOST_GAMMA, _MOST_LOAD, _MOST_NODES = 64, 1 << 16, 512
_SCHEDULES = ("vllm", "sglang", "yaml")


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "crossover",
        help="where speculation pays, over load, drafts and context",
        description="Maps speed-up and goodput of speculation over load, drafts and context, in closed form and simulated; says "
        "where and why it stops paying, and writes the best schedule for an engine.",
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs="?", help="bundled scenario or YAML file, instead of --model …"
    )
    add_deployment(parser)
    parser.set_defaults(tp=None, pp=None)  # a scenario has its own; 1 without one
    group = parser.add_argument_group("speculation")
    group.add_argument("--draft", metavar="NAME", help="bundled drafter, any model, or a path")
    group.add_argument(
        "--gamma", metavar="LIST", type=grid("gamma", least=0, most=_MOST_GAMMA), default=tuple(range(9)),
        help="drafted tokens (0..8); 0, plain decoding, is what all are compared with",
    )  # fmt: skip
    group.add_argument(
        "--trees", metavar="LIST", type=grid("trees", most=_MOST_NODES), default=(),
        help="also the best trees of so many nodes, as deep as the largest --gamma",
    )  # fmt: skip
    group.add_argument(
        "--acceptance",
        metavar="RATES",
        type=acceptance,
        help="as of memwall speculate (the scenario's or drafter's own)",
    )
    group.add_argument("--request-icc", metavar="X", type=share("request-icc"), help="correlation within a request")
    group.add_argument(
        "--match-probability", metavar="X", type=share("match-probability"), help="share of rounds with drafts"
    )
    group = parser.add_argument_group("load")
    group.add_argument(
        "--load", metavar="LIST", type=grid("load", most=_MOST_LOAD),
        help="users who ask again at once, which is the batch (1,2,4,… up to the engine's batch)",
    )  # fmt: skip
    group.add_argument("--rate", metavar="LIST", type=_rates, help="requests per second instead: 0.5,1,2,4")
    group.add_argument(
        "--context", metavar="LIST", type=grid("context"),
        help="mean tokens that a decoding sequence holds (1024; a scenario's own traffic)",
    )  # fmt: skip
    group.add_argument("--output", metavar="N", type=count("output", least=2), help="mean answer with --context (256)")
    group.add_argument("--ttft", metavar="T", type=quantity("ttft", "s"), help="objective for goodput, e.g. '500 ms'")
    group.add_argument("--tpot", metavar="T", type=quantity("tpot", "s"), help="objective for goodput, e.g. '30 ms'")
    group = parser.add_argument_group("simulation")
    group.add_argument("--simulate", action="store_true", help="every cell simulated as well")
    group.add_argument(
        "--requests", metavar="N", type=count("requests", least=64), default=2000, help="of each cell (2000)"
    )
    group.add_argument(
        "--burstiness", metavar="B", type=_burstiness, default=1.0,
        help="of arrivals with --rate: coefficient of variation 1/√B (1: Poisson; 0.111: three)",
    )  # fmt: skip
    group.add_argument("--seed", metavar="S", type=count("seed", least=0, most=2**63 - 1), help="of all randomness")
    group.add_argument("--jobs", metavar="N", type=count("jobs", most=1024), default=1, help="processes (1)")
    group.add_argument("--out", metavar="FILE", help="finished cells; a file that is there is gone on with")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")
    group = parser.add_argument_group("files")
    group.add_argument(
        "--schedule", metavar=("ENGINE", "FILE"), nargs="+",
        help="best γ by batch for vllm or sglang, or by batch and context as yaml for our own policies; printed, or into FILE",
    )  # fmt: skip
    group.add_argument("--csv", metavar="FILE", help="one row per cell")
    group.add_argument("--json", metavar="FILE", help="all figures as JSON")
    group.add_argument("--html", metavar="FILE", help="page with the maps")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> int:
    """Runs the command. Exit code 0, or 130 where Ctrl-C left cells out; what there is is written either way."""
    from simulator.output.files import check_writable, write_text

    engine, schedule_file = _schedule_option(args.schedule)
    outputs = [("--csv", args.csv), ("--json", args.json), ("--html", args.html), ("--schedule", schedule_file)]
    check_writable([*outputs, ("--out", args.out)], [args.scenario])
    if args.out is not None and not args.simulate:
        raise InputError("out", args.out, "go with --simulate, whose cells it holds")
    from simulator.output import crossover_report as report
    from simulator.output.documents import to_json
    from simulator.output.tables import print_blocks
    from simulator.planning.load_map import load_map
    from simulator.planning.schedule import schedule

    asked = _asked(args)
    if args.burstiness != 1.0 and (not args.simulate or asked.axis.kind == "users"):
        raise InputError("burstiness", args.burstiness, "go with --simulate and arrivals at a --rate")
    found = load_map(asked.deployment, asked.draftings, asked.works, asked.axis, slo=asked.scenario.slo)
    doubt = [
        load_map(asked.deployment, _with_law(asked.draftings, law), asked.works, asked.axis, intervals=False)
        for law in asked.laws
    ]
    simulated, whole = (None, True) if not args.simulate else _simulated(args, asked, found)
    blocks = report.crossover_report(found, simulated, doubt)
    blocks[1:1] = _one_replica(asked.scenario)
    text = ""
    if engine is not None:
        planned = replace(schedule(found), draft=asked.draft, acceptance=asked.acceptance)
        text = report.schedule_text(planned, engine)
        if schedule_file is not None:
            write_text(schedule_file, report.schedule_file(planned, engine), "--schedule")
    if args.csv is not None:
        from simulator.output.columns import write_mappings

        write_mappings(report.crossover_cells(found, simulated), args.csv, "--csv")
    if args.json is not None:
        write_text(args.json, to_json(report.crossover_document(found, simulated)), "--json")
    if args.html is not None:
        from simulator.figures.crossover_page import crossover_page

        write_text(args.html, crossover_page(found, simulated, doubt, text, _command(args)), "--html")
    if text:
        blocks.append(text)
    print_blocks([*blocks, *written(args.out, args.csv, args.json, args.html, schedule_file)])
    if not whole:
        print("memwall: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


class Asked(NamedTuple):
    """What the options describe."""

    scenario: Scenario
    deployment: Deployment
    draftings: tuple[Drafting, ...]
    works: tuple[Work, ...]
    axis: LoadAxis
    own_traffic: bool
    laws: tuple[Acceptance, ...]
    """Laws at the ends of what one known number leaves open; none where more is known."""
    draft: str
    """The drafter as it was named."""
    acceptance: dict[str, Any] | None
    """Acceptance as a scenario has it; None where it is the drafter's own."""


def _asked(args: argparse.Namespace) -> Asked:
    from simulator.planning.load_map import chains, trees
    from simulator.speculation.typical import acceptance_interval

    scenario = _scenario(args)
    deployment = scenario.deployment()
    config = _acceptance(args, scenario, deployment)
    kind = deployment.drafter.kind if deployment.drafter else None
    law = config.law(scenario.base, kind=kind)
    draftings = chains(deployment, law, args.gamma) if any(args.gamma) else ()
    if args.trees:
        draftings = (*draftings, *trees(deployment, law, args.trees, max(args.gamma) or 8))
    if not draftings:
        raise InputError("gamma", list(args.gamma), "name at least one number of drafts above 0, or give --trees")
    works, own = _works(args, scenario, deployment)
    interval = acceptance_interval(config, kind) or ()
    drafter = deployment.drafter
    named = scenario.speculation.draft if scenario.speculation is not None else drafter.name if drafter else ""
    given = None
    if drafter is None or config != drafter.acceptance:
        given = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return Asked(
        scenario, deployment, draftings, works, _axis(args, scenario, deployment, works, own), own, interval[::2], named, given
    )  # fmt: skip


def _one_replica(scenario: Scenario) -> list[str]:
    """What a map leaves out of a scenario with several replicas."""
    if scenario.cluster is None and scenario.replicas == 1:
        return []
    whole = "the scenario's cluster" if scenario.cluster is not None else f"the scenario's {scenario.replicas}"
    return [f"The map is of one replica of {whole}, with the scenario's own GPUs; loads are those of one replica."]


def _with_law(draftings: tuple[Drafting, ...], law: Acceptance) -> tuple[Drafting, ...]:
    return tuple(replace(d, law=law) for d in draftings if d.shape.is_chain)


def _scenario(args: argparse.Namespace) -> Scenario:
    """The scenario given, or one of the options, with the changes that they ask for."""
    from simulator.scenario import load_scenario

    slo = {name: value for name, value in (("ttft_s", args.ttft), ("tpot_s", args.tpot)) if value is not None}
    if args.scenario is not None:
        for name in ("model", "gpu", "tp", "pp", "ep", "weights", "kv", "activations", "engine", "link"):
            if getattr(args, name) is not None:
                raise InputError(name, getattr(args, name), "be left out with a scenario, which has its own")
        changes: dict[str, Any] = {"slo": slo} if slo else {}
        found = load_scenario(args.scenario, seed=args.seed, **changes)
        if found.speculation is None or args.draft is not None:
            if args.draft is None:
                raise InputError("draft", "(absent)", "be given, as the scenario does not speculate")
            found = load_scenario(args.scenario, seed=args.seed, speculation={"draft": args.draft}, **changes)
        return found
    missing = [f"--{name}" for name in ("model", "gpu", "draft") if getattr(args, name) is None]
    if missing:
        raise MemwallError(f"crossover needs a scenario, or {' and '.join(missing)} (see memwall crossover --help)")
    formats = {n: getattr(args, n) for n in ("weights", "kv", "activations") if getattr(args, n) is not None}
    return load_scenario({
        "model": args.model, "gpu": args.gpu, "tp": args.tp or 1, "pp": args.pp or 1, "ep": args.ep, "quantization": formats,
        "engine": args.engine or "vllm", "link": args.link, "speculation": {"draft": args.draft}, "slo": slo, "seed": args.seed or 0,
        "traffic": {"kind": "poisson", "rate_per_s": 1, "requests": args.requests, "lengths": {"prompt": 1, "output": 2}},
    }, where="options")  # fmt: skip


def _acceptance(args: argparse.Namespace, scenario: Scenario, deployment: Deployment) -> Any:
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig

    own = scenario.speculation.acceptance if scenario.speculation else None
    if own is None and deployment.drafter is not None:
        own = deployment.drafter.acceptance
    if args.acceptance is not None:
        fields = dict(args.acceptance)
    elif own is not None:
        fields = own.model_dump(exclude_unset=True)
    else:
        name = deployment.drafter.name if deployment.drafter else "(none)"
        raise InputError("acceptance", "(absent)", f"be given, as none is published for the drafter {name}")
    given = {"request_icc": args.request_icc, "match_probability": args.match_probability}
    fields.update({name: value for name, value in given.items() if value is not None})
    return validate(AcceptanceConfig, fields, "acceptance")


def _works(args: argparse.Namespace, scenario: Scenario, deployment: Deployment) -> tuple[tuple[Work, ...], bool]:
    """What requests ask for, and whether that is the scenario's own traffic."""
    from simulator.planning.work import OUTPUT_TOKENS, Work
    from simulator.serving.simulation import context_limit
    from simulator.serving.traffic import ClosedLoop, generate

    if args.context is not None or args.scenario is None:
        output = args.output or OUTPUT_TOKENS
        return tuple(Work.of_context(context, output) for context in args.context or (1024,)), False
    if args.output is not None:
        raise InputError("output", args.output, "go with --context; a scenario's traffic has its own answers")
    limit = context_limit(scenario, deployment)
    mean = Work.of_requests(generate(scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit))
    closed = isinstance(scenario.traffic, ClosedLoop)
    if (args.load is not None and not closed) or (args.rate is not None and closed):
        return (Work.of_context(round(mean.context_tokens), round(mean.output_tokens)),), False
    return (mean,), True


def _axis(
    args: argparse.Namespace, scenario: Scenario, deployment: Deployment, works: tuple[Work, ...], own: bool
) -> LoadAxis:
    from simulator.planning.load_map import LoadAxis, default_rates
    from simulator.serving.traffic import ClosedLoop

    if args.load is not None and args.rate is not None:
        raise InputError("rate", "(given)", "be left out with --load")
    if args.rate is not None or (args.load is None and own and not isinstance(scenario.traffic, ClosedLoop)):
        return LoadAxis.of("rate", args.rate or default_rates(deployment, works))
    most = deployment.engine.settings.max_sequences
    doubling = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return LoadAxis.of("users", [float(v) for v in args.load or doubling])


def _simulated(args: argparse.Namespace, asked: Asked, found: LoadMap) -> tuple[SimulatedMap, bool]:
    from simulator.commands.simulate import ProgressBar
    from simulator.planning.cell_store import CellStore
    from simulator.planning.simulated_map import Grid, simulate_map
    from simulator.serving.compiled import is_cold
    from simulator.serving.first_call import compile_step_loop

    store = CellStore(args.out)
    if is_cold() and not args.no_progress:
        print("memwall: compiling the step loop, once, some fifteen seconds …", file=sys.stderr, flush=True)
    compile_step_loop()
    grid_ = Grid(asked.scenario, asked.deployment, asked.axis, args.requests, args.burstiness)
    started_s = time.perf_counter()
    with ProgressBar(shown=not args.no_progress and sys.stderr.isatty()) as bar:
        result, whole = simulate_map(
            grid_, found.draftings, found.works, own_traffic=asked.own_traffic, jobs=args.jobs, store=store,
            progress=lambda done, of: bar.tell("cells", done, of),
        )  # fmt: skip
    took_s = time.perf_counter() - started_s
    print(f"memwall: {result.made:,} cells simulated in {took_s:.1f} s, {result.reused:,} were there", file=sys.stderr)
    return result, whole


def _schedule_option(words: list[str] | None) -> tuple[str | None, str | None]:
    if words is None:
        return None, None
    from simulator.errors import UnknownName

    if words[0] not in _SCHEDULES:
        raise UnknownName("schedule", words[0], _SCHEDULES, kind="schedule")
    if len(words) > 2:
        raise InputError("schedule", " ".join(words), "be an engine and at most one file")
    return words[0], words[1] if len(words) == 2 else None


def _rates(text: str) -> tuple[float, ...]:
    """A type for argparse: rates per second, separated by commas; or a grid of whole numbers."""
    if re.search(r"…|\.\.", text):
        return tuple(float(v) for v in grid("rate")(text))
    parse = quantity("rate", "per_s")
    return tuple(sorted({parse(part) for part in text.split(",")}))


def _burstiness(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1e4:
        raise InputError("burstiness", text, "be a number from 0.01 to 10000")
    return value


_TOLD = (
    "model", "gpu", "tp", "pp", "ep", "weights", "kv", "activations", "engine", "link", "draft", "gamma", "trees", "request_icc",
    "match_probability", "load", "rate", "context", "output", "ttft", "tpot", "requests", "burstiness", "seed",
)  # fmt: skip


def _command(args: argparse.Namespace) -> str:
    """The line that gives the page again."""
    import shlex

    words = ["memwall", "crossover"] + ([args.scenario] if args.scenario else [])
    for name in _TOLD:
        value = getattr(args, name)
        if value is None or value == ():
            continue
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    if args.acceptance is not None:
        words += ["--acceptance", text_of_fields(args.acceptance)]
    return shlex.join([*words, *(["--simulate"] if args.simulate else [])])
