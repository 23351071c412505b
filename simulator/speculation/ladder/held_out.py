"""How well each rung predicts requests that it was not fitted on, by cross-validation.

Requests are dealt into folds, alike in the lengths of their answers; each fold is predicted by rungs fitted on the others, from
nothing but the tokens of its answers. Figures of all folds together therefore compare each request with a law that never saw it;
those of single folds show how much is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.errors import InputError
from simulator.speculation.ladder.rounds import FloatArray, IntArray, Rounds
from simulator.speculation.ladder.rungs import FITS, LEAST_REQUESTS, Replayed, Rung, rungs_for
from simulator.speculation.ladder.statistics import Statistics, Sums
from simulator.speculation.recording import Recording

BARS = {"mean": 0.02, "p10": 0.05, "p90": 0.05, "block_variance_ratio": 0.15}
"""Largest relative miss of a law that may be called good, by statistic."""
FIGURES = ("mean", "request_mean", "p10", "p90", "block_variance_ratio", "lag_1", "lag_1_within")
"""Statistics that are compared."""
COPIES = 10
"""Times that each held-out answer is predicted: adds a tenth of its own noise's variance."""
_BOOTSTRAP = 200


@dataclass(frozen=True)
class Prediction:
    """One rung on held-out requests."""

    kind: type[Rung]
    folds: tuple[Rounds, ...]
    """Predicted rounds, fold by fold."""
    gamma: int
    at_depth: float | None = None
    """Tokens per step at γ, predicted from fits on rounds cut at half of γ; None where that was not asked for."""

    @cached_property
    def together(self) -> Statistics:
        """Figures of all folds' rounds."""
        return Statistics.of(Rounds.joined(self.folds), self.gamma)

    @cached_property
    def by_fold(self) -> tuple[Statistics, ...]:
        """Figures of each fold's."""
        return tuple(Statistics.of(rounds, self.gamma) for rounds in self.folds)


@dataclass(frozen=True)
class HeldOut:
    """All rungs against the recording."""

    recording: Recording
    folds: tuple[Rounds, ...]
    """Recorded rounds, fold by fold."""
    predictions: tuple[Prediction, ...]
    seed: int
    cut_gamma: int
    """Drafts per round at which the fits for the prediction at γ were cut; 0 where there were none."""

    @cached_property
    def actual(self) -> Statistics:
        """Recorded figures."""
        return Statistics.of(Rounds.joined(self.folds), self.recording.gamma)

    @cached_property
    def actual_by_fold(self) -> tuple[Statistics, ...]:
        """Recorded figures of each fold."""
        return tuple(Statistics.of(rounds, self.recording.gamma) for rounds in self.folds)

    @cached_property
    def errors(self) -> dict[str, float]:
        """Standard error of each recorded figure, from drawing the requests again."""
        random, sums = np.random.default_rng(self.seed), self.actual.sums
        n = len(sums.steps)
        drawn = np.array([_figures(sums.drawn(random.integers(0, n, n))) for _ in range(_BOOTSTRAP)])
        return {name: _spread(column) for name, column in zip(FIGURES, drawn.T, strict=True)}

    def misses(self, prediction: Prediction, name: str) -> tuple[float, float, float, float]:
        """Relative miss of a figure: of all folds together; least, median and largest over single folds."""
        folds = [
            relative(getattr(p, name), getattr(a, name))
            for p, a in zip(prediction.by_fold, self.actual_by_fold, strict=True)
        ]
        together, known = relative(getattr(prediction.together, name), getattr(self.actual, name)), np.array(folds)
        known = known[np.isfinite(known)]
        if not len(known):
            return together, float("nan"), float("nan"), float("nan")
        return together, float(known.min()), float(np.median(known)), float(known.max())

    def meets_bars(self, prediction: Prediction) -> bool:
        """Whether the figures of all folds together are within `BARS`; those that the recording has none of aside."""
        return all(
            abs(self.misses(prediction, name)[0]) <= bar
            for name, bar in BARS.items()
            if np.isfinite(actual := getattr(self.actual, name)) and actual != 0.0
        )

    @cached_property
    def best(self) -> Prediction:
        """The lowest rung that meets the bars; without one, the rung that comes nearest, replay aside."""
        fitted = [p for p in self.predictions if p.kind is not Replayed]
        good = [p for p in fitted if self.meets_bars(p)]
        return good[0] if good else min(fitted, key=self._distance)

    def _distance(self, prediction: Prediction) -> float:
        # Misses in units of the bars, squared and added.
        return float(np.nansum([(self.misses(prediction, name)[0] / bar) ** 2 for name, bar in BARS.items()]))


