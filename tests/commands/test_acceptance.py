"""``memwall acceptance fit`` end to end: files, a scenario that takes the law over, and mistakes in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator.speculation.acceptance import AcceptanceConfig
from tests.commands.lines import SCENARIO, run


@pytest.fixture
def log(folder: Path) -> str:
    random = np.random.default_rng(4)
    lines = []
    for _ in range(60):
        rate, steps = random.beta(7, 3), int(random.integers(5, 80))
        kept = np.minimum(random.geometric(1 - rate, steps) - 1, 3)
        lines.append(json.dumps({"tokens_per_step": (kept + 1).tolist()}))
    Path("log.jsonl").write_text("\n".join(lines) + "\n")
    return "log.jsonl"


def test_a_log_with_all_its_files(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--yaml", "a.yaml", "--json", "a.json", "--html", "a.html"]
    assert run("acceptance", "fit", log, "--folds", "2", "--rung", "requests", *files) == 0
    out = " ".join(capsys.readouterr().out.split())
    for said in (
        "On held-out requests",
        "32-step variance ratio",
        "Misses of single folds",
        "Acceptance by depth",
        "acceptance:",
    ):
        assert said in out
    block = yaml.safe_load(Path("a.yaml").read_text())["acceptance"]
    assert AcceptanceConfig.model_validate(block).request_icc > 0
    document = json.loads(Path("a.json").read_text())
    assert document["acceptance"] == block
    assert [r["rung"] for r in document["held_out"]["rungs"]] == [
        "rate",
        "depths",
        "requests",
        "stretches",
        "loops",
        "replay",
    ]
    assert sum(document["recorded"]["token_shares"]) == pytest.approx(1.0)
    page = Path("a.html").read_text()
    assert page.count("<figure") == 5
    assert "memwall acceptance fit log.jsonl --folds 2 --rung requests" in page


def test_a_scenario_takes_the_law_over(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("acceptance", "fit", log, "--folds", "2", "--rung", "loops", "--yaml", "a.yaml") == 0
    scenario = yaml.safe_load(SCENARIO)
    scenario["speculation"] |= yaml.safe_load(Path("a.yaml").read_text())
    Path("s.yaml").write_text(yaml.safe_dump(scenario))
    assert run("simulate", "s.yaml") == 0
    scenario["speculation"]["acceptance"] = {"replay": log}
    Path("r.yaml").write_text(yaml.safe_dump(scenario))
    assert run("simulate", "r.yaml") == 0


def test_counts_say_what_they_cannot_tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"spec_decode_num_drafts": 100, "spec_decode_num_accepted_tokens_per_pos": [80, 50, 20]}
    Path("c.json").write_text(json.dumps(document))
    assert run("acceptance", "fit", "c.json", "--json", "a.json", "--html", "a.html") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Counts by position fit one rate or rates by depth only" in out
    assert "conditional: [0.8, 0.625, 0.4]" in out
    assert json.loads(Path("a.json").read_text())["recorded"]["marginal"] == pytest.approx([0.8, 0.5, 0.2])
    assert Path("a.html").read_text().count("<figure") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fitt", "log.jsonl"], "action='fitt' must be a known action of memwall acceptance (fit); did you mean fit?"),
        (["fit", "none.jsonl"], "log='none.jsonl' must be a readable file"),
        (["fit", "log.jsonl", "--rung", "loop"], "did you mean loops?"),
        (["fit", "log.jsonl", "--folds", "40"], "folds=40 must be 2 to a 20th of the 60 requests"),
        (["fit", "log.jsonl", "--gamma", "2"], "must be at most the 2 drafted"),
        (["fit", "log.jsonl", "--gamma", "65"], "log.jsonl: drafts per step=65 must be at most 64"),
        (["fit", "log.jsonl", "--json", "./log.jsonl"], "must be another file than the one that is read"),
        (["fit", "log.jsonl", "--yaml", "no/where.yaml"], "--yaml='no/where.yaml' must"),
    ],
)
def test_mistakes(log: str, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("acceptance", *argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_steps_that_are_all_alike(tokens: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Nothing varies: no correlations, no misses to divide by; and where nothing is kept, no γ to guess.
    Path("alike.jsonl").write_text(f'{{"tokens_per_step": {[tokens] * 40}}}\n' * 45)
    files = ["--yaml", "a.yaml", "--json", "a.json", "--html", "a.html"]
    if tokens == 1:
        assert run("acceptance", "fit", "alike.jsonl", "--folds", "2", *files) == 2
        assert (
            "alike.jsonl: drafts per step='(unknown)' must be told, as no step kept a draft" in capsys.readouterr().err
        )
        assert not any(Path(name).exists() for name in files[1::2])
    assert run("acceptance", "fit", "alike.jsonl", "--folds", "2", "--gamma", "3", *files) == 0
    law = AcceptanceConfig.model_validate(yaml.safe_load(Path("a.yaml").read_text())["acceptance"]).law()
    assert law.expected_tokens(3) == pytest.approx(tokens, abs=1e-3)
    assert "NaN" not in Path("a.json").read_text()
