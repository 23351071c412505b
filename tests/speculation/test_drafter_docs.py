"""docs/drafters.md names every kind and field, and its example is a drafter."""

import re
from pathlib import Path
from typing import get_args

from simulator.architecture import load_decoder
from simulator.speculation.drafters import DrafterFile, Kind, Parallel, check_pair, load_drafter
from simulator.speculation.round import RoundCost

DOCS = (Path(__file__).resolve().parents[2] / "docs/drafters.md").read_text(encoding="utf-8")


def test_every_kind_has_a_row():
    rows = " ".join(line.split("|")[1] for line in DOCS.splitlines() if line.startswith("| `"))
    assert {kind for kind in get_args(Kind) if f"`{kind}`" not in rows} == set()


def test_every_field_is_described():
    table = DOCS.split("| field | meaning |")[1]
    assert {
        field for field in (*DrafterFile.model_fields, *Parallel.model_fields) if f"`{field}`" not in table
    } == set()


def test_the_example_drafts(tmp_path):
    path = tmp_path / "my-head.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", DOCS, re.S)[1])
    drafter = load_drafter(str(path))
    check_pair(load_decoder("llama-3.1-8b"), drafter)
    assert drafter.acceptance.marginal == (0.74, 0.54, 0.41)


def test_named_properties_exist():
    named = set(re.findall(r"`(\w+_per_token)`", DOCS))
    assert len(named) == 5
    assert all(isinstance(getattr(RoundCost, name), property) for name in named)
