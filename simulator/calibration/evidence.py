"""What one device's numbers rest on: whose measurements, how far off on rows no fit saw, and what else can be held against it.

`evidence` reads bundled files only and takes milliseconds. `published_on` prices what others published (a second, once);
`validate_bundled` fits a measurement file again without each of its batches and models (some seconds), and the kernel tables
where this machine has them (half a minute): both tell their progress.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from simulator import catalog
from simulator.calibration.comparison import LEVEL, Progress, Validation, interval_factor
from simulator.calibration.error_record import ErrorFile, read_errors
from simulator.cost.efficiency import PRIOR_ERROR, CalibrationFile, Efficiency, calibration_of, load_efficiency
from simulator.hardware import Gpu, load_gpu

Rests = Literal["calibrated", "family prior", "uncalibrated"]
KINDS = {
    "step": "whole steps", "matmul": "matmul", "matmul_small": "matmul, up to 64 tokens",
    "decode_attention": "decode attention", "prefill_attention": "prefill attention", "elementwise": "elementwise",
    "all_reduce": "all-reduce", "exchange": "all-gather and all-to-all",
}  # fmt: skip
"""Kinds of operators that a calibration states errors of, in the order of reports, and their names for people."""
TABLES = {"h100-sxm": "kernels", "a100-sxm-80gb": "kernels", "l40s": "kernels", "rtx-4090": "layers/rtx4090"}
"""GPU → where its public timings lie in a folder of measurements ($MEMWALL_DATA)."""


@dataclass(frozen=True)
class OperatorError:
    """What a calibration says of one kind of operator on one device."""

    kind: str
    """A key of `KINDS`."""
    measured: bool
    """Whether measurements on this very device say so; else a prior does."""
    points: int | None
    """How many measurements those are; None where none are, or where their number is not stated."""
    mape: float
    """Mean |predicted/measured − 1| on rows that the fit did not see; of a prior what is assumed."""
    log_sd: float
    """Standard deviation of ln(measured/predicted), on which the intervals rest."""

    @property
    def name(self) -> str:
        """For people."""
        return KINDS.get(self.kind, self.kind.replace("_", " "))

    def factor(self, level: float = LEVEL) -> float:
        """f of the interval prediction / f … prediction · f that claims to hold `level` of the measurements."""
        return float(interval_factor(self.log_sd, level))


@dataclass(frozen=True)
class Evidence:
    """What the numbers of one device rest on."""

    gpu: Gpu
    rests_on: Rests
    """Measured on this very device; taken over from another of its family; or from no relative at all."""
    calibration: CalibrationFile
    """Whose parameters it takes."""
    efficiency: Efficiency
    """The same as the simulator uses them, with a prior's errors widened."""
    operators: tuple[OperatorError, ...]
    """By kind, in the order of `KINDS`."""
    errors: ErrorFile | None
    """What the bundled validation found on rows that no fit saw; None where this device was not measured."""
    measurements: Path | None
    """A bundled measurement file of this device, that can be fitted and validated again."""
    tables: Path | None
    """Public timings of this device on this machine: the same, with more patience."""

    @property
    def says(self) -> str:
        """In one or two sentences."""
        name = self.calibration.name
        if self.rests_on == "calibrated":
            best = next(o for o in self.operators if o.measured)
            which = f"{best.name}s" if best.kind == "matmul" else best.name
            n = f" (n = {best.points:,})" if best.points else ""
            return (
                f"Calibrated: {self.gpu.title} itself was measured. For {which} that the fit did not see, predictions are off "
                f"by {best.mape:.1%} on average{n}."
            )
        if self.rests_on == "family prior":
            return (
                f"Not calibrated: nobody measured {self.gpu.title} here, so it takes the efficiencies of {name}, which is of the "
                f"same family ({self.gpu.family}), and errors of {PRIOR_ERROR:.0%} and more are assumed."
            )
        basis = self.calibration.source.removeprefix("estimate: ")
        relatives = f", nor any other device of the family {self.gpu.family}" if name != self.gpu.family else ""
        return (
            f"Not calibrated: {self.gpu.title} was not measured here{relatives}, so it takes the {name} estimates ({basis}), "
            f"and errors of {PRIOR_ERROR:.0%} and more are assumed."
        )


