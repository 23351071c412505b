import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.errors import InputError
from simulator.randomness import STREAM_INTERARRIVAL, STREAM_OUTPUT_TOKENS, uniform
from simulator.serving.lengths import Lengths
from simulator.serving.traces import read_trace
from simulator.serving.traffic import ClosedLoop, Trace, generate, load_traffic, parse_traffic, with_load

SEED = 20250101
N = 100_000
Z = 3.29  # 99.9 % two-sided
SPREAD = {"kind": "lognormal", "median": 500, "p95": 4000}
LENGTHS = {"prompt": SPREAD, "output": {"kind": "uniform", "low": 1, "high": 400}, "rank_correlation": 0.4}


def poisson(**fields):
    return parse_traffic({"kind": "poisson", "rate_per_s": 8, "requests": 100, "lengths": LENGTHS, **fields}, "test")


def gamma(burstiness, **fields):
    return parse_traffic({**poisson(**fields).model_dump(), "kind": "gamma", "burstiness": burstiness}, "test")


def closed_loop(**fields):
    figures = {"kind": "closed-loop", "users": 3, "think_time_s": 5, "requests": 100, "lengths": LENGTHS}
    return parse_traffic({**figures, **fields}, "test")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "trace.csv").write_text("arrival,prompt_tokens,output_tokens\n2,10,1\n3,20,2\nx,1,1\n6,30,3\n")
    return tmp_path / "trace.csv"


# Literal and golden, by hand


def test_poisson_by_hand():
    requests = generate(poisson(lengths={"prompt": 512, "output": {"kind": "uniform", "low": 3, "high": 6}}), SEED)
    at_s = 0.0
    for i in range(5):
        at_s += -math.log(1 - uniform(SEED, i, STREAM_INTERARRIVAL, 0)) / 8
        assert requests.arrival_s[i] == pytest.approx(at_s, rel=1e-12)
        assert requests.output_tokens[i] == 3 + int(4 * uniform(SEED, i, STREAM_OUTPUT_TOKENS, 0))
    assert set(requests.prompt_tokens) == {512}
    assert set(requests.output_tokens) == {3, 4, 5, 6}


def test_a_trace_by_hand(file):
    requests = generate(Trace(kind="trace", path="trace.csv", time_scale=0.5), SEED, base=file.parent)
    assert requests.arrival_s.tolist() == [0.0, 0.5, 2.0]
    assert requests.prompt_tokens.tolist() == [10, 20, 30]
    assert requests.row.tolist() == [0, 1, 3]
    assert (requests.rows_read, dict(requests.dropped)) == (4, {"unreadable time": 1})
    assert requests.source == "3 of 4 rows of trace.csv (CSV), times × 0.5"


def test_a_trace_stretched_to_a_rate(file):
    # Two gaps in 4 s are 0.5 /s; at 2 /s they take 1 s.
    requests = generate(with_load(Trace(kind="trace", path=str(file)), rate_per_s=2), SEED)
    assert requests.arrival_s.tolist() == [0.0, 0.25, 1.0]


def test_quantiles_by_hand():
    table = {"kind": "quantiles", "probabilities": [0, 0.5, 1], "values": [1, 100, 400]}
    lengths = Lengths.model_validate({"prompt": table, "output": 7})
    u = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    prompt, output = lengths.draw(u, u)
    assert prompt.tolist() == [1, 10, 100, 200, 400]
    assert output.tolist() == [7] * 5


def test_closed_loop_starts_its_users_at_zero():
    requests = generate(closed_loop(), SEED)
    assert requests.arrival_s[:3].tolist() == [0, 0, 0]
    assert np.isnan(requests.arrival_s[3:]).all()
    assert requests.think_s[:3].tolist() == [0, 0, 0]
    assert (requests.think_s[3:] > 0).all()
    assert requests.users == 3


def test_rates_and_times_take_units():
    assert poisson(rate_per_s="30 /min").rate_per_s == 0.5
    assert closed_loop(think_time_s="250 ms").think_time_s == 0.25


# Same numbers again


@pytest.mark.parametrize("traffic", [poisson(), gamma(0.3), closed_loop()])
def test_two_runs_are_byte_identical(traffic):
    first, second = generate(traffic, SEED), generate(traffic, SEED)
    other = generate(traffic, SEED + 1)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.prompt_tokens.tobytes() != other.prompt_tokens.tobytes()


