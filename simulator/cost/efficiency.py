"""How much of its datasheet a GPU delivers, by kind of operator: frozen records read from calibration files.

``hardware_profiles/calibrations/*.yaml`` are written by ``memwall calibrate`` (or by hand, as estimates); each
holds every parameter with its standard error, the rows it was fitted on and the error on rows it never saw.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import field_validator

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.hardware import Gpu
from simulator.records import Record, read_record

PRIOR_SPREAD = 0.35
"""Standard deviation of ln(measured/predicted) where nothing was measured: that of a normal error whose mean absolute value
is about `PRIOR_ERROR`."""
HOST_SPREAD = 0.25
"""The same for an engine's host time, which belongs to its version and to the host's processor: published steps of one
engine, two versions apart, leave residues of 0.60 and 0.80 ms."""
PRIOR_ERROR = 0.3
"""Typical relative error of parameters taken from another GPU of the family. Parameters moved between the three GPUs
of the kernel tables without refitting missed by 16 to 66 %; within one family the lower half of that is usual."""

Tag = Literal["calibrated", "analytic"]


class MatmulEfficiency(NamedTuple):
    """Parameters of `roofline.matmul_time`."""

    t0_s: float
    """Fixed time of one kernel as measured inside a replayed CUDA graph, launch gap included, s."""
    bandwidth: float
    """Share of the datasheet's HBM bandwidth that streaming reaches."""
    compute: float
    """Share of the datasheet's dense peak that an endlessly large tile would reach."""
    tile_half: float
    """Tile intensity tm·tn/(tm + tn) at which half of `compute` is reached; operands come from L2 at a finite rate."""
    k_extra: float
    """Prologue and epilogue of one tile, counted in values of k."""
    k_step_s: float
    """Latency per value of k of one tile's serial inner loop, s."""
    split_s: float
    """Fixed cost of splitting k over thread blocks and summing the parts, s."""
    power: float
    """Exponent p that joins memory and compute time; p → ∞ is the classical roofline."""
    l2_speedup: float
    """Rate of bytes found in L2 over the rate of bytes from HBM."""
    row_tile: float = 0.0
    """Rows of the only tile shape; 0: the library chooses among `roofline.TILES`. Vector units have no use for tiles of
    rows: 1."""


class AttentionEfficiency(NamedTuple):
    """Parameters of `roofline.attention_time`, one set for decode and one for prefill."""

    t0_s: float
    """Fixed time of one call as measured: one CUDA-graph replay per call, so the gap between replays is in it, s."""
    bandwidth: float
    """Share of the datasheet's HBM bandwidth."""
    compute: float
    """Share of the datasheet's dense peak at head_dim 128."""
    narrow_head: float
    """Extra time per FLOP at head_dim 64, as a share of that at 128; less than none above 128."""
    wave_s: float
    """Fixed time of one wave of thread blocks (one per SM) at head_dim 128, s."""
    wide_head: float
    """Growth of `wave_s` from head_dim 128 to 256, as a share."""
    kv_step_s: float
    """Serial time of one thread block per key of head_dim 128, s."""
    split_s: float
    """Fixed cost of splitting one sequence's keys over thread blocks, s."""
    combine_s: float
    """Cost of combining, per split, s."""
    copy_s: float
    """Rearranging queries and output when several sequences have grouped heads, s."""
    query_tile: float
    """Query rows of one thread block; fewer are padded to it."""
    packs_group: float
    """1 when the query heads that share a KV head are packed into one tile, 0 when each head has its own."""
    split_from_group: float
    """Fewest query heads per KV head from which the library splits keys over blocks (a large number: never)."""
    power: float
    """Exponent p that joins the terms."""
    l2_speedup: float
    """Rate of bytes found in L2 over HBM's; fits only, since real steps stream weights between two calls."""
    takes_decode: float = 0.0
    """Of the prefill kernel: 1 when it does every batch in which any sequence has more than one new token, decoding ones
    included, as FlashAttention-2 under vLLM does; 0 when decoding and verification have a kernel of their own."""
    sequence_s: float = 0.0
    """Fixed time per sequence and KV head, shared by the SMs, s; 0 on GPUs, where it is part of `wave_s`."""


class ElementwiseEfficiency(NamedTuple):
    """Parameters of `roofline.elementwise_time`."""

    t0_s: float
    """Fixed time of one fused kernel, s."""
    bandwidth: float
    """Share of the datasheet's HBM bandwidth."""
    l2_speedup: float = 1.0
    """Rate of bytes found in L2 over the rate of bytes from HBM: activations were written by the kernel before."""


