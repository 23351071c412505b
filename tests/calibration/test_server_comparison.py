"""A server's result held against a simulation: cases whose outcome is known without simulating anything."""

import json
import math

import numpy as np
import pytest

from simulator import load_scenario
from simulator.calibration.server_comparison import compare_server
from simulator.calibration.server_record import VLLM, ServerRequests, ServerResult, Statistic
from simulator.calibration.server_results import read_server_results
from simulator.cost.forward import Batch
from simulator.errors import InputError, MemwallError
from simulator.serving.lengths import Lengths

SETTINGS = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "engine": "ideal"}
ANY = {"kind": "poisson", "rate_per_s": 1, "requests": 1, "lengths": {"prompt": 1, "output": 1}}


def scenario(**changes):
    return load_scenario({**SETTINGS, "traffic": ANY, **changes})


def statistics(**times_s):
    """mean, median and p99 of each metric's values."""
    found = []
    for metric, values in times_s.items():
        for kind, share in (("mean", None), ("percentile", 50.0), ("percentile", 99.0)):
            blank = Statistic(metric, kind, 0.0, metric, share)
            found.append(Statistic(metric, kind, blank.of(np.asarray(values, float)), metric, share))
    return found


def result(requests=None, **changes):
    stated = {
        "tool": VLLM, "source": "file", "completed": 0 if requests is None else len(requests), "requests": requests,
        "lengths": None, "statistics": (), "rates": {}, "rate_per_s": math.inf,
    }  # fmt: skip
    return ServerResult(**{**stated, **changes})


def alone(prompts, outputs):
    """TTFT and E2E of each request by the cost model alone, when no other request is there and the host takes no time."""
    target = scenario().deployment().target
    ttft = np.array([target.seconds(Batch.prefill(p)) for p in prompts])
    decode = [
        sum(target.seconds(Batch.decode(1, p + i)) for i in range(n - 1)) for p, n in zip(prompts, outputs, strict=True)
    ]
    return ttft, ttft + np.array(decode)


def requests_of(prompts, outputs, sent_s, ttft_s, e2e_s):
    return ServerRequests(np.array(prompts), np.array(outputs), np.asarray(sent_s, float), ttft_s, e2e_s)


PROMPTS, OUTPUTS = (300, 700, 150, 1000), (12, 5, 30, 8)
KNOTS = 5e-5
"""Relative error of a whole answer by interpolated attention: up to 0.07 % of it at 150 to 180 tokens, and it is a sixteenth of a
pass (tests/serving/test_attention_knots.py has the error by context)."""


def test_one_request_at_a_time_takes_what_the_cost_model_says():
    # One user, no host time: a server that did exactly what the cost model says is met in every figure.
    ttft_s, e2e_s = alone(PROMPTS, OUTPUTS)
    tpot_s = (e2e_s - ttft_s) / (np.array(OUTPUTS) - 1)
    span_s = float(e2e_s.sum())
    measured = result(
        requests_of(PROMPTS, OUTPUTS, [0.0] * 4, ttft_s, e2e_s), max_concurrency=1, duration_s=span_s,
        statistics=statistics(ttft=ttft_s, tpot=tpot_s, e2e=e2e_s),
        rates={"requests_per_s": 4 / span_s, "output_tokens_per_s": sum(OUTPUTS) / span_s,
               "total_tokens_per_s": (sum(PROMPTS) + sum(OUTPUTS)) / span_s, "mean_in_flight": 1.0},
    )  # fmt: skip
    validation = compare_server(measured, scenario())
    assert len(validation.quantities) == 9 + 4
    for quantity in validation.quantities:
        close = 1e-9 if quantity.name.startswith("TTFT") else KNOTS
        assert quantity.predicted == pytest.approx(quantity.measured, rel=close), quantity.name
        assert quantity.basis == "not fitted on"
    assert validation.comparisons == ()
    assert ("arrivals", "one request at a time") in validation.conditions


