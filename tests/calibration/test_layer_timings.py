"""Layer timings: known parameters come back through the files, every dropped row has a reason, real rows meet their error."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.calibration import layer_timings
from simulator.cost.efficiency import CalibrationFile, efficiency_from, load_efficiency
from simulator.cost.forward import Batch, ForwardCost
from simulator.cost.roofline import attention_rates, attention_time, elementwise_time, matmul_time
from simulator.errors import InputError
from simulator.hardware import load_gpu
from simulator.records import read_record

GPU = load_gpu("rtx-4090")
TRUTH = load_efficiency(GPU)
LLAMA = load_decoder("llama-3.1-8b")
META = {
    "model": "meta-llama/Llama-3.1-8B", "variant": "bf16", "tp_degrees": [1], "gpu": "made up", "vllm_version": "0",
    "profiled_at": "2026-01-01T00:00:00", "engine_effective": {"hf_overrides": {"vocab_size": 128256}},
}  # fmt: skip
MATRICES = {"qkv_proj": (6144, 4096), "o_proj": (4096, 4096), "gate_up_proj": (28672, 4096), "down_proj": (4096, 14336)}
VALUES_PER_TOKEN = {"layernorm": 4 * 4096, "act_fn": 3 * 14336, "rotary_emb": 2 * 5120, "embedding": 2 * 4096}


def attention_us(chunk: int, cached: int, n: int, keys: int) -> float:
    """The forms' own time of one attention kernel, µs."""
    part = TRUTH.prefill_attention if chunk else TRUTH.decode_attention
    rates = attention_rates(GPU, part, dtype="bf16", kv_heads=8, heads=32, head_dim=128)
    seconds = 0.0
    if chunk:
        pairs = chunk * (cached + (chunk + 1) / 2)
        seconds = attention_time(1, chunk, (cached + chunk) * 4096.0, pairs * rates.flop_per_pair, rates)[0]
    if n:
        seconds += attention_time(n, n, n * keys * 4096.0, n * keys * rates.flop_per_pair, rates)[0]
    return 1e6 * (seconds - (rates.t0_s if chunk and n else 0.0))


