"""The last page in a browser: a file is sent, fitted with progress, and comes back as a profile; what is none is a sentence."""

from __future__ import annotations

import pytest
import yaml

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install memwall[app]")

from simulator import catalog

BUNDLED = catalog.root() / "hardware_profiles" / "measurements" / "epyc-9004-1-thread.jsonl"
ASKS = "trust?what=my+measurements"


def waits(one, path):
    """Opens a page that has no figure yet."""
    one.page.goto(one.address + path)
    one.page.wait_for_selector('input[type="file"]', state="attached", timeout=90_000)


def test_a_file_is_fitted_and_its_profile_taken_away(tab, tmp_path):
    one = tab()
    waits(one, ASKS)
    one.page.set_input_files('input[type="file"]', str(BUNDLED))
    one.page.wait_for_selector("text=Profile epyc-9004-1-thread-mine.yaml", timeout=120_000)
    one.settle()
    with one.page.expect_download() as waiting:
        one.page.get_by_role("button", name="Profile epyc-9004-1-thread-mine.yaml").click()
    taken = tmp_path / "mine.yaml"
    waiting.value.save_as(taken)
    assert yaml.safe_load(taken.read_text())["gpu"]["title"] == "AMD EPYC, 1 thread"
    one.keep("trust-mine-1280")


def test_a_file_that_is_none_is_refused_beside_the_control(tab, tmp_path):
    (tmp_path / "notes.jsonl").write_text("dear diary\n")
    one = tab()
    waits(one, ASKS)
    one.page.set_input_files('input[type="file"]', str(tmp_path / "notes.jsonl"))
    one.page.wait_for_selector("text=must be a file of memwall measure", timeout=60_000)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True), (1920, False)])
@pytest.mark.parametrize("what", ["published speeds", "sources", "fit again"])
def test_each_question_draws_its_figures(tab, what, width, dark):
    one = tab(width, dark=dark)
    device = "&device=epyc-9004-1-thread" if what == "fit again" else ""
    one.open(f"trust?what={what.replace(' ', '+')}{device}")
    assert one.page.locator("h4").count() > 0
    wide = one.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    one.keep(f"trust-{what.replace(' ', '-')}-{width}{'-dark' if dark else ''}")
