"""Whole simulations: the loop's seconds are the cost model's, every request is accounted for, runs are repeatable."""

from dataclasses import replace

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.cost.forward import Batch
from simulator.errors import DoesNotFit, InputError
from simulator.serving import state
from simulator.serving.metrics import TOO_LARGE

BASE = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "warmup": 0}
CAPTURED = 304
"""Tokens of one of vLLM's graphs: a prompt that is not padded."""
KNOTS = 5e-5
"""Relative error of a few steps by interpolated attention (see test_attention_knots)."""


def poisson(requests=200, rate=4.0, prompt=300, output=40):
    return {
        "kind": "poisson", "rate_per_s": rate, "requests": requests, "lengths": {"prompt": prompt, "output": output},
    }  # fmt: skip


def scenario(**changes):
    return load_scenario({**BASE, "traffic": poisson(), **changes})


def with_host(chosen, **times_s):
    """The deployment of a scenario, its engine with other host times."""
    deployment = chosen.deployment()
    return replace(deployment, engine=replace(deployment.engine, **times_s))


def speculative(gamma=3, acceptance=0.7, draft="llama-3.2-1b"):
    return {"draft": draft, "gamma": gamma, "acceptance": acceptance}


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt-oss-20b", "deepseek-v2-lite"])  # GQA, window and MoE, MLA
def test_golden_one_user_takes_the_passes_the_cost_model_says(model):
    prompt, output = CAPTURED, 12
    result = simulate(scenario(model=model, traffic=poisson(1, prompt=prompt, output=output)))
    target, engine = result.deployment.target, result.deployment.engine
    request = result.plain.requests[0]
    # Nothing runs beside the first step's host work; later steps are longer than what they hide.
    prefill_s = target.seconds(Batch.prefill(prompt)) + engine.host_s(1) + engine.hidden_s(1)
    assert request.first_token_s - request.arrival_s == pytest.approx(prefill_s, rel=1e-9)
    passes_s = [target.seconds(Batch.decode(1, prompt + i)) for i in range(output - 1)]
    assert min(passes_s) > engine.hidden_s(1)
    decode_s = sum(passes_s) + (output - 1) * engine.host_s(1)
    assert request.finish_s - request.first_token_s == pytest.approx(decode_s, rel=KNOTS)


def test_golden_host_work_that_outlasts_the_pass_is_not_hidden():
    prompt, output = CAPTURED, 12
    chosen = scenario(traffic=poisson(1, prompt=prompt, output=output))
    result = simulate(chosen, deployment=with_host(chosen, host_hidden_step_s=0.05))
    engine, request = result.deployment.engine, result.plain.requests[0]
    step_s = engine.host_step_s + engine.host_per_sequence_s + engine.hidden_s(1)
    assert request.finish_s - request.first_token_s == pytest.approx((output - 1) * step_s, rel=1e-9)


def test_golden_a_step_is_padded_to_its_graph_and_a_larger_one_has_none():
    engine = {"name": "vllm", "graph_capture_sizes": [1, 512]}
    for prompt, padded in ((300, 512), (600, 600)):
        chosen = scenario(engine=engine, traffic=poisson(1, prompt=prompt, output=2))
        result = simulate(chosen, deployment=with_host(chosen, host_eager_layer_s=0.01))
        target, profile = result.deployment.target, result.deployment.engine
        linear_s = float(target.linear(np.array([float(padded)]))[0])
        # Launching all kernels of 32 layers, of which the GPU waits for what outlasts its own matrix products.
        launches_s = max(0.0, 32 * 0.01 - linear_s) if padded == prompt else 0.0
        pass_s = linear_s + float(target.head(np.array([1.0]))[0]) + target.attention((prompt,), (0,))
        request = result.plain.requests[0]
        expected_s = pass_s + launches_s + profile.host_s(1) + profile.hidden_s(1)
        assert request.first_token_s - request.arrival_s == pytest.approx(expected_s, rel=1e-9)


