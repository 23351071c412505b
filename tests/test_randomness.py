import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.randomness import mix, uniform, uniform_array

INT64 = st.integers(-(2**63), 2**63 - 1)
N = 100_000
Z = 3.29  # 99.9 % two-sided


@pytest.fixture(scope="module")
def compiled():
    numba = pytest.importorskip("numba")
    return numba.njit(mix), numba.njit(uniform)  # as they stand: that is the promise


# Literal values


def test_the_chain_is_splitmix64():
    # First output of splitmix64 seeded with 0, as published with the reference C code; one link of our chain is that step.
    first = 0xE220A8397B1DCDAF
    assert _splitmix64(0) == first
    assert mix(0, 0, 0, 0) == _splitmix64(_splitmix64(_splitmix64(first)))
    assert mix(7, 1, 2, 3) == _splitmix64(_splitmix64(_splitmix64(_splitmix64(7) ^ 1) ^ 2) ^ 3)


def _splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


# One function, three ways to run it


@given(INT64, INT64, INT64, INT64)
def test_array_equals_scalar(seed, a, b, c):
    assert uniform_array(seed, np.array([a]), b, c)[0] == uniform(seed, a, b, c) == (mix(seed, a, b, c) >> 11) / 2**53


@given(INT64, INT64, INT64, INT64)
def test_compiled_equals_plain(compiled, seed, a, b, c):
    compiled_mix, compiled_uniform = compiled
    assert compiled_mix(seed, a, b, c) == mix(seed, a, b, c)
    assert compiled_uniform(seed, a, b, c) == uniform(seed, a, b, c)


def test_integer_types_do_not_matter(compiled):
    want = uniform(5, 6, 7, 8)
    assert uniform(np.int64(5), np.int32(6), np.uint8(7), np.uint64(8)) == want
    assert compiled[1](np.int64(5), np.int32(6), np.uint8(7), np.uint64(8)) == want
    assert uniform_array(5, np.array([6], np.int32), np.uint8(7), 8)[0] == want


def test_arrays_broadcast_and_keep_their_shape():
    a, c = np.arange(3)[:, None], np.arange(4)
    numbers = uniform_array(1, a, 2, c)
    assert numbers.shape == (3, 4)
    assert numbers[2, 3] == uniform(1, 2, 2, 3)
    assert uniform_array(1, np.array([], np.int64), 0, 0).shape == (0,)
    assert uniform_array(1, 2, 3, 4).shape == ()


def test_fractional_counters_are_refused():
    with pytest.raises(TypeError, match="integers"):
        uniform_array(1, np.array([0.5]), 0, 0)


# Theory, with a confidence interval


@pytest.mark.parametrize("place", range(4))
def test_uniform_along_every_word(place):
    # Dvoretzky-Kiefer-Wolfowitz: the distance exceeds the bound with a probability of at most 0.001.
    numbers = np.sort(_along(place))
    distance = np.abs(numbers - (np.arange(N) + 0.5) / N).max()
    assert distance < math.sqrt(math.log(2 / 0.001) / (2 * N))
    assert numbers.min() >= 0
    assert numbers.max() < 1


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbouring_counters_are_independent(place, lag):
    numbers = _along(place)
    correlation = np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]
    assert abs(correlation) < Z / math.sqrt(N - lag)


def test_words_are_not_interchangeable():
    index = np.arange(N)
    for other in (uniform_array(1, 2, index, 3), uniform_array(1, 3, 2, index), uniform_array(2, index, 1, 3)):
        assert abs(np.corrcoef(uniform_array(1, index, 2, 3), other)[0, 1]) < Z / math.sqrt(N)


def test_every_bit_is_fair():
    counts = np.zeros(64)
    for i in range(4000):
        bits = mix(11, i, 0, 0)
        counts += [(bits >> k) & 1 for k in range(64)]
    # 64 bits looked at together: 4.2 standard errors hold all of them with probability 0.998.
    assert np.abs(counts / 4000 - 0.5).max() < 4.2 * 0.5 / math.sqrt(4000)


def _along(place):
    words = [3, 14, 15, 92]
    index = np.arange(N)
    if place == 0:
        return np.array([uniform(seed, *words[1:]) for seed in range(N)])
    words[place] = index
    return uniform_array(*words)


# Conservation


@given(st.lists(INT64, min_size=4, max_size=4), st.integers(0, 3), INT64)
def test_a_changed_word_never_collides(words, place, other):
    changed = [*words]
    changed[place] = other
    assert (mix(*words) == mix(*changed)) == (words == changed)


def test_numba_is_not_imported():
    code = "import sys, simulator.randomness; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
