"""A measurement file → the profile of that device: one YAML file with its figures, its calibration and its engine.

`memwall calibrate` writes it, and its path works wherever a GPU's name does. A GPU that is bundled keeps its datasheet's
figures; any other device gets what was measured, and the generic profile's estimate for what no measurement shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from simulator import catalog, units
from simulator.calibration import device_fit
from simulator.calibration.comparison import Progress
from simulator.calibration.device_fit import Data, DeviceFit, Layout
from simulator.calibration.measured import Measurements, PassRows
from simulator.calibration.passes import Kernels
from simulator.cost.efficiency import CalibrationFile, Efficiency, Parameter, Rows, efficiency_from, load_efficiency
from simulator.engine import Engine, EngineFile, engine_from, load_engine
from simulator.hardware import Figure, Gpu, GpuFile, Source, load_gpu
from simulator.records import Record, read_record

FloatArray = NDArray[np.float64]

BOARDS = (
    (r"\bB200\b", "b200"), (r"\bH200\b", "h200"), (r"\bH100\b.*PCIe", "h100-pcie"), (r"\bH100\b", "h100-sxm"),
    (r"\bA100\b.*PCIe.*40", "a100-pcie-40gb"), (r"\bA100\b.*PCIe", "a100-pcie-80gb"), (r"\bA100\b.*40GB", "a100-sxm-40gb"),
    (r"\bA100\b", "a100-sxm-80gb"), (r"\bL40S\b", "l40s"), (r"\bL4\b", "l4"), (r"\bA10G\b", "a10g"),
    (r"RTX 4090\b", "rtx-4090"), (r"RTX 5090\b", "rtx-5090"), (r"\bMI300X\b", "mi300x"), (r"\bMI325X\b", "mi325x"),
)  # fmt: skip
"""What PyTorch calls a board → its bundled profile; the first that fits."""


def bundled_gpu(device: str) -> str | None:
    """The bundled profile of the board that PyTorch calls `device`."""
    if re.search(r"\bMIG\b|\bNVL\b|Laptop|\b[45]090 D\b", device, re.IGNORECASE):
        return None  # another memory, another clock: not the board whose datasheet is bundled
    found = next((name for pattern, name in BOARDS if re.search(pattern, device, re.IGNORECASE)), None)
    return load_gpu(found).name if found else None


def device_of(measured: Measurements, name: str) -> tuple[Gpu, GpuFile | None]:
    """The measured device as a `Gpu` called `name`, and its profile unless it is bundled."""
    known = bundled_gpu(str(measured.header["device"])) if measured.header["device_kind"] == "cuda" else None
    if known is not None:
        return load_gpu(known), None
    file = _measured_profile(measured, name)
    generic = load_gpu("cpu-generic" if file.family == "cpu" else "h100-sxm")
    si = {key: units.parse(figure.value, dimension) for key, figure in file.figures.items()
          for dimension in [_DIMENSION[key]]}  # fmt: skip
    gpu = replace(
        generic, name=name, title=file.title, family=file.family, hbm_bytes_per_s=si["hbm_bandwidth"],
        hbm_bytes=si["hbm_capacity"], l2_bytes=si["l2"], shared_memory_bytes_per_sm=si["shared_memory_per_sm"],
        sm_count=int(si["sm_count"]), price_usd_per_s=None,
        dense_flop_per_s={key.removeprefix("flop_"): value for key, value in si.items() if key.startswith("flop_")},
    )  # fmt: skip
    return gpu, file


_DIMENSION = {
    "hbm_bandwidth": "bytes_per_s", "hbm_capacity": "bytes", "hbm_latency": "s", "l2": "bytes", "clock": "hz", "tdp": "w",
    "shared_memory_per_sm": "bytes", "sm_count": "tokens", "idle_power": "w", "flop_bf16": "flop_per_s",
    "flop_fp32": "flop_per_s", "flop_fp16": "flop_per_s",
}  # fmt: skip


def _measured_profile(measured: Measurements, name: str) -> GpuFile:
    header = measured.header
    cpu = header["device_kind"] == "cpu"
    generic = read_record(GpuFile, catalog.locate("gpu", "cpu-generic" if cpu else "h100-sxm"))
    estimate = "generic"
    sources = {
        "measured": Source(title=conditions(measured), date=measured.date, kind="measured"),
        estimate: Source(title=f"As the bundled profile {generic.name}", date=measured.date, kind="estimate"),
    }
    dtype = str(header["dtype"])
    kept = ("hbm_bandwidth", "hbm_latency", "hbm_capacity", "l2", "shared_memory_per_sm", "sm_count", "clock", "tdp",
            "idle_power", "flop_bf16")  # fmt: skip
    figures = {key: Figure(value=generic.figures[key].value, source=estimate, note="not measured; that of a whole socket" if
                           cpu else "not measured") for key in kept if key in generic.figures}  # fmt: skip

    def put(key: str, value: float | None, note: str) -> None:
        if value:
            figures[key] = Figure(value=_with_unit(value, _DIMENSION[key]), source="measured", note=note)

    cold = [line for line in measured.of_kind("read", "copy") if line["cache"] == "cold"]
    bytes_per_s = max((line["moved_bytes"] / line["median_s"] for line in cold), default=None)
    flop_per_s = max((line["flop"] / line["median_s"] for line in measured.of_kind("matmul")), default=None)
    put("hbm_bandwidth", bytes_per_s, "fastest read or copy of buffers that the last cache cannot hold")
    note = f"fastest matmul in {dtype}; what the device could do at most is not known"
    for multiplied in dict.fromkeys(("bf16", dtype)):
        put(f"flop_{multiplied}", flop_per_s, note)
    put("l2", header.get("last_cache_bytes"), "as the system reports its last cache")
    put("hbm_capacity", header.get("memory_bytes"), "as the system reports it")
    put(
        "sm_count",
        header.get("threads") if cpu else header.get("sm_count"),
        "threads" if cpu else "as PyTorch reports it",
    )
    put("shared_memory_per_sm", header.get("shared_memory_per_sm_bytes"), "as PyTorch reports it")
    put("tdp", header.get("power_limit_w"), "power limit")
    count = header.get("threads") or 1
    threads = f", {count} thread{'s' if count > 1 else ''}" if cpu else ""
    return GpuFile(
        name=name, title=f"{header['device']}{threads}", vendor="generic", family="cpu" if cpu else f"{name} only",
        node_link=generic.node_link, host_link=generic.host_link, host_link_source="generic",
        host_link_note="not measured; that of the generic profile", gpus_per_node=1, sources=sources, figures=figures,
    )  # fmt: skip


def _with_unit(value: float, dimension: str) -> str | float:
    """As a profile is written by hand: "32.731 GB/s", whole numbers of bytes in full."""
    if dimension == "tokens":
        return int(value)
    return f"{value} B" if isinstance(value, int) and dimension == "bytes" else units.show(value, dimension, 5)


def conditions(measured: Measurements) -> str:
    """One line: the device and what measured it."""
    h = measured.header
    driver = f", driver {h['driver']}" if h.get("driver") else ""
    if not h.get("torch"):  # a table of somebody's own timings
        return f"{h['device']}{driver}, {h['dtype']}: {measured.path.name}"
    return f"memwall reference decoder on {h['device']}{driver}, torch {h['torch']}, {h['dtype']}: {measured.path.name}"


@dataclass(frozen=True)
class DeviceProfile:
    """A measured device: the fit on everything, and what it misses on what a fit did not see."""

    name: str
    measured: Measurements
    gpu: Gpu
    file: GpuFile | None
    """The device's own profile; None where it is bundled."""
    data: Data
    fit: DeviceFit
    given: Efficiency | None = None
    """Where an existing profile is held against these measurements, and nothing is fitted on them."""
    progress: Progress | None = field(default=None, compare=False, repr=False)
    """Told of the fits that `held_out` makes."""

    @staticmethod
    def held_against(measured: Measurements, gpu: Gpu) -> DeviceProfile:
        """An existing profile, to be held against measurements that it was not fitted on."""
        efficiency = load_efficiency(gpu)
        values = {section: getattr(efficiency, section)._asdict() for section in Kernels._fields}
        engine = load_engine(str(gpu.profile)) if gpu.profile is not None else None
        on_host_clock = measured.header["device_kind"] == "cpu"  # a device's own clock does not see the host
        values["host"] = {"step_s": engine.host_step_s if engine and on_host_clock else 0.0}
        fitted = DeviceFit(Layout({}, {}), np.empty(0), np.empty((0, 0)), True, "not fitted on these", values)
        return DeviceProfile(gpu.name, measured, gpu, None, Data.of(measured, gpu), fitted, efficiency)

    @staticmethod
    def of(measured: Measurements, name: str, progress: Progress | None = None) -> DeviceProfile:
        """Fitted. Raises InputError where the file holds too little to fit."""
        gpu, file = device_of(measured, name)
        data = Data.of(measured, gpu)
        data.require_enough(str(measured.path))
        return DeviceProfile(name, measured, gpu, file, data, device_fit.solve(data), progress=progress)

    @cached_property
    def held_out(self) -> Mapping[str, device_fit.HeldOut]:
        """By whole batches and by whole models: what fits that did not see them predict. Where no step was measured, by
        matrix."""
        ways = ("batch", "model") if len(self.data.steps) else ("matrix",)
        return {by: device_fit.held_out(self.measured, self.data, by, self.progress) for by in ways}

    @cached_property
    def spread(self) -> Mapping[str, float]:
        """Standard deviation of ln(measured/predicted) by kind, as the profile claims it."""
        return self.given.spread if self.given is not None else self.calibration.spread

    @property
    def basis(self) -> str:
        """What the points of this file are to the fit on all of them."""
        return "fitted on these" if self.given is None else "not fitted on"

    @cached_property
    def rounds(self) -> PassRows:
        """Whole speculative rounds, which are never fitted."""
        return self.measured.passes("round")

    @cached_property
    def host(self) -> dict[str, float]:
        """Host time, s: ``step`` of a plain step and ``pass`` of every further pass of a round.

        A step timed by the host has it inside; where the device timed it, rounds of a toy model show it, whose passes cost
        next to nothing, and the further passes share what a round of four drafts takes longer.
        """
        if self.given is not None:
            engine = load_engine(str(self.gpu.profile)) if self.gpu.profile is not None else None
            return (
                {"step": engine.host_step_s, "pass": engine.host_draft_pass_s} if engine else {"step": 0.0, "pass": 0.0}
            )
        if self.data.on_host_clock:
            return {"step": self.fit.host_step_s, "pass": self.fit.host_step_s}
        rounds = self._toy_rounds
        if 0 not in rounds:
            return {"step": 0.0, "pass": 0.0}
        drafted = max(rounds)
        step_s = rounds[0]
        return {"step": step_s, "pass": max(0.0, rounds[drafted] - step_s) / (drafted + 1) if drafted else 0.0}

    @cached_property
    def _toy_rounds(self) -> dict[int, float]:
        """Times of a toy model's rounds by γ, s."""
        return {line["gamma"]: line["median_s"] for line in self.measured.of_kind("launch")
                if line["what"] == "round" and line["graphs"] == self.measured.graphs}  # fmt: skip

    @property
    def knows_host(self) -> bool:
        """Whether anything measured shows the host's share."""
        return len(self.data.steps) + len(self.data.drafts) > 0 if self.data.on_host_clock else 0 in self._toy_rounds

    def round_s(self, rows: PassRows) -> FloatArray:
        """Predicted times of rounds [rows], host time included."""
        terms = device_fit.terms_of(rows, self.measured, self.gpu)
        if terms is None:
            return np.empty(0)
        passes_s = device_fit.row_seconds(rows, terms, self.fit.kernels, self.gpu)
        passes = np.bincount(rows.row, rows.times, len(rows))
        speculative = passes > 1
        extra_s = np.where(self.data.on_host_clock, passes - 1.0, passes * speculative) * self.host["pass"]
        return np.asarray(passes_s + self.host["step"] + extra_s)

    @cached_property
    def calibration(self) -> CalibrationFile:
        """The fit as a calibration file."""
        gpu = self.gpu
        prior = load_efficiency(replace(gpu, name="(unmeasured)", profile=None))
        errors, spread = self._errors()
        kernels = self.fit.kernels
        used = {"matmul": len(self.data.matmul["latency_s"]), "attention": len(self.data.attention["latency_s"]),
                "step": len(self.data.steps), "draft": len(self.data.drafts)}  # fmt: skip
        return CalibrationFile(
            name=self.name, kind="fitted", gpus=(gpu.name,), family=f"{gpu.family}, {gpu.name} only",
            source=conditions(self.measured), date=self.measured.date, note=self._note(),
            **{section: self._section(section, getattr(kernels, section)) for section in kernels._fields},
            all_reduce={name: Parameter(value=value) for name, value in prior.all_reduce._asdict().items()},
            rows={kind: Rows(used=n, dropped=dict(self.data.dropped.get(kind, {}))) for kind, n in used.items()},
            typical_error=errors, spread=spread,
        )  # fmt: skip

    def _errors(self) -> tuple[dict[str, float], dict[str, float]]:
        """Mean absolute errors and spreads by kind, held out: the worse of the two ways where there are two."""
        errors: dict[str, float] = {}
        spread: dict[str, float] = {}
        for outcome in self.held_out.values():
            for kind, logs in outcome.log_errors.items():
                if len(logs):
                    errors[kind] = max(errors.get(kind, 0.0), float(np.abs(np.expm1(logs)).mean()))
                    spread[kind] = max(spread.get(kind, 0.0), float(np.sqrt(np.mean(logs**2))))
        prior = load_efficiency(replace(self.gpu, name="(unmeasured)", profile=None))
        kinds = ("matmul", "decode_attention", "prefill_attention", "elementwise", "all_reduce")
        errors = {kind: prior.typical_error[kind] for kind in kinds if kind not in errors} | errors
        return ({kind: float(f"{value:.3g}") for kind, value in errors.items()},
                {kind: float(f"{value:.3g}") for kind, value in spread.items()})  # fmt: skip

    def _section(self, section: str, values: Any) -> dict[str, Parameter]:
        names = self.fit.layout.names
        fitted = section if (section, "t0_s") in names else "attention"
        parameters = {}
        for name, value in values._asdict().items():
            error = None
            if (fitted, name) in names:
                i = names.index((fitted, name))
                error = float(f"{value * np.sqrt(max(0.0, self.fit.covariance[i, i])):.2g}")
            parameters[name] = Parameter(value=float(f"{value:.4g}"), standard_error=error)
        return parameters

    def _note(self) -> str:
        if not len(self.data.steps):
            return (
                "Kernels alone. The error of matmuls is on matrices that a fit did not see; what was not measured is the "
                "family's and keeps its error. Parameters without a standard error are set."
            )
        how = "by the host's clock" if self.data.on_host_clock else "by device events, as replayed CUDA graphs"
        return (
            f"Steps timed {how}. Kernels, steps and drafts are fitted together; errors are on steps of whole batch sizes and "
            "whole models (with all kernels of their shapes) that a fit did not see, the worse of the two. Rounds and serving "
            "runs were not fitted. Of the family, since one device cannot show it: all_reduce. Parameters without a standard "
            "error are set."
        )

    @cached_property
    def efficiency(self) -> Efficiency:
        """The calibration as the simulator uses it."""
        return self.given if self.given is not None else efficiency_from(self.calibration, self.gpu.name)

    @cached_property
    def engine(self) -> Engine:
        """The reference decoder on this device."""
        if self.given is not None and self.gpu.profile is not None:
            return load_engine(str(self.gpu.profile))
        return engine_from(self.engine_file)

    @property
    def engine_file(self) -> EngineFile:
        """The reference decoder's engine profile with this device's host times."""
        base = read_record(EngineFile, catalog.locate("engine", "reference"))
        if not self.knows_host:
            return base
        measured = Source(title=conditions(self.measured), date=self.measured.date, kind="fitted")
        pass_s = self.host["pass"]
        times = {"host_step": self.host["step"], "host_draft_pass": pass_s,
                 "host_speculative_round": 0.0 if self.data.on_host_clock else pass_s}  # fmt: skip
        figures = {
            **base.figures,
            **{key: Figure(value=float(f"{v:.4g}"), source="fitted") for key, v in times.items()},
        }
        title = f"Reference decoder (PyTorch) on {self.gpu.title}"
        sources = {**base.sources, "fitted": measured}
        return base.model_copy(update={"title": title, "sources": sources, "figures": figures})

    def text(self) -> str:
        """The profile as YAML."""
        document: dict[str, Any] = {"gpu": self.gpu.name if self.file is None else _plain(self.file)}
        document["calibration"] = self.calibration.model_dump(mode="json", exclude_none=True)
        document["engine"] = _plain(self.engine_file)
        return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None))

    @property
    def label(self) -> str:
        """As every output will say it."""
        return self.efficiency.label


def _plain(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def profile_name(output: str | Path) -> str:
    """The device's name: the file's without its ending."""
    return Path(output).name.removesuffix(".yaml").removesuffix(".yml")
