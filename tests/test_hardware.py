"""Bundled GPU and link profiles, and files that users write."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator import catalog
from simulator.cost.efficiency import load_efficiency
from simulator.deployment import EngineChoice
from simulator.errors import InputError, UnknownName
from simulator.hardware import Gpu, GpuFile, load_gpu, load_link, what_if
from simulator.records import read_record

GPUS, LINKS = catalog.names("gpu"), catalog.names("link")
MEASURED = [name for name in GPUS if load_gpu(name).profile is not None]
DATASHEETS = [name for name in GPUS if name not in MEASURED]
"""A device that was measured has no datasheet to agree with: its peaks are what it reached."""


def _bundled(name: str) -> GpuFile:
    return read_record(GpuFile, catalog.locate("gpu", name), "gpu")


# --- what is bundled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_loads_and_its_links_exist(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    assert {gpu.node_link, gpu.host_link, gpu.network_link} <= set(LINKS)
    assert gpu.provenance["host_link"].text == gpu.host_link
    assert "bf16" in gpu.dense_flop_per_s


@pytest.mark.parametrize("name", LINKS)
def test_every_link_loads(name: str) -> None:
    link = load_link(name)
    assert link.name == name
    assert link.bytes_per_s > 1e9
    assert 0 < link.latency_s < 1e-4


@pytest.mark.parametrize(("kind", "name"), [("gpu", n) for n in GPUS] + [("link", n) for n in LINKS])
def test_every_figure_says_where_it_comes_from(kind: str, name: str) -> None:
    provenance = (load_gpu if kind == "gpu" else load_link)(name).provenance
    assert provenance
    for figure, origin in provenance.items():
        assert re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", origin.source.date), figure
        assert origin.source.title, figure
        # Who can be looked up must say where; an estimate or a driver's answer must say how it came about.
        assert origin.source.url.startswith("https://") or origin.note, figure


@pytest.mark.parametrize("name", GPUS)
def test_no_source_is_left_unused(name: str) -> None:
    file = _bundled(name)
    assert set(file.sources) == {figure.source for figure in file.figures.values()}


def test_aliases_are_unique_and_shadow_no_name() -> None:
    aliases = [alias.lower() for name in GPUS for alias in _bundled(name).aliases]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & {name.lower() for name in GPUS}


# --- physics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPUS)
def test_narrower_formats_are_never_slower(name: str) -> None:
    peak = load_gpu(name).dense_flop_per_s
    widths = [["fp32"], ["tf32"], ["bf16", "fp16"], ["fp8", "int8"], ["int4", "fp4"]]
    levels = [[peak[dtype] for dtype in dtypes if dtype in peak] for dtypes in widths]
    levels = [level for level in levels if level]
    for wider, narrower in itertools.pairwise(levels):
        assert min(narrower) >= max(wider)


# Width of the memory bus [bit] and its data rate [Gbit/s per pin], from the boards' descriptions.
_BUSES = {
    "a100-sxm-40gb": (5120, 2.43),
    "a100-sxm-80gb": (5120, 3.186),
    "a100-pcie-40gb": (5120, 2.43),
    "a100-pcie-80gb": (5120, 3.024),
    "h100-sxm": (5120, 5.238),
    "h100-pcie": (5120, 3.186),
    "h200-sxm": (6144, 6.25),
    "b200": (8192, 8.0),
    "l4": (192, 12.5),
    "l40s": (384, 18.0),
    "a10g": (384, 12.5),
    "rtx-4090": (384, 21.0),
    "rtx-5090": (512, 28.0),
    "mi300x": (8192, 5.2),
    "mi325x": (8192, 6.0),
    "cpu-generic": (8 * 64, 4.8),
}


@pytest.mark.parametrize("name", DATASHEETS)
def test_memory_bandwidth_is_bus_width_times_data_rate(name: str) -> None:
    bits, gbit_per_s = _BUSES[name]
    # Datasheets round down, by up to 2.5 %.
    assert load_gpu(name).hbm_bytes_per_s == pytest.approx(bits * gbit_per_s * 1e9 / 8, rel=0.026)


# Dense bf16 FLOP per clock and SM (or core), accumulated in fp32.
_FLOP_PER_CLOCK = dict.fromkeys(["a100-sxm-40gb", "a100-sxm-80gb", "a100-pcie-40gb", "a100-pcie-80gb"], 2048)
_FLOP_PER_CLOCK |= dict.fromkeys(["h100-sxm", "h100-pcie", "h200-sxm"], 4096) | {"b200": 8192}
_FLOP_PER_CLOCK |= {"l4": 1024, "l40s": 1024, "rtx-4090": 512, "rtx-5090": 512, "a10g": 512}
_FLOP_PER_CLOCK |= {"mi300x": 2048, "mi325x": 2048, "cpu-generic": 128}


@pytest.mark.parametrize("name", DATASHEETS)
def test_peak_flop_is_sms_times_clock_times_width(name: str) -> None:
    gpu = load_gpu(name)
    clock_hz = gpu.dense_flop_per_s["bf16"] / (gpu.sm_count * _FLOP_PER_CLOCK[name])
    # Hopper and Blackwell state tensor rates for a clock below the highest one, never above it; 0.5 % is rounding. A
    # rate with sparsity counted in would need twice the clock.
    assert 0.9 * gpu.clock_hz <= clock_hz <= 1.005 * gpu.clock_hz


@pytest.mark.parametrize("name", GPUS)
def test_caches_are_faster_and_smaller_than_memory(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.l2_bytes < gpu.hbm_bytes / 100
    assert gpu.l2_bytes_per_s is None or gpu.l2_bytes_per_s > 1.5 * gpu.hbm_bytes_per_s
    assert gpu.idle_power_w is not None
    assert gpu.idle_power_w < gpu.tdp_w / 2
    # Little's law: the desk holds more than what must be in flight for full bandwidth.
    assert gpu.desk_bytes > gpu.hbm_bytes_per_s * gpu.hbm_latency_s


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_profile_brings_its_calibration_and_engine(name: str) -> None:
    gpu = load_gpu(name)
    assert load_efficiency(gpu).tag == "calibrated"
    assert EngineChoice(name="reference").load(gpu=gpu).provenance["host_step"].source.kind == "fitted"
    assert gpu.provenance["hbm_bandwidth"].source.kind == "measured"


def test_a_format_without_arithmetic_is_widened() -> None:
    a100, b200 = load_gpu("a100"), load_gpu("b200")
    assert (a100.compute_dtype("fp8"), a100.compute_dtype("int8"), a100.compute_dtype("mxfp4")) == (
        "bf16",
        "int8",
        "bf16",
    )
    assert (b200.compute_dtype("mxfp4"), b200.compute_dtype("int4")) == ("fp4", "bf16")
    assert a100.peak_flop_per_s("fp8") == a100.peak_flop_per_s("bf16")


# --- names -------------------------------------------------------------------------------------------------------------


_ALIASES = {"h100": "h100-sxm", "H100": "h100-sxm", "a100": "a100-sxm-80gb", "h200": "h200-sxm", "b200-sxm": "b200"}
_ALIASES |= {"4090": "rtx-4090", "5090": "rtx-5090", "cpu": "cpu-generic", "MI300X": "mi300x"}


@pytest.mark.parametrize("alias", _ALIASES)
def test_alias(alias: str) -> None:
    assert load_gpu(alias) == load_gpu(_ALIASES[alias])


@pytest.mark.parametrize(
    ("typed", "meant"), [("h10", "h100"), ("rtx4099", "rtx4090"), ("L40", "l40s"), ("mi300xx", "mi300x")]
)
def test_unknown_gpu_gets_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(UnknownName) as error:
        load_gpu(typed)
    assert f"gpu='{typed}' must be a known gpu" in str(error.value)
    assert str(error.value).endswith(f"; did you mean {meant}?")


def test_unknown_link() -> None:
    with pytest.raises(UnknownName, match=r"link='nvlink4' .*; did you mean nvlink-4\?"):
        load_link("nvlink4")


# --- files of users ----------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path: Path) -> Any:
    """A function that writes the bundled H100's profile with changed fields and loads it; 'a.b' names a nested field."""

    def load(changes: dict[str, Any]) -> Gpu:
        data = yaml.safe_load(catalog.locate("gpu", "h100-sxm").read_text())
        for path, value in changes.items():
            *outer, last = path.split(".")
            place = data
            for key in outer:
                place = place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(data))
        return load_gpu("mine.yaml", base=tmp_path)

    return load


