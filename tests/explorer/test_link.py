"""Links hold settings: what differs from the defaults, and nothing that is not a setting."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError, MemwallError, UnknownName
from simulator.explorer.link import (
    MOST_CHARACTERS,
    MOST_REFUSALS,
    Control,
    Settings,
    differences,
    of_query,
    refused,
    without_files,
)


class Asked(Settings):
    name: str = "a"
    count: int = 1
    share: float = 0.5
    on: bool = False
    several: tuple[str, ...] = ("x",)
    maybe: float | None = None


def test_defaults_are_left_out():
    assert Asked().query() == ""
    assert Asked(count=3, on=True).query() == "count=3&on=true"
    assert Asked(several=("p", "q r")).query() == "several=p&several=q+r"


@given(
    st.builds(
        Asked,
        name=st.text(max_size=20),
        count=st.integers(-(10**9), 10**9),
        on=st.booleans(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        several=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4).map(tuple),
    )
)
def test_a_link_gives_the_settings_back(asked):
    try:
        query = asked.query()
    except UnicodeEncodeError:  # half of a surrogate pair is in no URL
        return
    assert of_query(Asked, query) == asked


@given(st.text(max_size=200))
def test_any_text_is_settings_or_one_sentence(text):
    said = ""
    try:
        of_query(Asked, text)
    except MemwallError as error:
        said = str(error)
    assert "\n" not in said


def test_an_unknown_field_is_refused_with_its_nearest_name():
    with pytest.raises(UnknownName, match="did you mean count"):
        of_query(Asked, "coumt=3")


def test_a_wrong_value_and_an_endless_link_are_refused():
    with pytest.raises(InputError, match="share='nan'"):
        of_query(Asked, "share=nan")
    with pytest.raises(InputError, match="whole number"):
        of_query(Asked, "count=many")
    with pytest.raises(InputError, match="at most"):
        of_query(Asked, "name=" + "a" * MOST_CHARACTERS)
    with pytest.raises(InputError):
        of_query(Asked, "&".join(f"count={i}" for i in range(500)))


def test_differences_name_what_changed():
    assert differences(Asked(), Asked(count=2, on=True)) == [("count", "1", "2"), ("on", "false", "true")]


CONTROLS = {
    "name": Control("Name", ("a", "beta")), "count": Control("Count"), "share": Control("Share"), "on": Control("On"),
    "several": Control("Several", ("x", "y")), "maybe": Control("Maybe"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ("", {}),
        ("name=beta&count=3&share=0.25&on=true", {"name": "beta", "count": 3, "share": 0.25, "on": True}),
        ("several=x&several=y", {"several": ("x", "y")}),
        ("several=", {"several": ()}),
        ("maybe=2.0", {"maybe": 2.0}),
        ("maybe=", {}),
        ("a=count%3D3&embed=true&utm_source=letter", {}),
    ],
)
def test_what_a_link_asks_for_and_gets_is_not_worth_a_sentence(query, taken):
    assert refused(Asked, parse_qs(query, keep_blank_values=True), Asked(**taken), CONTROLS) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("name=bet", ["Name = 'bet'", "did you mean beta?", "a is taken"]),
        ("name=" + "x" * 3000, ["Name = 'xxx", "…", "a is taken"]),
        ("count=-1e999", ["Count = '-1e999'", "1 is taken"]),
        ("count=2&count=nan", ["Count = '2, nan'", "1 is taken"]),
        ("share=nan", ["Share = 'nan'", "0.5 is taken"]),
        ("on=perhaps", ["On = 'perhaps'", "false is taken"]),
        ("several=z", ["Several = 'z'", "x is taken"]),
        ("maybe=x", ["Maybe = 'x'", "it stays empty"]),
        ("nane=b", ["'nane'", "did you mean name?"]),
        ("%F0%9F%98%80=1", ["'😀'", "does not know"]),
    ],
)
def test_what_it_asks_for_in_vain_is_one_sentence(query, words):
    (sentence,) = refused(Asked, parse_qs(query, keep_blank_values=True), Asked(), CONTROLS)
    assert all(word in sentence for word in words), sentence
    assert len(sentence) < 250


def test_a_field_without_a_control_says_nothing_and_many_mistakes_are_counted():
    assert refused(Asked, {"name": ["beta"]}, Asked(), {}) == []
    found = refused(Asked, {f"z{i}": ["1"] for i in range(100)}, Asked(), CONTROLS)
    assert len(found) == MOST_REFUSALS + 1
    assert str(100 - MOST_REFUSALS) in found[-1]


def test_a_link_names_no_file_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("/etc/passwd", "..\\x", "secret", "folder", "x.YAML", "~", "a" * 5000 + ".json"):
        if name == "~":
            monkeypatch.setenv("HOME", str(tmp_path / "folder"))
        with pytest.raises(InputError, match="not a file"):
            without_files(Asked(name=name))
        with pytest.raises(InputError, match="not a file"):
            without_files(Asked(several=("y", name)))
    for name in ("beta", "0.8,0.7", "length:2.9@4", "b200=5, l40s=1", "a" * 5000, "\0", "~nobody-of-that-name"):
        assert without_files(Asked(name=name)).name == name


def test_what_is_empty_is_shown_as_such():
    assert differences(Asked(), Asked(maybe=2.0)) == [("maybe", "–", "2.0")]
