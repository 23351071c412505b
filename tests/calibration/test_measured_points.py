"""Measured steps under the roof: published rows by hand, the bundled measurement file line by line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from simulator import catalog
from simulator.calibration.measured_points import measured_points
from simulator.hardware import load_gpu, what_if

FOLDER = catalog.root() / "hardware_profiles" / "measurements"


def test_a_published_step_stands_where_arithmetic_on_paper_puts_it():
    point = next(p for p in measured_points(load_gpu("h100-sxm")) if p.source.startswith("vllm#20780"))
    assert (point.model, point.name, point.seconds) == ("llama-3.1-8b", "Llama-3.1-8B, batch 1", 7.07e-3)
    # 7.5 G weights that multiply once per token in bf16; 32 layers of 8 KV heads of 128, keys and values, 400 tokens.
    weights = 8.03e9 - 128256 * 4096
    kv_bytes = 400 * 32 * 8 * 128 * 2 * 2
    assert point.bytes_ == pytest.approx(2 * weights + kv_bytes, rel=0.005)
    assert point.flop == pytest.approx(2 * weights + 400 * 32 * 32 * 128 * 4, rel=0.005)
    assert point.flop_per_s == pytest.approx(point.flop / 7.07e-3)
    assert point.flop_per_byte == pytest.approx(1.0, abs=0.03)


def test_a_round_does_more_per_byte_than_a_step():
    points = [p for p in measured_points(load_gpu("h100-sxm")) if p.model == "llama-3.1-8b"]
    steps = [p for p in points if "drafts" not in p.name]
    rounds = [p for p in points if "drafts" in p.name]
    assert len(steps) >= 2
    assert len(rounds) >= 6
    assert min(p.flop_per_byte for p in rounds) > 2 * max(p.flop_per_byte for p in steps)


def test_amounts_of_several_gpus_are_of_one():
    one = {
        n: next(p for p in measured_points(load_gpu("a100-sxm-80gb")) if n in p.name)
        for n in ("on 2 GPUs", "on 8 GPUs")
    }
    assert one["on 2 GPUs"].bytes_ == pytest.approx(4 * one["on 8 GPUs"].bytes_, rel=0.05)


@pytest.mark.parametrize("name", catalog.names("gpu"))
def test_nothing_measured_is_above_the_datasheet_s_roof(name):
    gpu = load_gpu(name)
    for p in measured_points(gpu):
        assert 0 < p.flop_per_s <= min(p.flop_per_byte * gpu.hbm_bytes_per_s, gpu.peak_flop_per_s("bf16"))


def test_the_bundled_file_gives_a_point_per_whole_step():
    lines = [json.loads(line) for line in (FOLDER / "epyc-9004-1-thread.jsonl").read_text().splitlines()]
    steps = [x for x in lines if x["kind"] == "step" and x.get("layers") is None and x.get("disturbance", 1.0) <= 1.15]
    points = measured_points(load_gpu("epyc-9004-1-thread"))
    assert sorted(p.seconds for p in points) == sorted(x["median_s"] for x in steps)
    for p in points:
        assert "AMD EPYC" in p.source
        assert p.note.startswith("median of ")


def test_nobody_measured_a_what_if_or_a_user_s_own_profile(tmp_path):
    gpu = load_gpu("h100-sxm")
    assert measured_points(gpu)
    assert measured_points(what_if(gpu, hbm_bandwidth_factor=2.0)) == ()
    assert measured_points(replace(gpu, profile=tmp_path / "h100-sxm.yaml")) == ()
    assert measured_points(replace(gpu, name="mine")) == ()
    assert measured_points(load_gpu("h200")) == ()


def test_a_gpu_that_the_source_only_implies_is_not_called_stated():
    points = measured_points(load_gpu("h100-sxm"))
    rows = [
        line for line in (FOLDER / "published" / "speeds.csv").read_text().splitlines() if "H100" in line.split(",")[2]
    ]
    implied = [line for line in rows if "implied" in line.split(",")[2] or "likely" in line.split(",")[2]]
    guesses = [p for p in points if not p.stated]
    assert 0 < len(guesses) == sum("implied or likely" in p.note for p in points)
    assert len(guesses) >= len(implied)  # blank cells take what stands above
    assert all(p.stated for p in points if p.source.startswith("SGLang documentation"))
    limited = [p for p in measured_points(load_gpu("a100-sxm-80gb")) if "Mixtral" in p.name]
    assert all("limited to 330W" in p.note and p.stated for p in limited)


def test_rounds_with_trees_say_so():
    (point,) = (p for p in measured_points(load_gpu("h100-sxm")) if "tree" in p.name)
    assert point.name.endswith("rounds of EAGLE-3 with trees of 63 nodes, 8 levels deep")
    # 64 tokens of 70 G weights on eight GPUs, an eighth of the FLOP each; the drafter's passes come on top.
    verified = 64 * 2 * (70.55e9 - 128256 * 8192) / 8
    assert verified < point.flop < 1.1 * verified
