"""What a command prints about its result, in order: conditions, a verdict, tables. The tables hold text only."""

from __future__ import annotations

from simulator import units
from simulator.cost.efficiency import Efficiency
from simulator.cost.forward import CAUSES as CAUSE_ORDER
from simulator.decoding import DecodeResult, Timeline
from simulator.experiments import Check, Outcome
from simulator.output import rows
from simulator.output.rows import CAUSES, Table
from simulator.output.tables import Section, properties
from simulator.planning.crossover import Cell, SpeculateResult

Block = str | Section
NONE = "–"


# --- one decode step ----------------------------------------------------------------------------------------------------
def decode_report(result: DecodeResult, timeline: Timeline | None = None) -> list[Block]:
    """The step of `result`; with `timeline` also what the layer pipeline makes of it."""
    target, engine = result.deployment.target, result.deployment.engine
    blocks: list[Block] = [
        f"{target.decoder.name} on {rows.gpus_text(result.deployment)}, {_formats(target.formats)}; "
        f"batch {result.batch:,}{_parts(result)}, context {result.context_tokens:,} tokens; engine: {engine.title}.",
        result.verdict,
        properties("one decode step", _decode_figures(result)),
        Section("where the time goes, by cause", _cause_table(result)),
        Section(
            f"where the time goes, by operator (bytes and FLOP of {_whose(result)}, all layers together)",
            _operator_table(result),
        ),
        properties("memory of one GPU", rows.memory_rows(result.budget)),
    ]
    if timeline is not None:
        hbm, sms = timeline.busy
        today = result.deployment.gpu.desk_bytes
        other = timeline.overlap != "stream" or timeline.desk_bytes != today
        instead = f", instead of {units.show(result.pass_cost.seconds, 's')} today with {units.show(today, 'bytes')}"
        blocks.append(
            f"Layer pipeline ({timeline.overlap}, desk of {units.show(timeline.desk_bytes, 'bytes')}): a pass without host "
            f"time takes {units.show(timeline.seconds, 's')}{instead if other else ''}; HBM is busy {hbm:.1%} and the SMs "
            f"{sms:.1%} of it."
        )
    blocks.append(calibration_line(target.efficiency))
    return blocks


def calibration_line(efficiency: Efficiency) -> str:
    """Calibrated or not, and the typical error by kind of operator."""
    errors = sorted(efficiency.typical_error.items())
    if len({round(e, 3) for _, e in errors}) == 1:
        typical = f"{errors[0][1]:.0%} for every kind of operator"
    else:
        typical = ", ".join(f"{kind.replace('_', ' ')} {error:.0%}" for kind, error in errors)
    return f"Times are {efficiency.label}; typical error {typical}."


def _whose(result: DecodeResult) -> str:
    return "one GPU of each stage for one micro-batch" if result.deployment.target.pp > 1 else "one GPU"


def _parts(result: DecodeResult) -> str:
    return f" in {result.micro_batches} micro-batches" if result.micro_batches > 1 else ""


def _formats(formats: object) -> str:
    weights, kv, activations = (getattr(formats, name) for name in ("weights", "kv", "activations"))
    return f"weights {weights}, KV cache {kv}, activations {activations}"


def _decode_figures(result: DecodeResult) -> list[tuple[str, ...]]:
    gpu = result.deployment.gpu
    per_user = 1.0 / result.step_s
    return [
        (
            "time per token of each user",
            f"{units.show(result.step_s, 's')} (90 %: {rows.interval(result.interval, 's')})",
        ),
        ("speed of each user", f"{per_user:,.1f} tokens/s"),
        ("output of all users", f"{result.tokens_per_s:,.1f} tokens/s"),
        ("what binds", CAUSES[result.binding]),
        (
            "SMs idle",
            f"{1.0 - result.sm_busy_share:.1%} of the step (busy: its FLOP at the rate that large tiles reach)",
        ),
        ("HBM traffic of one GPU", rows.share(units.show(result.bytes_per_s, "bytes_per_s"), result.bandwidth_share)),
        ("arithmetic of one GPU", rows.share(units.show(result.flop_per_s, "flop_per_s"), result.flop_share)),
        (
            "desk (shared memory of all SMs)",
            f"{units.show(gpu.desk_bytes, 'bytes')}, filled and wiped {result.desk_loads:,.0f} times per step",
        ),
    ]


def _cause_table(result: DecodeResult) -> Table:
    body = [
        (
            cause.replace("_", " "),
            CAUSES[cause],
            _ms(result.by_cause[cause]),
            f"{result.by_cause[cause] / result.step_s:.1%}",
        )
        for cause in CAUSE_ORDER
    ]
    body.append(("total", "", _ms(result.step_s), "100.0%"))
    return Table(("cause", "", "ms", "share"), [tuple(row) for row in body])


def _operator_table(result: DecodeResult) -> Table:
    body: list[tuple[str, ...]] = []
    for example, total_s in result.by_operator:
        same = [o for o in result.pass_cost.operators if o.name == example.name]
        bytes_ = sum(o.repeat * o.bytes_ for o in same)
        flop = sum(o.repeat * o.flop for o in same)
        causes: dict[str, float] = {}
        for o in same:
            for cause, seconds in o.by_cause().items():
                causes[cause] = causes.get(cause, 0.0) + o.repeat * seconds
        body.append((
            example.name,
            f"{sum(o.repeat for o in same):,}",
            _ms(total_s),
            f"{total_s / result.step_s:.1%}",
            units.show(bytes_, "bytes") if bytes_ else NONE,
            units.show(flop, "flop") if flop else NONE,
            f"{bytes_ / total_s / 1e9:,.0f}" if bytes_ and total_s else NONE,
            f"{flop / total_s / 1e12:.3g}" if flop and total_s else NONE,
            max(causes, key=lambda cause: causes[cause]).replace("_", " "),
        ))  # fmt: skip
    host = result.host_s
    body.append(("(host)", "1", _ms(host), f"{host / result.step_s:.1%}", NONE, NONE, NONE, NONE, "host"))
    return Table(("operator", "times", "ms", "share", "bytes", "FLOP", "GB/s", "TFLOP/s", "binds"), body)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


