"""Tests of the reference decoder need PyTorch. Without it they are skipped, or fail where $MEMWALL_REQUIRE is set."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("torch") is None:
    reason = 'no PyTorch: pip install -e ".[torch]"'
    if os.environ.get("MEMWALL_REQUIRE"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)

import torch

# Several threads are slower on models this small, and much slower beside a busy neighbour.
torch.set_num_threads(1)
