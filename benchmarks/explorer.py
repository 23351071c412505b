"""How long a changed control takes to redraw a page, and a cold page to its first figure, in headless Chromium.

    python benchmarks/explorer.py

Times run from the key press (or from opening the page) to the last change of any figure's SVG in the browser, so that the
server, the wire and the drawing are all in them. Each is the median of several; the first of each page, which warms caches that a
session warms once, is told apart.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PORT = 8599
ADDRESS = f"http://127.0.0.1:{PORT}/"
REPEATS = 7
QUIET_S = 1.5
"""A page has been drawn when no figure has changed for so long."""

WATCH = """() => {
  window.drawn = 0; window.begun = 0;
  document.addEventListener('keydown', () => { window.begun = performance.now(); }, true);
  new MutationObserver(changes => {
    if (changes.some(c => c.target.closest && c.target.closest('.js-plotly-plot'))) window.drawn = performance.now();
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""

CASES = (
    ("why-slow, batch", "", "Sequences in the batch"),
    ("why-slow, context", "?model=llama-3.1-70b&tp=4", "Tokens of context each"),
    ("speculation, context", "speculation?model=llama-3.1-70b&tp=4", "Tokens of context each"),
    ("speculation, γ", "speculation", "γ"),
    ("speculation, trees, batch", "speculation?tree=true", "Sequences in the batch"),
    ("gpus, load", "gpus", "Requests per second"),
    ("many users, requests", "many-users", "Requests"),
)
"""Name, page, the control that is moved by one step."""


def main() -> None:
    """Measures and prints."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("no chromium on this machine")
    with serving(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        print(f"{'page, control':34} {'opened':>8} {'first':>8} {'median':>8} {'worst':>8}   ms")
        for name, query, control in CASES:
            print(measured(browser, name, query, control), flush=True)
        browser.close()


def measured(browser: Any, name: str, query: str, control: str) -> str:
    """One line of the table."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    begun = time.perf_counter()
    page.goto(ADDRESS + query)
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=120_000)
    opened = time.perf_counter() - begun
    page.wait_for_timeout(4000)
    page.evaluate(WATCH)
    slider = page.get_by_role("slider", name=control).first
    redraws = []
    for i in range(REPEATS):
        slider.focus()
        slider.press("ArrowRight" if i % 2 == 0 or i > 3 else "ArrowLeft")
        page.wait_for_timeout(300)
        page.wait_for_function(
            f"() => window.drawn > window.begun && performance.now() - window.drawn > {1000 * QUIET_S}", timeout=30_000
        )
        redraws.append(page.evaluate("() => window.drawn - window.begun"))
    page.context.close()
    first, later = redraws[0], redraws[1:]
    return f"{name:34} {1000 * opened:8.0f} {first:8.0f} {statistics.median(later):8.0f} {max(later):8.0f}"


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """An explorer of its own."""
    command = [sys.executable, "-m", "simulator.cli", "explore", "--no-browser", "--port", str(PORT)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{ADDRESS}_stcore/health", timeout=1):
                    break
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
