"""The explorer as its users have it: without a browser (`app`), and served to Chromium (`served`, `tab`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "out" / "screenshots"
"""Kept after a run, so that people can look at what CI saw; git ignores the folder."""


def required(module: str, reason: str):
    """`module`, or a skip with `reason`; a failure where $MEMWALL_REQUIRE is set."""
    if os.environ.get("MEMWALL_REQUIRE"):
        return __import__(module, fromlist=["_"])
    return pytest.importorskip(module, reason=reason)


@pytest.fixture
def app(monkeypatch):
    """A page of the explorer run in this process: ``app("users", rate="3")``."""
    testing = required("streamlit.testing.v1", "streamlit is not installed: pip install memwall[app]")
    # Streamlit puts a script of its own in the place of the main module, which is gone when the next test starts a process.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def start(path: str = "", **query: str):
        from simulator.explorer import main

        run = testing.AppTest.from_function(
            _one_page, default_timeout=180, kwargs={"path": path or main.QUESTIONS[0].path}
        )
        for name, value in query.items():
            run.query_params[name] = value
        return run.run()

    return start


def _one_page(path: str) -> None:
    # AppTest knows pages of a folder, not those of st.navigation: here the page is called as navigation would.
    from simulator.explorer import page, presets
    from simulator.explorer.main import QUESTIONS

    presets.draw(QUESTIONS)
    page.run(next(question for question in QUESTIONS if question.path == path))


def shown(app) -> dict[str, str]:
    """Key figures on the page, by label; nothing may have gone wrong."""
    assert not app.exception, app.exception
    assert not app.error, [error.value for error in app.error]
    return {metric.label: metric.value for metric in app.metric}


def findings(app) -> list[str]:
    """The headings over the page's figures."""
    assert not app.exception, app.exception
    return [m.value.removeprefix("#### ") for m in app.markdown if m.value.startswith("#### ")]


@pytest.fixture(scope="session")
def served():
    """The address of an explorer that serves itself, as `memwall explore` does."""
    required("streamlit", "streamlit is not installed: pip install memwall[app]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "simulator.cli", "explore", "--no-browser", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}_stcore/health", timeout=1):
                    break
                time.sleep(0.1)
            else:
                pytest.fail("the explorer did not start within a minute")
            yield address
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium under Playwright; nothing is downloaded."""
    playwright = required("playwright.sync_api", "playwright is not installed: pip install memwall[dev]")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("MEMWALL_REQUIRE"):
            pytest.fail("no chromium")
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A browser tab on the explorer, which keeps what went wrong in it."""

    def __init__(self, page, address: str):
        self.page, self.address = page, address
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
                else self.outside.append(r.url)
            ),
        )
        page.on("console", self._said)
        page.on("pageerror", lambda e: self.errors.append(str(e)))

    def _said(self, message) -> None:
        # Streamlit looks for its server below the page's own path before it looks at the root.
        if message.type == "error" and not re.search(
            r"://[^/]+/[^/]+/_stcore/(health|host-config)$", message.location["url"]
        ):
            self.errors.append(message.text)

    def open(self, path: str) -> None:
        """Opens a page and waits until its figures are drawn."""
        self.page.goto(self.address + path)
        self.settle()

    def settle(self) -> None:
        """Waits until the app has run, and a figure is drawn."""
        self.page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=90_000)
        self.page.wait_for_selector(".js-plotly-plot .main-svg", timeout=90_000)
        self.page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=90_000)

    def metric(self, label: str) -> str:
        """The key figure called `label`."""
        box = self.page.locator('[data-testid="stMetric"]').filter(has_text=label).first
        return box.locator('[data-testid="stMetricValue"]').inner_text()

    def keep(self, name: str) -> None:
        """A screenshot of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        height = self.page.evaluate(
            'Math.max(...[...document.querySelectorAll(\'[data-testid="stMain"], [data-testid="stSidebarContent"]\')]'
            ".map(e => e.scrollHeight)) + 60"
        )
        size = self.page.viewport_size
        self.page.set_viewport_size({"width": size["width"], "height": min(int(height), 9000)})
        self.page.wait_for_timeout(600)
        self.page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))
        self.page.set_viewport_size(size)


@pytest.fixture
def tab(chromium, served):
    """A fresh browser's tab: ``tab(width=390, dark=True)``; at the end nothing may have gone wrong or left this machine."""
    opened = []

    def new(width: int = 1280, *, dark: bool = False) -> Tab:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        opened.append((context, Tab(context.new_page(), served)))
        return opened[-1][1]

    yield new
    for context, one in opened:
        context.close()
        assert not one.outside, one.outside
        assert not one.errors, one.errors
