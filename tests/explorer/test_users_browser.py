"""Many users in a browser: a long run shows how far it is and can be cancelled, a trace is sent, files are taken away."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install memwall[app]")

from simulator import load_scenario, simulate
from simulator.explorer.users import ManyUsers
from simulator.output.columns import request_bytes

PATH = ManyUsers.path


def test_a_long_run_can_be_cancelled(tab):
    """A hundred thousand requests with a tenth of them waiting take seconds; cancelled, the page shows what was reached."""
    one = tab()
    one.page.goto(
        one.address + PATH + "?scenario=code-edits-ngram&requests=100000&rate_per_s=40&max_sequences=512&intervals=true"
    )
    cancel = one.page.get_by_role("button", name="Cancel")
    cancel.wait_for(timeout=60_000)
    assert re.search(
        r"Simulating|Prediction|Getting ready|Waiting|Compiling", one.page.inner_text('[data-testid="stMain"]')
    )
    cancel.click()
    one.page.wait_for_selector('[data-testid="stMetric"], [data-testid="stAlert"]', timeout=60_000)
    main = one.page.inner_text('[data-testid="stMain"]')
    assert re.search(r"interrupted at t = |Stopped before", main)


def test_a_trace_is_sent_and_its_scenario_taken_away(tab, tmp_path):
    trace = tmp_path / "my trace.csv"
    rows = [f"{i},{200 + i},{20 + i % 7}" for i in range(60)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows, "x,1,1"]), encoding="utf-8")
    one = tab()
    one.page.goto(one.address + PATH + "?traffic=uploaded&requests=100")
    one.page.locator('input[type="file"]').set_input_files(str(trace))
    one.page.wait_for_selector('[data-testid="stMetric"]', timeout=60_000)
    one.settle()
    assert "my trace.csv (CSV): 60 of 61 rows used, 1 dropped (unreadable time)" in one.page.inner_text(
        '[data-testid="stMain"]'
    )
    for label, name in (("Scenario as YAML", "scenario.yaml"), ("Requests as CSV", "requests.csv")):
        with one.page.expect_download() as waiting:
            one.page.get_by_role("button", name=label).first.click()
        waiting.value.save_as(tmp_path / name)
    again = simulate(load_scenario(tmp_path / "scenario.yaml"))
    assert request_bytes(again, "csv") == (tmp_path / "requests.csv").read_bytes()
    one.keep("many-users-trace")


def test_a_trace_that_cannot_be_read_says_so_beside_its_control(tab, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"\x00\xff\xfe")
    one = tab()
    one.page.goto(one.address + PATH + "?traffic=uploaded")
    one.page.locator('input[type="file"]').set_input_files(str(broken))
    side = one.page.locator('[data-testid="stSidebar"] [data-testid="stAlert"]').filter(has_text="must be UTF-8 text")
    side.wait_for(timeout=60_000)
    assert "broken.csv" in side.inner_text()


def test_a_link_gives_the_same_figures(tab):
    one = tab()
    one.open(PATH + "?scenario=mixed-classes&requests=500&rate_per_s=5&seed=3")
    numbers = one.page.locator('[data-testid="stMetricValue"]').all_inner_texts()
    other = tab()
    other.open(one.page.url.removeprefix(one.address))
    assert other.page.locator('[data-testid="stMetricValue"]').all_inner_texts() == numbers


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>[l](javascript:alert(1)) $x$ **b**.csv", "../../x.csv", "ünï😀.csv", "a" * 300 + ".csv"]
)  # fmt: skip
def test_a_file_s_name_is_shown_as_it_is_and_leads_nowhere(tab, name):
    one = tab()
    one.page.on("dialog", lambda dialog: one.errors.append(dialog.message) or dialog.dismiss())
    one.page.goto(one.address + "many-users?traffic=uploaded&requests=100")
    rows = b"".join(b"%d,100,20\n" % i for i in range(150))
    send = one.page.locator('input[type="file"]')
    send.set_input_files(
        {"name": name, "mimeType": "text/csv", "buffer": b"arrival_s,prompt_tokens,output_tokens\n" + rows}
    )
    one.settle()
    assert one.page.get_by_text("your trace:").count()
    assert not one.page.evaluate(
        "document.querySelectorAll('[data-testid=stMain] script, [data-testid=stMain] img[src=x], a[href^=javascript]').length"
    )
    send.set_input_files({"name": name, "mimeType": "text/csv", "buffer": b"nothing\n1\n"})
    one.page.get_by_text("A control at the side asks for what cannot be").wait_for()
    assert one.page.locator('[data-testid="stSidebar"] [data-testid="stAlert"]').count() == 1
    assert one.metric("TTFT, p99")  # the last figures stay
