"""What only a browser shows: the report draws its figures offline, without an error."""

import os
import re
import shutil
import subprocess

import pytest

from simulator.figures.page import decode_page, simulation_page, speculate_page


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        reason = "no Chromium on the PATH (Debian: apt-get install chromium)"
        if os.environ.get("MEMWALL_REQUIRE"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def opened(chromium, page, folder):
    """(document after its scripts ran, console messages) of `page`."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder}/profile", "--enable-logging=stderr",
        "--virtual-time-budget=10000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.mark.parametrize(
    ("result", "page_of"),
    [
        ("service", simulation_page),
        ("cluster_service", simulation_page),
        ("grid", speculate_page),
        ("step", decode_page),
    ],
)
def test_every_figure_of_the_page_is_drawn(result, page_of, chromium, tmp_path, request):
    page = page_of(request.getfixturevalue(result))
    document, console = opened(chromium, page, tmp_path)
    assert console == []
    figures = page.count("<figure")
    assert figures > 0
    # plotly draws each figure into a container of its own.
    assert document.count('class="plot-container') == figures
