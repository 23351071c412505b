import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.lengths import Geometric, Lengths


def test_geometric_by_hand():
    # Mean 2: a coin is thrown for every further token. P(1) = 1/2, P(2) = 1/4, P(3) = 1/8 …
    coin = Geometric(kind="geometric", mean=2)
    assert coin.quantile(np.array([0.0, 0.49, 0.51, 0.74, 0.76, 0.9])).tolist() == [1, 1, 2, 2, 3, 4]
    assert Geometric(kind="geometric", mean=2, max=3).quantile(np.array([0.9, 0.999])).tolist() == [3, 3]
    assert Geometric(kind="geometric", mean=1).quantile(np.array([0.0, 0.999])).tolist() == [1, 1]


@pytest.mark.parametrize("mean", [1.5, 40, 3000])
def test_geometric_has_its_mean_and_variation(mean):
    # Midpoints of equal shares integrate the quantile function; the variance is m(m - 1).
    tokens = Geometric(kind="geometric", mean=mean).quantile((np.arange(10**6) + 0.5) / 10**6)
    assert tokens.mean() == pytest.approx(mean, rel=1e-4)
    assert tokens.var() == pytest.approx(mean * (mean - 1), rel=1e-3)


@given(mean=st.floats(1, 1e8), u=st.lists(st.floats(0, 1), min_size=1))
def test_geometric_is_whole_and_at_least_one(mean, u):
    lengths = Lengths.model_validate({"prompt": {"kind": "geometric", "mean": mean}, "output": 1})
    tokens, _ = lengths.draw(np.array(u), np.array(u))
    assert tokens.min() >= 1
    assert tokens.max() <= 10**8
