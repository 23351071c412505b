"""``memwall crossover`` end to end: maps, files, schedules, resumption, and every mistake in a sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from simulator.cli import main
from tests.commands.lines import SCENARIO, run

BASE = ["crossover", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--draft", "llama-3.2-1b"]
SMALL = [*BASE, "--acceptance", "0.7", "--gamma", "0,2,4", "--load", "1,16,256"]


def test_a_map_with_all_its_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--csv", "m.csv", "--json", "m.json", "--html", "m.html", "--schedule", "yaml", "s.yaml"]
    assert run(*SMALL, "--context", "300,2000", "--trees", "8", "--tpot", "20 ms", *files) == 0
    out = capsys.readouterr().out
    for said in (
        "Speculation pays",
        "where each way to draft stops paying",
        "wasted per token",
        "how far from the oracle",
    ):
        assert said in out
    cells = list(csv.DictReader(Path("m.csv").read_text().splitlines()))
    assert len(cells) == 3 * 2 * 3
    document = json.loads(Path("m.json").read_text())
    assert document["schema"].startswith("memwall.crossover/")
    assert [c["speedup"] for c in document["cells"]] == pytest.approx([float(c["speedup"]) for c in cells])
    assert "Where does speculation pay?" in Path("m.html").read_text()
    assert yaml.safe_load(Path("s.yaml").read_text())["speculation"]["policy"]["table"]["batches"][0] == 1


@pytest.mark.parametrize(
    ("engine", "said"), [("vllm", "--speculative-config"), ("sglang", "STANDALONE"), ("yaml", "policy:")]
)
def test_schedules_are_printed(engine: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--context", "300", "--schedule", engine) == 0
    assert said in capsys.readouterr().out


def test_a_schedule_of_ours_is_a_scenarios_speculation(folder: Path) -> None:
    rates = ["--acceptance", "length:2.5@4", "--request-icc", "0.1"]
    line = [*BASE, *rates, "--gamma", "1..4", "--load", "1,64,256", "--context", "300,2000"]
    assert run(*line, "--schedule", "yaml", "s.yaml") == 0
    written = yaml.safe_load(Path("s.yaml").read_text())
    assert written["speculation"]["acceptance"] == {"length": 2.5, "at_gamma": 4, "request_icc": 0.1}
    Path("scenario.yaml").write_text(yaml.safe_dump({**yaml.safe_load(SCENARIO), **written}))
    assert run("simulate", "scenario.yaml", "--no-intervals") == 0
    Path("mine.yaml").write_text(yaml.safe_dump({"kind": "ngram", "acceptance": 0.6}))
    own = [
        "crossover",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100-sxm",
        "--draft",
        "./mine.yaml",
        "--load",
        "1,8",
        "--gamma",
        "2",
    ]
    assert run(*own, "--schedule", "yaml", "own.yaml") == 0
    assert yaml.safe_load(Path("own.yaml").read_text())["speculation"] == {
        "draft": "./mine.yaml", "gamma": 2, "policy": {"table": {"batches": [1], "contexts": [0], "gamma": [[2]]}},
    }  # fmt: skip


def test_a_schedule_where_nothing_pays_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*BASE, "--acceptance", "0", "--load", "1,8", "--gamma", "2", "--schedule", "vllm") == 0
    assert "pays at none" in capsys.readouterr().out


def test_one_known_number_of_acceptance_leaves_a_doubt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*BASE, "--acceptance", "length:2.5@3", "--load", "1,64,256", "--gamma", "1..4") == 0
    assert "acceptance: where only one number is known" in " ".join(capsys.readouterr().out.split())


def test_a_scenarios_own_traffic_at_rates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(SCENARIO)
    assert run("crossover", "s.yaml", "--gamma", "2", "--rate", "2,20") == 0
    out = capsys.readouterr().out
    assert "requests/s" in out
    assert "context 106" in out  # prompts of 100 tokens and answers of 12


def test_cells_are_kept_and_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*BASE, "--acceptance", "0.7", "--gamma", "2", "--load", "1,8", "--context", "200", "--output", "32"]
    line += ["--simulate", "--requests", "64", "--out", "c.jsonl", "--no-progress"]
    assert run(*line) == 0
    first = capsys.readouterr()
    assert "4 cells simulated" in first.err
    assert "closed form against simulation" in first.out
    before = Path("c.jsonl").read_bytes()
    assert run(*line) == 0
    assert "0 cells simulated" in capsys.readouterr().err
    assert Path("c.jsonl").read_bytes() == before


def test_a_map_of_several_replicas_says_that_it_is_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("crossover", "chat-8b-h100-eagle", "--gamma", "2", "--rate", "1,4") == 0
    assert "The map is of one replica of the scenario's 2" in " ".join(capsys.readouterr().out.split())
    assert run(*SMALL) == 0
    assert "one replica of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["crossover"], "crossover needs a scenario, or --model and --gpu and --draft"),
        (BASE, "acceptance='(absent)' must be given"),
        ([*SMALL, "--rate", "1,2"], "rate='(given)' must be left out with --load"),
        ([*BASE, "--acceptance", "0.7", "--gamma", "0"], "name at least one number of drafts above 0"),
        ([*SMALL, "--context", "50"], "context=50 must be at least 140"),
        ([*SMALL, "--context", "200000"], "model's context of 131072"),
        ([*SMALL, "--out", "c.jsonl"], "out='c.jsonl' must go with --simulate"),
        ([*SMALL, "--schedule", "vlm"], "did you mean vllm?"),
        ([*SMALL, "--schedule", "vllm", "a", "b"], "at most one file"),
        ([*SMALL, "--burstiness", "0"], "burstiness='0' must be a number"),
        ([*SMALL, "--gamma", "65"], "gamma='65'"),
        ([*SMALL, "--trees", "0"], "trees='0'"),
        ([*SMALL, "--load", "0"], "load='0'"),
        ([*BASE, "--acceptance", "0.7", "--rate", "-1"], "rate"),
        ([*SMALL, "--html", "missing/x.html"], "folder that exists"),
        (["crossover", "chat-70b-h200", "--model", "llama-3.1-8b"], "must be left out with a scenario"),
        (["crossover", "chat-70b-h200", "--tp", "4"], "tp=4 must be left out with a scenario"),
        (["crossover", "chat-70b-h200", "--engine", "sglang"], "engine='sglang' must be left out with a scenario"),
        (["crossover", "chat-70b-h200", "--kv", "fp8"], "kv='fp8' must be left out with a scenario"),
        ([*SMALL, "--burstiness", "0.1"], "burstiness=0.1 must go with --simulate and arrivals"),
        ([*SMALL, "--burstiness", "0.1", "--simulate"], "burstiness=0.1 must go with --simulate and arrivals"),
        (["crossover", "stock-8b-h100"], "draft='(absent)' must be given, as the scenario does not speculate"),
        (["crossover", "chat-70b-h200", "--output", "5"], "go with --context"),
    ],
)  # fmt: skip
def test_mistakes(argv: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(folder.iterdir()) == []