class CollectiveEfficiency(NamedTuple):
    """Parameters of `collectives`: two kernels for small messages, the library's pipeline for large ones."""

    t0_s: float
    """Fixed time of one small-message kernel beyond the link's own latency, s."""
    peer_s: float
    """Added per further participant and step, s."""
    one_shot_bandwidth: float
    """Share of the link's bandwidth when every GPU reads every other's whole message."""
    two_shot_bandwidth: float
    """Share of the link's bandwidth in reduce-scatter followed by all-gather."""
    pipeline_t0_s: float
    """Fixed time of the large-message pipeline, s."""
    pipeline_bandwidth: float
    """Its share of the link's bandwidth."""
    small_limit_bytes: float
    """Largest message the small-message kernels take, bytes."""
    doubling: float
    """Factor on bandwidth from two participants to four: about 1 on a switch, less where they share a bus."""
    doubling_again: float
    """Factor on bandwidth from four participants to eight; held beyond."""
    power: float
    """Exponent that joins latency and transfer time."""
    exchange_t0_s: float
    """Fixed time of an all-gather or all-to-all beyond the link's latency, s."""
    exchange_peer_s: float
    """Added to it per further participant, s."""
    exchange_bandwidth: float
    """Its share of the link's bandwidth."""


class Parameter(Record):
    """One fitted or estimated number."""

    value: float
    """The parameter, in the unit its name ends in; shares are of the datasheet's figure."""
    standard_error: float | None = None
    """From the fit's covariance, same unit; absent for a value that was set, not fitted."""


class Rows(Record):
    """What one fit saw."""

    used: int
    """Rows fitted and scored together."""
    dropped: dict[str, int] = {}
    """Rows left out, by reason."""


class CalibrationFile(Record):
    """The layout of ``hardware_profiles/calibrations/*.yaml``."""

    name: str
    """Equals the file's name."""
    kind: Literal["fitted", "estimate"]
    """Fitted on measurements, or set by judgement between fits."""
    gpus: tuple[str, ...] = ()
    """Profiles whose own measurements this is; predictions for them are tagged calibrated."""
    family: str
    """Architecture family whose unmeasured members take these values, tagged analytic."""
    source: str
    """Where the measurements come from."""
    date: str
    """Date of the fit or estimate, YYYY-MM-DD."""
    note: str = ""
    """Conditions worth knowing: device, kernels, library versions."""
    matmul: dict[str, Parameter]
    """Fields of `MatmulEfficiency`."""
    decode_attention: dict[str, Parameter]
    """Fields of `AttentionEfficiency`, up to about 16 new tokens per sequence."""
    prefill_attention: dict[str, Parameter]
    """Fields of `AttentionEfficiency`, for longer runs of new tokens."""
    elementwise: dict[str, Parameter]
    """Fields of `ElementwiseEfficiency`."""
    all_reduce: dict[str, Parameter]
    """Fields of `CollectiveEfficiency`."""
    rows: dict[str, Rows] = {}
    """By operator kind."""
    typical_error: dict[str, float]
    """Mean absolute relative error on rows held out of the fit, by operator kind."""
    spread: dict[str, float] = {}
    """Root mean square of ln(measured/predicted) on rows held out of the fit, by operator kind; ``step`` where whole steps
    were measured, ``host`` for the engine's share. Prediction intervals rest on it."""

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, datetime.date) else value


@dataclass(frozen=True)
class Efficiency:
    """What one GPU delivers, and how far to trust it."""

    name: str
    tag: Tag
    source: str
    matmul: MatmulEfficiency
    decode_attention: AttentionEfficiency
    prefill_attention: AttentionEfficiency
    elementwise: ElementwiseEfficiency
    all_reduce: CollectiveEfficiency
    typical_error: Mapping[str, float]
    spread: Mapping[str, float]
    slower: Mapping[str, float] = field(default_factory=dict)
    """Factors on the time of kinds of operators, for "what if these are slower than calibrated"."""

    def log_sd(self, kind: str) -> float:
        """Standard deviation of ln(measured/predicted) of one kind of operator, ``step`` or ``host``."""
        return self.spread.get(kind, PRIOR_SPREAD)

    @property
    def label(self) -> str:
        """For people: "calibrated (h100-sxm)" or "uncalibrated (prior of h100-sxm)"."""
        return f"calibrated ({self.name})" if self.tag == "calibrated" else f"uncalibrated (prior of {self.name})"


