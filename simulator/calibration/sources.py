"""Sources: whatever people have measured, told apart by what is in it, and turned into a profile or a validation.

A file or folder is one of: a measurement file of the reference decoder, a table of points with named columns, kernel tables,
layer timings, a real engine's run, published speeds, or the result of a serving benchmark.
"""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from simulator.calibration import fit, layer_timings
from simulator.calibration.comparison import Progress, Validation
from simulator.calibration.device_profile import DeviceProfile
from simulator.calibration.device_validation import validate_device
from simulator.calibration.engine_run import read_engine_run, replay_engine_run
from simulator.calibration.layer_validation import validate_layers
from simulator.calibration.measured import Measurements, read_measurements
from simulator.calibration.point_table import read_points
from simulator.calibration.published import validate_published
from simulator.calibration.published_sweeps import validate_sweeps
from simulator.calibration.server_comparison import compare_server
from simulator.calibration.server_results import read_server_results
from simulator.calibration.table_validation import validate_tables
from simulator.errors import InputError
from simulator.hardware import load_gpu, load_link
from simulator.scenario import Scenario

Kind = Literal["measurements", "points", "kernels", "layers", "engine run", "published", "server"]

CALIBRATING: tuple[Kind, ...] = ("measurements", "points", "kernels", "layers")
"""Kinds that a calibration can be made from."""


@dataclass(frozen=True)
class Options:
    """What some kinds need to be told, and others do not."""

    gpu: str | None = None
    """GPU of kernel tables, layer timings and an engine's run; device of a point table; of a measurement file, the profile
    to hold against it in place of a fit."""
    link: str | None = None
    """Link of kernel tables."""
    scenario: Scenario | None = None
    """What served while a serving benchmark ran."""
    salvage: bool = False
    """Read a damaged measurement file up to the damage."""
    progress: Progress | None = None
    """Told how far a long fit is."""


def kind_of(path: Path) -> Kind:
    """What `path` holds. Raises InputError where it is nothing we know."""
    if path.is_dir():
        if layer_timings.is_layer_folder(path):
            return "layers"
        if (path / "requests.jsonl").is_file() and (path / "meta.json").is_file():
            return "engine run"
        if any(path.glob("*/*/*/*/*.parquet")):
            return "kernels"
        raise InputError("source", str(path), "be a folder of kernel tables, layer timings or an engine's run")
    if not path.is_file():
        raise InputError("source", str(path), "be an existing file or folder")
    if path.suffix == ".csv":
        columns = _csv_columns(path)
        if "accept_len" in columns and "metric" in columns:
            return "published"
        return "points" if "kind" in columns else "server"
    return "measurements" if _is_header(path) else "server"


def profile_from(path: Path, name: str, options: Options, date: str | None = None) -> tuple[str, Sequence[Validation]]:
    """The profile that `path` calibrates, as YAML, and how well it does on what its fit did not see."""
    kind = kind_of(path)
    if kind in ("measurements", "points"):
        profile = DeviceProfile.of(_measurements(path, kind, options), name, options.progress)
        return profile.text(), [validate_device(profile)]
    if kind not in CALIBRATING:
        raise InputError(
            "source", str(path), f"hold times of kernels or steps to calibrate from; it is of kind {kind!r}"
        )
    gpu = load_gpu(_needed_gpu(path, options))
    date = date or datetime.date.today().isoformat()
    found: Sequence[Validation]
    if kind == "layers":
        file, found = layer_timings.calibrate(path, gpu, date=date), [validate_layers(path, gpu)]
    else:
        link = load_link(options.link or gpu.node_link)
        file = fit.calibrate(path, gpu, link, date=date, progress=options.progress)
        found = validate_tables(path, gpu, link, progress=options.progress)
    calibration = file.model_copy(update={"name": name}).model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(
        {"gpu": gpu.name, "calibration": calibration}, sort_keys=False, allow_unicode=True, width=120,
        default_flow_style=None,
    )  # fmt: skip
    return str(text), found


def validations_of(path: Path, options: Options) -> Sequence[Validation]:
    """`path` held against memwall."""
    kind = kind_of(path)
    if kind in ("measurements", "points"):
        measured = _measurements(path, kind, options)
        if options.gpu is not None:
            return [validate_device(DeviceProfile.held_against(measured, load_gpu(options.gpu)))]
        return [validate_device(DeviceProfile.of(measured, path.stem, options.progress))]
    if kind == "published":
        sweeps = validate_sweeps(path)
        return [validate_published(path), *([] if sweeps is None else [sweeps])]
    if kind == "server":
        if options.scenario is None:
            raise InputError("--scenario", "(absent)", "say what served while the benchmark ran", where=str(path))
        return [
            compare_server(result, options.scenario, progress=options.progress) for result in read_server_results(path)
        ]
    if kind == "engine run":
        return [replay_engine_run(read_engine_run(path), _needed_gpu(path, options))]
    gpu = load_gpu(_needed_gpu(path, options))
    if kind == "layers":
        return [validate_layers(path, gpu)]
    return validate_tables(path, gpu, load_link(options.link or gpu.node_link), progress=options.progress)


def _measurements(path: Path, kind: Kind, options: Options) -> Measurements:
    if kind == "measurements":
        return read_measurements(path, salvage=options.salvage)
    # Where every row names its device, --gpu is only the profile to hold against it.
    table = read_points(path, device=None if "device" in _csv_columns(path) else options.gpu)
    return Measurements.of(path, table.header, table.lines, dropped=table.dropped)


def _needed_gpu(path: Path, options: Options) -> str:
    if options.gpu is None:
        raise InputError("--gpu", "(absent)", "name the GPU that these times were taken on", where=str(path))
    return options.gpu


def _csv_columns(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline(1 << 16)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("source", str(path), f"be readable as UTF-8 text ({error})") from None
    return [name.strip() for name in next(csv.reader([first]), [])]


def _is_header(path: Path) -> bool:
    """Whether the first line is a measurement file's; damaged ones count, so that their reader can name the damage."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
    except OSError as error:
        raise InputError("source", str(path), f"be readable ({error.strerror or error})") from None
    try:
        line: Any = json.loads(first)
    except (ValueError, RecursionError):
        return b'"kind"' in first and b'"header"' in first
    return isinstance(line, dict) and "kind" in line
