"""The schema: every rule refuses what it says, by field; what a whole toy run writes is tried in test_measure."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.reference_decoder.schema import KINDS, SPREAD, header_fault, line_fault

TIMES = {"min_s": 1.0, "q1_s": 2.0, "median_s": 2, "q3_s": 3.0, "max_s": 4.0, "n": 3}
COPY = {"kind": "copy", "size_bytes": 8, "cache": "cold", "moved_bytes": 16, **TIMES}
HEADER = {"kind": "header", "device": "d", "device_kind": "cpu", "dtype": "fp32"}
SHAPE = {"layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "width": 8, "vocab": 9}
ROUND = {
    "kind": "round", "model": "m", "drafter": "small", "draft_model": "d", "gamma": 2, "alpha": 0.7, "batch": 1,
    "context_tokens": 9, "graphs": False, "tokens_per_round": 1.5, "accepted": 0.5, **TIMES,
}  # fmt: skip
ACCEPTANCE = {
    "kind": "acceptance", "model": "m", "drafter": "small", "draft_model": "d", "gamma": 2, "text": "greedy",
    "requests": 2, "context_tokens": 9, "output_tokens": 9, "graphs": False,
    "accepted_by_request": [[2, 0], [1]], "drafted_by_request": [[2, 0], [2]],
    "acceptance_by_depth": [1.0, 0.5], "rounds_by_depth": [2, 2], "tokens_per_round": 2.0,
    "tokens_per_round_min": 2.0, "tokens_per_round_q1": 2.0, "tokens_per_round_median": 2.0,
    "tokens_per_round_q3": 2.0, "tokens_per_round_max": 2.0, "repeated_share": 0.1, "duration_s": 1.0,
    "training_s": 1.0, "training_bytes": 9, "corpus_sha256": "ab", "target_bits_per_byte": 2.0,
    "draft_bits_per_byte": 3.0, "target_training_bits_per_byte": 2.0, "draft_training_bits_per_byte": 3.0,
}  # fmt: skip
DIVERGENCE = {
    "kind": "divergence", "model": "m", "weights": "trained", "draft_model": "d", "gamma": 2, "sequences": 4,
    "context_tokens": 9, "output_tokens": 9, "graphs": False, "diverged": 1, "positions": [3], "margins": [0.0],
    "median_margin": 1.0, "duration_s": 1.0,
}  # fmt: skip
WHOLE_LINES = [COPY, ROUND, ACCEPTANCE, DIVERGENCE]


@pytest.mark.parametrize("line", WHOLE_LINES, ids=lambda line: line["kind"])
def test_a_line_needs_every_field(line):
    assert line_fault(line) is None
    assert line_fault(line | {"comment": "an unknown field is no damage"}) is None
    for name in line.keys() - {"kind"}:
        fault = line_fault({key: value for key, value in line.items() if key != name})
        assert fault is not None
        assert fault.startswith(f"{name} is missing; it must be ")


@pytest.mark.parametrize("line", WHOLE_LINES, ids=lambda line: line["kind"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 10**400, "x" * 1000, {}, [None], [[2.5]]], ids=repr)
def test_a_value_of_no_meaning_is_refused_by_field(line, value):
    for name in line.keys() - {"kind"}:
        if isinstance(value, str) and isinstance(line[name], str) and name in ("model", "draft_model", "corpus_sha256"):
            continue  # any text will do
        fault = line_fault(line | {name: value})
        assert fault is not None
        assert fault.startswith(name)
        assert "\n" not in fault
        assert len(fault) < 200


@pytest.mark.parametrize("name", [*SPREAD, "n"])
@pytest.mark.parametrize("value", [0, -1.0, True, None, "1"])
def test_times_and_counts_are_above_zero(name, value):
    assert line_fault(COPY | {name: value}).startswith(f"{name}={value!r} must be a ")


@pytest.mark.parametrize("name", SPREAD)
def test_a_spread_out_of_order_is_refused(name):
    # Each of the five moved beyond a neighbour.
    for value in (0.5, 9.0):
        fault = line_fault(COPY | {name: value})
        in_order = sorted(TIMES[n] if n != name else value for n in SPREAD) == [
            TIMES[n] if n != name else value for n in SPREAD
        ]
        assert (fault is None) == in_order
        assert in_order or "must be at most" in fault


def test_a_kind_that_is_none_is_refused():
    assert line_fault(COPY | {"kind": "cpoy"}).endswith("did you mean copy?")
    assert line_fault(COPY | {"kind": 7}).startswith("kind=7 must be one of copy, ")
    assert line_fault(COPY | {"kind": ["copy"]}).startswith("kind=['copy'] must be one of ")


def test_a_skipped_line_needs_its_point_and_a_reason():
    point = {"kind": "copy", "size_bytes": 8, "cache": "cold"}
    assert line_fault(point | {"skipped": "out of memory"}) is None
    assert line_fault(point | {"skipped": ""}).startswith("skipped='' must be a text")
    assert line_fault({"kind": "copy", "cache": "cold", "skipped": "why"}).startswith("size_bytes is missing")


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (ROUND, {"drafter": "tree"}, "widths is missing, which drafter='tree' needs"),
        (ROUND, {"drafter": "early_exit"}, "exit_layers is missing, which drafter='early_exit' needs"),
        (ROUND, {"alpha": 1.5}, "alpha=1.5 must be a number from 0 to 1"),
        (ACCEPTANCE, {"accepted_by_request": [[2, 0]]}, "drafted_by_request must have as many rounds"),
        (ACCEPTANCE, {"accepted_by_request": [[2, 1], [1]]}, "accepted_by_request holds 1 of 0 drafted"),
        (ACCEPTANCE, {"drafted_by_request": [[3, 0], [2]]}, "accepted_by_request holds 2 of 3 drafted"),
        (ACCEPTANCE, {"requests": 3}, "accepted_by_request has 2 values and must have 3, one per request"),
        (ACCEPTANCE, {"rounds_by_depth": [2]}, "rounds_by_depth has 1 values and must have 2, one per depth"),
        (ACCEPTANCE, {"tokens_per_round_q1": 3.0}, "tokens_per_round_min to _max must not fall"),
        (DIVERGENCE, {"diverged": 2}, "positions has 1 values and must have 2"),
        (DIVERGENCE, {"diverged": 5}, "diverged=5 must be at most sequences=4"),
    ],
)  # fmt: skip
def test_fields_must_agree(line, change, said):
    assert line_fault(line | change).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": ""}, "device='' must be a text"),
        ({"device_kind": "tpu"}, "device_kind='tpu' must be one of cpu, cuda"),
        ({"threads": 0}, "threads=0 must be a whole number of at least 1, or null"),
        ({"power_limit_w": -1}, "power_limit_w=-1 must be a finite number above 0, or null"),
        ({"shape_of_m": []}, "shape_of_m=[] must be a mapping"),
        ({"shape_of_m": SHAPE | {"heads": 0}}, "shape_of_m.heads=0 must be a whole number of at least 1"),
        ({"shape_of_m": {}}, "shape_of_m.layers is missing"),
    ],
)
def test_headers(change, said):
    assert header_fault(HEADER | {"shape_of_m": SHAPE}) is None
    assert header_fault(HEADER | change).startswith(said)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from([COPY, ROUND, ACCEPTANCE, DIVERGENCE, {"kind": "serving"}, {"kind": "step"}]),
    st.dictionaries(st.sampled_from([*COPY, *ROUND, *ACCEPTANCE, *DIVERGENCE]), anything, max_size=4),
)
def test_no_line_makes_the_check_itself_fail(line, changes):
    fault = line_fault({**line, **changes})
    assert fault is None or len(fault) < 400


def test_every_kind_names_its_fields_once():
    for kind in KINDS.values():
        assert not set(kind.point) & set(kind.results)
        assert not set(kind.optional) & (set(kind.point) | set(kind.results))
        json.dumps([*kind.point, *kind.results])
