import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import STREAM_CLIENT, STREAM_INTERARRIVAL, uniform
from simulator.serving.clients import Clients, Merged
from simulator.serving.traffic import generate, generate_chunks, parse_traffic, with_load

SEED = 20250205
Z = 3.29  # 99.9 % two-sided
LENGTHS = {"prompt": {"kind": "uniform", "low": 1, "high": 1000}, "output": 10}


def group(name="group", **fields):
    return {"name": name, "rate_per_s": 1, "lengths": LENGTHS, **fields}


def clients(*groups, requests=1000):
    return parse_traffic({"kind": "clients", "requests": requests, "clients": list(groups)}, "test")


def streams(traffic, seed, count):
    """Times and client of the first `count` arrivals."""
    merged = Merged(Clients.of(traffic.clients, seed), traffic.clients, seed)
    identity, _ = merged.look(0, count)
    return merged.times(0, count), (identity >> 32) - 1


# Literal, by hand


def test_two_poisson_clients_by_hand():
    traffic = clients(group(count=2, skew=1, rate_per_s=3), requests=20)  # 2 /s and 1 /s
    expected = []
    for client, rate in ((0, 2), (1, 1)):
        at_s = 0.0
        for number in range(20):
            at_s -= math.log(1 - uniform(SEED, ((client + 1) << 32) + number, STREAM_INTERARRIVAL, 0)) / rate
            expected.append((at_s, client))
    expected = sorted(expected)[:20]
    times_s, client = streams(traffic, SEED, 20)
    np.testing.assert_allclose(times_s, [at_s for at_s, _ in expected], rtol=1e-12)
    assert client.tolist() == [who for _, who in expected]
    np.testing.assert_array_equal(generate(traffic, SEED).arrival_s, times_s)


def test_rates_follow_zipf():
    made = Clients.of(clients(group(count=4, skew=2, rate_per_s=205), group("other", rate_per_s=7)).clients, SEED)
    np.testing.assert_allclose(made.rate_per_s, [144, 36, 16, 9, 7])
    assert made.group.tolist() == [0, 0, 0, 0, 1]


def test_a_range_of_burstiness_is_log_uniform():
    made = Clients.of(clients(group(count=3, burstiness=[0.1, 10])).clients, SEED)
    for client in range(3):
        assert made.burstiness[client] == pytest.approx(0.1 * 100 ** uniform(SEED, client, STREAM_CLIENT, 0))


# Theory, with a confidence interval


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1, 4])
def test_a_stationary_stream_has_its_rate_from_the_beginning(burstiness):
    # A stationary renewal process has exactly λt arrivals in t on average, however short t; one that began with an
    # arrival at 0 would have many more where it is bursty.
    traffic = clients(group(count=20_000, burstiness=burstiness, rate_per_s=20_000))
    times_s, client = streams(traffic, SEED, 45_000)
    for t in (0.1, 0.5, 2.0):
        counts = np.bincount(client[times_s <= t], minlength=20_000)
        assert abs(counts.mean() - t) < Z * counts.std() / math.sqrt(20_000)
    # The index of dispersion of counts tends to CV² = 1/b; long before, bursty ones vary more than Poisson's.
    assert (counts.var() > counts.mean()) == (burstiness < 1) or burstiness == 1


def test_gaps_of_one_client_have_their_variation():
    times_s, _ = streams(clients(group(burstiness=0.25), requests=50_000), SEED, 50_000)
    gaps_s = np.diff(times_s)
    assert abs(gaps_s.mean() - 1) < Z * 2 / math.sqrt(len(gaps_s))
    assert abs(gaps_s.var() - 4) < Z * 4 * math.sqrt((2 + 6 / 0.25) / len(gaps_s))


def test_each_group_has_its_share():
    requests = generate(clients(group("a", rate_per_s=9), group("b", rate_per_s=3, count=50), requests=40_000), SEED)
    assert abs((requests.class_of == 1).mean() - 0.25) < Z * math.sqrt(0.25 * 0.75 / 40_000)
    assert [c.name for c in requests.classes] == ["a", "b"]
    assert abs(40_000 / requests.arrival_s[-1] - 12) < Z * 12 / math.sqrt(40_000)


def test_a_client_may_sleep():
    night = {"factors": [0, 1, 0, 0], "period_s": 400}
    requests = generate(clients(group("day", rate_per_s=2), group("night", diurnal=night), requests=20_000), SEED)
    hours = np.bincount((requests.arrival_s[requests.class_of == 1] % 400 / 100).astype(int), minlength=4)
    assert hours[2:].sum() == 0
    # Up and down: half of the period's arrivals in either.
    assert abs(hours[0] - hours[1]) < Z * math.sqrt(hours.sum())
    periods = requests.arrival_s[-1] / 400
    assert abs(hours.sum() - 400 * periods) < Z * math.sqrt(400 * periods) + 400