def evidence(gpu_name: str) -> Evidence:
    """Of a bundled GPU, an alias, or a profile's path. Raises UnknownName or InputError."""
    gpu = load_gpu(gpu_name)
    file, efficiency = calibration_of(gpu), load_efficiency(gpu)
    measurements = _measurements() / f"{gpu.name}.jsonl"
    own = gpu.profile is None or gpu.profile == catalog.root() / "hardware_profiles" / "gpus" / f"{gpu.name}.yaml"
    errors = read_errors(gpu.name) if own and efficiency.tag == "calibrated" else None
    return Evidence(
        gpu=gpu,
        rests_on=_rests_on(gpu, file, efficiency),
        calibration=file,
        efficiency=efficiency,
        operators=_operators(file, efficiency, errors),
        errors=errors,
        measurements=measurements if own and measurements.is_file() else None,
        tables=tables_of(gpu.name) if own else None,
    )


def devices() -> dict[str, Rests]:
    """Every bundled GPU and what its numbers rest on; calibrated ones first."""
    found = {name: evidence(name).rests_on for name in catalog.names("gpu")}
    order: tuple[Rests, ...] = ("calibrated", "family prior", "uncalibrated")
    return {name: found[name] for rests in order for name in found if found[name] == rests}


def published_on(gpu_name: str) -> Validation | None:
    """The bundled published speeds that were measured on `gpu_name`, predicted; None where there are none.

    Prices all of them on the first call, which takes about a second.
    """
    from simulator.calibration.published import intervals_text

    whole, gpus = _published(_published_file())
    quantities = [q for q, gpu in zip(whole.quantities, gpus, strict=True) if gpu == gpu_name]
    if not quantities:
        return None
    return replace(
        whole, title=f"Published speeds on {load_gpu(gpu_name).title}", quantities=quantities,
        conditions=[
            (name, intervals_text(quantities) if name == "intervals" else text) for name, text in whole.conditions if name != "rows"
        ],
        notes=(),
    )  # fmt: skip


def published() -> Validation:
    """All bundled published speeds, predicted."""
    return _published(_published_file())[0]


def validate_bundled(found: Evidence, progress: Progress | None = None) -> list[Validation]:
    """Measurements of the device held against fits that did not see them: its bundled file (3 s), else the public timings
    on this machine (10 to 30 s); empty where there are neither."""
    from simulator.calibration.sources import Options, validations_of

    if found.measurements is not None:
        return list(validations_of(found.measurements, Options(progress=progress)))
    if found.tables is not None:
        return list(validations_of(found.tables, Options(gpu=found.gpu.name, progress=progress)))
    return []


def tables_of(gpu_name: str) -> Path | None:
    """Public timings of a GPU on this machine: under $MEMWALL_DATA, else ../shared/data beside a source tree; else None."""
    given = os.environ.get("MEMWALL_DATA")
    data = Path(given) if given else catalog.root().parent / "shared" / "data"
    place = data / TABLES[gpu_name] if gpu_name in TABLES else None
    return place if place is not None and place.is_dir() else None


def _rests_on(gpu: Gpu, file: CalibrationFile, efficiency: Efficiency) -> Rests:
    if efficiency.tag == "calibrated":
        return "calibrated"
    return "family prior" if file.kind == "fitted" and file.family == gpu.family else "uncalibrated"


def _operators(
    file: CalibrationFile, efficiency: Efficiency, errors: ErrorFile | None
) -> tuple[OperatorError, ...]:  # fmt: skip
    calibrated = efficiency.tag == "calibrated"
    scored = {r.name: r.points for r in reversed(errors.records)} if errors is not None else {}
    found = []
    for kind, name in KINDS.items():
        if kind not in efficiency.typical_error:
            continue
        measured = calibrated and kind in file.spread
        points = scored.get(name) or (file.rows[kind].used if kind in file.rows else None)
        found.append(
            OperatorError(
                kind, measured, points if measured else None, efficiency.typical_error[kind], efficiency.log_sd(kind)
            )
        )
    return tuple(found)


def _measurements() -> Path:
    return catalog.root() / "hardware_profiles" / "measurements"


@cache
def _published_file() -> Path:
    return _measurements() / "published" / "speeds.csv"


@lru_cache(maxsize=1)
def _published(path: Path) -> tuple[Validation, Sequence[str]]:
    """All published speeds, and the GPU of each."""
    from simulator.calibration.published import validate_published
    from simulator.calibration.published_cases import case_of
    from simulator.calibration.published_rows import read_published
    from simulator.errors import MemwallError

    gpus = []
    for row in read_published(path).rows:
        try:
            gpus.append(case_of(row).deployment.target.gpu.name)
        except MemwallError:
            gpus.append("")
    return validate_published(path), gpus