# --- speculation over a grid --------------------------------------------------------------------------------------------
def speculate_report(result: SpeculateResult) -> list[Block]:
    """The grid of speed-ups, what is best at each batch, and where each γ stops paying."""
    deployment = result.deployment
    target = deployment.target
    return [
        f"{target.decoder.name} with drafter {rows.drafter_text(deployment)} on {rows.gpus_text(result.deployment)}, {_formats(target.formats)}; "
        f"{rows.acceptance_text(result.acceptance)}; context {result.context_tokens:,} tokens; engine: "
        f"{deployment.engine.title}.",
        speculate_sentence(result),
        Section(
            "speed-up over plain decoding, by γ and batch",
            _speedup_table(result),
            "* best γ of its batch    ( ) more sequences than the KV cache holds at this context",
        ),
        Section(
            "best γ of each batch",
            _best_table(result),
            "90 %: as far as times are uncertain; acceptance is taken as given    verify: γ + 1 tokens over one    ms: per token of each user",
        ),
        Section("where each γ stops paying", _crossover_table(result)),
        calibration_line(target.efficiency),
    ]


def speculate_sentence(result: SpeculateResult) -> str:
    """How much speculation brings at best, and up to which of the batches that the KV cache holds it pays."""
    fitting = [pair for pair, cell in result.cells.items() if cell.fits] or list(result.cells)
    gamma, batch = max(fitting, key=lambda pair: (result.cells[pair].speedup, -pair[0], -pair[1]))
    best = result.cells[gamma, batch].speedup
    longest = max(result.gammas, key=lambda g: (result.pays_up_to(g), -g))
    last, room = result.pays_up_to(longest), result.room(longest)
    if last == 0:
        return f"Speculation does not pay at any batch: {best:.2f} × plain decoding at best (γ = {gamma}, batch {batch:,})."
    held = f"the KV cache holds {rows.count(room, 'sequence')} of this context"
    end = f"at every batch that fits: {held}" if last == room else f"up to batch {last:,}; {held}"
    return (
        f"Speculation is {best:.2f} × as fast as plain decoding at best (γ = {gamma}, batch {batch:,}) and pays {end}."
    )


def _speedup_table(result: SpeculateResult) -> Table:
    body = [
        (f"{gamma}", *(_speedup(result.cells[gamma, b], gamma == result.best_gamma(b)) for b in result.batches))
        for gamma in result.gammas
    ]
    return Table(("γ \\ batch", *(f"{b:,} " for b in result.batches)), [tuple(row) for row in body])


def _speedup(cell: Cell, best: bool) -> str:
    # The sign takes the last column in every cell, so that the points stay in line.
    text = f"{cell.speedup:.2f}" + ("*" if best else " ")
    return text if cell.fits else f"({text.rstrip()})"


def _best_table(result: SpeculateResult) -> Table:
    body = []
    for batch in result.batches:
        gamma = result.best_gamma(batch)
        shown = result.shown_gamma(batch)
        cell, interval = result.cells[shown, batch], result.intervals[batch]
        body.append((
            f"{batch:,}",
            str(gamma) if gamma else f"none ({shown})",
            f"{cell.speedup:.2f}",
            f"{interval.low:.2f} to {interval.high:.2f}",
            f"{cell.round.tokens_per_sequence:.2f}",
            f"{cell.verify_ratio:.2f}",
            f"{cell.plain.tpot_s * 1e3:.2f}",
            f"{cell.round.tpot_s * 1e3:.2f}",
            f"{cell.round.tokens_per_s:,.0f}",
            "yes" if cell.fits else "no",
        ))  # fmt: skip
    headers = ("batch", "best γ", "speed-up", "90 %", "tok/round", "verify", "plain ms", "spec. ms", "tok/s", "KV fits")
    return Table(headers, body)


def _crossover_table(result: SpeculateResult) -> Table:
    body = []
    for gamma in result.gammas:
        end, first = result.pays_up_to(gamma), result.cells[gamma, result.batches[0]]
        pays = "never" if end == 0 else f"{end:,}" + (" (all that fit)" if end == result.room(gamma) else "")
        body.append((str(gamma), pays, f"{first.round.tokens_per_sequence:.2f}", f"{first.verify_ratio:.3f}"))
    return Table(("γ", "pays up to batch", "tokens/round", f"verify ratio at batch {result.batches[0]}"), body)


# --- the article's claims ------------------------------------------------------------------------------------------------
def experiment_report(outcome: Outcome) -> list[Block]:
    """One claim: its words, the quantities it speaks of, and whether it holds."""
    table = Table(
        ("quantity", "simulated", "the claim says", ""),
        [
            (
                check.quantity.replace("_", " "),
                _amount(check.value, check.dimension),
                _bounds(check),
                "holds" if check.holds else "DOES NOT HOLD",
            )
            for check in outcome.checks
        ],
    )
    verdict = "The claim holds." if outcome.holds else "The claim does not hold."
    return [f"{outcome.experiment.name}: “{outcome.experiment.claim}”", Section("", table), verdict]


def _bounds(check: Check) -> str:
    low, high = (None if b is None else _amount(b, check.dimension) for b in (check.at_least, check.at_most))
    if low is not None and high is not None:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}"


def _amount(value: float, dimension: str | None) -> str:
    return units.show(value, dimension) if dimension else f"{value:.4g}"
