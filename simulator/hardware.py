"""GPUs and links: frozen records read from ``hardware_profiles/``, every figure with its source, date and kind.

A profile is data, never code. A device that was measured here (`memwall calibrate`) has one file with three sections: ``gpu``
(a profile, or the name of a bundled one), ``calibration`` and ``engine``; its path works wherever a GPU's name does. Each figure names one of the file's ``sources``, and each source says whether it is a
datasheet, a measurement or a fit; `Gpu.provenance` carries that to whoever prints a number.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from simulator import catalog, units
from simulator.errors import InputError, UnknownName
from simulator.records import Record, read_mapping, read_record

SourceKind = Literal["datasheet", "measured", "fitted", "price-list", "estimate"]
Dtype = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp4", "mxfp4"]

BYTES_PER_VALUE: dict[str, float] = {
    "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "fp4": 0.5, "mxfp4": 0.5,
}  # fmt: skip
"""Bytes of one value, block scales not included (those belong to the quantisation scheme)."""

_FLOP_RATE = {"flop_fp32": "fp32", "flop_tf32": "tf32", "flop_bf16": "bf16", "flop_fp16": "fp16", "flop_fp8": "fp8",
              "flop_int8": "int8", "flop_int4": "int4", "flop_fp4": "fp4"}  # fmt: skip
# Where a format has no arithmetic of its own, its values are widened to the next of these that the GPU has.
_WIDER = {"int4": ("int4", "bf16"), "fp4": ("fp4", "fp8", "bf16"), "mxfp4": ("fp4", "bf16"), "fp8": ("fp8", "bf16"),
          "int8": ("int8", "bf16"), "fp16": ("fp16", "bf16", "fp32"), "bf16": ("bf16", "fp16", "fp32"),
          "tf32": ("tf32", "fp32"), "fp32": ("fp32",)}  # fmt: skip


class Source(Record):
    """Where a figure was read."""

    title: str
    """Name of the document, table or measurement file."""
    url: str = ""
    """Address of the document, where there is one."""
    date: str
    """Date of the document or measurement, or of reading where it is undated: YYYY, YYYY-MM or YYYY-MM-DD."""
    kind: SourceKind
    """What the figure rests on."""

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        # YAML reads 2023 as an integer and 2023-05-01 as a date.
        return str(value) if isinstance(value, int | datetime.date) else value


class Figure(Record):
    """One number with its unit and where it comes from."""

    value: str | float
    """The number with its unit, e.g. ``4.8 TB/s``; without one it is SI."""
    source: str
    """Key into the file's ``sources``."""
    note: str = ""
    """How it was derived when it does not stand in the source as it is."""

    @field_validator("value", mode="before")
    @classmethod
    def _text_or_number(cls, value: object) -> object:
        # Left to itself, pydantic takes `true` for 1 and answers to NaN that it is no string.
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        if not (number or isinstance(value, str)):
            raise ValueError("be a finite number, with a unit such as in '4.8 TB/s'")
        return value


class GpuFile(Record):
    """The layout of ``hardware_profiles/gpus/*.yaml``."""

    name: str
    """Name used on the command line; equals the file's name."""
    title: str
    """Name for people."""
    aliases: tuple[str, ...] = ()
    """Other names accepted on the command line."""
    vendor: str
    """nvidia, amd or generic."""
    family: str
    """Architecture family; a GPU without measurements takes its family's efficiencies."""
    node_link: str
    """Link between the GPUs of one node (a file of ``hardware_profiles/links``)."""
    host_link: str
    """Link to the host."""
    host_link_source: str = ""
    """Which of `sources` says so."""
    host_link_note: str = ""
    """How that is known where the source does not say it."""
    network_link: str = "infiniband-ndr-400"
    """Link between nodes, per GPU; by default one adapter of 400 Gbit/s per GPU, as in NVIDIA's DGX H100 and its like (DGX A100:
    200 Gbit/s)."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs that `node_link` joins."""
    sources: dict[str, Source]
    """Documents the figures come from."""
    figures: dict[str, Figure]
    """The figures, by the names in `hardware.FIGURES`."""


FIGURES: dict[str, tuple[str, bool]] = {
    "hbm_bandwidth": ("bytes_per_s", True), "hbm_capacity": ("bytes", True), "hbm_latency": ("s", True),
    "l2": ("bytes", True), "l2_bandwidth": ("bytes_per_s", False), "shared_memory_per_sm": ("bytes", True),
    "sm_count": ("tokens", True), "clock": ("hz", True), "tdp": ("w", True), "idle_power": ("w", False),
    "price": ("usd_per_s", False), **{name: ("flop_per_s", name == "flop_bf16") for name in _FLOP_RATE},
}  # fmt: skip
"""Figure → (dimension, required). FLOP rates are dense; ``sm_count`` is a bare count."""