@pytest.mark.parametrize("traffic", [poisson(requests=1000), gamma(0.3, requests=1000), closed_loop(requests=1000)])
def test_a_request_does_not_depend_on_how_many_there_are(traffic):
    few, many = generate(with_load(traffic, requests=37), SEED), generate(traffic, SEED)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "think_s"):
        if getattr(many, name) is not None:
            np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:37])


def test_another_rate_stretches_the_same_arrivals():
    slow, fast = generate(poisson(), SEED), generate(with_load(poisson(), rate_per_s=16), SEED)
    np.testing.assert_allclose(slow.arrival_s, 2 * fast.arrival_s, rtol=1e-15)
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)


# Theory, with a confidence interval


@pytest.mark.parametrize("burstiness", [0.2, 0.5, 1.0, 4.0])
def test_gamma_gaps_have_their_mean_and_variation(burstiness):
    # Mean 1/λ, CV² = 1/b; the sample variance has standard error σ²·√((2 + 6/b) / n), 6/b being the excess kurtosis.
    gaps_s = np.diff(generate(gamma(burstiness, requests=N), SEED).arrival_s, prepend=0)
    mean_s, variance = 1 / 8, 1 / 64 / burstiness
    assert abs(gaps_s.mean() - mean_s) < Z * math.sqrt(variance / N)
    assert abs(gaps_s.var() - variance) < Z * variance * math.sqrt((2 + 6 / burstiness) / N)


def test_poisson_counts_vary_as_much_as_their_mean():
    # Index of dispersion of Poisson counts over m windows is 1 ± z·√(2/m).
    arrival_s = generate(poisson(requests=N), SEED).arrival_s
    windows = int(arrival_s[-1] / 2)
    counts = np.bincount((arrival_s[arrival_s < 2 * windows] / 2).astype(int), minlength=windows)
    assert abs(counts.var() / counts.mean() - 1) < Z * math.sqrt(2 / windows)


def test_think_times_are_exponential():
    think_s = generate(closed_loop(requests=N), SEED).think_s[3:]
    assert abs(think_s.mean() - 5) < Z * 5 / math.sqrt(N)
    assert abs(think_s.std() - 5) < Z * 5 * math.sqrt(2 / N)  # (κ - 1)/4 = 2 with κ = 9


def test_lognormal_meets_its_percentiles():
    prompt = generate(poisson(requests=N), SEED).prompt_tokens
    for probability, tokens in ((0.5, 500), (0.95, 4000)):
        share = (prompt <= tokens).mean()
        assert abs(share - probability) < Z * math.sqrt(probability * (1 - probability) / N) + 0.001  # whole tokens


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.5, 0.95])
def test_copula_has_the_rank_correlation_and_keeps_the_marginals(rho):
    flat = {"kind": "uniform", "low": 1, "high": 10**8}
    requests = generate(poisson(requests=N, lengths={"prompt": flat, "output": flat, "rank_correlation": rho}), SEED)
    ranks = [np.argsort(np.argsort(x)) for x in (requests.prompt_tokens, requests.output_tokens)]
    # Standard error of Spearman's ρ after Bonett and Wright (2000), on Fisher's scale.
    error = math.sqrt((1 + rho**2 / 2) / (N - 3))
    assert abs(math.atanh(np.corrcoef(*ranks)[0, 1]) - math.atanh(rho)) < Z * error
    bound = math.sqrt(math.log(2 / 0.001) / (2 * N))
    for tokens in (requests.prompt_tokens, requests.output_tokens):
        assert np.abs(np.sort(tokens) / 1e8 - (np.arange(N) + 0.5) / N).max() < bound


def test_arrivals_and_lengths_are_independent():
    requests = generate(poisson(requests=N), SEED)
    gaps_s = np.diff(requests.arrival_s, prepend=0)
    for tokens in (requests.prompt_tokens, requests.output_tokens):
        assert abs(np.corrcoef(gaps_s, np.log(tokens))[0, 1]) < Z / math.sqrt(N)


# Limits


def test_gamma_with_burstiness_one_is_poisson():
    np.testing.assert_array_equal(generate(gamma(1), SEED).arrival_s, generate(poisson(), SEED).arrival_s)
    near = generate(gamma(1 + 1e-9), SEED).arrival_s
    np.testing.assert_allclose(near, generate(poisson(), SEED).arrival_s, rtol=1e-6)


def test_steady_gamma_is_a_clock():
    gaps_s = np.diff(generate(gamma(1e4), SEED).arrival_s)
    assert np.abs(gaps_s * 8 - 1).max() < 0.05  # five standard deviations of 1/√10⁴


