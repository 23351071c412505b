"""A real vLLM 0.19.0 run replayed: 300 requests, an RTX 4090 whose KV cache is full for 160 of 184 seconds.

No time of memwall was fitted to this run: kernels come from the layer timings of the same card (`calibration`), host times
from H100 rows, rules from vLLM V1; its KV capacity is given. Targets are 5 % for mean and median, 8 % for the 95th
percentile, and 2 % is the aim; reached are

                 mean     median      95 %             measured          simulated
    TTFT       −0.8 %    −1.1 %    −0.8 %      65.5  60.1 122.7 s    65.0  59.5 121.8 s
    TPOT       −0.9 %    −0.6 %    +0.2 %      32.4  30.8  48.1 ms   32.1  30.6  48.2 ms
    E2E        −0.8 %    −0.1 %    −0.9 %      86.6  83.4 149.0 s    85.9  83.4 147.6 s
    output     +0.9 %                           1066 tokens/s         1076 tokens/s

and from the record alone, which holds no tokens, so that no request finds another's blocks,

    TTFT       +0.5 %    −1.1 %    +7.9 %
    TPOT       −1.2 %    −0.8 %    −4.8 %
    E2E        +0.1 %    +3.4 %    +0.2 %
    output     +0.1 %

What prompts have in common (ALIKE) is an input like their lengths, and comes from elsewhere:

- The workload's generator (casys-kaist/LLMServingSim, workloads/generators/sharegpt.py) sends a later turn of a chat as
  earlier prompt + ShareGPT's answer + new text, and interleaves the turns of different chats.
- That simulator replays the workload's own tokens and logs, second by second, how many it finds
  (bench/examples/RTX4090/Llama-3.1-8B/outputs/sim.log, 2026): eight times 448 to 992, together 4,848 of 257,239 (1.9 %).
- Which requests these are follows from lengths: the common part is the whole earlier prompt, to the block; the earlier
  answer fits in between; and the earlier request still runs, as a full cache overwrites within seconds what is free. That
  leaves one pair for four of the eight. Of three more the tokens were compared (35 and 66, 82 and 93, 153 and 173). For the last
  one (201 with 207, 209 or 210) no figure depends on the choice by more than 0.2 %.
- The record agrees: prompts 47 and 48, 92 and 93, 173 and 174, 183 and 184 were completed in one step each although they
  exceed its budget of 2048 tokens by 58 to 582, which is less than what was found.

So little shifts the tail because admission comes in waves: without it 17 instead of 13 of 300 requests wait for the last one.
Leaving out any one of the eight moves TTFT's 95th percentile by 0.3 % at most, TPOT's by up to 2.2 %. No cache at all: +12 %.

What the engine's rules are worth here: requests heard of one step later 0.3 % of TTFT's mean, padding to captured graphs
0.1 %, host work beside the GPU 0.1 %, blocks of who has finished held for one schedule more 0.2 %; with the host's work
exposed (`overlap: false`) everything is some 6 % slower.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.calibration.engine_run import read_engine_run, replay_engine_run, simulate_engine_run
from simulator.cost.efficiency import load_efficiency

RUN = "engine-runs/rtx4090-llama-3.1-8b-vllm-0.19.0"
ALIKE = {
    47: (40, 455), 66: (35, 633), 93: (82, 629), 139: (117, 996), 173: (153, 460), 184: (167, 611), 209: (201, 607),
    227: (226, 520),
}  # fmt: skip
"""Request → the earlier one whose whole prompt it begins with, and that prompt's tokens."""
FOUND_TOKENS = 4848
"""By LLMServingSim, which replays the tokens themselves."""
TARGETS = {"mean": 0.05, "median": 0.05, "p95": 0.08}
BOUNDS = {
    "TTFT mean": 0.02, "TTFT median": 0.02, "TTFT p95": 0.02,
    "TPOT mean": 0.02, "TPOT median": 0.02, "TPOT p95": 0.02,
    "E2E mean": 0.02, "E2E median": 0.02, "E2E p95": 0.02,
    "output throughput": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def record(memwall_data):
    return read_engine_run(memwall_data / RUN)


@pytest.fixture(scope="module")
def run(memwall_data, tmp_path_factory):
    """The record with what its prompts have in common beside it."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("meta.json", "requests.jsonl", "timeseries.csv"):
        (folder / name).write_bytes((memwall_data / RUN / name).read_bytes())
    rows = [f"bench-{later},bench-{earlier},{tokens}" for later, (earlier, tokens) in ALIKE.items()]
    (folder / "prefixes.csv").write_text("\n".join(["request_id,begins_like,tokens", *rows]))
    return read_engine_run(folder)


@pytest.fixture(scope="module")
def validation(run):
    return replay_engine_run(run, "rtx-4090")


@pytest.fixture(scope="module")
def from_the_record_alone(record):
    return {q.name: q.error for q in replay_engine_run(record, "rtx-4090").quantities}


def test_the_record_is_read_whole(record):
    assert (len(record), record.prompt_tokens.sum(), record.output_tokens.sum()) == (300, 257239, 195753)
    assert record.blocks == 2587  # of 2588; kv_cache_pct of 99.96 is 2586 of 2587
    assert record.settings == {
        "max_sequences": 256, "max_batched_tokens": 2048, "block_tokens": 16, "prefix_caching": True,
    }  # fmt: skip
    assert (record.model, record.engine, record.date) == ("llama-3.1-8b", "vLLM 0.19.0", "2026-08-20")
    assert len(record.series["t"]) == 184


@pytest.mark.parametrize("name", BOUNDS)
def test_figures(validation, name):
    quantity = next(q for q in validation.quantities if q.name == name)
    assert quantity.basis == "not fitted on"
    assert abs(quantity.error) <= BOUNDS[name], f"{name}: {quantity.error:+.1%}"
    assert BOUNDS[name] <= TARGETS.get(name.split()[-1], 0.05)


def test_later_turns_fit_what_the_generator_does(record):
    """Earlier prompt, its answer and something new make up the later prompt."""
    for later, (earlier, tokens) in ALIKE.items():
        assert tokens == record.prompt_tokens[earlier]
        assert record.prompt_tokens[later] > tokens + record.output_tokens[earlier]


def test_what_is_found_is_what_a_replay_of_the_tokens_finds(run):
    found = simulate_engine_run(run).requests["cached_tokens"]
    assert {index: int(tokens) for index, tokens in enumerate(found) if tokens} == {
        later: tokens // 16 * 16 for later, (_, tokens) in ALIKE.items()
    }
    assert found.sum() == FOUND_TOKENS


def test_the_record_alone_misses_by_what_prompts_share(validation, from_the_record_alone):
    """Everything is within its target without it, the tail by a hair."""
    for name, error in from_the_record_alone.items():
        assert abs(error) <= TARGETS.get(name.split()[-1], 0.05), f"{name}: {error:+.1%}"
    with_it = next(q.error for q in validation.quantities if q.name == "TTFT p95")
    assert from_the_record_alone["TTFT p95"] - with_it > 0.07


def test_request_by_request(validation):
    """Waves shift a few requests a lot; most are where they were."""
    limits = {"TTFT": 0.015, "TPOT": 0.02, "E2E": 0.015}
    assert {c.name: len(c) for c in validation.comparisons} == dict.fromkeys(limits, 300)
    for comparison in validation.comparisons:
        assert comparison.median_error <= limits[comparison.name]


def test_running_waiting_and_kv_second_by_second(validation):
    limits = {"running": 1.5, "waiting": 2.0, "KV occupancy": 2.0}
    assert {course.name for course in validation.courses} == set(limits)
    for course in validation.courses:
        assert course.apart <= limits[course.name], f"{course.name}: {course.apart:.1f} apart on average"


def test_the_familys_prior_would_have_missed(run, monkeypatch):
    """What the calibration is worth: on the L40S's efficiencies, scaled by the datasheets, the same replay is far off."""
    from simulator.cost import forward

    monkeypatch.setattr(forward, "load_efficiency", lambda gpu: load_efficiency(replace(gpu, name="(unmeasured)")))
    missed = {q.name: q.error for q in replay_engine_run(run, "rtx-4090").quantities}
    assert min(missed[f"{kind} mean"] for kind in ("TTFT", "TPOT", "E2E")) > 0.15
