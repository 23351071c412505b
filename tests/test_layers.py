"""Dependencies point one way: physics knows neither plots nor the browser, and the pages of the explorer know no physics."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "simulator"


def imported(path: Path) -> set[str]:
    """Top-level and dotted names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(prefix: str) -> set[str]:
    """Subpackages (or modules) whose modules import `prefix`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if any(name == prefix or name.startswith(prefix + ".") for name in imported(path)):
            found.add(path.relative_to(PACKAGE).parts[0])
    return found


def test_only_the_explorer_knows_streamlit():
    assert importers("streamlit") == {"explorer", "commands"}  # the command that starts it


def test_only_figures_know_plotly():
    assert importers("plotly") <= {"figures", "explorer"}  # there as a type


def test_only_figures_commands_and_explorer_know_figures():
    assert importers("simulator.figures") <= {"figures", "commands", "explorer"}


def test_nothing_but_the_command_that_starts_it_knows_the_explorer():
    assert importers("simulator.explorer") <= {"explorer", "commands"}


def test_pages_call_no_costs():
    for path in (PACKAGE / "explorer").glob("*.py"):
        below = [name for name in imported(path) if name.startswith(("simulator.cost", "simulator.operators"))]
        assert not below, (path.name, below)
