"""The article's claims as executable experiments: ``workloads/scenarios/article/*.yaml``, run by ``memwall experiment``.

Each file quotes a claim, sets up a decode step, a speculation grid or a simulation, and bounds the quantities that the
claim speaks of. The bounds restate the article's words, not our results; a claim that does not hold is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from simulator import catalog, units
from simulator.decoding import DecodeResult, decode
from simulator.deployment import deploy
from simulator.errors import InputError, UnknownName
from simulator.memory import weights_on_gpu
from simulator.planning.crossover import SpeculateResult, speculate
from simulator.quantization import Quantization
from simulator.records import Record, read_record
from simulator.scenario import load_scenario
from simulator.serving.simulation import SimulationResult, simulate
from simulator.speculation.acceptance import AcceptanceConfig


class Bound(Record):
    """What the claim says of one quantity."""

    quantity: str
    """A name from `QUANTITIES` of the experiment's kind."""
    at_least: str | float | None = None
    """Lower bound, with its unit."""
    at_most: str | float | None = None
    """Upper bound, with its unit."""

    @model_validator(mode="after")
    def _some_bound(self) -> Bound:
        if self.at_least is None and self.at_most is None:
            raise InputError(self.quantity, "(no bound)", "have at_least or at_most")
        return self


class Experiment(Record):
    """One claim and how it is tried out."""

    name: str
    """Equals the file's name."""
    claim: str
    """The article's words."""
    kind: Literal["decode", "speculate", "simulate"]
    """Which analysis tries it."""
    model: str = "llama-3-70b"
    """Target model; decode and speculate only, as are the next six."""
    gpu: str = "h100-sxm"
    """GPU."""
    tp: int = 4
    """GPUs that share the model."""
    engine: str = "ideal"
    """The article speaks of the hardware, so no host time unless a file says otherwise."""
    quantization: Quantization = Quantization()
    """Number formats."""
    batch: tuple[int, ...] = (1,)
    """Sequences decoding together."""
    context: int = 1024
    """Tokens of context of each."""
    draft: str | None = None
    """Drafter (speculate)."""
    gamma: tuple[int, ...] = (5,)
    """Drafted tokens; for decode, the drafted tokens verified beside the plain step."""
    acceptance: tuple[float, ...] = (0.8,)
    """Conditional acceptance rates to compare (speculate)."""
    scenario: dict[str, Any] | None = None
    """A whole scenario (simulate)."""
    expect: tuple[Bound, ...]
    """What must hold for the claim to hold."""


@dataclass(frozen=True)
class Check:
    """One bound, tried."""

    quantity: str
    dimension: str | None
    value: float
    at_least: float | None
    at_most: float | None

    @property
    def holds(self) -> bool:
        """Whether the value lies within the bounds."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True)
class Outcome:
    """An experiment and what came of it."""

    experiment: Experiment
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every bound holds."""
        return all(check.holds for check in self.checks)


def load_experiment(name: str) -> Experiment:
    """A bundled experiment's name or a file's path. Raises UnknownName or InputError."""
    return read_record(Experiment, catalog.locate("experiment", name))


def run_experiment(experiment: Experiment, base: Path | None = None) -> Outcome:
    """Tries a claim. Raises MemwallError where the set-up does not work out."""
    measured = {"decode": _decode, "speculate": _speculate, "simulate": _simulate}[experiment.kind](experiment, base)
    checks = []
    for bound in experiment.expect:
        if bound.quantity not in measured:
            raise UnknownName("expect.quantity", bound.quantity, measured, where=experiment.name, kind="quantity")
        value, dimension = measured[bound.quantity]
        low, high = (_limit(limit, dimension, experiment.name) for limit in (bound.at_least, bound.at_most))
        checks.append(Check(bound.quantity, dimension, value, low, high))
    return Outcome(experiment, tuple(checks))


def _limit(limit: str | float | None, dimension: str | None, where: str) -> float | None:
    if limit is None:
        return None
    return units.parse(limit, dimension or "tokens", field="expect", where=where)


Quantities = Mapping[str, tuple[float, str | None]]
"""Name → (value in SI, dimension of `units` or None for a plain number)."""


