"""Acceptance as text: what is written is read as the same numbers, what is not understood is refused in one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.records import validate
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.acceptance_text import fields_of_text, text_of_fields

RATES = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0.8", {"alpha": 0.8}),
        ("0.8, 0.7", {"conditional": (0.8, 0.7)}),
        ("conditional:0.8", {"conditional": (0.8,)}),
        ("marginal: 0.7,0.5", {"marginal": (0.7, 0.5)}),
        ("length:2.9@4", {"length": 2.9, "at_gamma": 4}),
        ("rate: 0.63 @ 3", {"rate": 0.63, "at_gamma": 3}),
        ("alpha:0.85@4", {"alpha": 0.85, "at_gamma": 4}),
    ],
)
def test_by_hand(text, fields):
    assert fields_of_text(text) == fields
    assert fields_of_text(text_of_fields(fields)) == fields


@given(
    st.one_of(
        st.builds(lambda a: {"alpha": a}, RATES),
        st.builds(lambda r: {"conditional": tuple(r)}, st.lists(RATES, min_size=1, max_size=64)),
        st.builds(lambda r: {"marginal": tuple(sorted(r, reverse=True))}, st.lists(RATES, min_size=1, max_size=64)),
        st.builds(lambda r, g: {"rate": r, "at_gamma": g}, RATES, st.integers(1, 64)),
    )
)
def test_text_holds_every_digit(fields):
    config = validate(AcceptanceConfig, fields, "")
    assert fields_of_text(text_of_fields(fields)) == fields
    assert fields_of_text(text_of_fields(config.model_dump())) == fields


@pytest.mark.parametrize(
    "text", ["", "much", "1.2", "0.8,", "0.8;0.7", "nan", "length:2.9", "marginals:0.5", "length:x@4", "0.8@"]
)
def test_what_is_not_understood(text):
    with pytest.raises(InputError) as caught:
        fields_of_text(text, "rates")
    assert caught.value.field == "rates"
    assert "\n" not in str(caught.value)