def load_efficiency(gpu: Gpu, *, calibration: str | None = None) -> Efficiency:
    """The calibration in the GPU's own profile, else the one that lists `gpu`, else its family's, else ``generic``; or
    the one named or given by path.

    Only a file that lists ``gpu.name`` yields the tag "calibrated"; every other is a prior and its errors are widened
    to at least `PRIOR_ERROR`.
    """
    if calibration is not None:
        return efficiency_from(_read(catalog.locate("calibration", calibration)), gpu.name)
    return efficiency_from(calibration_of(gpu), gpu.name)


def calibration_of(gpu: Gpu) -> CalibrationFile:
    """The file that `load_efficiency` reads for `gpu`: its own profile's, one that lists it, its family's, ``generic``."""
    if gpu.profile is not None:
        return _read(gpu.profile)
    files = [_read(catalog.locate("calibration", name)) for name in catalog.names("calibration")]
    name = gpu.what_if.of.name if gpu.what_if is not None else gpu.name
    chosen = next((f for f in files if name in f.gpus), None)
    chosen = chosen or next((f for f in files if f.family == gpu.family), None)
    return chosen or next(f for f in files if f.family == "generic")


def efficiency_from(file: CalibrationFile, gpu_name: str) -> Efficiency:
    """`file` as seen by the GPU called `gpu_name`."""
    calibrated = file.kind == "fitted" and gpu_name in file.gpus
    errors = file.typical_error if calibrated else {k: max(v, PRIOR_ERROR) for k, v in file.typical_error.items()}
    return Efficiency(
        name=file.name,
        tag="calibrated" if calibrated else "analytic",
        source=file.source,
        matmul=_as(MatmulEfficiency, file.matmul, "matmul", file.name),
        decode_attention=_as(AttentionEfficiency, file.decode_attention, "decode_attention", file.name),
        prefill_attention=_as(AttentionEfficiency, file.prefill_attention, "prefill_attention", file.name),
        elementwise=_as(ElementwiseEfficiency, file.elementwise, "elementwise", file.name),
        all_reduce=_as(CollectiveEfficiency, file.all_reduce, "all_reduce", file.name),
        typical_error=errors,
        spread=_spread(file, calibrated),
    )


def _spread(file: CalibrationFile, calibrated: bool) -> dict[str, float]:
    # 1.25: root mean square over mean absolute value of a normal error, where a file states the latter only.
    spread = {kind: 1.25 * error for kind, error in file.typical_error.items()} | file.spread
    if not calibrated:
        spread = {kind: max(value, PRIOR_SPREAD) for kind, value in spread.items()}
        spread.pop("step", None)  # of whole steps on another device
    return {"host": HOST_SPREAD, **spread}


_DIVISORS = {
    "bandwidth", "compute", "power", "l2_speedup", "query_tile", "one_shot_bandwidth", "two_shot_bandwidth",
    "pipeline_bandwidth", "exchange_bandwidth", "doubling", "doubling_again",
}  # fmt: skip
P = TypeVar("P", bound=tuple[Any, ...])


def _as(cls: type[P], parameters: Mapping[str, Parameter], section: str, where: str) -> P:
    fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    for name, parameter in parameters.items():
        if name not in fields:
            raise UnknownName(section, name, fields, where=where, kind="parameter")
        # What is divided by may not be 0; times, factors of extra work and switches may.
        if name in _DIVISORS and parameter.value <= 0:
            raise InputError(f"{section}.{name}", parameter.value, "be greater than 0", where=where)
        if parameter.value < 0:
            raise InputError(f"{section}.{name}", parameter.value, "be at least 0", where=where)
    defaults: Mapping[str, float] = cls._field_defaults  # type: ignore[attr-defined]
    for name in fields:
        if name not in parameters and name not in defaults:
            raise InputError(f"{section}.{name}", "(absent)", "be given", where=where)
    build: Any = cls
    built: P = build(**{name: parameter.value for name, parameter in parameters.items()})
    return built


def _read(path: Path) -> CalibrationFile:
    return _read_version(path, path.stat().st_mtime_ns)


@cache
def _read_version(path: Path, modified_ns: int) -> CalibrationFile:
    return read_record(CalibrationFile, path, "calibration")