def write(path: Path, header: str, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Timings that the forms themselves made, with the parameters of the bundled calibration."""
    tokens = [1, 4, 16, 64, 128, 256, 512, 1024, 2048]
    dense = [
        (name, m, 1e6 * float(matmul_time(m, n, k, 2 * n * k, 2 * m * (n + k), "bf16", GPU, TRUTH.matmul).total_s))
        for name, (n, k) in MATRICES.items() for m in tokens
    ] + [
        (name, m, 1e6 * float(elementwise_time(2.0 * m * values, 1.0, GPU, TRUTH.elementwise).total_s))
        for name, values in VALUES_PER_TOKEN.items() for m in tokens
    ]  # fmt: skip
    attention = [(0, 0, n, keys, attention_us(0, 0, n, keys)) for n in (1, 4, 16, 64) for keys in (64, 512, 4096)]
    attention += [(c, kv, 0, 0, attention_us(c, kv, 0, 0)) for c in (16, 64, 256, 1024) for kv in (0, 512, 4096)]
    attention += [(c, 512, 8, 1024, attention_us(c, 512, 8, 1024)) for c in (64, 1024)]
    head = matmul_time(64, 128256, 4096, 2 * 128256 * 4096, 2 * 64 * (128256 + 4096), "bf16", GPU, TRUTH.matmul)
    write(tmp_path / "dense.csv", "layer,tokens,time_us", dense)
    write(tmp_path / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", attention)
    heads = [("lm_head", 64, 1e6 * float(head.total_s)), ("sampler", 64, 46.0)]
    write(tmp_path / "per_sequence.csv", "layer,sequences,time_us", heads)
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump(META))
    return tmp_path


def append(path: Path, *lines: str) -> None:
    path.write_text(path.read_text() + "".join(line + "\n" for line in lines))


def test_parameters_come_back_through_the_files(folder):
    file = layer_timings.calibrate(folder, GPU, date="2026-01-01")
    e = efficiency_from(file, "rtx-4090")
    assert e.tag == "calibrated"
    assert e.matmul.bandwidth == pytest.approx(TRUTH.matmul.bandwidth, rel=0.02)
    assert e.matmul.compute == pytest.approx(TRUTH.matmul.compute, rel=0.02)
    assert e.elementwise == pytest.approx(TRUTH.elementwise, rel=0.02)
    assert e.prefill_attention.kv_step_s == pytest.approx(TRUTH.prefill_attention.kv_step_s, rel=0.05)
    assert e.decode_attention.t0_s == pytest.approx(TRUTH.decode_attention.t0_s, rel=0.1)
    assert max(file.typical_error[k] for k in ("matmul", "elementwise")) < 0.02
    assert "2 batches that prefill and decode at once were not fitted" in file.note


def test_every_dropped_row_has_a_reason(folder):
    append(folder / "dense.csv", "qkv_proj,8,100.0", "qkv_proj,8,100.0", "qkv_proj,8", "mystery,8,1", "o_proj,0,3",
           "o_proj,9,-1", "o_proj,9,fast", "gate_up_proj,1900,1.0")  # fmt: skip
    append(folder / "attention.csv", "0,0,0,0,5", "0,0,64,16384,1.0", "0,0,1,64,9")
    tables = layer_timings.read(folder, GPU)
    # 36 matmuls and 36 elementwise rows, 8 appended, lm_head and sampler.
    assert tables.matmul.read == tables.elementwise.read == 82
    assert tables.matmul.used == 36 + 2
    assert tables.matmul.dropped == {
        "incomplete or not a number": 2, "unknown layer": 1, "elementwise kernel": 37, "no positive count": 1,
        "no positive time": 1, "measured before in this file": 1, "faster than the datasheet's peak FLOP/s and a tenth": 1,
    }  # fmt: skip
    assert tables.elementwise.dropped["several kernels in one timing (sampler)"] == 1
    for table in (tables.decode_attention, tables.prefill_attention, tables.mixed_attention):
        assert table.read == 29
    assert tables.decode_attention.used == 12
    assert tables.decode_attention.dropped["faster than the datasheet's HBM bandwidth"] == 1
    assert tables.decode_attention.dropped["measured before in this file"] == 1
    assert (tables.prefill_attention.used, tables.mixed_attention.used) == (12, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "fp8"}, "variant='fp8' must be bf16"),
        ({"tp_degrees": [1, 2]}, "tp_degrees"),
        ({"model": "someone/else"}, "model='someone/else' must be one of the bundled models"),
        ({"model": 3}, "model=3 must be given"),
        ({"engine_effective": {"hf_overrides": {"vocab_size": 5}}}, "hf_overrides.vocab_size=5 must equal 128256"),
    ],
)
def test_other_conditions_are_refused(folder, change, message):
    (folder / "meta.yaml").write_text(yaml.safe_dump(META | change))
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        layer_timings.read(folder, GPU)


def test_missing_files_and_columns_are_named(folder):
    header, *rows = (folder / "attention.csv").read_text().splitlines()
    (folder / "attention.csv").write_text("\n".join([header.replace("time_us", "ms"), *rows]))
    with pytest.raises(InputError, match="include time_us"):
        layer_timings.read(folder, GPU)
    (folder / "per_sequence.csv").unlink()
    with pytest.raises(InputError, match=r"hold per_sequence\.csv"):
        layer_timings.calibrate(folder, GPU, date="2026-11-23")


def test_a_mixed_batch_is_done_by_one_kernel():
    """Priced together: the decoding sequences in the prefill kernel, launched once. The folder's rows show no less."""
    cost = ForwardCost(LLAMA, GPU)
    chunk, decode = Batch((1024,), (512,), 1), Batch.decode(8, 1024)
    both = cost.attention(chunk.new_tokens + decode.new_tokens, chunk.cached_tokens + decode.cached_tokens)
    assert both == pytest.approx(32e-6 * attention_us(1024, 512, 8, 1023 + 1), rel=2e-3)
    assert both > cost.attention(chunk.new_tokens, chunk.cached_tokens) + cost.attention(
        decode.new_tokens, decode.cached_tokens
    )


def test_real_timings_meet_the_errors_written_down(memwall_data):
    source = memwall_data / "layers" / "rtx4090"
    again = layer_timings.calibrate(source, GPU, date="2026-11-23")
    for kind, documented in TRUTH.typical_error.items():
        assert again.typical_error[kind] <= 1.2 * documented
    for kind, documented in read_record(
        CalibrationFile, catalog.locate("calibration", "rtx-4090"), "calibration"
    ).spread.items():
        assert again.spread[kind] <= 1.2 * documented
        assert again.spread[kind] >= again.typical_error[kind]  # a root mean square is no less than a mean
    assert again.matmul["bandwidth"].value == pytest.approx(TRUTH.matmul.bandwidth, rel=0.02)
    assert again.rows["matmul"].used == 4 * 152 + 40
    read = [rows.used + sum(rows.dropped.values()) for rows in again.rows.values()]
    assert sorted(set(read)) == [9 * 152 + 80, 8643]
    tables = layer_timings.read(source, GPU)
    mixed = tables.mixed_attention
    predicted_s = layer_timings.mixed_seconds(mixed, GPU, LLAMA, TRUTH.prefill_attention)
    errors = np.abs(predicted_s / mixed.columns["latency_s"] - 1.0)
    # Stated in the calibration's note; pricing the two parts by their own kernels misses by twice as much.
    assert errors.mean() < 0.16
    assert np.median(errors) < 0.10
