"""How a file becomes a record, and what is said when it does not; files made to do harm: test_records_hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import ValidationError

from simulator import catalog, records
from simulator.errors import InputError, UnknownName
from simulator.records import Record, read_mapping, read_record, validate


class _Wheel(Record):
    radius_m: float
    spokes: int = 32


class _Bicycle(Record):
    kind: Literal["road", "mountain"]
    wheels: tuple[_Wheel, ...]
    bell: str | float = "none"


_GOOD = {"kind": "road", "wheels": [{"radius_m": 0.35}, {"radius_m": 0.34, "spokes": 28}]}


def test_records_are_frozen() -> None:
    bicycle = validate(_Bicycle, _GOOD, "here")
    assert [wheel.spokes for wheel in bicycle.wheels] == [32, 28]
    with pytest.raises(ValidationError):
        bicycle.bell = "loud"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "rod"}, "here: kind='rod' must be 'road' or 'mountain'; did you mean road?"),
        ({"kind": 7}, "here: kind=7 must be 'road' or 'mountain'"),
        ({"wheels": 4}, "here: wheels=4 must be a list"),
        ({"wheels": [4]}, "here: wheels.0=4 must be a mapping of fields to values"),
        ({"wheels": [{}]}, "here: wheels.0.radius_m='(absent)' must be given"),
        ({"wheels": [{"radius_m": "wide"}]}, "here: wheels.0.radius_m='wide' must be a number"),
        ({"wheels": [{"radius_m": float("nan")}]}, "here: wheels.0.radius_m=nan must be a finite number"),
        ({"bell": [1]}, "here: bell=[1] must be text"),
    ],
)
def test_the_first_wrong_field_its_value_and_the_rule(change: dict[str, object], text: str) -> None:
    with pytest.raises(InputError) as error:
        validate(_Bicycle, _GOOD | change, "here")
    assert str(error.value).startswith(text)


def test_a_misspelt_field_is_named_though_another_is_then_missing() -> None:
    with pytest.raises(UnknownName, match="did you mean radius_m") as error:
        validate(_Bicycle, _GOOD | {"wheels": [{"radius": 0.3}]}, "here")
    assert error.value.field == "wheels.0.radius"
    assert error.value.known == ["radius_m", "spokes"]


@pytest.mark.parametrize("data", [None, [], "road", 3])
def test_only_a_mapping(data: object) -> None:
    with pytest.raises(InputError, match="must be a mapping of fields to values"):
        validate(_Bicycle, data, "here")


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    for name, text in [("a.yaml", "radius_m: 0.35\n"), ("a.json", '{"radius_m": 0.35}')]:
        (tmp_path / name).write_text(text)
        assert read_record(_Wheel, tmp_path / name) == _Wheel(radius_m=0.35)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (
            "a.yaml",
            b"radius_m: 1\nspokes: 2\nradius_m: 3\n",
            "content='line 3' must be valid YAML (the key 'radius_m' appears",
        ),
        ("a.yaml", b"radius_m: [1", "content='line 1' must be valid YAML"),
        ("a.yaml", b"radius_m: \x00", "must be valid YAML (special characters are not allowed)"),
        ("a.yaml", b"- 1\n", "content='list' must be a mapping"),
        ("a.yaml", b"", "content='(empty)' must be a mapping"),
        ("a.json", b'{"a": 1,}', "content='line 1' must be valid JSON"),
        ("a.json", b"\xff\xfe\x00", "content='(binary)' must be UTF-8 text"),
    ],
)
def test_an_unreadable_file_gets_one_sentence(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_mapping(path)
    assert str(path) in str(error.value)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be readable \(No such file"):
        read_mapping(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match=r"must be readable \(Is a directory"):
        read_mapping(tmp_path)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml")
@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("gpu", "link", "engine", "calibration", "scenario") for n in catalog.names(k)]
)
def test_compiled_and_plain_parser_agree(kind, name):
    text = catalog.locate(kind, name).read_text(encoding="utf-8")
    plain = yaml.load(text, Loader=records._PlainLoader)
    assert records._is_tame(text)
    assert repr(records._yaml(text)) == repr(plain)


def test_what_was_read_may_be_changed(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("list: [1]")
    read_mapping(path)["list"].append(2)
    assert read_mapping(path) == {"list": [1]}
    path.write_text("list: [3]")  # as long, and written at once: the text tells them apart
    assert read_mapping(path) == {"list": [3]}
