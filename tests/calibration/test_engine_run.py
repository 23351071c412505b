"""Records of real runs: two clocks become one, damage is named by line and field, a run of our own replays exactly."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.calibration.engine_run import read_engine_run, replay_engine_run, simulate_engine_run
from simulator.errors import InputError, MemwallError

META = {
    "model": "meta-llama/Llama-3.1-8B", "vllm_version": "0.0", "started_at": "2026-01-02T00:00:00Z",
    "engine_kwargs": {"tensor_parallel_size": 1, "max_num_seqs": 8, "max_num_batched_tokens": 512},
    "kv_cache": {"num_gpu_blocks": 101, "block_size": 16, "enable_prefix_caching": False},
    "hardware": {"device_name": "a card"},
    "resolved_config": {"speculative_config": None},
}  # fmt: skip
# Wall time runs 990 s ahead of the other clock; the second request was queued at once, the first 0.5 s late.
REQUESTS = [
    {"request_id": "b", "input_toks": 100, "output_toks": 5, "arrival_time": 1002.0, "queued_ts": 12.0,
     "scheduled_ts": 12.25, "first_token_ts": 12.5, "last_token_ts": 14.5},
    {"request_id": "a", "input_toks": 40, "output_toks": 1, "arrival_time": 1000.0, "queued_ts": 10.5,
     "scheduled_ts": 10.5, "first_token_ts": 11.0, "last_token_ts": 11.0},
]  # fmt: skip
SERIES = "t,running,waiting,kv_cache_pct,other\n1.0,1,0,2.0,x\n2.0,2,1,3.5,y\n"


def write(folder, meta=META, requests=REQUESTS, series=SERIES):
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "requests.jsonl").write_text("\n".join(json.dumps(row) for row in requests) + "\n")
    if series is not None:
        (folder / "timeseries.csv").write_text(series)
    return folder


def changed(data, name, value):
    """`data` with the field at a dotted name replaced."""
    first, _, rest = name.partition(".")
    return {**data, first: changed(data[first], rest, value) if rest else value}


def test_two_clocks_become_one(tmp_path):
    run = read_engine_run(write(tmp_path))
    assert run.arrival_s.tolist() == [0.0, 2.0]
    assert run.prompt_tokens.tolist() == [40, 100]
    assert run.first_token_s.tolist() == [1.0, 2.5]
    assert run.finish_s.tolist() == [1.0, 4.5]
    metrics = run.metrics
    assert metrics["ttft_s"].tolist() == [1.0, 0.5]
    assert np.isnan(metrics["tpot_s"][0])
    assert metrics["tpot_s"][1] == 0.5
    assert metrics["e2e_s"].tolist() == [1.0, 2.5]
    assert run.blocks == 100
    assert run.settings["prefix_caching"] is False
    assert run.series["kv_cache_pct"].tolist() == [2.0, 3.5]


def test_a_run_of_our_own_replays_exactly(tmp_path):
    """Recorded from a simulation and replayed, a run has no error at all, and its KV pool is the one recorded."""
    rng = np.random.default_rng(0)
    rows = [
        {**REQUESTS[0], "request_id": str(i), "input_toks": int(rng.integers(1, 300)),
         "output_toks": int(rng.integers(2, 60)), "arrival_time": 1000.0 + i * 0.01, "queued_ts": 10.0 + i * 0.01,
         "scheduled_ts": 99.0, "first_token_ts": 100.0, "last_token_ts": 101.0}
        for i in range(30)
    ]  # fmt: skip
    run = read_engine_run(write(tmp_path, requests=rows, series=None))
    simulated = simulate_engine_run(run)
    assert simulated.total_blocks == 100
    assert simulated.summary.preemptions > 0
    order = np.argsort(simulated.rows)
    recorded = replace(
        run,
        first_token_s=simulated.requests["first_token_s"][order],
        finish_s=simulated.requests["finish_s"][order],
    )
    validation = replay_engine_run(recorded)
    assert len(validation.quantities) == 10
    assert all(abs(q.error) < 1e-9 for q in validation.quantities)
    assert all(np.abs(c.errors).max() < 1e-9 for c in validation.comparisons)
    assert not validation.courses
    assert "no time series was recorded" in validation.notes


def test_what_is_left_out_is_said(tmp_path):
    large = {**REQUESTS[0], "request_id": "c", "input_toks": 5000}
    validation = replay_engine_run(read_engine_run(write(tmp_path, requests=[*REQUESTS, large])))
    assert validation.notes[0].startswith("1 requests that the simulation rejects")
    assert "1 requests of one output token have no TPOT" in validation.notes
    assert [len(c) for c in validation.comparisons] == [2, 1, 2]
    assert [len(c.simulated) for c in validation.courses] == [2, 2, 2]


def test_prompts_that_begin_alike_are_found_in_the_cache(tmp_path):
    """The record's requests in another order than they arrived in; the later prompt of 100 finds 32 of 40 tokens."""
    meta = changed(META, "kv_cache.enable_prefix_caching", True)
    write(tmp_path, meta=meta)
    alone = replay_engine_run(read_engine_run(tmp_path))
    assert any("prefixes.csv" in note for note in alone.notes)
    (tmp_path / "prefixes.csv").write_text("request_id,begins_like,tokens\nb,a,40\n")
    run = read_engine_run(tmp_path)
    assert simulate_engine_run(run).requests["cached_tokens"].tolist() == [0, 32]
    assert not any("prefixes.csv" in note for note in replay_engine_run(run).notes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 3), ("vllm_version", ""), ("hardware.device_name", None), ("started_at", None),
        ("kv_cache.num_gpu_blocks", 1), ("kv_cache.num_gpu_blocks", "many"), ("kv_cache.block_size", 0),
        ("kv_cache.enable_prefix_caching", 1), ("engine_kwargs.max_num_seqs", True),
        ("engine_kwargs.max_num_batched_tokens", -1), ("engine_kwargs.tensor_parallel_size", None),
        ("resolved_config.speculative_config", {"method": "eagle"}),
    ],
)  # fmt: skip
def test_damaged_settings_are_named(tmp_path, name, value):
    write(tmp_path, meta=changed(META, name, value))
    with pytest.raises(InputError) as caught:
        read_engine_run(tmp_path)
    assert caught.value.field == name
    assert "meta.json" in caught.value.where


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_toks", 0), ("input_toks", 1.5), ("output_toks", None), ("output_toks", "5"), ("arrival_time", None),
        ("queued_ts", float("nan")), ("queued_ts", 10**400), ("scheduled_ts", 11.0), ("first_token_ts", 12.0),
        ("last_token_ts", 12.5), ("last_token_ts", -1.0), ("arrival_time", 1e12), ("request_id", "a"),
    ],
)  # fmt: skip
def test_damaged_requests_are_named_by_line_and_field(tmp_path, name, value):
    write(tmp_path, requests=[REQUESTS[1], {**REQUESTS[0], name: value}])
    with pytest.raises(InputError) as caught:
        read_engine_run(tmp_path)
    assert caught.value.field == name
    assert caught.value.where.endswith("requests.jsonl, line 2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("series", "field", "line"),
    [
        ("t,running,waiting\n1,1,1\n", "columns", ""),
        ("t,running,waiting,kv_cache_pct\n1,1,1,1\n1,1,1,1\n", "t", ", line 3"),
        ("t,running,waiting,kv_cache_pct\n1,1,,1\n", "waiting", ", line 2"),
        ("t,running,waiting,kv_cache_pct\n1,1,1,nan\n", "kv_cache_pct", ", line 2"),
        ("t,running,waiting,kv_cache_pct\n1,1,1\n", "columns", ", line 2"),
        ("t,running,waiting,kv_cache_pct\n", "content", ""),
    ],
)
def test_damaged_series_are_named_by_line_and_field(tmp_path, series, field, line):
    write(tmp_path, series=series)
    with pytest.raises(InputError) as caught:
        read_engine_run(tmp_path)
    assert caught.value.field == field
    assert caught.value.where.endswith("timeseries.csv" + line)


