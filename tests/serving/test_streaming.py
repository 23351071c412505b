"""Streamed simulations: the same summaries and rows as those that keep their requests, in any chunks."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog, load_scenario, simulate
from simulator.errors import InputError
from simulator.output.columns import metadata, row_stream, write_requests
from simulator.output.documents import simulation_document, to_json
from simulator.serving import state
from simulator.serving.streaming import Stream, refusal, simulate_streamed

LENGTHS = {"prompt": {"kind": "lognormal", "median": 300, "sigma": 1}, "output": {"kind": "geometric", "mean": 60}}
BASE = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "seed": 7}
POISSON = {"kind": "poisson", "rate_per_s": 30, "requests": 400, "lengths": LENGTHS}
CLASSES = [
    {"name": "chat", "share": 1, "lengths": LENGTHS, "priority": 1, "patience_s": 3.0},
    {"name": "batch", "lengths": LENGTHS, "priority": 2, "share": 2, "acceptance": {"alpha": 0.5, "request_icc": 0.2}},
]
DRAFTER = {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": {"alpha": 0.8, "request_icc": 0.1}}
CASES = {
    "plain": {"traffic": POISSON},
    "speculation": {"traffic": POISSON, "speculation": DRAFTER},
    "alike": {"traffic": POISSON, "speculation": {**DRAFTER, "acceptance": 0.7}},
    "preempted": {"traffic": {**POISSON, "rate_per_s": 200}, "gpu": "l4", "quantization": {"weights": "int4"}},
    "impatient classes": {
        "traffic": {"kind": "poisson", "rate_per_s": 300, "requests": 400, "classes": CLASSES},
        "engine": {"name": "vllm", "order": "priority", "max_sequences": 8, "queue_timeout_s": 2.5, "max_waiting": 90},
        "speculation": DRAFTER,
    },
    "shortest first": {
        "traffic": {**POISSON, "rate_per_s": 500},
        "engine": {"name": "vllm", "order": "shortest", "max_sequences": 8},
    },
    "replicas": {"traffic": {**POISSON, "rate_per_s": 150}, "replicas": 4, "cluster": {"router": "least-kv"}},
    "system prompts": {
        "traffic": {**POISSON, "system_prompt": {"tokens": 400, "groups": 5, "zipf": 1}},
        "engine": {"name": "vllm", "prefix_caching": True},
        "replicas": 2,
        "cluster": {"router": "prefix-aware"},
    },
    "clients": {
        "traffic": {
            "kind": "clients", "requests": 400,
            "clients": [{"name": "a", "rate_per_s": 20, "count": 3, "lengths": LENGTHS, "burstiness": 0.5}],
        },
    },
    "day": {"traffic": {**POISSON, "diurnal": [1, 4, 2]}},
    "too long": {"traffic": POISSON, "max_context_tokens": 500},
}  # fmt: skip


class Kept:
    """Rows as they came."""

    def __init__(self):
        self.parts = {}

    def write(self, variant, requests, rows):
        self.parts.setdefault(variant, []).append((np.array(requests), np.array(rows)))

    def of(self, variant):
        return [np.concatenate(part) for part in zip(*self.parts[variant], strict=True)]


def scenario(name):
    return load_scenario({**BASE, **CASES[name]})


def assert_same(whole, streamed, kept):
    assert [run.variant for run in streamed.runs] == [run.variant for run in whole.runs]
    for ours, theirs in zip(streamed.runs, whole.runs, strict=True):
        assert ours.summary == theirs.summary
        assert ours.series.tobytes() == theirs.series.tobytes()
        requests, rows = kept.of(ours.variant)
        assert rows.tolist() == theirs.rows.tolist()
        for field in requests.dtype.names:
            if field != "first_piece":  # where its pieces lie in memory
                np.testing.assert_array_equal(requests[field], theirs.requests[field], err_msg=field)


@pytest.mark.parametrize("size", [50, 10**6])
@pytest.mark.parametrize("name", CASES)
def test_summaries_and_rows_are_those_of_the_whole(name, size):
    kept = Kept()
    streamed = simulate_streamed(scenario(name), rows=kept, chunk_requests=size)
    assert_same(simulate(scenario(name)), streamed, kept)


@pytest.fixture(scope="module")
def impatient():
    return simulate(scenario("impatient classes"))


@settings(max_examples=15)
@given(size=st.integers(1, 420))
def test_property_chunks_do_not_matter(impatient, size):
    ends = impatient.plain.summary.requests
    assert {"finished", "cancelled", "timed out"} <= {name for name, n in ends.items() if n}
    kept = Kept()
    assert_same(impatient, simulate_streamed(scenario("impatient classes"), rows=kept, chunk_requests=size), kept)


@pytest.mark.parametrize("size", [1, 13, 200])
def test_traces_with_prefixes(tmp_path, size):
    draw = np.random.default_rng(3)
    lines = []
    for i in range(150):
        blocks = int(draw.integers(1, 8))
        ids = [*range(int(draw.integers(0, blocks + 1))), *(1000 * (i + 1) + k for k in range(blocks))][:blocks]
        lines.append({"timestamp": i * 40, "input_length": 512 * blocks, "output_length": 30, "hash_ids": ids})
    path = tmp_path / "mooncake.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    engine = {"name": "vllm", "prefix_caching": True}
    chosen = load_scenario({**BASE, "engine": engine, "traffic": {"kind": "trace", "path": str(path), "repeat": 2}})
    whole, kept = simulate(chosen), Kept()
    assert whole.plain.summary.cached_share > 0.05
    assert_same(whole, simulate_streamed(chosen, rows=kept, chunk_requests=size), kept)


def test_requests_larger_than_the_cache_are_rejected(tmp_path):
    path = tmp_path / "trace.csv"
    rows = "".join(f"{i},{90_000 if i % 3 == 1 else 10},5\n" for i in range(12))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    chosen = load_scenario({**BASE, "gpu": "l4", "warmup": 0, "traffic": {"kind": "trace", "path": str(path)}})
    for size in (1, 5, 100):
        kept = Kept()
        assert_same(simulate(chosen), simulate_streamed(chosen, rows=kept, chunk_requests=size), kept)
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,90000,5\n1,90000,5\n")
    with pytest.raises(InputError, match="shortest of 2 requests' must fit the KV cache"):
        simulate_streamed(chosen, chunk_requests=1)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_are_the_same_byte_for_byte(tmp_path, suffix):
    chosen = scenario("speculation")
    whole = simulate(chosen)
    write_requests(whole, str(tmp_path / f"whole.{suffix}"))
    stream = Stream.of(chosen, chunk_requests=70)
    names = [c.name for c in stream.traffic.classes]
    with row_stream(str(tmp_path / f"streamed.{suffix}"), classes=names, metadata=metadata(stream)) as rows:
        streamed = stream.run(rows)
    assert (tmp_path / f"streamed.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert to_json(simulation_document(streamed)) == to_json(simulation_document(whole))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"traffic": {"kind": "closed-loop", "users": 3, "think_time_s": 1, "requests": 9, "lengths": LENGTHS}}, "traffic"),
        ({"traffic": {**POISSON, "conversation": {"turns": 3, "think_time_s": 1}}}, "conversation"),
        ({"traffic": POISSON, "cluster": {"failures": [{"replica": 0, "at_s": 1, "down_s": 1}]}}, "cluster"),
        ({"traffic": POISSON, "cluster": {"autoscaler": {"max": 3, "target": 8, "startup_s": 60}}}, "cluster"),
        ({"traffic": POISSON, "cluster": {"pools": [{"role": "prefill"}, {"role": "decode"}]}}, "cluster"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_says_why(changes, field):
    chosen = load_scenario({**BASE, **changes})
    with pytest.raises(InputError, match="to be streamed") as caught:
        simulate_streamed(chosen)
    assert caught.value.field == field


def test_requests_given_by_hand_may_not_wait_for_each_other():
    talk = load_scenario({**BASE, "traffic": {**POISSON, "conversation": {"turns": 3, "think_time_s": 1}}})
    with pytest.raises(InputError, match="no request that waits for another"):
        simulate_streamed(scenario("plain"), requests=simulate(talk).traffic)
    given = simulate(scenario("day"))
    kept = Kept()
    streamed = simulate_streamed(scenario("plain"), requests=given.traffic, rows=kept, chunk_requests=64)
    assert_same(simulate(scenario("plain"), requests=given.traffic), streamed, kept)


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_bundled_scenarios_are_refused_exactly_where_ends_cause_arrivals_or_replicas_change(name):
    chosen = load_scenario(name)
    traffic = chosen.traffic.model_dump()
    contents = [traffic, *(traffic.get("classes") or []), *(traffic.get("clients") or [])]
    waits = traffic["kind"] == "closed-loop" or any(isinstance(c, dict) and c.get("conversation") for c in contents)
    changes = chosen.cluster is not None and (
        chosen.cluster.failures
        or chosen.cluster.autoscaler
        or any(pool.role != "both" or pool.autoscaler for pool in chosen.cluster.pools)
    )
    assert (refusal(chosen) is not None) == bool(waits or changes)


def test_progress_reaches_the_end():
    told = []
    simulate_streamed(scenario("speculation"), progress=lambda *at: told.append(at), chunk_requests=100)
    assert ("speculation", 400, 400) in told
    assert told[-1] == ("plain", 400, 400)
    done = [n for variant, n, _ in told if variant == "plain"]
    assert done == sorted(done)


def test_interrupted_it_accounts_for_everybody():
    def press(variant, done, of):
        if done >= 200:
            os.kill(os.getpid(), signal.SIGINT)

    kept = Kept()
    result = simulate_streamed(scenario("day"), rows=kept, progress=press, partial=True, chunk_requests=50)
    summary = result.main.summary
    assert summary.interrupted_s == result.interrupted_s is not None
    assert 200 <= summary.requests["finished"] < 400
    assert sum(summary.requests.values()) == 400
    requests, rows = kept.of("plain")
    assert rows.tolist() == list(range(400))
    assert (requests["status"] == state.FINISHED).sum() == summary.requests["finished"]
    running = requests["status"] == state.RUNNING
    assert running.any()
    assert (requests["arrival_s"][running] < result.interrupted_s).all()
    whole = simulate(scenario("day")).plain.requests
    for field in ("arrival_s", "prompt_tokens", "output_tokens", "measured"):
        assert requests[field].tolist() == whole[field].tolist()
    with pytest.raises(KeyboardInterrupt):
        simulate_streamed(scenario("day"), progress=press, chunk_requests=50)


def test_a_chunk_of_nobody_is_refused():
    with pytest.raises(InputError, match="chunk_requests=0 must be at least 1"):
        simulate_streamed(scenario("plain"), chunk_requests=0)
