"""Loads that stop other simulators: a KV cache just large enough, everybody at once, more work than can ever be done."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import load_scenario, simulate
from simulator.errors import InputError
from simulator.randomness import uniform_array
from simulator.serving import plain, state
from simulator.serving.metrics import TOO_LARGE
from simulator.serving.pool import Pool
from tests.serving import rig
from tests.serving.plain.rig import fleet, workload

BASE = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "warmup": 0}
TRACE = "arrival_s,prompt_tokens,output_tokens\n"


# --- a KV cache for the longest request alone ----------------------------------------------------------------------------
@st.composite
def tight(draw):
    """Requests, an engine whose KV cache holds the longest of them with its look-ahead slots and not a block more, and the
    least number of prompt tokens in a step without rounds."""
    n = draw(st.integers(2, 12))
    arrival_s = sorted(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    prompt = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    gamma = draw(st.sampled_from([0, 0, 1, 4]))
    block = draw(st.sampled_from([1, 2, 4, 8]))
    longest = max(p + o for p, o in zip(prompt, output, strict=True)) + gamma + 1
    budget, chunk = draw(st.integers(gamma + 1, 48)), draw(st.integers(1, 48))
    window = draw(st.sampled_from([0, 0, 6]))  # beyond it a token keeps half its KV
    total = math.ceil((longest if not window or longest <= window else window + (longest - window) / 2) / block)
    chosen = {
        "gamma": gamma, "block_tokens": block, "total_blocks": total, "max_batched_tokens": budget,
        "prefill_chunk_tokens": chunk, "prompts_per_pass": draw(st.integers(1, 4)),
        "max_sequences": draw(st.integers(2, 12)), "watermark_blocks": draw(st.sampled_from([0, 0, 1, total])),
        "prefix_caching": 0 if window else draw(st.integers(0, 1)), "window_tokens": window, "windowed_share": 0.5,
        "prefill_first": draw(st.integers(0, 1)),
        "ranked": draw(st.integers(0, 1)), "overlap": draw(st.integers(0, 1)),
        "swap_blocks": draw(st.sampled_from([0, 0, 3, 100])), "swap_s_per_token": 0.125,
        "draft_first": draw(st.integers(0, 1)), "seed": draw(st.integers(0, 9)),
    }  # fmt: skip
    if gamma:
        chosen |= {"rates": [draw(st.floats(0, 1))], "match_probability": draw(st.sampled_from([1.0, 0.5]))}
    more = {}
    if draw(st.booleans()):
        more = {"session": draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))}
        chosen["shares"] = chosen["prefix_caching"]
    if chosen["ranked"]:
        more["rank"] = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return workload(arrival_s, prompt, output, **more), chosen, min(budget, chunk)


def assert_all_come_through(work, chosen, chunk):
    """Whoever is first in the line is preempted by nobody. A step without a token for a user computes `chunk` tokens of a
    prompt, those of the first if prompts share steps with rounds: so many steps then are enough for all. Prompts that go first
    may be those of somebody who gives way before the end; but then the first in line has a round, hence the product.
    Returns the preemptions.
    """
    asked = work.requests
    tokens = int(asked["output_tokens"].sum())
    passes = int((-(-(asked["prompt_tokens"] + asked["output_tokens"]) // chunk)).sum())
    first_come = chosen["prefill_first"] == chosen["ranked"] == 0
    bound = tokens + passes if first_come else (tokens + 1) * (passes + 1)
    work = rig.fresh(work)
    pool = Pool(fleet(len(asked), **chosen), work)
    assert pool.serve(most_steps=bound + 1)
    assert pool.replicas[0].steps <= bound
    assert (work.requests["status"] == state.FINISHED).all()
    assert (work.requests["generated_tokens"] == asked["output_tokens"]).all()
    assert pool.replicas[0].most_blocks <= chosen["total_blocks"]
    return int(pool.replicas[0].preemptions)


@settings(max_examples=300)
@given(tight())
def test_no_preemption_goes_on_for_ever(scenario):
    assert_all_come_through(*scenario)


@pytest.mark.parametrize("swap_blocks", [0, 10])
@pytest.mark.parametrize("prefill_first", [0, 1])
@pytest.mark.parametrize("gamma", [0, 3])
def test_crowds_come_through(gamma, prefill_first, swap_blocks):
    """Hundreds of long answers over a cache for one: nearly everybody is preempted, many several times."""
    n = 300
    drawn = uniform_array(7, np.arange(n), 3, np.arange(2)[:, None])
    prompt, output = 1 + (drawn[0] * 12).astype(int), 20 + (drawn[1] * 40).astype(int)
    longest = int((prompt + output).max()) + gamma + 1
    chosen = {
        "gamma": gamma, "rates": [0.6] * max(1, gamma), "block_tokens": 2, "total_blocks": -(-longest // 2),
        "prefill_first": prefill_first, "ranked": 0, "swap_blocks": swap_blocks, "max_batched_tokens": 40,
    }  # fmt: skip
    preemptions = assert_all_come_through(workload(np.arange(n) * 0.5, prompt, output), chosen, 40)
    assert preemptions > n


@settings(max_examples=60)
@given(tight())
def test_the_specification_says_so_too(scenario):
    """It raises where a step would have nobody in it, which the loop would do again and again."""
    work, chosen, _ = scenario
    work = rig.fresh(work)
    plain.simulate(fleet(len(work.requests), **chosen), work)
    assert (work.requests["status"] == state.FINISHED).all()


def test_two_that_preempt_each_other_take_turns(run):
    # 5 blocks of 4 for 4 + 16 tokens each. At 8 tokens both need a third block and B gives way. It has 4 + 5 tokens to compute
    # again, which are 3 blocks, and A leaves it 2: it comes back when A has gone, for its 6th to 16th token.
    requests, (replica,) = run(workload([0.0, 0.0], [4, 4], [16, 16]), total_blocks=5, prefix_caching=0)
    assert requests["finish_s"].tolist() == [16.0, 27.0]
    assert requests["preemptions"].tolist() == [0, 1]
    assert requests["recomputed_tokens"].tolist() == [0, 8]
    assert replica.steps == 27


# --- too large ------------------------------------------------------------------------------------------------------------
def trace(tmp_path, rows, **changes):
    """A scenario that plays `rows` of (arrival, prompt, output)."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE + "".join(f"{a},{p},{n}\n" for a, p, n in rows))
    return load_scenario({**BASE, "traffic": {"kind": "trace", "path": str(path)}, **changes})


