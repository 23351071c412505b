"""A working folder, and a small scenario in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.lines import SCENARIO


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scenario(folder: Path) -> str:
    (folder / "s.yaml").write_text(SCENARIO)
    return "s.yaml"
