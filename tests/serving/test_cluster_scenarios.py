"""Whole scenarios with a ``cluster`` section, at the costs of real GPUs."""

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving import state

CHAT = {
    "model": "llama-3.1-8b", "gpu": "h100", "engine": "vllm", "traffic": "chat", "replicas": 4,
    "load": {"rate_per_s": 40, "requests": 3000},
}  # fmt: skip
PAIR = [{"role": "prefill", "replicas": 2}, {"role": "decode", "replicas": 2}]


def run(**cluster):
    return simulate(load_scenario({**CHAT, "cluster": cluster})).main


def test_apart_prompts_no_longer_interrupt_whoever_decodes():
    together, apart = run(), run(pools=PAIR)
    assert apart.summary.itl_s.p99 < together.summary.itl_s.p99 / 3
    assert apart.summary.requests == together.summary.requests == {"finished": 3000}
    sent = np.isfinite(apart.transfers.handed_over_s)
    # 32 layers x 2 x 8 heads x 128 values of two bytes; 400 Gbit/s and 5 µs.
    size_bytes = apart.requests["prompt_tokens"][sent] * 131072
    assert apart.transfers.sent_bytes == size_bytes.sum()
    np.testing.assert_allclose(apart.transfers.transfer_s[sent], 5e-6 + size_bytes / 50e9)


def test_one_slow_link_for_all_is_felt_between_the_first_two_tokens_alone():
    own, shared = run(pools=PAIR), run(pools=PAIR, transfer={"bytes_per_s": "8 GB/s", "per": "cluster"})
    assert np.nanmean(shared.transfers.wait_s) > 10 * np.nanmean(own.transfers.wait_s)
    assert shared.summary.ttft_s == own.summary.ttft_s
    assert shared.summary.tpot_s.mean > own.summary.tpot_s.mean


def test_a_queue_at_the_link_grows_too():
    """A link for a third of what the prefill replicas send: nobody waits for a replica, and ever more for the link."""
    wide = run(pools=PAIR)
    bytes_per_s = wide.transfers.sent_bytes / wide.summary.makespan_s / 3
    narrow = run(pools=PAIR, transfer={"bytes_per_s": bytes_per_s, "per": "cluster"})
    assert wide.summary.stability.stable is True
    assert narrow.summary.stability.stable is False
    assert narrow.summary.queue_s.mean == wide.summary.queue_s.mean


def test_kinds_of_gpus_behind_one_router():
    result = run(pools=[{"gpu": "h100", "replicas": 2}, {"gpu": "a100", "replicas": 2}])
    served = np.bincount(result.requests["replica"], minlength=4)
    # Outstanding requests even out, so who is faster serves more.
    assert served[:2].min() > 1.2 * served[2:].max()
    assert len(result.held_s) == 4


def test_failing_replicas_lose_nobody():
    result = run(failures=[{"mtbf_s": 40, "mttr_s": 20}])
    assert result.summary.requests == {"finished": 3000}
    assert result.summary.retries > 0
    assert (result.requests["generated_tokens"] == result.requests["output_tokens"]).all()


def test_gpus_are_paid_while_they_are_held():
    scaler = {"min": 1, "max": 4, "target": 40, "startup_s": "20 s", "interval_s": "5 s", "scale_down_after_s": "60 s"}
    always = run()
    scaled = run(pools=[{"replicas": 2}], autoscaler=scaler)
    assert (scaled.requests["status"] == state.FINISHED).all()
    assert scaled.held_s.sum() < always.held_s.sum()
    ratio = scaled.summary.usd_per_million_tokens / always.summary.usd_per_million_tokens
    assert ratio == pytest.approx(scaled.held_s.sum() / always.held_s.sum())


def test_speculation_is_for_whoever_decodes():
    eagle = {"draft": "eagle-llama-3.1-8b", "gamma": 3}
    scenario = load_scenario({**CHAT, "speculation": eagle, "cluster": {"pools": PAIR}})
    result = simulate(scenario)
    assert result.main.summary.tpot_s.mean < result.plain.summary.tpot_s.mean
    assert (result.main.requests["generated_tokens"] == result.plain.requests["generated_tokens"]).all()
    assert result.main.summary.ttft_s == result.plain.summary.ttft_s