def test_no_spread_is_constant():
    lengths = {
        "prompt": {"kind": "lognormal", "median": 77, "sigma": 0},
        "output": {"kind": "uniform", "low": 5, "high": 5},
    }
    requests = generate(poisson(lengths=lengths), SEED)
    assert set(requests.prompt_tokens) == {77}
    assert set(requests.output_tokens) == {5}


@pytest.mark.parametrize("rho", [1, -1])
def test_full_rank_correlation_is_a_function(rho):
    flat = {"kind": "uniform", "low": 1, "high": 1000}
    requests = generate(poisson(lengths={"prompt": flat, "output": flat, "rank_correlation": rho}), SEED)
    twin = requests.prompt_tokens if rho == 1 else 1001 - requests.prompt_tokens
    np.testing.assert_allclose(requests.output_tokens, twin, atol=1)


def test_no_thinking():
    assert set(generate(closed_loop(think_time_s=0), SEED).think_s) == {0.0}


def test_more_users_than_requests():
    assert generate(closed_loop(users=10, requests=2), SEED).arrival_s.tolist() == [0, 0]


# Conservation


@given(
    kind=st.sampled_from(["lognormal", "uniform", "constant", "quantiles"]),
    low=st.integers(1, 10**8),
    more=st.integers(0, 10**8),
    rho=st.floats(-1, 1),
    u=st.lists(st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]) | st.floats(0, 1, exclude_max=True), min_size=1),
)
def test_lengths_are_whole_and_inside_their_bounds(kind, low, more, rho, u):
    high = min(low + more, 10**8)
    distribution = {
        "constant": {"tokens": low},
        "uniform": {"low": low, "high": high},
        "lognormal": {"median": low, "sigma": 3, "min": low, "max": high},
        "quantiles": {"probabilities": [0, 1], "values": [low, high]},
    }[kind] | {"kind": kind}
    lengths = Lengths.model_validate({"prompt": distribution, "output": distribution, "rank_correlation": rho})
    numbers = np.array(u)
    for tokens in lengths.draw(numbers, numbers[::-1]):
        assert tokens.dtype == np.int64
        assert tokens.min() >= low
        assert tokens.max() <= high
    order = np.argsort(numbers)
    assert (np.diff(lengths.draw(numbers, numbers)[0][order]) >= 0).all()


@pytest.mark.parametrize("traffic", [poisson(requests=1000), closed_loop(requests=1000)])
def test_requests_longer_than_the_context_are_counted(traffic):
    everything, some = generate(traffic, SEED), generate(traffic, SEED, max_context_tokens=800)
    fits = everything.prompt_tokens + everything.output_tokens <= 800
    assert dict(some.dropped) == {"longer than the context": 1000 - len(some)}
    assert some.rows_read == 1000
    np.testing.assert_array_equal(some.row, np.flatnonzero(fits))
    np.testing.assert_array_equal(some.prompt_tokens, everything.prompt_tokens[fits])
    if traffic.kind == "closed-loop":
        assert np.isnan(some.arrival_s).sum() == len(some) - 3
    else:
        np.testing.assert_array_equal(some.arrival_s, everything.arrival_s[fits])
    assert len(generate(traffic, SEED, max_context_tokens=10**9)) == 1000


def test_no_request_left_is_an_error():
    with pytest.raises(InputError, match=r"max_context_tokens=1 must be at least \d+"):
        generate(poisson(), SEED, max_context_tokens=1)


# Loading, overriding, and what goes wrong


def test_a_trace_is_found_beside_the_file_that_names_it(file):
    (file.parent / "mine.yaml").write_text("kind: trace\npath: trace.csv\n")
    traffic = load_traffic("mine.yaml", base=file.parent)
    assert len(generate(traffic, SEED)) == 3


