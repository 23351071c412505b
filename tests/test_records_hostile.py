"""Files made to hurt: alias bombs, endless nesting, endless numbers, names that upset a terminal. One sentence, soon."""

import time
from pathlib import Path

import pytest

from simulator import records
from simulator.errors import InputError
from simulator.records import Record, read_mapping, read_record

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}*a{i - 1}]\n" for i in range(1, 30))


class Sample(Record):
    size: float = 0.0


def sentence(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    start_s = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_record(Sample, path)
    assert time.perf_counter() - start_s < 5
    said = str(caught.value)
    assert said.startswith(str(path))
    assert said.isprintable()
    assert len(said) < 500
    return said


@pytest.mark.parametrize("text", [BOMB, "a: &x 1\nb: *x", "a: &x [*x]", "a: &x {b: 1}\nc: {<<: *x}"])
def test_aliases_are_refused(tmp_path, text):
    assert "is not allowed; repeat what it stands for" in sentence(tmp_path, "bomb.yaml", text)


def test_an_anchor_nobody_refers_to_is_harmless(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("size: &s 2")
    assert read_mapping(path) == {"size": 2}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.yaml", "size: " + "[" * 100_000),
        ("deep.yaml", "size: " + "{a: " * 100 + "1" + "}" * 100),
        ("deep.yaml", "- " * 100_000),
        ("deep.json", '{"size": ' * 100_000),
        ("deep.json", '{"size": ' * 100 + "1" + "}" * 100),
        ("deep.json", '{"size": ' + "[" * 900 + "]" * 900 + "}"),
    ],
)
def test_deep_nesting_is_refused(tmp_path, name, text):
    assert "must be nested at most 64 levels deep" in sentence(tmp_path, name, text)


def test_depth_limit_is_exact(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ' * 63 + "1" + "}" * 63)
    assert read_mapping(path)
    path.write_text('{"a": ' * 64 + "1" + "}" * 64)
    with pytest.raises(InputError, match="at most 64 levels"):
        read_mapping(path)


@pytest.mark.parametrize(("name", "text"), [("n.json", '{{"size": {}}}'), ("n.yaml", "size: {}")])
def test_numbers_python_refuses_to_read_or_print(tmp_path, name, text):
    assert "must hold readable numbers" in sentence(tmp_path, name, text.format("1" * 5000))
    assert "size=1111" in sentence(tmp_path, name, text.format("1" * 400))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0x" + "f" * 6000, "size=(huge) must"),
        ("2023-99-99", "must hold readable numbers and dates (month must be in 1..12)"),
        ("!!int abc", "must hold readable numbers and dates"),
        ("!!python/object:os.system x", "must be valid YAML"),
        (".nan", "size=nan must"),
        ("1e999", "size='1e999' must"),
    ],
)
def test_values_that_are_no_numbers(tmp_path, value, said):
    assert said in sentence(tmp_path, "v.yaml", f"size: {value}")


@pytest.mark.parametrize(
    ("name", "text"), [("s.json", '{"\\ud800": 1}'), ("s.json", '{"\\u001b[31m": 1}'), ("s.yaml", '"\\e[2J": 1')]
)
def test_names_that_upset_a_terminal_are_escaped(tmp_path, name, text):
    sentence(tmp_path, name, text).encode("utf-8")


def test_yaml_is_refused_above_its_own_limit(tmp_path):
    text = "size: 1\n" + "# padding\n" * (records.MAX_YAML_BYTES // 10 + 1)
    assert f"must be at most {records.MAX_YAML_BYTES} bytes" in sentence(tmp_path, "large.yaml", text)