def dealt(rounds: Rounds, folds: int, seed: int) -> list[IntArray]:
    """Requests of each fold: neighbours by length of answer are dealt out at random, one to each."""
    random = np.random.default_rng(seed)
    order = np.lexsort((random.random(len(rounds)), rounds.answer_tokens))
    fold_of = np.empty(len(rounds), dtype=np.int64)
    for start in range(0, len(order), folds):
        group = order[start : start + folds]
        fold_of[group] = random.permutation(folds)[: len(group)]
    return [np.flatnonzero(fold_of == fold) for fold in range(folds)]


def held_out(
    recording: Recording,
    folds: int = 5,
    seed: int = 0,
    *,
    depths: bool = True,
    kinds: Sequence[type[Rung]] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> HeldOut:
    """Every rung (or `kinds`) fitted on all folds but one, for each, and compared with that one.

    depths: also predict γ drafts from rounds that were cut at half as many. tell: called with how many fits of how many are done.

    Raises InputError where there are too few requests.
    """
    least = folds * LEAST_REQUESTS
    if folds < 2 or len(recording.accepted) < least:
        rule = f"be 2 to a {LEAST_REQUESTS}th of the {len(recording.accepted)} requests: each fold is a sample of them"
        raise InputError("folds", folds, rule)
    rounds = Rounds.of(recording)
    parts = dealt(rounds, folds, seed)
    everyone = np.arange(len(rounds))
    training = [chosen(recording, np.setdiff1d(everyone, part)) for part in parts]
    cut = -(-recording.gamma // 2) if depths and recording.gamma > 1 else 0
    predictions: list[Prediction] = []
    every = rungs_for(recording) if kinds is None else kinds
    for kind in every:
        drawn, deeper = [], []
        for number, (part, train) in enumerate(zip(parts, training, strict=True)):
            if tell is not None:
                tell(len(predictions) * folds + number, len(every) * folds)
            answers = np.tile(rounds.answer_tokens[part], COPIES)
            drawn.append(FITS[kind](train).sample(answers, seed + number, recording.gamma))
            if cut and kind is not Replayed:
                deeper.append(_from_cut(kind, train, cut).sample(answers, seed + number, recording.gamma))
        at_depth = Statistics.of(Rounds.joined(deeper), recording.gamma).mean if deeper else None
        predictions.append(Prediction(kind, tuple(drawn), recording.gamma, at_depth))
    recorded = tuple(rounds.chosen(part) for part in parts)
    return HeldOut(recording, recorded, tuple(predictions), seed, cut)


def chosen(recording: Recording, requests: IntArray) -> Recording:
    """A recording of these requests only."""
    return replace(
        recording,
        accepted=tuple(recording.accepted[r] for r in requests),
        drafted=tuple(recording.drafted[r] for r in requests),
    )


def cut_at(recording: Recording, gamma: int) -> Recording:
    """The same rounds with `gamma` drafts at most: of fewer drafts the target keeps the first ones that it kept of more."""
    return replace(
        recording,
        accepted=tuple(tuple(min(a, gamma) for a in row) for row in recording.accepted),
        drafted=tuple(tuple(min(d, gamma) for d in row) for row in recording.drafted),
        gamma=gamma,
    )


def _from_cut(kind: type[Rung], train: Recording, gamma: int) -> Rung:
    # Cut rounds add up to shorter answers than were written: what goes with length is told by the whole ones.
    rung = FITS[kind](cut_at(train, gamma))
    lengths = rung.settings.answer_length
    if lengths is None:
        return rung
    logs = np.log(Rounds.of(train).answer_tokens)
    whole = lengths.model_copy(update={"median_tokens": float(np.exp(logs.mean())), "log_std": float(logs.std())})
    return replace(rung, settings=rung.settings.model_copy(update={"answer_length": whole}))


def _spread(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.std()) if len(known) else float("nan")


def _figures(sums: Sums) -> FloatArray:
    statistics = Statistics(sums)
    return np.array([getattr(statistics, name) for name in FIGURES])


def relative(predicted: float, actual: float) -> float:
    """Relative miss; NaN where 0 was recorded, as it is of steps that are all alike."""
    return predicted / actual - 1.0 if actual else float("nan")