def test_truncated_and_missing_files(tmp_path):
    write(tmp_path)
    path = tmp_path / "requests.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match=r"line 2: content=.* must be a JSON object"):
        read_engine_run(tmp_path)
    path.write_text("\n")
    with pytest.raises(InputError, match="hold at least one request"):
        read_engine_run(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="existing file"):
        read_engine_run(tmp_path)
    with pytest.raises(InputError, match="be a folder"):
        read_engine_run(path)


def test_a_pool_that_the_gpu_cannot_hold_is_refused(tmp_path):
    run = read_engine_run(write(tmp_path, meta=changed(META, "kv_cache.num_gpu_blocks", 10**6)))
    with pytest.raises(InputError, match=r"num_gpu_blocks=1000000 must fit rtx-4090 beside llama-3\.1-8b"):
        simulate_engine_run(run)
    with pytest.raises(MemwallError):
        simulate_engine_run(replace(run, model="nobody's"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_only_one_kind_of_error_escapes(tmp_path, data):
    """Whatever stands in the files, they are read or refused."""
    value = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
    row = data.draw(st.sampled_from(REQUESTS))
    row = {**row, data.draw(st.sampled_from(sorted(row))): data.draw(value)}
    meta = changed(
        META, data.draw(st.sampled_from(["model", "kv_cache", "hardware", "kv_cache.block_size"])), data.draw(value)
    )
    write(
        tmp_path,
        meta=data.draw(st.sampled_from([META, meta])),
        requests=[row],
        series=SERIES + data.draw(st.text(max_size=20)),
    )
    if data.draw(st.booleans()):
        (tmp_path / "requests.jsonl").write_bytes(data.draw(st.binary(max_size=60)))
    with suppress(InputError):
        read_engine_run(tmp_path)
