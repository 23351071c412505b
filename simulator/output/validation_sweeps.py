"""Published sweeps over γ in tables: every point with what it was used for, and what other choices of training rows would say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator import units
from simulator.calibration.comparison import LEVEL, Choices, DraftSlope, Sweep, Validation
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section

TRAINING, HELD_OUT = "training", "held out"


def sweep_sections(validation: Validation) -> list[Section]:
    """The tables that have rows."""
    sections = []
    if validation.sweeps:
        sections.append(Section("Sweeps over γ", summary_table(validation.sweeps), _SUMMARY_NOTE))
        sections.append(Section("Time per token in ms, by γ and batch", points_table(validation.sweeps), _POINTS_NOTE))
    if validation.choices:
        sections.append(Section("Other training rows", choices_table(validation.choices), _CHOICES_NOTE))
    if validation.slopes:
        sections.append(Section("What one more draft adds to a round", slopes_table(validation.slopes), _SLOPES_NOTE))
    return sections


_SUMMARY_NOTE = (
    "MAPE of all counts the training rows, which the fit meets; loss: how much longer a token takes, as measured, at the γ "
    "that the prediction calls best"
)
_POINTS_NOTE = "tokens: of each sequence per round, as measured; speed-up over plain decoding at the same batch"
_CHOICES_NOTE = (
    "error on the points that were not fitted on, from the best to the worst choice of training rows; at one batch a round "
    "grows almost on a line with γ, so that a line through two of them says as much; another batch or machine it does not know"
)
_SLOPES_NOTE = (
    "slope of the measured rounds over γ and its standard error, against the predicted passes (one more draft pass, one more "
    "token of each sequence to verify); the rest is the engine's"
)


def summary_table(sweeps: Sequence[Sweep]) -> Table:
    """One row per sweep."""
    headers = ("", "trained on", "n held out", "MAPE", "MAPE of all", "worst", "best γ", "predicted", "loss",
               f"{LEVEL:.0%} holds")  # fmt: skip
    body = []
    for sweep in sweeps:
        points = sweep.held_out
        some = len(points) > 0
        coverage = points.coverage() if some else None
        body.append(
            (
                sweep.name, sweep.training, f"{len(points):,}", f"{points.mape:.1%}" if some else NONE,
                f"{sweep.whole.mape:.1%}", f"{points.worst_error:+.1%}" if some else NONE, f"{sweep.best_measured}",
                f"{sweep.best_predicted}", f"{sweep.regret:.1%}", NONE if coverage is None else f"{coverage:.0%}",
            )
        )  # fmt: skip
    return Table(headers, body)


def points_table(sweeps: Sequence[Sweep]) -> Table:
    """One row per point of every sweep; times in ms, speed-ups over plain decoding at the same batch."""
    headers = (
        "",
        "γ",
        "used for",
        "tokens",
        "measured",
        "predicted",
        "error",
        f"{LEVEL:.0%} interval",
        "speed-up",
        "predicted",
    )
    body = []
    for sweep in sweeps:
        low, high = sweep.limits_s
        gains = [sweep.speedups(sweep.measured_s), sweep.speedups(sweep.predicted_s)]
        for i in range(len(sweep)):
            ends = [f"{1e3 * float(edge[i]):.3f}" for edge in (low, high)]
            body.append(
                (
                    sweep.name if i == 0 else "", f"{sweep.gamma[i]}", TRAINING if sweep.trained[i] else HELD_OUT,
                    f"{sweep.tokens[i]:.2f}", *(f"{1e3 * float(time_s[i]):.3f}" for time_s in (sweep.measured_s, sweep.predicted_s)),
                    f"{sweep.predicted_s[i] / sweep.measured_s[i] - 1.0:+.1%}", " – ".join(ends),
                    *(NONE if gain is None else f"{gain[i]:.2f}" for gain in gains),
                )
            )  # fmt: skip
    return Table(headers, body)


def choices_table(choices: Sequence[Choices]) -> Table:
    """One row per way of choosing training rows, and per prediction without a model."""
    headers = ("predicted", "trained on", "choices", "MAPE", "median", "worst point", "best γ right")
    body, shown = [], ""
    for c in choices:
        least, most = min(c.mapes), max(c.mapes)
        spread = f"{least:.1%}" if f"{least:.1%}" == f"{most:.1%}" else f"{least:.1%} – {most:.1%}"
        right = NONE if c.best_right is None else f"{c.best_right} of {len(c.mapes)}"
        median = f"{float(np.median(c.mapes)):.1%}" if len(c.mapes) > 1 else NONE
        body.append(
            (c.what if c.what != shown else "", c.name, f"{len(c.mapes)}", spread, median, f"{c.worst:+.1%}", right)
        )
        shown = c.what
    return Table(headers, body)


def slopes_table(slopes: Sequence[DraftSlope]) -> Table:
    """One row per sweep."""
    headers = (
        "",
        "measured",
        "predicted passes",
        "the rest",
        "weights of a draft pass",
        "at the datasheet's bandwidth",
    )
    body = [
        (
            s.name, f"{units.show(s.measured_s, 's')} ± {units.show(s.error_s, 's', digits=2)}", units.show(s.passes_s, "s"),
            units.show(s.measured_s - s.passes_s, "s"), units.show(s.weight_bytes, "bytes"), units.show(s.datasheet_s, "s"),
        )
        for s in slopes
    ]  # fmt: skip
    return Table(headers, body)
