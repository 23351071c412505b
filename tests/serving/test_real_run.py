"""A real vLLM 0.19.0 run replayed: 300 requests, an RTX 4090 whose KV cache is full for 160 of 184 seconds.

No time of memwall was fitted to this run: kernels come from the layer timings of the same card (`calibration`), host times
from H100 rows, rules from vLLM V1; its KV capacity is given. Targets are 5 % for mean and median, 8 % for the 95th
percentile; reached are

                 mean     median      95 %             measured          simulated
    TTFT       +0.2 %    −1.4 %    +7.8 %      65.5  60.1 122.7 s    65.6  59.3 132.4 s
    TPOT       −1.2 %    −0.8 %    −5.4 %      32.4  30.8  48.1 ms   32.1  30.5  45.4 ms
    E2E        −0.1 %    +3.1 %    +0.1 %      86.6  83.4 149.0 s    86.5  86.0 149.2 s
    output     +0.3 %                           1066 tokens/s         1069 tokens/s

so no target is missed. All requests are there after 29 s, and from then on who runs when follows from token counts alone: no
host time between 0.5 and 0.9 ms a step moves TTFT's 95th percentile outside +7.1 to +8.8 %, nor do arrivals that are off by
0.15 s (+7.1 to +8.2 %). What the replay lacks: prompts that share a beginning. The workload interleaves turns of chats, and
vLLM finds the blocks of an earlier turn; the record holds no tokens, so we cannot. Scheduled block by block, with a first
step as slow as it was and schedules made one step ahead, the run agrees with the recorded KV occupancy to the block up to
the 25th second. There vLLM starts requests 47 to 49 in a step whose budget of 2018 tokens the first two exceed, with 2106;
with 28 blocks of request 48 found in request 40 (448 of its 455 tokens) the occupancy agrees a second longer, until the next
such pair. So a wave admits some fewer requests here, and 17 instead of 13 of 300 wait for the last one: that is what the 95th
percentile sees. Bounds are what is reached, rounded up, and 2 % at least.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.calibration.engine_run import read_engine_run, replay_engine_run
from simulator.cost.efficiency import load_efficiency

RUN = "engine-runs/rtx4090-llama-3.1-8b-vllm-0.19.0"
TARGETS = {"mean": 0.05, "median": 0.05, "p95": 0.08}
BOUNDS = {
    "TTFT mean": 0.02, "TTFT median": 0.02, "TTFT p95": 0.08,
    "TPOT mean": 0.02, "TPOT median": 0.02, "TPOT p95": 0.06,
    "E2E mean": 0.02, "E2E median": 0.035, "E2E p95": 0.02,
    "output throughput": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(memwall_data):
    return read_engine_run(memwall_data / RUN)


@pytest.fixture(scope="module")
def validation(run):
    return replay_engine_run(run, "rtx-4090")


def test_the_record_is_read_whole(run):
    assert (len(run), run.prompt_tokens.sum(), run.output_tokens.sum()) == (300, 257239, 195753)
    assert run.blocks == 2587  # of 2588; kv_cache_pct of 99.96 is 2586 of 2587
    assert run.settings == {
        "max_sequences": 256, "max_batched_tokens": 2048, "block_tokens": 16, "prefix_caching": True,
    }  # fmt: skip
    assert (run.model, run.engine, run.date) == ("llama-3.1-8b", "vLLM 0.19.0", "2026-08-20")
    assert len(run.series["t"]) == 184


@pytest.mark.parametrize("name", BOUNDS)
def test_figures(validation, name):
    quantity = next(q for q in validation.quantities if q.name == name)
    assert quantity.basis == "not fitted on"
    assert abs(quantity.error) <= BOUNDS[name], f"{name}: {quantity.error:+.1%}"
    assert BOUNDS[name] <= TARGETS.get(name.split()[-1], 0.05)


def test_request_by_request(validation):
    """Waves shift a few requests a lot; most are where they were."""
    limits = {"TTFT": 0.02, "TPOT": 0.03, "E2E": 0.02}
    assert {c.name: len(c) for c in validation.comparisons} == dict.fromkeys(limits, 300)
    for comparison in validation.comparisons:
        assert comparison.median_error <= limits[comparison.name]


def test_running_waiting_and_kv_second_by_second(validation):
    limits = {"running": 2.0, "waiting": 3.0, "KV occupancy": 2.0}
    assert {course.name for course in validation.courses} == set(limits)
    for course in validation.courses:
        assert course.apart <= limits[course.name], f"{course.name}: {course.apart:.1f} apart on average"


def test_the_familys_prior_would_have_missed(run, monkeypatch):
    """What the calibration is worth: on the L40S's efficiencies, scaled by the datasheets, the same replay is far off."""
    from simulator.cost import forward

    monkeypatch.setattr(forward, "load_efficiency", lambda gpu: load_efficiency(replace(gpu, name="(unmeasured)")))
    missed = {q.name: q.error for q in replay_engine_run(run, "rtx-4090").quantities}
    assert min(missed[f"{kind} mean"] for kind in ("TTFT", "TPOT", "E2E")) > 0.15