def test_golden_speculative_round_by_hand():
    # All drafts accepted: prompt, then rounds of γ + 1 tokens. 1 + 4 + 4 tokens are an answer of 9.
    gamma, prompt = 3, CAPTURED
    result = simulate(scenario(traffic=poisson(1, prompt=prompt, output=9), speculation=speculative(gamma, 1.0)))
    target, draft, engine = result.deployment.target, result.deployment.draft, result.deployment.engine

    def drafting_s(first_tokens, cached, context):
        first = draft.seconds(Batch((first_tokens,), (cached,), 1))
        further = sum(draft.seconds(Batch.decode(1, context + i)) for i in range(gamma - 1))
        return first + further + engine.host_draft_pass_s * gamma

    request = result.main.requests[0]
    first_s = target.seconds(Batch.prefill(prompt)) + engine.host_s(1) + engine.hidden_s(1)
    first_s += drafting_s(prompt, 0, prompt + 1)
    verify_s = [target.seconds(Batch((gamma + 1,), (prompt + 4 * i,), gamma + 1)) for i in range(2)]
    host_s = engine.host_s(1) + engine.host_speculative_round_s
    rounds_s = sum(verify_s) + 2 * host_s + drafting_s(gamma + 1, prompt, prompt + 5)
    assert request.first_token_s - request.arrival_s == pytest.approx(first_s, rel=KNOTS)
    assert request.finish_s - request.first_token_s == pytest.approx(rounds_s, rel=KNOTS)
    assert (request.rounds, request.drafted_tokens, request.accepted_tokens) == (2, 6, 6)


