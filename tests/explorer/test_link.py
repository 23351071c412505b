"""Links hold settings: what differs from the defaults, and nothing that is not a setting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError, MemwallError, UnknownName
from simulator.explorer.link import MOST_CHARACTERS, Settings, differences, of_query


class Asked(Settings):
    name: str = "a"
    count: int = 1
    share: float = 0.5
    on: bool = False
    several: tuple[str, ...] = ("x",)


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
