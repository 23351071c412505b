"""Names → files."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator import catalog
from simulator.errors import InputError, UnknownName


@pytest.mark.parametrize("kind", ["gpu", "link", "engine", "calibration", "model", "drafter", "traffic", "scenario"])
def test_bundled_names_lead_to_their_files(kind: str) -> None:
    names = catalog.names(kind)
    assert names == sorted(names)
    assert names
    for name in names:
        path = catalog.locate(kind, name.upper())
        assert path.is_file()
        assert path.stem == name


def test_alias_in_any_case() -> None:
    assert catalog.locate("gpu", "Big", aliases={"bIG": "b200"}) == catalog.locate("gpu", "b200")


def test_a_bundled_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b200").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert catalog.locate("gpu", "b200").parent.name == "gpus"
    assert catalog.locate("gpu", "./b200") == Path("b200")


def test_a_path_from_here_from_base_and_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "near").mkdir()
    far, near = tmp_path / "mine.yaml", tmp_path / "near" / "mine.yaml"
    far.write_text("name: far\n")
    monkeypatch.chdir(tmp_path)
    assert catalog.locate("gpu", str(far)) == far
    assert catalog.locate("gpu", "mine.yaml") == Path("mine.yaml")
    assert catalog.locate("gpu", "mine.yaml", base=near.parent) == Path("mine.yaml")  # not there: taken from here
    near.write_text("name: near\n")
    assert catalog.locate("gpu", "mine.yaml", base=near.parent) == near


def test_a_model_may_be_a_folder_with_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be an existing file"):
        catalog.locate("model", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert catalog.locate("model", str(tmp_path)) == config
    with pytest.raises(InputError, match="must be an existing file"):
        catalog.locate("gpu", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "name", "nearest"), [("gpu", "b20", "b200"), ("link", "nvlink-44", "nvlink-4"), ("gpu", "B2000", "b200")]
)
def test_an_unknown_name_gets_the_nearest(kind: str, name: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as error:
        catalog.locate(kind, name)
    assert error.value.suggestion == nearest
    assert nearest in error.value.known


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "qqqqqqqqqqqq"])
def test_a_name_like_no_other_gets_no_suggestion(name: str) -> None:
    with pytest.raises(UnknownName) as error:
        catalog.locate("gpu", name)
    assert error.value.suggestion is None


@pytest.mark.parametrize("name", ["no/such/file", "nothing.yaml", "nothing.json", "~nobody-of-that-name/gpu.yaml"])
def test_a_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(InputError, match="must be an existing file"):
        catalog.locate("gpu", name)
