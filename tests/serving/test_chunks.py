import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from simulator import catalog
from simulator.serving.requests import Requests
from simulator.serving.traffic import generate, generate_chunks, load_traffic, parse_traffic, with_load

SEED = 20250207
LENGTHS = {"prompt": {"kind": "lognormal", "median": 100, "sigma": 2}, "output": {"kind": "geometric", "mean": 50}}
KINDS = {
    "poisson": {"kind": "poisson", "rate_per_s": 8, "requests": 1000},
    "gamma": {"kind": "gamma", "rate_per_s": 8, "requests": 1000, "burstiness": 0.4},
    "closed loop": {"kind": "closed-loop", "users": 30, "think_time_s": 4, "requests": 1000},
    "day": {"kind": "gamma", "rate_per_s": 8, "requests": 1000, "burstiness": 0.4, "diurnal": [1, 3, 0, 0]},
    "stages": {"kind": "poisson", "stages": [{"duration_s": 100, "rate_per_s": 5, "to_rate_per_s": 15}]},
    "conversations": {
        "kind": "poisson",
        "rate_per_s": 8,
        "requests": 1000,
        "conversation": {"turns": {"kind": "geometric", "mean": 5}, "think_time_s": 3},
        "system_prompt": {"tokens": {"kind": "uniform", "low": 10, "high": 99}, "groups": 7, "zipf": 1},
    },
    "staged conversations": {
        "kind": "poisson",
        "stages": [{"duration_s": 100, "rate_per_s": 3}],
        "conversation": {"turns": {"kind": "geometric", "mean": 5}, "think_time_s": 3},
    },
}


def assert_equal(whole, parts):
    joined = Requests.joined(parts)
    for field in fields(Requests):
        ours, theirs = getattr(joined, field.name), getattr(whole, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.tobytes() == theirs.tobytes(), field.name
            assert ours.dtype == theirs.dtype
        elif field.name == "shared" and theirs is not None:
            for name in ("first_piece", "source", "end_tokens"):
                assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
        elif field.name != "source":
            assert ours == theirs


@pytest.mark.parametrize("limit", [None, 400])
@pytest.mark.parametrize("size", [1, 7, 256, 999, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_joined_are_the_whole(kind, size, limit):
    traffic = parse_traffic({**KINDS[kind], "lengths": LENGTHS}, "test")
    parts = list(generate_chunks(traffic, SEED, size=size, max_context_tokens=limit))
    assert_equal(generate(traffic, SEED, max_context_tokens=limit), parts)
    if "conversation" not in KINDS[kind]:
        assert max(len(part) for part in parts) <= size


@pytest.mark.parametrize("name", catalog.names("traffic"))
def test_bundled_traffic_comes_in_chunks(name):
    traffic = with_load(load_traffic(name), requests=3000)
    assert_equal(generate(traffic, SEED), list(generate_chunks(traffic, SEED, size=700)))


@pytest.mark.parametrize("kind", KINDS)
def test_traffic_survives_being_written_down(kind):
    traffic = parse_traffic({**KINDS[kind], "lengths": LENGTHS}, "test")
    assert parse_traffic(traffic.model_dump(mode="json"), "test") == traffic


@pytest.mark.parametrize("name", catalog.names("traffic"))
def test_bundled_traffic_survives_being_written_down(name):
    assert parse_traffic(load_traffic(name).model_dump(mode="json"), name) == load_traffic(name)


def test_whole_conversations_only():
    traffic = parse_traffic({**KINDS["conversations"], "lengths": LENGTHS}, "test")
    first = 0
    for part in generate_chunks(traffic, SEED, size=50):
        assert part.follows[0] == -1
        assert part.follows.max() < first + len(part)
        first += len(part)


def test_ten_million_requests_are_never_in_memory_at_once():
    traffic = parse_traffic({**KINDS["poisson"], "requests": 10**7, "lengths": {"prompt": 1, "output": 1}}, "test")
    tracemalloc.start()
    try:
        chunks = generate_chunks(traffic, SEED)
        taken = sum(len(next(chunks)) for _ in range(3))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == 3 * 2**18
    assert peak_bytes < 100e6
