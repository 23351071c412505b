"""Loads that cannot be served, or hardly: a statement and an exit code, never a hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.lines import run

TRACE = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def scenario(folder: Path) -> str:
    """A trace, to be written to t.csv, on a GPU whose KV cache is small."""
    (folder / "s.yaml").write_text(
        "{model: llama-3.1-8b, gpu: l4, warmup: 0, traffic: {kind: trace, path: t.csv}, max_context_tokens: 131072}"
    )
    return "s.yaml"


def rows(*lines: str) -> None:
    Path("t.csv").write_text(TRACE + "".join(line + "\n" for line in lines))


def told(scenario: str, capsys: pytest.CaptureFixture[str], code: int) -> tuple[str, dict[str, object]]:
    """What is printed on one line, and the summary that is written."""
    assert run("simulate", scenario, "--no-intervals", "--json", "r.json") == code
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(Path("r.json").read_text())
    assert document["complete"] is True
    return " ".join(out.split()), document["runs"][0]["summary"]


def test_a_cache_too_small_for_anybody_is_one_sentence(scenario, folder, capsys):
    rows("0,90000,5", "1,95000,7")
    assert run("simulate", scenario, "--json", "r.json", "--rows", "r.csv") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memwall: error: ")
    assert err.count("\n") == 1
    assert "must fit the KV cache of " in err
    assert sorted(path.name for path in folder.iterdir()) == ["s.yaml", "t.csv"]


def test_a_cache_too_small_for_some_is_told_and_the_others_are_served(scenario, folder, capsys):
    rows("0,100,5", "1,90000,5", "2,100,5")
    out, summary = told(scenario, capsys, 0)
    assert "2 requests finished, 1 rejected as larger than the KV cache." in out
    assert summary["requests"] == {"finished": 2, "larger than the KV cache": 1}


def test_rows_that_ask_for_nothing_are_told(scenario, folder, capsys):
    rows("0,100,5", "1,100,0", "2,0,5", "3,100,x", "4,100,5")
    out, summary = told(scenario, capsys, 0)
    assert "5 read = 2 used" in out
    for reason in ("zero output tokens", "zero prompt tokens"):
        assert f"1 dropped ({reason})" in out
        assert summary["requests"][reason] == 1
    assert sum(summary["requests"].values()) == 5


def test_nothing_but_rows_that_ask_for_nothing_is_one_sentence(scenario, folder, capsys):
    rows("0,100,0", "1,100,0")
    assert run("simulate", scenario) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "0 usable of 2 rows (zero output tokens: 2)" in err


def test_ten_thousand_in_one_instant_are_served(scenario, folder, capsys):
    rows(*["7,100,10"] * 10_000)
    out, summary = told(scenario, capsys, 0)
    assert summary["requests"] == {"finished": 10_000}
    assert "rates over the whole run, 0 s to " in out
    assert "All requests arrive within less than one's time in the batch" in summary["stability"]["sentence"]


def test_a_growing_queue_is_told_and_is_no_mistake(scenario, folder, capsys):
    rows(*[f"{k / 20},500,20" for k in range(2000)])
    out, summary = told(scenario, capsys, 0)
    assert summary["requests"] == {"finished": 2000}
    assert summary["stability"]["stable"] is False
    assert "The queue only grows: 20.0 requests/s arrive, " in out
    assert "Latencies describe this run's length, not a steady state." in out