def test_recorded_arrivals_far_apart_meet_request_by_request():
    ttft_s, e2e_s = alone(PROMPTS, OUTPUTS)
    # Written down in another order than they were sent.
    order = [2, 0, 3, 1]
    sent_s = np.array([0.0, 5.0, 10.0, 15.0])
    requests = requests_of(
        np.array(PROMPTS)[order], np.array(OUTPUTS)[order], sent_s[order], ttft_s[order], 2.0 * e2e_s[order]
    )
    # The client began 0.5 s before its first request.
    duration_s = 15.5 + 2.0 * float(e2e_s[3])
    measured = result(requests, rate_per_s=0.2, duration_s=duration_s, rates={"requests_per_s": 4 / (15.5 + e2e_s[3])})
    validation = compare_server(measured, scenario())
    ttft, e2e = validation.comparisons
    np.testing.assert_allclose(ttft.errors, 0.0, atol=1e-9)
    np.testing.assert_allclose(e2e.errors, -0.5, atol=KNOTS)
    assert ttft.labels["prompt_tokens"].tolist() == list(PROMPTS)
    (rate,) = validation.quantities
    assert rate.predicted == pytest.approx(4 / (15.5 + float(e2e_s[3])), rel=1e-9)


def test_all_at_once_with_one_place_queue_behind_each_other():
    # The k-th of n equal requests waits for k services; one sequence at a time.
    n, (ttft_s, e2e_s) = 5, alone([400], [6])
    waits_s = e2e_s[0] * np.arange(n)
    measured = result(
        requests_of([400] * n, [6] * n, [0.0] * n, waits_s + ttft_s, waits_s + e2e_s),
        statistics=statistics(ttft=waits_s + ttft_s, e2e=waits_s + e2e_s),
    )
    validation = compare_server(measured, scenario(engine={"name": "ideal", "max_sequences": 1}))
    for quantity in validation.quantities:
        assert quantity.predicted == pytest.approx(quantity.measured, rel=1e-6), quantity.name


@pytest.mark.parametrize(("burstiness", "factor"), [(1.0, 1.0), (math.inf, 0.0)])
def test_queue_of_one_server_waits_as_theory_says(burstiness, factor):
    # M/D/1 (Pollaczek-Khinchine): the mean wait is ρS/(2(1−ρ)); evenly spaced arrivals with ρ < 1 never wait (D/D/1).
    ttft_s, e2e_s = alone([100], [2])
    load, service_s = 0.6, float(e2e_s[0])
    wait_s = factor * load * service_s / (2 * (1 - load))
    mean = Statistic("ttft", "mean", float(ttft_s[0]) + wait_s, "mean_ttft_ms")
    lengths = Lengths.model_validate({"prompt": 100, "output": 2})
    measured = result(
        completed=20_000, lengths=lengths, statistics=[mean], rate_per_s=load / service_s, burstiness=burstiness
    )
    validation = compare_server(measured, scenario(engine={"name": "ideal", "max_sequences": 1}))
    (quantity,) = validation.quantities
    # 5 × 20,000 waits, correlated over some 10 requests: the mean is known to about 2 %.
    assert quantity.error == pytest.approx(0.0, abs=0.03)
    assert ("draws" in dict(validation.conditions)) == (factor > 0)
    assert quantity.note.startswith("mean of 5 draws") == (factor > 0)


def test_a_limit_that_sets_the_pace_closes_the_loop():
    # A rate far beyond what is answered: by Little's law 3 × 0.66 s = 1.98 of at most 2 are in flight.
    lengths = Lengths.model_validate({"prompt": 100, "output": 10})
    stated = {"completed": 20, "lengths": lengths, "rate_per_s": 100.0, "max_concurrency": 2,
              "rates": {"requests_per_s": 3.0}, "statistics": [Statistic("e2e", "mean", 0.66, "x")]}  # fmt: skip
    bound = compare_server(result(**stated), scenario())
    assert ("arrivals", "2 users, each with one request in flight") in bound.conditions
    free = compare_server(result(**{**stated, "rates": {"requests_per_s": 1.0}}), scenario())
    assert ("arrivals", "exponential gaps at 100 requests/s") in free.conditions
    assert any("limit of 2 requests in flight is not simulated" in note for note in free.notes)


def test_summary_without_e2e_still_tells_how_many_are_in_flight():
    # 4 requests/s × (0.05 s + 9 × 0.05 s) = 2 in flight.
    lengths = Lengths.model_validate({"prompt": 100, "output": 10})
    means = [Statistic("ttft", "mean", 0.05, "x"), Statistic("tpot", "mean", 0.05, "y")]
    rates = {"requests_per_s": 4.0, "output_tokens_per_s": 40.0}
    stated = result(completed=20, lengths=lengths, rate_per_s=100.0, max_concurrency=2, statistics=means, rates=rates)
    assert ("arrivals", "2 users, each with one request in flight") in compare_server(stated, scenario()).conditions


