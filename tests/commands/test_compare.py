"""``memwall compare``: tables, files, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simulator.commands.compare import named_acceptance
from tests.commands.lines import run

COMPARE = ["compare", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gamma", "1,3", "--batch", "1,32"]


def text_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_tables_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMPARE, "--json", "c.json", "--csv", "c.csv", "--html", "c.html") == 0
    out = text_of(capsys)
    for words in (
        "Fastest is",
        "Beware: acceptance was measured on MT-bench, greedy by different people",
        "this compares published figures, not drafters on your traffic",
        "--drafts …,ngram-code-edits",
        "speed-up over plain decoding",
        "sequences without",
        "where acceptance comes from",
        "vLLM issue 26191",
        "not compared",
        "--acceptance llama-3.2-1b=RATES",
        "--acceptance ngram=RATES/match:SHARE",
        "calibrated (h100-sxm)",
    ):
        assert words in out
    assert run(*COMPARE, "--drafts", "eagle-llama-3.1-8b,eagle3-llama-3.1-8b,ngram-code-edits") == 0
    of_all = text_of(capsys)
    assert "Beware: acceptance is of different texts" in of_all
    assert "Of the 2 measured on MT-bench, greedy, fastest is" in of_all
    document = json.loads((folder / "c.json").read_text())
    assert document["schema"] == "memwall.compare/1"
    assert document["deployment"]["drafter"] is None
    rows = list(csv.DictReader((folder / "c.csv").read_text().splitlines()))
    names = [drafter["name"] for drafter in document["drafters"]]
    assert [(row["batch"], row["drafter"]) for row in rows] == [(b, name) for b in ("1", "32") for name in names]
    for batch in ("1", "32"):
        of = {row["drafter"]: float(row["speedup"]) for row in rows if row["batch"] == batch}
        (fastest,) = (row["drafter"] for row in rows if row["batch"] == batch and row["fastest"] == "True")
        assert of[fastest] == max(of.values())
        assert document["fastest_by_batch"][batch] == fastest
    assert [float(row["speedup"]) for row in rows] == [cell["speedup"] for cell in document["cells"]]
    assert all(cell["speedup_low"] < cell["speedup"] < cell["speedup_high"] for cell in document["cells"])
    assert {entry["name"] for entry in document["not_compared"]} >= {"ngram", "suffix", "llama-3.2-1b"}
    assert "Which speculative method?" in (folder / "c.html").read_text()


def test_the_same_twice(folder: Path) -> None:
    for name in ("a", "b"):
        assert run(*COMPARE, "--trees", "8", "--json", f"{name}.json", "--html", f"{name}.html") == 0
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    assert (folder / "a.html").read_bytes() == (folder / "b.html").read_bytes()


def test_named_drafters_with_rates(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--acceptance", "llama-3.2-1b=length:2.5@3", "--acceptance", "ngram=marginal:0.8,0.7/match:0.4"]
    assert run(*COMPARE, "--drafts", "llama-3.2-1b,ngram,eagle-llama-3.1-70b", *given) == 0
    out = text_of(capsys)
    assert "Beware" not in out  # all acceptance is the user's
    assert "MT-bench" not in out
    assert "3 (one mean)" in out
    assert "hidden size" in out
    assert "γ = 3°" in out  # two rates were given


def test_extra_gpus_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--acceptance", "llama-3.2-1b=0.7", "--acceptance", "parallel-llama-3.2-1b=0.7"]
    assert run(*COMPARE, "--drafts", "llama-3.2-1b,parallel-llama-3.2-1b", *given) == 0
    out = text_of(capsys)
    assert "Per token, Llama-3.2-1B, independent draft model" in out
    assert "is cheaper" in out


def test_more_than_the_cache_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMPARE, "--batch", "1,4096", "--drafts", "ngram-code-edits") == 0
    out = text_of(capsys)
    assert "at batch 4,096 the KV cache does not hold so many" in out
    assert "( ) more sequences than the KV cache holds" in out


def test_one_drafter_alone_is_no_race(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMPARE, "--drafts", "eagle3-llama-3.1-8b") == 0
    out = text_of(capsys)
    assert "Acceptance was measured on MT-bench, greedy" in out
    assert "% ahead" not in out


def test_two_on_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMPARE, "--drafts", "eagle3-llama-3.1-8b,eagle-llama-3.1-8b") == 0
    out = text_of(capsys)
    assert "Beware: acceptance was measured on MT-bench, greedy by different people" in out


def test_one_number_may_leave_the_winner_open(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--acceptance", "eagle-llama-3.1-8b=length:2.5@8", "--acceptance", "eagle3-llama-3.1-8b=length:2.8@8"]
    assert run(*COMPARE, "--drafts", "eagle-llama-3.1-8b,eagle3-llama-3.1-8b", *given) == 0
    assert "it is open whether" in text_of(capsys)


def test_rates_of_one_drafter() -> None:
    assert named_acceptance("a=0.5") == ("a", {"alpha": 0.5})
    assert named_acceptance("a=marginal:0.5,0.3/match:0.2") == (
        "a",
        {"marginal": (0.5, 0.3), "match_probability": 0.2},
    )
    assert named_acceptance("a=length:2.5@4") == ("a", {"length": 2.5, "at_gamma": 4})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--acceptance", "0.5"], "be a drafter and its rates"),
        (["--acceptance", "ngram=1.5"], "numbers from 0 to 1"),
        (["--acceptance", "ngram=0.5/0.4"], "such as /match:0.4"),
        (["--acceptance", "ngram=0.5/match:4"], "match='4'"),
        (["--acceptance", "ngrm=0.5"], "did you mean ngram?"),
        (["--acceptance", "ngram=0.5", "--acceptance", "ngram=0.6"], "given once"),
        (["--acceptance", "ngram=marginal:0.5,0.6"], "not rise with depth"),
        (["--drafts", "ngram,"], "separated by commas"),
        (["--drafts", "ngram"], "ngram: its acceptance depends on the text"),
        (["--drafts", "ngram-code-edits", "--acceptance", "suffix=0.4"], "drafters compared"),
        (["--drafts", "eagle3-llama-3.1-70b"], "hidden size 4096"),
        (["--gamma", "0"], "gamma"),
        (["--trees", "513"], "trees"),
        (["--batch", "0"], "batch"),
        (["--context", "131072"], "context"),
        (["--model", "llama-3.1-405b"], "more than the"),
        (["--csv", "missing/c.csv"], "folder that exists"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMPARE, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert err.count("\n") == 1
