"""Predicted against measured: the records that every validation ends in, and the statistics drawn from them.

`Comparison` holds many points of one kind (kernels, steps, rounds), `Quantity` one figure of a whole run (a percentile, a
throughput, a published speed), `Sweep` a time per token over the number of drafts, `Course` one figure second by second; a
`Validation` is what one page shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.uncertainty import LEVEL as LEVEL  # noqa: PLC0414 (re-exported)
from simulator.uncertainty import interval_factor as interval_factor  # noqa: PLC0414

FloatArray = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Told of a long fit: what is being done, how many of its parts are done, and of how many. What it raises ends the fit."""


@dataclass(frozen=True)
class Comparison:
    """Many points of one kind; arrays are [points]."""

    name: str
    """For people, e.g. "decode attention"."""
    measured_s: FloatArray
    predicted_s: FloatArray
    basis: str
    """How the points were kept from the fit: "held out by matrix", "not fitted on"; or "fitted on these"."""
    labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What tells points apart, by column: ``batch``, ``tokens``, ``context_tokens``, ``model``, …"""
    log_sd: float | FloatArray | None = None
    """Standard deviation of ln(measured/predicted) that the calibration claims; None: it claims none."""
    note: str = ""

    def __len__(self) -> int:
        """Points."""
        return len(self.measured_s)

    @property
    def errors(self) -> FloatArray:
        """predicted/measured − 1 [points]."""
        return np.asarray(self.predicted_s / self.measured_s - 1.0)

    @property
    def mape(self) -> float:
        """Mean of |predicted/measured − 1|."""
        return float(np.abs(self.errors).mean())

    @property
    def median_error(self) -> float:
        """Median of |predicted/measured − 1|."""
        return float(np.median(np.abs(self.errors)))

    @property
    def p95_error(self) -> float:
        """95th percentile of |predicted/measured − 1|."""
        return float(np.quantile(np.abs(self.errors), 0.95))

    @property
    def worst_error(self) -> float:
        """The error of the point that is furthest off, with its sign."""
        return float(self.errors[np.abs(self.errors).argmax()])

    @property
    def bias(self) -> float:
        """Geometric mean of predicted/measured, less 1: above 0 where predictions are too slow."""
        return float(np.exp(np.log(self.predicted_s / self.measured_s).mean()) - 1.0)

    def coverage(self, level: float = LEVEL) -> float | None:
        """Share of points inside their prediction interval; None where none is claimed."""
        if self.log_sd is None:
            return None
        limit = np.log(interval_factor(self.log_sd, level))
        return float(np.mean(np.abs(np.log(self.predicted_s / self.measured_s)) <= limit))

    def where(self, chosen: NDArray[np.bool_], name: str) -> Comparison:
        """The points of a mask [points], under another name."""
        log_sd = self.log_sd[chosen] if isinstance(self.log_sd, np.ndarray) else self.log_sd
        labels = {label: column[chosen] for label, column in self.labels.items()}
        return Comparison(
            name, self.measured_s[chosen], self.predicted_s[chosen], self.basis, labels, log_sd, self.note
        )


@dataclass(frozen=True)
class Quantity:
    """One figure of a run."""

    name: str
    unit: str
    """A dimension that `units.show` knows ("s"), or a unit as it is printed ("tokens/s", "×")."""
    measured: float
    predicted: float | None
    """None where no prediction can be made; `note` says why."""
    basis: str
    """As in `Comparison`."""
    low: float | None = None
    """Lower end of the prediction interval."""
    high: float | None = None
    note: str = ""

    @property
    def error(self) -> float | None:
        """predicted/measured − 1; None where either is missing or nothing was measured."""
        return None if self.predicted is None or not self.measured else self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class Course:
    """One figure over time; arrays are [points]."""

    name: str
    unit: str
    time_s: FloatArray
    measured: FloatArray
    simulated: FloatArray

    @property
    def apart(self) -> float:
        """Mean of |simulated − measured|."""
        return float(np.abs(self.simulated - self.measured).mean())


@dataclass(frozen=True)
class Sweep:
    """Time per token over the number of drafts γ, for one drafter and batch; some of it fitted on. Arrays are [points]."""

    name: str
    training: str
    """What the constants were fitted on, in words."""
    batch: int
    gamma: NDArray[np.int64]
    """Rising; 0 is plain decoding."""
    tokens: FloatArray
    """Tokens per round, as measured."""
    measured_s: FloatArray
    """Per token of one sequence."""
    predicted_s: FloatArray
    log_sd: FloatArray
    """As in `Comparison`."""
    trained: NDArray[np.bool_]
    """Points that were fitted on."""
    basis: str = "held out by γ"
    """As in `Comparison`, of the other points."""

    def __len__(self) -> int:
        """Points."""
        return len(self.gamma)

    @property
    def held_out(self) -> Comparison:
        """The points that were not fitted on."""
        return self._comparison(~self.trained, self.basis)

    @property
    def whole(self) -> Comparison:
        """All points, fitted on or not."""
        return self._comparison(np.ones(len(self), dtype=bool), "fitted on some of these")

    def _comparison(self, chosen: NDArray[np.bool_], basis: str) -> Comparison:
        labels = {"gamma": self.gamma[chosen], "batch": np.full(int(chosen.sum()), self.batch)}
        return Comparison(
            self.name, self.measured_s[chosen], self.predicted_s[chosen], basis, labels, self.log_sd[chosen]
        )

    @property
    def limits_s(self) -> tuple[FloatArray, FloatArray]:
        """Between which times per token a measurement is claimed to lie [points]."""
        factor = interval_factor(self.log_sd)
        return self.predicted_s / factor, self.predicted_s * factor

    def speedups(self, time_s: FloatArray) -> FloatArray | None:
        """Plain decoding's time over each of `time_s` [points]; None where plain decoding is not among them."""
        return time_s[self.gamma == 0] / time_s if (self.gamma == 0).any() else None

    @property
    def best_measured(self) -> int:
        """γ of the least measured time per token."""
        return int(self.gamma[np.argmin(self.measured_s)])

    @property
    def best_predicted(self) -> int:
        """γ of the least predicted time per token."""
        return int(self.gamma[np.argmin(self.predicted_s)])

    @property
    def regret(self) -> float:
        """How much longer a token takes, measured, at `best_predicted` than at `best_measured`."""
        return float(self.measured_s[np.argmin(self.predicted_s)] / self.measured_s.min() - 1.0)


