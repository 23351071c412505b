"""What several test modules need."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy is loaded: threads in the algebra of a dozen columns only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Set by pytest-xdist for its own lines; tables would be broken to fit them.
os.environ.pop("COLUMNS", None)

import pytest
from hypothesis import settings

# A first call may compile or import for a second; how long one example takes is no property of the code.
# Continuous integration judges the change at hand, so it tries the same examples every time; everyone else explores.
settings.register_profile("memwall", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("memwall")


@pytest.fixture(scope="session")
def memwall_data() -> Path:
    """The folder of published traces and measurements, which is no part of the project.

    Taken from $MEMWALL_DATA, else from ../shared/data beside the project. Without it the test is skipped; with
    $MEMWALL_REQUIRE set it fails, so that continuous integration cannot lose these checks unnoticed.
    """
    given = os.environ.get("MEMWALL_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "traces").is_dir():
        reason = "no trace data: set MEMWALL_DATA"
        if os.environ.get("MEMWALL_REQUIRE"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