@dataclass(frozen=True)
class Provenance:
    """What one figure rests on."""

    text: str
    source: Source
    note: str


@dataclass(frozen=True)
class WhatIf:
    """How a GPU that nobody sells differs from one that exists."""

    of: Gpu
    """The one that exists."""
    hbm_bandwidth_factor: float
    """Its HBM bandwidth is so many times that one's."""

    def __str__(self) -> str:
        return f"{self.hbm_bandwidth_factor:g} × the HBM bandwidth"


@dataclass(frozen=True)
class Gpu:
    """One GPU in SI units."""

    name: str
    title: str
    vendor: str
    family: str
    hbm_bytes_per_s: float
    hbm_bytes: float
    hbm_latency_s: float
    l2_bytes: float
    l2_bytes_per_s: float | None
    shared_memory_bytes_per_sm: float
    sm_count: int
    clock_hz: float
    tdp_w: float
    idle_power_w: float | None
    price_usd_per_s: float | None
    dense_flop_per_s: Mapping[str, float]
    node_link: str
    host_link: str
    network_link: str
    gpus_per_node: int
    provenance: Mapping[str, Provenance]
    profile: Path | None = None
    """A measured device's own file, which also holds its ``calibration`` and its ``engine`` (`memwall calibrate`)."""
    what_if: WhatIf | None = None
    """Set where this is no GPU that exists (`what_if`); nothing then calls its times calibrated."""

    @property
    def desk_bytes(self) -> float:
        """The article's desk: shared memory of all SMs together, bytes."""
        return self.shared_memory_bytes_per_sm * self.sm_count

    def compute_dtype(self, dtype: str) -> str:
        """The format in which `dtype` operands are multiplied here, e.g. int4 weights as bf16."""
        for candidate in _WIDER[dtype]:
            if candidate in self.dense_flop_per_s:
                return candidate
        raise InputError("dtype", dtype, f"be a format {self.title} can compute in", suggestion="bf16")

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense datasheet peak for operands of `dtype`, FLOP/s."""
        return self.dense_flop_per_s[self.compute_dtype(dtype)]


@dataclass(frozen=True)
class Link:
    """A connection between two GPUs, or a GPU and its host or network."""

    name: str
    title: str
    bytes_per_s: float
    """Per GPU and direction."""
    latency_s: float
    """One message, end to end, small-message limit."""
    provenance: Mapping[str, Provenance]


class LinkFile(Record):
    """The layout of ``hardware_profiles/links/*.yaml``."""

    name: str
    """Name used in GPU profiles; equals the file's name."""
    title: str
    """Name for people."""
    sources: dict[str, Source]
    """Documents the figures come from."""
    bandwidth: Figure
    """Per GPU and direction."""
    latency: Figure
    """One small message, end to end."""


def load_gpu(name: str, *, base: Path | None = None) -> Gpu:
    """The GPU of a bundled name, an alias, or a profile's path. Raises UnknownName or InputError."""
    bundled = name.lower() in (known.lower() for known in catalog.names("gpu"))
    # Aliases stand in the profiles, and reading all of those takes a fifth of a warm start.
    path = catalog.locate("gpu", name, aliases=None if bundled else gpu_aliases(), base=base)
    data = read_mapping(path)
    if isinstance(data.get("gpu"), str):  # a profile that calibrates a bundled GPU
        if data["gpu"] not in catalog.names("gpu"):
            raise UnknownName("gpu", data["gpu"], catalog.names("gpu"), where=str(path), kind="bundled GPU")
        return replace(load_gpu(data["gpu"]), profile=path)
    file = read_record(GpuFile, path, "gpu")
    where = str(path)
    for required in [n for n, (_, needed) in FIGURES.items() if needed and n not in file.figures]:
        raise InputError(f"figures.{required}", "(absent)", "be given", where=where)
    si, provenance = read_figures(file.figures, {n: d for n, (d, _) in FIGURES.items()}, file.sources, where)
    for key, value in si.items():
        if value <= 0:
            raise InputError(f"figures.{key}", file.figures[key].value, "be greater than 0", where=where)
    if si["sm_count"] % 1:
        raise InputError("figures.sm_count", file.figures["sm_count"].value, "be a whole number", where=where)
    if file.host_link_source:
        if file.host_link_source not in file.sources:
            raise UnknownName("host_link_source", file.host_link_source, file.sources, where=where, kind="source")
        provenance["host_link"] = Provenance(file.host_link, file.sources[file.host_link_source], file.host_link_note)
    return Gpu(
        name=file.name,
        title=file.title,
        vendor=file.vendor,
        family=file.family,
        hbm_bytes_per_s=si["hbm_bandwidth"],
        hbm_bytes=si["hbm_capacity"],
        hbm_latency_s=si["hbm_latency"],
        l2_bytes=si["l2"],
        l2_bytes_per_s=si.get("l2_bandwidth"),
        shared_memory_bytes_per_sm=si["shared_memory_per_sm"],
        sm_count=int(si["sm_count"]),
        clock_hz=si["clock"],
        tdp_w=si["tdp"],
        idle_power_w=si.get("idle_power"),
        price_usd_per_s=si.get("price"),
        dense_flop_per_s={dtype: si[key] for key, dtype in _FLOP_RATE.items() if key in si},
        node_link=file.node_link,
        host_link=file.host_link,
        network_link=file.network_link,
        gpus_per_node=file.gpus_per_node,
        provenance=provenance,
        profile=path if "calibration" in data else None,
    )


MOST_BANDWIDTH_FACTOR = 1000.0


def what_if(gpu: Gpu, *, hbm_bandwidth_factor: float) -> Gpu:
    """`gpu` with `hbm_bandwidth_factor` times its HBM bandwidth and the same latency, desk and arithmetic; `gpu` itself for 1.

    It keeps the efficiencies of `gpu`, untagged from "calibrated", as nobody measured it. The desk must still hold what is under
    way (Little's law), so that beyond desk/latency more bandwidth is of no use. What L2 holds is read faster by the same factor.

    Raises InputError for a factor that is not from 1/`MOST_BANDWIDTH_FACTOR` to `MOST_BANDWIDTH_FACTOR`.
    """
    most = MOST_BANDWIDTH_FACTOR
    if not 1 / most <= hbm_bandwidth_factor <= most:
        raise InputError("hbm_bandwidth_factor", hbm_bandwidth_factor, f"be from {1 / most:g} to {most:g}")
    if gpu.what_if is not None:
        return what_if(gpu.what_if.of, hbm_bandwidth_factor=hbm_bandwidth_factor * gpu.what_if.hbm_bandwidth_factor)
    if hbm_bandwidth_factor == 1.0:
        return gpu
    wish, rate = WhatIf(gpu, hbm_bandwidth_factor), gpu.hbm_bytes_per_s * hbm_bandwidth_factor
    source = Source(title=f"what if {gpu.title} had {wish}?", date="undated", kind="estimate")
    return replace(
        gpu, name=f"{gpu.name} with {wish}", title=f"{gpu.title} with {wish}", hbm_bytes_per_s=rate, what_if=wish,
        provenance={**gpu.provenance, "hbm_bandwidth": Provenance(units.show(rate, "bytes_per_s"), source, "made up")},
    )  # fmt: skip


def load_link(name: str, *, base: Path | None = None) -> Link:
    """The link of a bundled name or a profile's path. Raises UnknownName or InputError."""
    path = catalog.locate("link", name, base=base)
    file = read_record(LinkFile, path)
    figures = {"bandwidth": file.bandwidth, "latency": file.latency}
    si, provenance = read_figures(figures, {"bandwidth": "bytes_per_s", "latency": "s"}, file.sources, str(path))
    if si["bandwidth"] <= 0:
        raise InputError("bandwidth", file.bandwidth.value, "be greater than 0", where=str(path))
    if si["latency"] < 0:
        raise InputError("latency", file.latency.value, "be at least 0", where=str(path))
    return Link(file.name, file.title, si["bandwidth"], si["latency"], provenance)


def read_figures(
    figures: Mapping[str, Figure], dimensions: Mapping[str, str], sources: Mapping[str, Source], where: str
) -> tuple[dict[str, float], dict[str, Provenance]]:
    """SI value and provenance of each figure of a profile; `dimensions` says which figures there are and their units."""
    si: dict[str, float] = {}
    provenance: dict[str, Provenance] = {}
    for key, figure in figures.items():
        if key not in dimensions:
            raise UnknownName("figures", key, dimensions, where=where, kind="figure")
        if figure.source not in sources:
            raise UnknownName(f"figures.{key}.source", figure.source, sources, where=where, kind="source of this file")
        si[key] = units.parse(figure.value, dimensions[key], field=f"figures.{key}", where=where)
        provenance[key] = Provenance(str(figure.value), sources[figure.source], figure.note)
    return si, provenance


@cache
def gpu_aliases() -> dict[str, str]:
    """Other names of the bundled GPUs, each with the bundled one."""
    found: dict[str, str] = {}
    for name in catalog.names("gpu"):
        data = read_mapping(catalog.locate("gpu", name))
        for alias in data.get("gpu", data).get("aliases", ()):
            found[str(alias)] = name
    return found