def test_a_sample_is_resampled_by_whole_rows():
    # Two kinds of requests, long with long: were prompt and output drawn apart, the longest E2E would be another one.
    _, e2e_s = alone([100, 900], [2, 40])
    sample = ServerRequests(np.array([100, 900]), np.array([2, 40]))
    stated = [Statistic("e2e", "max", float(e2e_s[1]), "x"), Statistic("e2e", "min", float(e2e_s[0]), "y")]
    measured = result(sample, completed=50, max_concurrency=1, statistics=stated)
    for quantity in compare_server(measured, scenario(), draws=2).quantities:
        assert quantity.predicted == pytest.approx(quantity.measured, rel=KNOTS)


def test_speculation_is_held_against_the_acceptance_length():
    speculation = {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": 1.0}
    lengths = Lengths.model_validate({"prompt": 100, "output": 41})
    measured = result(completed=4, lengths=lengths, max_concurrency=1, tokens_per_round=4.0,
                      statistics=[Statistic("itl", "percentile", 0.01, "x", 50.0), Statistic("itl", "min", 0.01, "y")])  # fmt: skip
    least, median, tokens = compare_server(measured, scenario(speculation=speculation), draws=1).quantities
    assert tokens.predicted == pytest.approx(4.0)
    # Gaps between chunks: a draft and a verification, not a quarter of them.
    deployment = scenario(speculation=speculation).deployment()
    round_s = deployment.target.seconds(Batch((4,), (100,), 4))
    round_s += sum(deployment.draft.seconds(Batch.decode(1, 100)) for _ in range(3))
    assert median.predicted == pytest.approx(round_s, rel=0.03)
    assert (least.predicted, least.note) == (None, "not kept by the simulation")
    plain = compare_server(measured, scenario()).quantities[-1]
    assert (plain.predicted, plain.note) == (None, "the scenario does not speculate")


def test_what_was_assumed_is_said(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(
        json.dumps(
            {"backend": "vllm", "model_id": "Qwen/Qwen3-8B", "num_prompts": 11, "completed": 10, "duration": 10.0,
             "request_rate": 1.0, "burstiness": 0.5, "max_concurrency": None, "total_input_tokens": 1000,
             "total_output_tokens": 100, "request_throughput": 1.0, "mean_ttft_ms": 20.0, "std_ttft_ms": 0.0}
        )
    )  # fmt: skip
    (measured,) = read_server_results(path)
    validation = compare_server(measured, scenario(), draws=2)
    text = " ".join(validation.notes)
    for said in ("mean lengths, 100 and 10 tokens", "names the model Qwen/Qwen3-8B, simulated is llama-3.1-8b",
                 "1 statistics of 0 s", "network"):  # fmt: skip
        assert said in text
    assert ("arrivals", "gamma gaps of shape 0.5 at 1 requests/s") in validation.conditions
    assert ("requests", "10 answered, 1 failed") in validation.conditions
    assert validation == compare_server(measured, scenario(), draws=2)


def test_what_cannot_be_compared_is_refused():
    lengths = Lengths.model_validate({"prompt": 100, "output": 10})
    with pytest.raises(InputError, match="nobody knows how they arrived"):
        compare_server(result(completed=5, lengths=lengths, rate_per_s=None), scenario())
    with pytest.raises(InputError, match="draws=0 must be at least 1"):
        compare_server(result(completed=5, lengths=lengths), scenario(), draws=0)
    with pytest.raises(InputError, match="burstiness=1e-06 must be greater than or equal to"):
        compare_server(result(completed=5, lengths=lengths, rate_per_s=1.0, burstiness=1e-6), scenario())
    with pytest.raises(InputError, match="completed=2000000 must be at most 1000000"):
        compare_server(result(completed=2_000_000, lengths=lengths), scenario())
    with pytest.raises(InputError, match="or their lengths"):
        compare_server(result(completed=5), scenario())
    with pytest.raises(MemwallError):
        compare_server(result(completed=5, lengths=lengths), scenario(model="llama-3.1-70b"))
