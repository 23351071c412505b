"""``memwall simulate`` without keeping its requests: the same files, and a word where that cannot be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.commands import simulate, streamed
from simulator.serving.streaming import Stream
from tests.commands.lines import run

SCENARIO = """
name: streamed
model: llama-3.1-8b
gpu: h100-sxm
speculation: {draft: llama-3.2-1b, gamma: 3, acceptance: {alpha: 0.7, request_icc: 0.1}}
traffic: {kind: poisson, rate_per_s: 12, requests: 300, lengths: {prompt: 200, output: {kind: geometric, mean: 40}}}
"""


@pytest.fixture
def scenario(folder: Path) -> str:
    (folder / "s.yaml").write_text(SCENARIO)
    return "s.yaml"


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_and_report_are_the_same(scenario: str, folder: Path, suffix: str, capsys) -> None:
    said = []
    for name, how in (("whole", "--no-stream"), ("stream", "--stream")):
        files = ["--rows", f"{name}.{suffix}", "--json", f"{name}.json"]
        assert run("simulate", scenario, how, "--no-intervals", *files) == 0
        said.append(capsys.readouterr().out.split("\nSimulated ")[0])
    assert said[0] == said[1]
    for ending in (suffix, "json"):
        assert (folder / f"whole.{ending}").read_bytes() == (folder / f"stream.{ending}").read_bytes()


def test_it_is_streamed_by_itself_beyond_what_is_kept(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of = Stream.of
    monkeypatch.setattr(Stream, "of", lambda *given, **more: made.append(1) or of(*given, **more))
    monkeypatch.setattr(streamed, "MOST_KEPT", 299)
    assert run("simulate", scenario) == 0
    assert run("simulate", scenario, "--no-stream") == 0
    assert run("simulate", scenario, "--replications", "2") == 0
    assert made == [1]
    monkeypatch.setattr(streamed, "MOST_KEPT", 300)
    assert run("simulate", scenario, "--no-intervals") == 0
    assert made == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--html", "x.html"], "--html='x.html' must be left out with --stream"),
        (["--replications", "2"], "--replications=2 must be left out with --stream"),
        (["--intervals"], "--intervals=True must be left out with --stream"),
        (["--set", "traffic.conversation={turns: 2, think_time_s: 1}"], "to be streamed: later turns wait"),
    ],
)
def test_what_cannot_be_streamed_says_why(scenario: str, options: list[str], said: str, folder: Path, capsys) -> None:
    assert run("simulate", scenario, "--stream", *options) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["s.yaml"]


def test_ctrl_c_leaves_what_there_is(scenario: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def press(bar, variant: str, done: int, of: int) -> None:
        if done >= 100:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(simulate.ProgressBar, "tell", press)
    monkeypatch.setattr("simulator.serving.stages.WINDOW_ARRIVALS", 50)
    assert run("simulate", scenario, "--stream", "--rows", "r.parquet", "--json", "r.json") == simulate.INTERRUPTED
    out, err = capsys.readouterr()
    assert "Speculation interrupted at t = " in out
    assert err.endswith("memwall: interrupted\n")
    counts = json.loads((folder / "r.json").read_text())["runs"][0]["summary"]["requests"]
    assert counts["finished"] + counts["unfinished"] == 300
    assert 100 <= counts["finished"] < 300
    rows = pq.read_table(folder / "r.parquet")
    assert rows.column("status").to_pylist().count("finished") == counts["finished"]
    assert rows.column("row").to_pylist() == list(range(300))
    assert b"memwall.interrupted" in pq.read_metadata(folder / "r.parquet").metadata
