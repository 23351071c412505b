"""``memwall tree``: tables, a drawn tree, files, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simulator.speculation.tree_config import load_tree
from tests.commands.lines import run

TREE = ["tree", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--draft", "eagle-llama-3.1-8b"]
SMALL = [*TREE, "--nodes", "1,4,8", "--depth", "1..3", "--batch", "1,64"]


def test_tables_tree_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--json", "t.json", "--csv", "t.csv", "--html", "t.html") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in (
        "expected tokens per round",
        "best tree of each batch",
        "tokens/s",
        "× plain",
        "Best is",
        "last accepted token",
        "└─",
    ):
        assert word in out
    document = json.loads((folder / "t.json").read_text())
    assert document["schema"] == "memwall.tree/1"
    assert len(document["expected_tokens"]) == 9
    tree = document["tree"]
    assert len(tree["paths"]) == len(tree["path_probability"]) <= 8
    rows = list(csv.DictReader((folder / "t.csv").read_text().splitlines()))
    assert len(rows) == len(document["cells"]) == 2 * (2 + 3)
    assert [row["kind"] for row in rows[:3]] == ["plain", "chain", "tree"]
    assert all(sum(row["best"] == "True" for row in rows if row["batch"] == batch) == 1 for batch in ("1", "64"))
    assert "Which tree to draft?" in (folder / "t.html").read_text()


def test_a_bundled_tree_beside_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--tree", "eagle-1-25") == 0
    out = capsys.readouterr().out
    assert "eagle-1-25" in out
    assert out.count("─ 0  ") == load_tree("eagle-1-25")[0].ranks.count(0)
    assert run("list", "trees") == 0
    assert "medusa-63" in capsys.readouterr().out
    assert run("show", "tree", "eagle-1-25") == 0
    assert "[0, 0, 0, 0, 1]" in capsys.readouterr().out


def test_measured_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--ranks", "0.6,0.3; 0.5,0.2") == 0
    out = capsys.readouterr().out
    assert "1.90" in out  # 1 + 0.6 + 0.3, four nodes and one level
    assert "0.6, 0.5 by depth" in out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--ranks", "0.6,x"], "ranks='0.6,x' must be numbers"),
        (["--ranks", "0.6,0.7"], "add up to at most 1"),
        (["--ranks", "0.6", "--acceptance", "0.5"], "be left out with ranks"),
        (["--tree", "medusa-64"], "did you mean medusa-63?"),
        (["--nodes", "0"], "nodes"),
        (["--nodes", "513"], "nodes"),
        (["--depth", "65"], "depth"),
        (["--acceptance", "1.5"], "acceptance"),
        (["--context", "999999"], "context"),
        (["--draft", "ngram", "--acceptance", "0.5"], "rank its candidates"),
        (["--acceptance", "length:2.9"], "such as length:2.9@4"),
        (
            ["--draft", "eagle-llama"],
            "(codellama-34b, deepseek-v2-lite, deepseek-v3, eagle-llama-3.1-70b, eagle-llama-3.1-8b, ",
        ),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, *options) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_tree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "t.yaml").write_text("name: t\npaths: [[0], [1, 0]]\n")
    assert run(*SMALL, "--tree", "t.yaml") == 2
    assert "must have its parent [1] in the tree" in capsys.readouterr().err


def test_tree_files_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = [[0] * n for n in range(1, 71)]
    for paths, complaint in (
        ([[0, 0]], "must have its parent [0] in the tree"),
        ([[0], [0]], "must be given once"),
        ([0], "paths.0=0 must be a list"),
        (deep, "must be no deeper than 64"),
    ):
        (folder / "t.yaml").write_text(json.dumps({"name": "mine", "paths": paths}))
        assert run(*SMALL, "--tree", "t.yaml", "--json", "o.json") == 2
        assert complaint in capsys.readouterr().err
        assert not (folder / "o.json").exists()


def test_a_drafter_of_another_model_is_named_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--draft", "mtp-deepseek-v3") == 0
    assert "(made for, or measured with, deepseek-v3)" in " ".join(capsys.readouterr().out.split())
    assert run(*SMALL) == 0
    assert "made for" not in capsys.readouterr().out
