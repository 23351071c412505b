"""What the documents show runs, and says what it says there."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from simulator import load_scenario
from simulator.cli import main
from simulator.engine import EngineSettings
from simulator.quantization import Quantization
from simulator.scenario import Load, Scenario, Speculation
from simulator.serving.arrivals import Stage
from simulator.serving.classes import TrafficClass
from simulator.serving.clients import Client
from simulator.serving.cluster_config import Autoscaler, Cluster, Failure, ReplicaPool, Transfer
from simulator.serving.lengths import Lengths
from simulator.serving.sessions import Conversation
from simulator.serving.trace_replay import Trace
from simulator.serving.traffic import ClosedLoop, Gamma
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.recording import Replay

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = (ROOT / "docs/scenarios.md").read_text(encoding="utf-8")
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


# docs/scenarios.md


@pytest.mark.parametrize(
    "record",
    [
        Scenario, Load, Slo, Quantization, EngineSettings, Speculation, AcceptanceConfig, Replay, Gamma, ClosedLoop, Client,
        TrafficClass, Lengths, Conversation, Stage, Trace, Cluster, ReplicaPool, Transfer, Failure, Autoscaler,
    ],
)  # fmt: skip
def test_every_field_of_a_scenario_is_described(record):
    prose = re.sub(r"^```.*?^```", "", SCENARIOS, flags=re.M | re.S)
    described = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert set(record.model_fields) <= described


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", SCENARIOS, re.M | re.S))
def test_scenarios_in_the_documents_can_be_served(text, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    assert load_scenario(tmp_path / "s.yaml").deployment().fit().kv_tokens > 0


@pytest.mark.parametrize(
    ("record", "heading"),
    [
        (Scenario, "Scenarios"),
        (EngineSettings, "Engine settings"),
        (Cluster, "Clusters"),
        (Speculation, "Speculation"),
    ],
)
def test_simple_defaults_are_the_ones_described(record, heading):
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", SCENARIOS, re.M | re.S)
    said = {}
    for names, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.M):
        said |= dict(zip(re.findall(r"\w+", names), defaults.replace("`", "").split(", "), strict=False))
    simple = {n: f.default for n, f in record.model_fields.items() if isinstance(f.default, bool | int | float | str)}
    simple.pop("title", None)
    assert len(simple) > 0
    assert {name: yaml.safe_load(said[name]) for name in simple} == simple