def test_each_client_has_its_own_lengths_around_the_groups():
    traffic = clients(group(count=4000, length_spread=0.5), requests=40_000)
    made = Clients.of(traffic.clients, SEED)
    prompt, output = made.stretch
    for factor in (prompt, output):
        assert abs(factor.mean() - 1) < Z * factor.std() / math.sqrt(4000)
        assert abs(np.log(factor).std() - 0.5) < Z * 0.5 / math.sqrt(2 * 4000)
    assert abs(np.corrcoef(prompt, output)[0, 1]) < Z / math.sqrt(4000)
    _, client = streams(traffic, SEED, 40_000)
    np.testing.assert_array_equal(generate(traffic, SEED).output_tokens, np.maximum(np.rint(10 * output[client]), 1))


def test_a_client_keeps_its_system_prompt():
    traffic = clients(group(count=30, system_prompt={"tokens": 100, "groups": 10}), requests=5000)
    _, client = streams(traffic, SEED, 5000)
    source = generate(traffic, SEED).shared.source
    pairs = set(zip(client.tolist(), source.tolist(), strict=True))
    assert len(pairs) == 30
    assert len({group for _, group in pairs}) > 5


# Limits


def test_one_poisson_client_is_poisson_traffic():
    requests = generate(clients(group(rate_per_s=8), requests=20_000), SEED)
    gaps_s = np.diff(requests.arrival_s, prepend=0)
    assert abs(gaps_s.mean() * 8 - 1) < Z / math.sqrt(20_000)
    # Kolmogorov-Smirnov against the exponential distribution.
    share = np.sort(1 - np.exp(-8 * gaps_s))
    assert np.abs(share - (np.arange(20_000) + 0.5) / 20_000).max() < math.sqrt(math.log(2 / 0.001) / 40_000)
    assert requests.class_of is None


def test_clients_may_talk():
    traffic = clients(group(count=5, conversation={"turns": 3, "think_time_s": 5}), requests=100)
    requests = generate(traffic, SEED)
    assert requests.follows[:4].tolist() == [-1, 0, 1, -1]
    assert np.isnan(requests.arrival_s).sum() == 66


# Conservation


@given(
    n=st.integers(1, 400),
    more=st.integers(0, 400),
    size=st.integers(1, 300),
    burstiness=st.sampled_from([1, 0.05, (0.1, 3)]),
    skew=st.floats(0, 3),
    day=st.none() | st.just([0, 1, 5]),
)
def test_neither_number_nor_chunks_change_a_request(n, more, size, burstiness, skew, day):
    diurnal = day and {"factors": day, "period_s": 30}
    groups = group("a", count=7, skew=skew, burstiness=burstiness, diurnal=diurnal), group("b", rate_per_s=0.2)
    few = generate(clients(*groups, requests=n), SEED)
    many = list(generate_chunks(clients(*groups, requests=n + more), SEED, size=size))
    assert max(len(chunk) for chunk in many) <= size
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "class_of"):
        whole = np.concatenate([getattr(chunk, name) for chunk in many])
        assert getattr(few, name).tobytes() == whole[:n].tobytes()
    assert (np.diff(few.arrival_s) >= 0).all()


def test_another_groups_requests_do_not_change_ones_own():
    alone = generate(clients(group("a", count=3), requests=300), SEED)
    together = generate(clients(group("a", count=3), group("b", rate_per_s=5), requests=2000), SEED)
    mine = np.flatnonzero(together.class_of == 0)
    assert len(mine) > 200
    np.testing.assert_array_equal(together.arrival_s[mine][:200], alone.arrival_s[:200])
    np.testing.assert_array_equal(together.prompt_tokens[mine][:200], alone.prompt_tokens[:200])


def test_the_load_changes_in_proportion():
    traffic = with_load(clients(group("a", rate_per_s=1), group("b", rate_per_s=3)), rate_per_s=8, requests=7)
    assert [c.rate_per_s for c in traffic.clients] == [2, 6]
    assert traffic.requests == 7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (clients, "clients=.* must"),
        (lambda: clients(group("a"), group("a")), "clients.name='a' must be given to one of them only"),
        (lambda: clients(*(group(str(i), count=10**5) for i in range(2))), "must be at most 100000 altogether"),
        (lambda: clients(group(burstiness=[2, 1])), "have burstiness=1 not below 2"),
        (lambda: clients(group(burstiness=0)), "clients.0.burstiness.*=0 must"),
        (lambda: clients(group(rate=5)), "clients.0.rate must .* did you mean rate_per_s"),
        (lambda: with_load(clients(group()), users=3), "users=3 must be left out for clients traffic"),
        (lambda: parse_traffic({"kind": "client"}, "test"), "did you mean clients"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        change()
    assert "\n" not in str(caught.value)
