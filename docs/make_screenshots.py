"""The explorer's pictures in README and docs, from the running app: ``python docs/make_screenshots.py`` (needs Chromium)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
PORT = 8598
ADDRESS = f"http://127.0.0.1:{PORT}/"
PAGES = {
    "explorer-why-slow": ("?model=llama-3.1-70b&tp=4&batch=8&context=2048", 1300),
    "explorer-speculation": ("speculation?model=llama-3.1-70b&tp=4&draft=llama-3.2-1b", 1190),
}
"""Picture → page and height, px."""
WIDTH_PX = 1440


def main() -> None:
    """Makes all of them."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on the PATH")
    command = [sys.executable, "-m", "simulator.cli", "explore", "--no-browser", "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{ADDRESS}_stcore/health", timeout=1):
                    break
                time.sleep(0.1)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                for name, (path, height) in PAGES.items():
                    page = browser.new_page(viewport={"width": WIDTH_PX, "height": height})
                    page.goto(ADDRESS + path)
                    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=90_000)
                    page.wait_for_timeout(4000)  # all figures drawn, the sliders' labels settled
                    page.screenshot(path=str(IMAGES / f"{name}.png"))
                    print(IMAGES / f"{name}.png")
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
