"""What the documents show runs, and says what it says there."""

import re
import runpy
from pathlib import Path

import pytest

from simulator.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_answers_its_three_questions(capsys):
    runpy.run_path(str(ROOT / "docs/examples/first_steps.py"))
    out = capsys.readouterr().out
    assert "reading the weights from HBM" in out
    assert "plain decoding" in out
    assert re.search(r"speculation: p99 TTFT \d+ ms", out)


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))
def test_python_in_the_readme_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_readmes_number_is_what_the_main_job_prints(capsys):
    assert main(["simulate"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    claim = re.search(r"makes tokens ([\d.]+) × faster there:\s+mean TPOT ([\d.]+) ms instead of ([\d.]+) ms", README)
    assert claim
    assert f"makes tokens {claim[1]} × faster: mean TPOT {claim[2]} ms instead of {claim[3]} ms" in out


def test_pictures_in_the_readme_exist():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