def test_load_changes_only_what_is_given():
    assert with_load(poisson()) == poisson()
    assert with_load(poisson(), rate_per_s=1, requests=5) == poisson(rate_per_s=1, requests=5)
    assert with_load(closed_loop(), users=9) == closed_loop(users=9)
    trace = Trace(kind="trace", path="x", time_scale=3)
    assert with_load(trace, requests=5) == Trace(kind="trace", path="x", time_scale=3, limit=5)
    assert with_load(trace, rate_per_s=5) == Trace(kind="trace", path="x", rate_per_s=5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: with_load(closed_loop(), rate_per_s=1), "rate_per_s=1 must be left out .* did you mean users"),
        (lambda: with_load(poisson(), users=1), "users=1 must be left out for poisson traffic"),
        (lambda: with_load(poisson(), rate_per_s=0), "rate_per_s=0 must be greater than"),
        (lambda: poisson(rate_per_s="8 GB"), "rate_per_s='8 GB' must be a number with a unit"),
        (lambda: poisson(requests=0), "requests=0 must be greater than"),
        (lambda: gamma(0), "burstiness=0 must be greater than"),
        (lambda: poisson(rate="8"), "rate.* did you mean rate_per_s"),
        (lambda: poisson(lengths={"prompt": 0, "output": 1}), "tokens=0 must be greater than"),
        (lambda: poisson(lengths={"prompt": {"kind": "lognormal", "median": 5}, "output": 1}), "either sigma or p95"),
        (lambda: poisson(lengths={"prompt": {**SPREAD, "p95": 5}, "output": 1}), "p95=5 not below median=500"),
        (lambda: poisson(lengths={"prompt": {**SPREAD, "max": 5, "min": 6}, "output": 1}), "max=5 not below min=6"),
        (
            lambda: poisson(lengths={"prompt": {"kind": "uniform", "low": 5, "high": 4}, "output": 1}),
            "high=4 not below",
        ),
        (lambda: quantiles([0, 1], [1, 2, 3]), "as many values as probabilities"),
        (lambda: quantiles([0, 0.5, 0.5, 1], [1, 2, 3, 4]), "probabilities rising from 0 to 1"),
        (lambda: quantiles([0.1, 1], [1, 2]), "probabilities rising from 0 to 1"),
        (lambda: quantiles([0, 1], [2, 1]), "values that do not fall"),
        (lambda: parse_traffic({"kind": "poison"}, "test"), "did you mean poisson"),
        (lambda: parse_traffic({}, "test"), "kind='\\(absent\\)' must be given"),
        (lambda: load_traffic("chatt"), "did you mean chat"),
        (lambda: parse_traffic({"kind": "trace", "path": "x", "time_scale": 2, "rate_per_s": 1}, "t"), "not both"),
        (lambda: generate(Trace(kind="trace", path="nowhere.csv"), 1), "must be an existing file"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        change()
    assert "\n" not in str(caught.value)


def quantiles(probabilities, values):
    table = {"kind": "quantiles", "probabilities": probabilities, "values": values}
    return poisson(lengths={"prompt": table, "output": 1})


def test_a_trace_at_one_instant_has_no_rate(tmp_path):
    (tmp_path / "t.csv").write_text("arrival,prompt_tokens,output_tokens\n1,1,1\n1,1,1\n")
    with pytest.raises(InputError, match=r"rate_per_s=1\.0 must be left out"):
        generate(Trace(kind="trace", path=str(tmp_path / "t.csv"), rate_per_s=1), SEED)


# Bundled traffic


@pytest.mark.parametrize("name", catalog.names("traffic"))
def test_every_bundled_traffic_generates(name):
    traffic = load_traffic(name)
    requests = generate(traffic, SEED)
    assert len(requests) == requests.rows_read == traffic.requests
    assert requests.prompt_tokens.min() >= 1
    assert requests.output_tokens.min() >= 1
    assert traffic.lengths_source in requests.source


def test_closed_loop_chat_has_the_lengths_of_chat():
    assert isinstance(load_traffic("closed-loop-chat"), ClosedLoop)
    assert load_traffic("closed-loop-chat").lengths == load_traffic("chat").lengths


@pytest.mark.parametrize(("name", "trace"), [("chat", "conv"), ("code", "code")])
def test_bundled_figures_are_those_of_the_trace(memwall_data, name, trace):
    traffic = load_traffic(name)
    real = read_trace(memwall_data / f"traces/azure2023/AzureLLMInferenceTrace_{trace}.csv")
    assert traffic.rate_per_s == pytest.approx((len(real.row) - 1) / real.arrival_s[-1], rel=0.002)
    drawn = generate(with_load(traffic, requests=N), SEED)
    for ours, theirs, table in (
        (drawn.prompt_tokens, real.prompt_tokens, traffic.lengths.prompt),
        (drawn.output_tokens, real.output_tokens, traffic.lengths.output),
    ):
        quantiles = np.quantile(theirs, table.probabilities, method="inverted_cdf")
        np.testing.assert_array_equal(quantiles, table.values)
        # The table is interpolated: its own mean lies within 3 % of the trace's, on top of the draw's standard error.
        assert abs(ours.mean() - theirs.mean()) < 0.03 * theirs.mean() + Z * ours.std() / math.sqrt(N)
