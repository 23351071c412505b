"""What a fitted log says in words and tables, as YAML for a scenario, and as a document."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from simulator.output.report import Block
from simulator.output.rows import Table
from simulator.output.tables import Section, properties
from simulator.speculation.ladder.counters import PositionCounts
from simulator.speculation.ladder.held_out import BARS, FIGURES, HeldOut, Prediction
from simulator.speculation.ladder.result import LogFit
from simulator.speculation.ladder.rounds import FloatArray, Rounds
from simulator.speculation.ladder.rungs import LEAST_REQUESTS, RateByDepth, Replayed
from simulator.speculation.ladder.statistics import BLOCK_STEPS, Statistics, token_shares
from simulator.speculation.recording import Recording

NAMES = {
    "mean": "tokens per step",
    "request_mean": "mean over requests",
    "p10": "p10 of requests",
    "p90": "p90 of requests",
    "block_variance_ratio": f"{BLOCK_STEPS}-step variance ratio",
    "lag_1": "lag-1 correlation",
    "lag_1_within": "lag-1 within requests",
}
"""Statistics in words."""
_ABSOLUTE = ("lag_1", "lag_1_within")
_SHOWN_LENGTHS = 8


def acceptance_report(fit: LogFit) -> list[Block]:
    """Verdict, tables, and what a scenario can take over."""
    blocks: list[Block] = [acceptance_sentence(fit), *acceptance_sections(fit)]
    blocks.append(f"For a scenario ({fit.chosen.name}):\n\n{acceptance_yaml(fit).rstrip()}")
    return blocks


def acceptance_sections(fit: LogFit) -> list[Section]:
    """The tables alone."""
    sections = [properties("Log", log_rows(fit))]
    if fit.judged is not None:
        sections += [_figures(fit.judged), _folds(fit.judged), _lengths(fit.judged)]
        if fit.judged.cut_gamma:
            sections.append(_depths(fit.judged))
    sections.append(_rates(fit))
    return sections


def acceptance_sentence(fit: LogFit) -> str:
    """The verdict."""
    judged = fit.judged
    if isinstance(fit.log, PositionCounts):
        return (
            "Counts by position fit one rate or rates by depth only: which round belonged to which request is lost, so how "
            "requests differ and how long luck lasts cannot be told."
        )
    if judged is None:
        return (
            f"{len(fit.log.accepted)} requests are too few to hold some out (at least {2 * LEAST_REQUESTS}): "
            f"fitted {fit.chosen.name}, unjudged."
        )
    mine = next((p for p in judged.predictions if p.kind is type(fit.chosen)), judged.best)
    independent = next((p for p in judged.predictions if p.kind is RateByDepth), None)
    good = "within the bars" if judged.meets_bars(mine) else "not within the bars"
    text = f"On held-out requests, {mine.kind.name!r} is {good}: {_misses(judged, mine)}."
    if independent is not None and independent is not mine:
        text += f" Rounds independent of each other ({independent.kind.name}) miss by {_misses(judged, independent)}."
    return text


def _misses(judged: HeldOut, prediction: Prediction) -> str:
    known = [name for name in BARS if np.isfinite(getattr(judged.actual, name))]
    return ", ".join(f"{NAMES[name]} {_percent(judged.misses(prediction, name)[0])}" for name in known)


def log_rows(fit: LogFit) -> list[tuple[str, str]]:
    """What was read."""
    log = fit.log
    if isinstance(log, PositionCounts):
        mean = 1.0 + float(log.marginal.sum())
        return [
            ("log", fit.path),
            ("rounds", f"{log.rounds:,.0f}"),
            ("positions", str(log.gamma)),
            ("tokens per step", f"{mean:.3f}"),
        ]
    rounds = Rounds.of(log)
    rows = [
        ("log", fit.path), ("requests", f"{len(rounds):,}"), ("steps", f"{len(rounds.tokens):,}"),
        ("drafts per step", f"up to {log.gamma}"),
        ("tokens per answer", " / ".join(f"{q:,.0f}" for q in np.quantile(rounds.answer_tokens, (0.1, 0.5, 0.9))) + " (p10 / p50 / p90)"),
    ]  # fmt: skip
    if log.match_probability < 1.0:
        rows.append(("steps with drafts", f"{log.match_probability:.1%}"))
    if log.without_rounds:
        rows.append(("left out", f"{log.without_rounds} requests without a step"))
    if fit.sample is not None:
        steps = int(fit.sample.first_round[-1])
        rows.append(
            (
                "fitted and judged",
                f"{len(fit.sample.accepted):,} of the requests, drawn at random, with {steps:,} steps",
            )
        )
    if fit.judged is not None:
        rows.append(("held out", f"each request once, in {len(fit.judged.folds)} folds (seed {fit.judged.seed})"))
    return rows


def _figures(judged: HeldOut) -> Section:
    body = []
    for name in FIGURES:
        actual = getattr(judged.actual, name)
        cells = [NAMES[name], f"{_number(actual)} ± {_number(judged.errors[name])}"]
        for p in judged.predictions:
            value = getattr(p.together, name)
            alone = name in _ABSOLUTE or not np.isfinite(value)
            cells.append(_number(value) if alone else f"{_number(value)} {_percent(judged.misses(p, name)[0])}")
        body.append(tuple(cells))
    limits = ", ".join(f"{NAMES[name]} {bar:.0%}" for name, bar in BARS.items())
    ratio = judged.actual.block_variance_ratio
    doubt = judged.errors["block_variance_ratio"] / ratio if ratio > 0.0 else 0.0  # NaN: too short a log
    few = ""
    if doubt > BARS["block_variance_ratio"]:
        few = f" The recorded variance ratio is itself uncertain by {doubt:.0%}: a few requests carry it."
    return Section(
        "Held-out requests, predicted from the tokens of their answers",
        Table(("", "recorded", *(p.kind.name for p in judged.predictions)), body),
        f"± is the standard error that drawing the requests again shows. Bars: {limits}. The variance ratio is that of the sum of "
        f"{BLOCK_STEPS} consecutive steps of one request over {BLOCK_STEPS} times a step's. Replay pairs each answer with a "
        f"recorded request of another length.{few}",
    )  # fmt: skip


def _folds(judged: HeldOut) -> Section:
    body = []
    for name in BARS:
        cells = [NAMES[name]]
        for p in judged.predictions:
            _, least, median, most = judged.misses(p, name)
            cells.append(f"{_percent(median)} ({_percent(least)} … {_percent(most)})")
        body.append(tuple(cells))
    return Section(
        "Misses of single folds: median and range",
        Table(("", *(p.kind.name for p in judged.predictions)), body),
        "A fold is a small sample of requests: most of the range is chance, and all rungs share it.",
    )


def _lengths(judged: HeldOut) -> Section:
    gamma = judged.recording.gamma
    recorded = token_shares(Rounds.joined(judged.folds), gamma)
    predicted = [token_shares(Rounds.joined(p.folds), gamma) for p in judged.predictions]
    rows = []
    for label, part in length_groups(gamma):
        rows.append((label, *(f"{shares[part].sum():.1%}" for shares in (recorded, *predicted))))
    headers = ("tokens", "recorded", *(p.kind.name for p in judged.predictions))
    return Section("Tokens per step, share of steps", Table(headers, rows))


def length_groups(gamma: int) -> list[tuple[str, slice]]:
    """1, 2, … tokens, the rare long ones together."""
    if gamma + 1 <= _SHOWN_LENGTHS + 1:
        return [(str(n + 1), slice(n, n + 1)) for n in range(gamma + 1)]
    single = [(str(n + 1), slice(n, n + 1)) for n in range(_SHOWN_LENGTHS)]
    rest = slice(_SHOWN_LENGTHS, gamma)
    return [*single, (f"{_SHOWN_LENGTHS + 1}–{gamma}", rest), (str(gamma + 1), slice(gamma, gamma + 1))]


def _depths(judged: HeldOut) -> Section:
    actual, gamma = judged.actual.mean, judged.recording.gamma
    rows = [
        (p.kind.name, f"{p.at_depth:.3f}", _percent(p.at_depth / actual - 1.0))
        for p in judged.predictions
        if p.at_depth is not None
    ]
    return Section(
        f"Tokens per step at {gamma} drafts, fitted on {judged.cut_gamma} only (recorded: {actual:.3f})",
        Table(("", "predicted", "miss"), rows),
        f"Rounds were cut at {judged.cut_gamma} drafts; beyond, the last rate is taken to hold.",
    )


def recorded_rates(fit: LogFit) -> tuple[FloatArray, FloatArray]:
    """Recorded conditional and marginal rates by depth [γ] each."""
    if isinstance(fit.log, PositionCounts):
        return fit.log.conditional, fit.log.marginal
    conditional = Statistics.of(Rounds.of(fit.log), fit.log.gamma).conditional
    return conditional, np.asarray(np.cumprod(np.nan_to_num(conditional)), dtype=np.float64)


def _rates(fit: LogFit) -> Section:
    conditional, marginal = recorded_rates(fit)
    law = fit.chosen.law().conditional(fit.log.gamma)
    rows = [
        (str(depth + 1), _number(conditional[depth]), _number(marginal[depth]), _number(law[depth]))
        for depth in range(fit.log.gamma)
    ]
    return Section(
        "Acceptance by depth",
        Table(("depth", "conditional, recorded", "marginal, recorded", f"conditional, {fit.chosen.name}"), rows),
        "Conditional: kept, of those whose predecessors were kept. Marginal: kept, of all drafted there, as engines log it. Where "
        "requests differ, the law's rates are those of an average request: deep drafts are reached by lucky ones, so what is "
        "recorded over all rounds lies above.",
    )  # fmt: skip


def acceptance_yaml(fit: LogFit) -> str:
    """An ``acceptance:`` block for a scenario's ``speculation``."""
    fields = fit.config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(
        {"acceptance": fields}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def acceptance_document(fit: LogFit) -> dict[str, Any]:
    """All figures."""
    conditional, marginal = recorded_rates(fit)
    document: dict[str, Any] = {
        "log": fit.path,
        "gamma": fit.log.gamma,
        "recorded": {"conditional": conditional.tolist(), "marginal": marginal.tolist()},
        "chosen": fit.chosen.key,
        "acceptance": fit.config.model_dump(mode="json", exclude_defaults=True),
    }
    if isinstance(fit.log, Recording):
        rounds = Rounds.of(fit.log)
        document["requests"], document["steps"] = len(rounds), len(rounds.tokens)
    if fit.sample is not None:
        document["fitted_requests"] = len(fit.sample.accepted)
    judged = fit.judged
    if judged is None:
        return document
    gamma = judged.recording.gamma
    document["recorded"] |= {name: getattr(judged.actual, name) for name in FIGURES}
    document["recorded"]["standard_errors"] = judged.errors
    document["recorded"]["token_shares"] = token_shares(Rounds.joined(judged.folds), gamma).tolist()
    document["held_out"] = {
        "folds": len(judged.folds),
        "seed": judged.seed,
        "bars": BARS,
        "rungs": [_rung(judged, p) for p in judged.predictions],
    }
    if judged.cut_gamma:
        document["held_out"]["fitted_on_gamma"] = judged.cut_gamma
    return document


def _rung(judged: HeldOut, prediction: Prediction) -> dict[str, Any]:
    misses = {name: judged.misses(prediction, name) for name in FIGURES if name not in _ABSOLUTE}
    return {
        "rung": prediction.kind.key,
        "name": prediction.kind.name,
        "meets_bars": judged.meets_bars(prediction),
        "predicted": {name: getattr(prediction.together, name) for name in FIGURES},
        "relative_miss": {
            name: {"together": m[0], "least": m[1], "median": m[2], "largest": m[3]} for name, m in misses.items()
        },
        "token_shares": token_shares(Rounds.joined(prediction.folds), judged.recording.gamma).tolist(),
        "tokens_per_step_from_cut": prediction.at_depth,
    }


def best_fitted(judged: HeldOut) -> list[Prediction]:
    """The predictions worth drawing: all but replay."""
    return [p for p in judged.predictions if p.kind is not Replayed]


def _percent(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{100 * value:+.1f} %".replace("-", "−")


def _number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.3f}".replace("-", "−")
