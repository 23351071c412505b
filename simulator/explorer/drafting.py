"""What a drafter buys, worked out: chains of every γ, or trees of every size, over the batch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from simulator.deployment import Deployment, deploy
from simulator.errors import InputError, MemwallError
from simulator.explorer.answer import Answer, Better, Download, Number, Plot
from simulator.explorer.link import Settings
from simulator.figures import acceptance as recorded
from simulator.figures import gamma_map, page, rounds, speedup, style, tree, waste
from simulator.output import report, rows
from simulator.output.acceptance_report import acceptance_yaml
from simulator.output.crossover_report import schedule_text
from simulator.output.documents import speculate_cells
from simulator.output.evidence_report import columns_csv
from simulator.output.tables import Section
from simulator.output.tree_report import batch_section, branches, tree_cells, tree_sentence
from simulator.planning.crossover import Cell, SpeculateResult, speculate, with_their_work
from simulator.planning.load_map import LoadAxis, load_map
from simulator.planning.load_map import chains as chain_draftings
from simulator.planning.schedule import schedule
from simulator.planning.work import Work
from simulator.quantization import Quantization, WeightFormat
from simulator.records import validate
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig
from simulator.speculation.acceptance_text import fields_of_text, text_of_fields
from simulator.speculation.ladder.upload import UploadedLog
from simulator.speculation.tree import Tree
from simulator.speculation.tree_size import TreeSizes, tree_sizes
from simulator.speculation.typical import doubt_sentence
from simulator.uncertainty import Interval

Said = Literal["published", "one rate", "by depth", "from a log"]
PUBLISHED: Said = "published"
ONE_RATE: Said = "one rate"
BY_DEPTH: Said = "by depth"
FROM_LOG: Said = "from a log"
KINDS_OF_ACCEPTANCE: tuple[Said, ...] = get_args(Said)
WEIGHTS: tuple[str, ...] = get_args(WeightFormat)
NODES = tuple(2**i for i in range(1, 9))
LARGEST = tuple(2**i for i in range(4, 13))
_SCHEDULED = {"vllm": "vLLM", "sglang": "SGLang"}


class Drafting(Settings):
    """A drafter beside a model."""

    model: str = "llama-3.1-8b"
    """Bundled model."""
    gpu: str = "h100-sxm"
    """Bundled GPU."""
    tp: int = 1
    """GPUs that share the model."""
    batch: int = 1
    """Sequences in the batch of the key figures."""
    context: int = 1024
    """Tokens each holds."""
    draft: str = "eagle3-llama-3.1-8b"
    """Bundled drafter, or a model that drafts."""
    tree: bool = False
    """Trees instead of chains."""
    gamma: int = 8
    """Largest γ that is compared."""
    nodes: int = 64
    """Nodes of the largest tree."""
    depth: int = 6
    """Levels of the deepest."""
    accept: Said = PUBLISHED
    """What is said of acceptance."""
    alpha: float = 0.7
    """Conditional rate at every depth, for `ONE_RATE` and where nothing is published."""
    rates: str = ""
    """Rates as text, for `BY_DEPTH`."""
    match: float | None = None
    """Share of rounds in which anything is found to draft; None: as published, else all."""
    weights: str = "model"
    """Number format of the weights."""
    engine: str = "vllm"
    """Serving engine."""
    most: int = 512
    """Largest batch of the figures."""

    def deployment(self) -> Deployment:
        """What serves. Raises MemwallError."""
        quantization = validate(Quantization, {"weights": self.weights}, "")
        return deploy(self.model, self.gpu, tp=self.tp, quantization=quantization, engine=self.engine, draft=self.draft)

    @property
    def batches(self) -> list[int]:
        """Of the figures, with the one of the key figures."""
        doubling = [2**i for i in range(self.most.bit_length())]
        return sorted({*doubling, self.batch})


def acceptance(settings: Drafting, deployment: Deployment) -> tuple[AcceptanceConfig, list[str]]:
    """What is taken of acceptance, and what to know about it. Raises InputError."""
    drafter, notes = deployment.drafter, []
    assert drafter is not None
    published = drafter.acceptance
    if settings.accept == FROM_LOG:
        instead = "as published" if published is not None else "the one rate of the slider"
        notes.append(f"No log has been sent yet (a link does not hold one): until then acceptance is {instead}.")
    elif settings.accept == PUBLISHED and published is None:
        notes.append(
            f"No acceptance is published for {drafter.title}: a conditional rate of {settings.alpha:g} at every depth is assumed."
        )
    if settings.accept == BY_DEPTH:
        if not settings.rates.strip():
            raise InputError("rates", "(empty)", "be given, such as 0.8,0.7,0.6")
        fields: dict[str, Any] = fields_of_text(settings.rates, "rates")
    elif settings.accept == ONE_RATE or published is None:
        fields = {"alpha": settings.alpha}
    else:
        fields = published.model_dump()
    if settings.match is not None:
        fields["match_probability"] = settings.match
    config = validate(AcceptanceConfig, fields, "")
    doubt = doubt_sentence(config, drafter.kind, settings.gamma)
    return config, [*notes, *([doubt] if doubt else [])]


# --- chains -----------------------------------------------------------------------------------------------------------
def chains(settings: Drafting, log: UploadedLog | None = None) -> Answer:
    """Every γ up to the largest at every batch. Raises MemwallError."""
    deployment = settings.deployment()
    config, notes = acceptance(settings, deployment)
    drafter = deployment.drafter
    assert drafter is not None
    law = config.law(kind=drafter.kind)
    most = min(settings.gamma, drafter.most_drafts)
    if most < settings.gamma:
        notes.append(f"{drafter.title} makes at most {most} drafts in a row.")
    result = speculate(
        deployment, law, gammas=range(1, most + 1), batches=settings.batches, context_tokens=settings.context
    )
    batch = settings.batch
    gamma, best = result.shown_gamma(batch), result.best_gamma(batch)
    (cell,) = with_their_work([result.cells[gamma, batch]])
    longest = max(result.gammas, key=lambda g: (result.pays_up_to(g), -g))
    end, held = result.pays_up_to(longest), result.room(longest)
    tag = f"{style.tag_of(deployment)}; context {settings.context:,} tokens"
    said = f"γ = {gamma} at batch {batch:,}"
    numbers = [
        *_speeds(cell, cell.speedup, result.intervals[batch], said),
        Number("Best γ", best or None, "", "", f"at batch {batch:,}", absent="none"),
        *_waste(cell, said),
        Number("Pays up to batch", end, "", "higher", f"with γ = {longest}; the KV cache holds {held:,} sequences"),
        Number("KV cache holds", held, "", "higher", f"sequences of {settings.context:,} tokens beside the drafter, with γ = {longest}"),
    ]  # fmt: skip
    at_each = _kept(lambda: result.at_each_batch(gamma))
    name = f"γ = {gamma}"
    return Answer(
        verdict=f"{report.speculate_sentence(result)} {_here(batch, cell, result.intervals[batch], name)}",
        conditions=[*rows.speculate_conditions(result), *_log_condition(log), *_source(config)],
        numbers=numbers,
        plots=[
            Plot("speedup", partial(speedup.speedup_figure, result)),
            Plot("map", partial(gamma_map.gamma_figure, result)),
            Plot("rounds", lambda: rounds.round_time_figure(at_each(), name, tag), wide=False),
            Plot("tokens", lambda: rounds.tokens_figure(law, gamma, name, tag), wide=False),
            Plot("drafted", partial(_drafted_by_gamma, result, batch, tag), wide=False),
            Plot("waste", lambda: waste.waste_figure(at_each(), name, tag), wide=False),
            *_log_plots(log),
        ],
        sections=[block for block in report.speculate_report(result) if isinstance(block, Section)],
        downloads=[
            Download("This page as HTML", "speculate.html", "text/html", partial(page.speculate_page, result, (), notes)),
            Download("Speed-ups as CSV", "speculate.csv", "text/csv", lambda: _csv(speculate_cells(result))),
            *_schedules(settings, deployment, law, result.gammas, config),
        ],
        notes=[*notes, *_room_notes(settings, deployment, cell.fits, result.room(gamma))],
        code={
            "On the command line": _command(settings, deployment, config, "speculate", {"gamma": f"1..{most}"}),
            "In Python": page.speculate_call(result),
            **_log_code(log),
        },
    )  # fmt: skip


def _drafted_by_gamma(result: SpeculateResult, batch: int, tag: str) -> Any:
    return waste.drafted_figure(
        {str(gamma): result.cells[gamma, batch].round for gamma in result.gammas}, f"γ, at batch {batch:,}", tag
    )


def _schedules(
    settings: Drafting, deployment: Deployment, law: Acceptance, gammas: Sequence[int], config: AcceptanceConfig
) -> list[Download]:
    """The best γ by batch for the engine that serves, where it takes such a schedule."""
    if settings.engine not in _SCHEDULED:
        return []

    def made() -> str:
        try:
            works = (Work.of_context(settings.context),)
            users = LoadAxis.of("users", [2.0**i for i in range(deployment.engine.settings.max_sequences.bit_length())])
            found = load_map(deployment, chain_draftings(deployment, law, gammas), works, users, intervals=False)
            given = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
            planned = replace(schedule(found), draft=settings.draft, acceptance=given)
            return schedule_text(planned, settings.engine) + "\n"
        except MemwallError as error:  # a browser that asked for a file gets one
            return f"No schedule: {error}\n"

    title = f"Schedule for {_SCHEDULED[settings.engine]}"
    return [Download(title, f"schedule-{settings.engine}.txt", "text/plain", made)]


# --- trees ------------------------------------------------------------------------------------------------------------
def trees(settings: Drafting, log: UploadedLog | None = None) -> Answer:
    """The best trees up to the largest size at every batch. Raises MemwallError."""
    deployment = settings.deployment()
    config, notes = acceptance(settings, deployment)
    drafter = deployment.drafter
    assert drafter is not None
    sizes = tree_sizes(
        deployment, config.law(kind=drafter.kind), nodes=[n for n in (1, *NODES) if n <= settings.nodes],
        depths=range(1, settings.depth + 1), batches=settings.batches, context_tokens=settings.context,
    )  # fmt: skip
    batch = settings.batch
    best = sizes.best_tree(batch)
    shape = best.drafted.shape
    cells = {b: Cell(sizes.best_tree(b).round, sizes.plain[b].round, sizes.best_tree(b).fits) for b in sizes.batches}
    (cell,) = with_their_work([cells[batch]])
    tag = f"{style.tag_of(deployment)}; context {settings.context:,} tokens"
    said = f"a tree of {shape.nodes} nodes at batch {batch:,}"
    interval = sizes.interval(best)
    wins = [b for b in sizes.batches if branches(sizes.best(b))]
    numbers = [
        *_speeds(cell, sizes.speedup(best), interval, said),
        Number("Nodes of the best tree", shape.nodes, "", "", f"at batch {batch:,}, {shape.depth} levels deep"),
        *_waste(cell, said),
        Number("Trees beat chains up to batch", wins[-1] if wins else None, "", "higher", "of the batches drawn", absent="none"),
    ]  # fmt: skip
    at_each = _kept(lambda: with_their_work(list(cells.values())))
    name = "the best tree"
    drawn = replace(
        sizes,
        named=(
            f"the best tree at batch {batch:,}",
            replace(best.drafted, tree=best.drafted.tree or Tree.chain(shape.depth)),
        ),
    )
    law = best.drafted.law
    assert law is not None
    return Answer(
        verdict=f"{tree_sentence(sizes)} {_here(batch, cell, interval, said.split(' at ', maxsplit=1)[0])}",
        conditions=[
            *rows.deployment_rows(deployment), ("first candidates", rows.acceptance_text(sizes.base)),
            ("context", f"{settings.context:,} tokens each"), *_log_condition(log), *_source(config),
        ],
        numbers=numbers,
        plots=[
            Plot("tree", partial(tree.tree_figure, drawn)),
            Plot("speedup", partial(tree.batch_figure, sizes)),
            Plot("sizes", partial(tree.speed_figure, sizes)),
            Plot("rounds", lambda: rounds.round_time_figure(at_each(), name, tag), wide=False),
            Plot("tokens", lambda: rounds.tokens_figure(law, shape.depth, name, tag), wide=False),
            Plot("drafted", partial(_drafted_by_nodes, sizes, batch, tag), wide=False),
            Plot("waste", lambda: waste.waste_figure(at_each(), name, tag), wide=False),
            *_log_plots(log),
        ],
        sections=[batch_section(sizes)],
        downloads=[
            Download("This page as HTML", "tree.html", "text/html", partial(tree.tree_page, sizes)),
            Download("Speed-ups as CSV", "tree.csv", "text/csv", lambda: _csv(tree_cells(sizes))),
        ],
        notes=[
            *notes,
            *_room_notes(settings, deployment, best.fits, deployment.concurrency(context_tokens=settings.context, gamma=shape.nodes).speculative),
        ],
        code={
            "On the command line": _command(
                settings, deployment, config, "tree", {"nodes": ",".join(map(str, sizes.nodes)), "depth": f"1..{settings.depth}"}
            ),
            "In Python": tree.tree_call(sizes),
            **_log_code(log),
        },
    )  # fmt: skip


def _drafted_by_nodes(sizes: TreeSizes, batch: int, tag: str) -> Any:
    return waste.drafted_figure(
        {str(n): sizes.trees[batch, n].round for n in sizes.nodes}, f"nodes of the tree, at batch {batch:,}", tag
    )


# --- both -------------------------------------------------------------------------------------------------------------
def _speeds(cell: Cell, ratio: float, interval: Interval, said: str) -> list[Number]:
    times = f"{said}; 90 %: {interval.low:.2f} to {interval.high:.2f}, as far as times are uncertain; acceptance is taken as given"
    plain = f"{said}; without speculation {1e3 * cell.plain.tpot_s:.3g} ms"
    everybody = f"of all users, {said}; without speculation {cell.plain.tokens_per_s:,.0f}"
    return [
        Number("Speed-up", ratio, "x", "higher", times),
        Number("Tokens per round", cell.round.tokens_per_sequence, "", "higher", f"acceptance length, the target's own token included; {said}"),
        Number("Time per token", cell.round.tpot_s, "s", "lower", plain),
        Number("Tokens per second", cell.round.tokens_per_s, "", "higher", everybody),
    ]  # fmt: skip


def _waste(cell: Cell, said: str) -> list[Number]:
    drafted = cell.round.drafted_per_sequence
    share = cell.round.wasted_tokens_per_sequence / drafted if drafted else None
    better: Better = "lower"
    return [
        Number("Drafts wasted", share, "%", better, f"share of what is drafted; {said}"),
        Number(
            "Joules per token", cell.round.joules_per_token, "", better,
            f"an estimate, every GPU at its TDP; {said}; without speculation {cell.plain.joules_per_token:.3g}",
        ),
    ]  # fmt: skip


def _here(batch: int, cell: Cell, interval: Interval, what: str) -> str:
    ratio = f"{cell.speedup:.2f} × plain decoding (90 %: {interval.low:.2f} to {interval.high:.2f})"
    at = f"At batch {batch:,}" + ("" if cell.fits else ", for which the KV cache has no room,")
    if cell.speedup > 1.0:
        return f"{at}{'' if at.endswith(',') else ','} {what} is {ratio}."
    return f"{at} nothing pays; {what} loses least: {ratio}."


def _room_notes(settings: Drafting, deployment: Deployment, fits: bool, room: int) -> list[str]:
    if not fits:
        return [
            f"The KV cache holds {room:,} sequences of this context, not the {settings.batch:,} of the figures above."
        ]
    most = deployment.engine.settings.max_sequences
    if settings.batch > most:
        return [f"{deployment.engine.title} runs at most {most:,} sequences at once unless it is told otherwise."]
    return []


def _kept(make: Callable[[], list[Cell]]) -> Callable[[], list[Cell]]:
    """`make`, called once and only where it is needed."""
    found: list[list[Cell]] = []

    def get() -> list[Cell]:
        if not found:
            found.append(make())
        return found[0]

    return get


def _source(config: AcceptanceConfig) -> list[tuple[str, str]]:
    given = [("acceptance measured on", config.dataset), ("acceptance from", config.source)]
    return [(label, text) for label, text in given if text]


def _log_condition(log: UploadedLog | None) -> list[tuple[str, str]]:
    return [] if log is None else [("your log", log.sentence)]


def _log_plots(log: UploadedLog | None) -> list[Plot]:
    return [] if log is None else [Plot("log", partial(recorded.rates_figure, log.fit))]


def _log_code(log: UploadedLog | None) -> dict[str, str]:
    if log is None:
        return {}
    words = ["memwall", "acceptance", "fit", log.name, "--yaml", "acceptance.yaml"]
    return {
        "Your log's rates, for the table of rates or a link": log.rates,
        "Your log's rates for a scenario, YAML": acceptance_yaml(log.fit),
        "How requests differ, loops and matches: laws judged on requests held out, about a minute": shlex.join(words),
    }


def _command(
    settings: Drafting, deployment: Deployment, config: AcceptanceConfig, name: str, grid: Mapping[str, str]
) -> str:
    """The line that gives these figures on the command line."""
    words = ["memwall", name, "--model", settings.model, "--gpu", settings.gpu, "--tp", str(settings.tp)]
    words += ["--draft", settings.draft, "--context", str(settings.context)]
    for option, text in {**grid, "batch": ",".join(map(str, settings.batches))}.items():
        words += [f"--{option}", text]
    if settings.accept in (ONE_RATE, BY_DEPTH) or deployment.drafter is None or deployment.drafter.acceptance is None:
        words += ["--acceptance", text_of_fields(config.model_dump())]
    if settings.match is not None and name == "speculate":
        words += ["--match-probability", f"{settings.match:g}"]
    if settings.weights != "model":
        words += ["--weights", settings.weights]
    if settings.engine != "vllm":
        words += ["--engine", settings.engine]
    return shlex.join(words)


def _csv(cells: Sequence[Mapping[str, Any]]) -> str:
    return columns_csv({name: [cell[name] for cell in cells] for name in cells[0]})
