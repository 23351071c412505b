"""Text with a unit ↔ SI, both ways."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.units import parse, show


@pytest.mark.parametrize(
    ("text", "dimension", "si"),
    [
        ("3.35 TB/s", "bytes_per_s", 3.35e12),
        ("400 Gbit/s", "bytes_per_s", 50e9),
        ("8 b/s", "bytes_per_s", 1.0),
        ("80 GB", "bytes", 80e9),
        ("80 GiB", "bytes", 80 * 2.0**30),
        ("228KiB", "bytes", 228 * 1024.0),
        ("989.4 TFLOP/s", "flop_per_s", 989.4e12),
        ("989.4 TFLOPS", "flop_per_s", 989.4e12),
        ("624 TOP/s", "flop_per_s", 624e12),
        ("624 TOPS", "flop_per_s", 624e12),
        ("5 ms", "s", 5e-3),
        ("5 min", "s", 300.0),
        ("2 h", "s", 7200.0),
        ("2 us", "s", 2e-6),
        ("2 µs", "s", 2e-6),
        ("1.98 GHz", "hz", 1.98e9),
        ("3.6 USD/h", "usd_per_s", 1e-3),
        ("120 /min", "per_s", 2.0),
        ("4 ktok", "tokens", 4000.0),
        ("1_000 W", "w", 1000.0),
        (".5e3 W", "w", 500.0),
        ("-1 W", "w", -1.0),
        ("  7  ", "w", 7.0),
        (132, "tokens", 132.0),
        (0.25, "s", 0.25),
    ],
)
def test_text_to_si(text: str | float, dimension: str, si: float) -> None:
    assert parse(text, dimension) == pytest.approx(si, rel=1e-15)


_PREFIXES = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PREFIXES |= {"P": 1e15, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


@pytest.mark.parametrize("prefix", _PREFIXES)
def test_prefixes(prefix: str) -> None:
    assert parse(f"2 {prefix}B", "bytes") == 2 * _PREFIXES[prefix]


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("", "bytes"),
        ("fast", "bytes_per_s"),
        ("GB", "bytes"),
        ("1,000 B", "bytes"),
        ("1 2 B", "bytes"),
        ("0x10 B", "bytes"),
        ("nan", "bytes"),
        ("inf B", "bytes"),
        ("3 TB", "bytes_per_s"),
        ("3 TB/s", "bytes"),
        ("3 b", "bytes"),
        ("5 m", "s"),
        ("5 kmin", "s"),
        ("5 mh", "s"),
        ("5 k/s", "per_s"),
        (True, "w"),
    ],
)
def test_garbage_is_refused_by_an_example(text: str | bool, dimension: str) -> None:
    with pytest.raises(InputError, match=r"speed=.* must be a number with a unit such as '1 "):
        parse(text, dimension, field="speed")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1e999 B"])
def test_only_finite_values(value: float | str) -> None:
    with pytest.raises(InputError, match=r"^profile\.yaml: size=.* must be finite$"):
        parse(value, "bytes", field="size", where="profile.yaml")


@pytest.mark.parametrize(
    ("si", "dimension", "text"),
    [
        (141e9, "bytes", "141 GB"),
        (3.35e12, "bytes_per_s", "3.35 TB/s"),
        (0.0124, "s", "12.4 ms"),
        (999.6e9, "bytes", "1 TB"),
        (0.5, "bytes", "0.5 B"),
        (-2e-6, "s", "-2 µs"),
        (12.5, "per_s", "12.5 /s"),
        (12500.0, "per_s", "12500 /s"),
        (0.0, "w", "0 W"),
        (math.inf, "s", "inf s"),
    ],
)
def test_si_to_text(si: float, dimension: str, text: str) -> None:
    assert show(si, dimension) == text


_DIMENSIONS = ["bytes", "bytes_per_s", "flop", "flop_per_s", "s", "hz", "w", "usd_per_s", "per_s", "tokens"]


@given(
    exponent=st.floats(-9, 18),
    sign=st.sampled_from([1, -1]),
    dimension=st.sampled_from(_DIMENSIONS),
    digits=st.integers(1, 9),
)
def test_round_trip_within_the_printed_digits(exponent: float, sign: int, dimension: str, digits: int) -> None:
    value = sign * 10.0**exponent
    assert parse(show(value, dimension, digits), dimension) == pytest.approx(value, rel=0.5001 * 10.0 ** (1 - digits))