def test_a_cache_too_small_for_anybody_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"shortest of 2 requests.* must fit the KV cache of [\d]+ tokens"):
        simulate(trace(tmp_path, [(0, 90_000, 5), (1, 95_000, 5)], gpu="l4"))


def test_a_cache_too_small_for_some_serves_the_others(tmp_path):
    result = simulate(trace(tmp_path, [(0, 100, 5), (1, 90_000, 5), (2, 100, 5)], gpu="l4"))
    assert result.plain.summary.requests == {"finished": 2, TOO_LARGE: 1}
    assert result.plain.requests["status"].tolist() == [state.FINISHED, state.REJECTED, state.FINISHED]
    assert result.plain.requests["generated_tokens"].tolist() == [5, 0, 5]


@pytest.mark.parametrize("speculates", [False, True])
def test_the_longest_that_is_not_rejected_is_served(tmp_path, speculates):
    """At the limit itself, look-ahead slots included: it runs alone and finishes; one token more is rejected."""
    chosen = {"gpu": "l4", "max_context_tokens": 131_072}
    if speculates:
        chosen |= {
            "speculation": {"draft": "ngram", "gamma": 5, "acceptance": 0.5}, "engine": {"name": "vllm", "block_tokens": 1},
        }  # fmt: skip
    small = simulate(trace(tmp_path, [(0, 100, 5)], **chosen)).main
    fits = small.total_blocks * (1 if speculates else 16) - small.gamma - 1
    result = simulate(trace(tmp_path, [(0, fits - 9, 9), (0, fits - 8, 9), (0, 100, 5)], **chosen))
    for run in result.runs[:1]:
        assert run.requests["status"].tolist() == [state.FINISHED, state.REJECTED, state.FINISHED]