@dataclass(frozen=True)
class Choices:
    """One way of choosing what to fit on, tried with every choice of rows it allows."""

    name: str
    what: str
    """What is predicted."""
    mapes: tuple[float, ...]
    """Mean |predicted/measured − 1| over points not fitted on, one per choice."""
    worst: float
    """The furthest of all points of all choices, with its sign."""
    best_right: int | None = None
    """Choices that find the measured best γ; None where γ is not compared."""


@dataclass(frozen=True)
class DraftSlope:
    """What one more draft adds to a round, measured against what its pass has to read."""

    name: str
    batch: int
    measured_s: float
    """Slope of the measured rounds over γ (least squares)."""
    error_s: float
    """Its standard error."""
    passes_s: float
    """The predicted slope of all passes: one more draft pass, and one more token of each sequence to verify."""
    weight_bytes: float
    """What one draft pass reads of weights."""
    datasheet_s: float
    """Those bytes at the datasheet's bandwidth."""


@dataclass(frozen=True)
class Roof:
    """A device's roofline and the points measured under it; arrays are [points]."""

    bytes_per_s: float
    flop_per_s: float
    rests_on: str
    """E.g. "datasheet" or "measured in this run"."""
    flop: FloatArray
    moved_bytes: FloatArray
    measured_s: FloatArray
    kind: NDArray[Any]
    """What each point is, e.g. "matmul"."""


@dataclass(frozen=True)
class Validation:
    """What one page shows."""

    title: str
    subject: str
    """What is validated: a calibration's label, an engine and a device."""
    conditions: Sequence[tuple[str, str]] = ()
    comparisons: Sequence[Comparison] = ()
    quantities: Sequence[Quantity] = ()
    sweeps: Sequence[Sweep] = ()
    choices: Sequence[Choices] = ()
    slopes: Sequence[DraftSlope] = ()
    courses: Sequence[Course] = ()
    roof: Roof | None = None
    notes: Sequence[str] = ()
    """Sentences on what was left out, and why."""