def test_a_file_works_like_a_bundled_name(profile: Any) -> None:
    assert profile({}) == load_gpu("h100-sxm")
    mine = profile({"name": "mine", "figures.hbm_bandwidth.value": "1 TB/s", "figures.l2_bandwidth": None})
    assert (mine.name, mine.hbm_bytes_per_s, mine.l2_bytes_per_s) == ("mine", 1e12, None)
    assert mine.provenance["hbm_bandwidth"].text == "1 TB/s"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"figures.l2": None}, ["figures.l2", "must be given"]),
        ({"family": None}, ["family", "must be given"]),
        ({"sources.h100.date": None}, ["sources.h100.date", "must be given"]),
        ({"figures.l3": {"value": "1 MB", "source": "h100"}}, ["'l3' must be a known figure", "did you mean l2?"]),
        ({"figures.l2.source": "hoper"}, ["figures.l2.source='hoper'", "did you mean hopper?"]),
        ({"familly": "hopper"}, ["familly", "must be a known field", "did you mean family?"]),
        ({"figures.l2.valu": 1}, ["figures.l2.valu", "must be a known field", "did you mean value?"]),
        ({"figures.l2.value": "-50 MB"}, ["figures.l2='-50 MB' must be greater than 0"]),
        ({"figures.l2.value": 0}, ["figures.l2=0", "must be greater than 0"]),
        ({"figures.l2.value": "50 MB/s"}, ["figures.l2='50 MB/s' must be a number with a unit such as '1 B'"]),
        ({"figures.l2.value": float("nan")}, ["figures.l2.value=nan must be a finite number"]),
        ({"figures.l2.value": float("inf")}, ["figures.l2.value=inf must be a finite number"]),
        ({"figures.l2.value": 10**400}, ["figures.l2.value=", "must be a finite number"]),
        ({"figures.l2.value": True}, ["figures.l2.value=True must be a finite number"]),
        ({"figures.sm_count.value": 131.5}, ["figures.sm_count=131.5 must be a whole number"]),
        ({"gpus_per_node": 0}, ["gpus_per_node=0 must be greater than or equal to 1"]),
        ({"sources.h100.kind": "rumour"}, ["sources.h100.kind='rumour' must be 'datasheet', 'measured'"]),
    ],
)
def test_a_wrong_file_gets_one_clear_sentence(profile: Any, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        profile(changes)
    text = str(error.value)
    assert "mine.yaml: " in text
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("bandwidth", "0 GB/s", "greater than 0"),
        ("latency", "-1 us", "at least 0"),
        ("latency", "1 GB", "a number with a unit"),
    ],
)
def test_a_wrong_link_names_the_wrong_figure(tmp_path: Path, field: str, value: str, rule: str) -> None:
    data = yaml.safe_load(catalog.locate("link", "nvlink-4").read_text())
    data[field]["value"] = value
    (tmp_path / "wire.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=f"{field}='{value}' must be {rule}"):
        load_link("wire.yaml", base=tmp_path)


# --- GPUs that nobody sells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h100-sxm", "rtx-4090", "h200-sxm", "epyc-9004-1-thread"])
def test_a_what_if_is_the_gpu_but_for_its_bandwidth(name: str) -> None:
    gpu = load_gpu(name)
    faster = what_if(gpu, hbm_bandwidth_factor=2.0)
    assert faster.hbm_bytes_per_s == 2 * gpu.hbm_bytes_per_s
    assert (faster.desk_bytes, faster.hbm_latency_s, faster.tdp_w) == (gpu.desk_bytes, gpu.hbm_latency_s, gpu.tdp_w)
    assert faster.dense_flop_per_s == gpu.dense_flop_per_s
    ours, theirs = load_efficiency(faster), load_efficiency(gpu)
    assert (ours.name, ours.matmul, ours.decode_attention) == (theirs.name, theirs.matmul, theirs.decode_attention)


@pytest.mark.parametrize("name", ["h100-sxm", "epyc-9004-1-thread"])
def test_nothing_calls_a_what_if_calibrated_or_its_bandwidth_a_datasheet_s(name: str) -> None:
    gpu = load_gpu(name)
    faster = what_if(gpu, hbm_bandwidth_factor=1.5)
    assert load_efficiency(gpu).tag == "calibrated"
    assert load_efficiency(faster).tag == "analytic"
    assert load_efficiency(faster).log_sd("matmul") >= load_efficiency(gpu).log_sd("matmul")
    for text in (faster.name, faster.title):
        assert "1.5 × the HBM bandwidth" in text
    made_up = faster.provenance["hbm_bandwidth"]
    assert made_up.source.kind == "estimate"
    assert "what if" in made_up.source.title
    assert faster.provenance["hbm_capacity"] == gpu.provenance["hbm_capacity"]


def test_what_ifs_of_what_ifs_multiply_and_once_is_the_gpu_itself() -> None:
    gpu = load_gpu("h100-sxm")
    twice = what_if(what_if(gpu, hbm_bandwidth_factor=4.0), hbm_bandwidth_factor=0.5)
    assert twice == what_if(gpu, hbm_bandwidth_factor=2.0)
    assert what_if(gpu, hbm_bandwidth_factor=1.0) is gpu
    assert what_if(twice, hbm_bandwidth_factor=0.5) is gpu


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-4, 1e4, float("nan"), float("inf")])
def test_impossible_bandwidths(factor: float) -> None:
    with pytest.raises(InputError, match=r"hbm_bandwidth_factor=.* must be from 0\.001 to 1000"):
        what_if(load_gpu("h100-sxm"), hbm_bandwidth_factor=factor)
