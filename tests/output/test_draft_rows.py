"""What is drafted when, as a report says it."""

from pathlib import Path

import numpy as np
import pytest

from simulator.output.draft_rows import plan_text
from simulator.serving.model import PlanTables
from tests.commands.lines import SCENARIO, run

EAGLE = SCENARIO.replace("draft: llama-3.2-1b, gamma: 3, acceptance: 0.7", "draft: eagle-llama-3.1-8b, SPECULATION")


@pytest.mark.parametrize(
    ("speculation", "said"),
    [
        ("gamma: 3", "γ = 3, always"),
        ("policy: {off_above: 8}", "γ = 4 up to 8 sequences, none beyond"),
        ("policy: {table: {batches: [1, 8, 32], gamma: [4, 2, 0]}}", "γ = 4 up to 7 sequences, γ = 2 up to 31 sequences, none beyond"),
        ("policy: per-request", "each sequence by its own past, up to γ = 4"),
        ("policy: oracle", "oracle: what will be accepted, up to γ = 4"),
        # What the oracle drafts of a tree is the path that is accepted.
        ("policy: oracle, tree: {nodes: 24, depth: 4}", "oracle: what will be accepted, up to γ = 4"),
        ("tree: {nodes: 24, depth: 4}", "24 nodes of depth 4, always"),
    ],
)  # fmt: skip
def test_policies_in_words(
    speculation: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(EAGLE.replace("SPECULATION", speculation))
    assert run("simulate", "s.yaml", "--no-intervals", "--no-progress") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"drafts {said}" in out


def test_a_choice_that_wavers_is_told_at_a_few_batches():
    shapes = np.array([[0, 0, 0, 0], [24, 4, 4, 0], [24, 4, 4, 4], [2, 2, 2, 8]])  # two trees of one size
    batches, contexts = np.array([1, 2, 4, 8, 16, 64, 256]), np.array([0])
    choice = np.array([[1], [2], [1], [3], [2], [3], [0]])
    plan = PlanTables(shapes, np.ones((4, 4)), batches, contexts, choice)
    assert plan_text(plan, 500.0, goodput=True) == (
        "most goodput: 24 nodes of depth 4 for 1 to 16, γ = 2 for 64, none for 256 sequences, at 500 tokens each"
    )