def _decode(e: Experiment, base: Path | None) -> Quantities:
    served = deploy(e.model, e.gpu, tp=e.tp, engine=e.engine, quantization=e.quantization, base=base)
    step = decode(served, batch=e.batch[0], context_tokens=e.context)
    verify = decode(served, batch=e.batch[0], context_tokens=e.context, new_tokens=e.gamma[0] + 1)
    return {**_step_quantities(step), "verify_over_decode": (verify.step_s / step.step_s, None)}


def _step_quantities(step: DecodeResult) -> Quantities:
    target, gpu = step.deployment.target, step.deployment.gpu
    stored = weights_on_gpu(target) * target.tp
    hauled = step.pass_cost.total("weight_bytes") * target.tp
    return {
        "weights_bytes": (stored, "bytes"),
        "desk_bytes": (gpu.desk_bytes, "bytes"),
        "desk_and_l2_bytes": (gpu.desk_bytes + gpu.l2_bytes, "bytes"),
        "layers": (float(target.decoder.layers), None),
        "hauled_bytes_per_step": (hauled, "bytes"),
        "hauled_share_of_weights": (hauled / stored, None),
        "desk_fills_per_step_and_gpu": (step.desk_loads, None),
        "arithmetic_share_of_step": (step.sm_arithmetic_share, None),
        "hbm_share_of_step": (
            sum(step.by_cause[c] for c in ("weights", "kv_cache", "activations")) / step.step_s, None,
        ),
        "step_s": (step.step_s, "s"),
    }  # fmt: skip


def _speculate(e: Experiment, base: Path | None) -> Quantities:
    served = deploy(e.model, e.gpu, tp=e.tp, engine=e.engine, quantization=e.quantization, draft=e.draft, base=base)
    grids = [
        speculate(served, AcceptanceConfig(alpha=a).law(), gammas=e.gamma, batches=e.batch, context_tokens=e.context)
        for a in e.acceptance
    ]
    best = [_best_speedup(grid, batch) for grid in grids for batch in e.batch]
    first = grids[0].cells[e.gamma[0], e.batch[0]]
    return {
        "least_best_speedup": (min(best), None),
        "most_best_speedup": (max(best), None),
        "least_gain_from_longer_acceptance": (min((b / a for a, b in pairwise(best)), default=1.0), None),
        "last_paying_batch": (float(grids[0].last_paying_batch or 0), None),
        "verify_over_decode": (first.verify_ratio, None),
    }


def _best_speedup(grid: SpeculateResult, batch: int) -> float:
    return max(grid.cells[gamma, batch].speedup for gamma in grid.gammas)


def _simulate(e: Experiment, base: Path | None) -> Quantities:
    if e.scenario is None:
        raise InputError("scenario", "(absent)", "be given", where=e.name)
    return _run_quantities(simulate(load_scenario(e.scenario)))


def _run_quantities(result: SimulationResult) -> Quantities:
    main, plain = result.main, result.plain
    requests = main.requests
    rounds = float(requests["rounds"].sum())
    decoded = float((requests["generated_tokens"] - 1).sum())
    per_round = (decoded - float(requests["accepted_tokens"].sum())) / rounds if rounds else float("nan")
    return {
        "tokens_per_round": (main.summary.tokens_per_round, None),
        "tokens_per_round_beyond_accepted": (per_round, None),
        "speedup_of_tpot": (plain.summary.tpot_s.mean / main.summary.tpot_s.mean, None),
        "throughput_ratio": (main.summary.output_tokens_per_s / plain.summary.output_tokens_per_s, None),
        "plain_flop_share": (plain.summary.flop_share, None),
        "plain_mean_running": (plain.summary.mean_running, None),
        "answers_of_another_length": (
            float((requests["generated_tokens"] != plain.requests["generated_tokens"]).sum()), None,
        ),
    }  # fmt: skip


Reporter = Callable[[Outcome], None]


def run_all(tell: Reporter | None = None) -> list[Outcome]:
    """Every bundled experiment in order."""
    outcomes = []
    for name in catalog.names("experiment"):
        outcomes.append(run_experiment(load_experiment(name)))
        if tell:
            tell(outcomes[-1])
    return outcomes