# --- all at once, nothing asked, too much --------------------------------------------------------------------------------
@pytest.mark.parametrize("replicas", [1, 3])
def test_ten_thousand_in_one_instant(tmp_path, replicas):
    result = simulate(trace(tmp_path, [(0, 100, 10)] * 10_000, replicas=replicas))
    summary, requests = result.plain.summary, result.plain.requests
    assert summary.requests == {"finished": 10_000}
    assert summary.most_waiting >= 10_000 // replicas - summary.most_running
    assert np.bincount(requests["replica"]).max() - np.bincount(requests["replica"]).min() <= 1
    assert (np.diff(requests["scheduled_s"][requests["replica"] == 0]) >= 0).all()  # in order of arrival
    assert summary.stability.stable is None
    assert "All requests arrive within less than one's time in the batch" in summary.stability.sentence


def test_rows_that_ask_for_nothing_are_left_out_and_counted(tmp_path):
    result = simulate(trace(tmp_path, [(0, 100, 5), (1, 100, 0), (2, 0, 5), (3, 100, 0), (4, 100, 5)]))
    assert result.plain.summary.requests == {"finished": 2, "zero output tokens": 2, "zero prompt tokens": 1}
    assert result.traffic.rows_read == 5


def test_a_queue_that_only_grows_comes_to_an_end():
    """Ten times what the engine can do: every request is served in the end, and the summary says what that is worth."""
    saturated = {
        **BASE, "engine": {"name": "vllm", "max_sequences": 8},
        "traffic": {"kind": "poisson", "rate_per_s": 100, "requests": 3000, "lengths": {"prompt": 200, "output": 50}},
    }  # fmt: skip
    summary = simulate(load_scenario(saturated)).plain.summary
    assert summary.requests == {"finished": 3000}
    assert summary.stability.stable is False
    assert summary.stability.sentence.startswith("The queue only grows: ")
    # Waits grow with the run, so a request's is about half the makespan.
    assert summary.queue_s.mean > 0.3 * summary.makespan_s


def test_an_overload_is_seen_also_where_steps_are_long():
    """Five times as much as can be done, for 50 s, in steps of up to a second."""
    traffic = {"kind": "poisson", "rate_per_s": 3.0, "requests": 150, "lengths": {"prompt": 8000, "output": 200}}
    verdict = simulate(
        load_scenario({"model": "gemma-3-27b", "gpu": "h100-sxm", "traffic": traffic})
    ).main.summary.stability
    assert verdict.stable is False
    assert verdict.served_per_s < 0.5 * verdict.offered_per_s
    assert verdict.in_system > 0.5 * 150


def test_any_number_of_preempted_sequences_may_wait():
    """Whoever arrives goes before those who came earlier, so that these pile up, preempted, beyond what may run."""
    n = 60
    work = workload(np.arange(n) * 1.0, [8] * n, [12] * n, rank=np.arange(n)[::-1])
    engines = fleet(n, ranked=1, max_sequences=2, total_blocks=6, prefix_caching=0)
    served = replace(work, requests=work.requests.copy())
    pool, deepest = Pool(engines, served), 0
    while not pool.serve(most_steps=1):
        deepest = max(deepest, int(pool.replicas[0].stacked))
    assert deepest > 3 * 2
    assert (served.requests["status"] == state.FINISHED).all()
    spelled_out = plain.simulate(engines, replace(work, requests=work.requests.copy()), invariants=False)
    assert (served.requests["finish_s"] == spelled_out.requests["finish_s"]).all()