def test_every_row_is_finished_rejected_or_dropped(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,0,5\n2,10,x\n3,200000,5\n4,90000,5\n5,10,5\n")
    result = simulate(
        scenario(
            traffic={"kind": "trace", "path": str(trace)},
            gpu="l4",
            max_context_tokens=100_000,
        )
    )
    counts = result.plain.summary.requests
    assert counts["finished"] == 2
    assert counts[TOO_LARGE] == 1
    assert counts["longer than the context"] == 1
    assert sum(counts.values()) == result.traffic.rows_read == 6


def test_plain_and_speculative_serve_the_same_requests_with_the_same_luck():
    result = simulate(scenario(speculation=speculative()))
    for field in ("arrival_s", "prompt_tokens", "output_tokens", "generated_tokens"):
        assert (result.main.requests[field] == result.plain.requests[field]).all()
    faster = load_scenario({**BASE, "gpu": "h200", "traffic": poisson(), "speculation": speculative()})
    # Another GPU, another timing and batch order, but every draft meets the same fate.
    other = simulate(faster)
    assert (result.main.requests["accepted_tokens"] == other.main.requests["accepted_tokens"]).all()


def test_equal_seeds_give_byte_identical_results_and_others_do_not():
    chosen = scenario(speculation={**speculative(), "acceptance": {"alpha": 0.7, "request_icc": 0.1}})
    first, again = simulate(chosen), simulate(chosen)
    assert first.main.requests.tobytes() == again.main.requests.tobytes()
    assert first.main.series.tobytes() == again.main.series.tobytes()
    assert first.main.summary == again.main.summary
    other = simulate(chosen.model_copy(update={"seed": 1}))
    assert first.main.requests.tobytes() != other.main.requests.tobytes()


def test_a_faster_memory_never_makes_a_lone_user_wait_longer():
    slow, fast = (simulate(scenario(gpu=gpu, traffic=poisson(20, rate=0.05))) for gpu in ("h100-sxm", "h200"))
    assert fast.plain.summary.tpot_s.mean < slow.plain.summary.tpot_s.mean


def test_replicas_share_the_load_and_their_counters_add_up():
    result = simulate(scenario(replicas=3, traffic=poisson(600, rate=30.0), speculation=speculative()))
    summary = result.main.summary
    assert set(result.main.requests["replica"]) == {0, 1, 2}
    assert summary.drafted_tokens == result.main.requests["drafted_tokens"].sum()
    assert summary.wasted_tokens == summary.drafted_tokens - result.main.requests["accepted_tokens"].sum()
    output = result.main.series[state.SERIES.index("output_tokens")].sum()
    assert output == result.main.requests["output_tokens"].sum()


def test_a_replica_that_stood_idle_for_hours_joins_the_time_series():
    # The busy replica's buckets have widened more than 1024-fold, the other one's are still 1/64 s.
    hours = scenario(traffic=poisson(3, rate=1e-4, output=2), replicas=2)
    run = simulate(hours).plain
    assert set(run.requests["replica"]) == {0}
    assert run.series[state.SERIES.index("output_tokens")].sum() == 6
    assert run.bucket_s > state.FIRST_BUCKET_S * state.BUCKETS


def test_utilisation_is_the_traffic_counted_by_hand():
    # One user, one long answer: HBM bytes per step are the weights and the KV cache of one token.
    result = simulate(scenario(traffic=poisson(1, prompt=10, output=200), engine="ideal"))
    step = result.deployment.target.pass_cost(Batch.decode(1, 110))
    share = step.total("bytes_") / step.seconds / result.deployment.gpu.hbm_bytes_per_s
    assert result.plain.summary.bandwidth_share == pytest.approx(share, rel=0.01)


def test_warm_up_is_simulated_but_not_measured():
    all_of_it = simulate(scenario())
    warm = simulate(scenario(warmup=0.5))
    assert all_of_it.plain.summary.measured == 200
    assert warm.plain.summary.measured == 100
    assert (all_of_it.plain.requests["finish_s"] == warm.plain.requests["finish_s"]).all()


def test_ngram_drafting_needs_no_draft_model():
    acceptance = {"alpha": 0.6, "match_probability": 0.5}
    result = simulate(scenario(speculation=speculative(acceptance=acceptance, draft="ngram")))
    assert result.deployment.draft is None
    assert result.main.budget.draft_weight_bytes == result.main.budget.draft_kv_bytes_per_token == 0
    assert 1 < result.main.summary.tokens_per_round < 4


def test_an_eagle_head_takes_kv_room_from_the_requests():
    result = simulate(scenario(speculation={"draft": "eagle-llama-3.1-8b", "gamma": 3}))
    # One more layer of KV beside the target's 32.
    assert result.main.budget.kv_bytes_per_token / result.plain.budget.kv_bytes_per_token == pytest.approx(33 / 32)
    assert result.main.total_blocks < result.plain.total_blocks


def test_a_context_beyond_the_model_s_own_is_refused():
    with pytest.raises(InputError, match="max_context_tokens=1000000 must be at most the 131072 tokens"):
        simulate(scenario(max_context_tokens=1_000_000))


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(DoesNotFit, match=r"needs .* more than .* would fit"):
        simulate(scenario(model="llama-3.1-70b"))


def test_requests_that_can_never_fit_are_refused_when_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="must fit the KV cache"):
        simulate(scenario(gpu="l4", quantization={"weights": "int4"}, traffic=poisson(3, prompt=120_000)))


def test_speculation_without_a_known_acceptance_is_refused():
    with pytest.raises(InputError, match="none is known for the drafter"):
        simulate(scenario(speculation={"draft": "llama-3.2-1b"}))


def test_the_real_azure_trace_is_served_whole(memwall_data):
    path = memwall_data / "traces/azure2023/AzureLLMInferenceTrace_code.csv"
    result = simulate(scenario(traffic={"kind": "trace", "path": str(path)}, replicas=2, speculation=speculative()))
    for run in result.runs:
        assert run.summary.requests == {"finished": 8819}
        assert (run.requests["generated_tokens"] == run.requests["output_tokens"]).all()
