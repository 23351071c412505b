"""The bench by both loops."""

from __future__ import annotations

from functools import partial

import pytest

from tests.serving import rig


@pytest.fixture(scope="session", params=rig.LOOPS)
def run(request):
    """`rig.run` by the compiled loop, and by the plain one that specifies it."""
    return partial(rig.run, loop=request.param)
