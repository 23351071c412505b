"""The plan: ends before middles, every kind its share."""

from itertools import islice

import pytest

from simulator.reference_decoder.measurements import key_of
from simulator.reference_decoder.pair import RECIPES
from simulator.reference_decoder.points import SHARES, SUITES, TOY, interleave, matrices_of, spread
from simulator.reference_decoder.schema import KINDS, line_fault
from simulator.reference_decoder.shapes import SHAPES

ALL = [*SUITES.values(), TOY]


def test_spread_takes_the_ends_first_and_halves_the_gaps():
    assert [v for (v,) in spread((1, 2, 4, 8, 16))] == [1, 16, 4, 2, 8]
    assert spread((1, 2), ("a", "b", "c"))[:4] == [(1, "a"), (1, "c"), (2, "a"), (2, "c")]
    assert sorted(spread(range(7), range(5))) == sorted((a, b) for a in range(7) for b in range(5))


@pytest.mark.parametrize("suite", ALL, ids=["cuda", "cpu", "toy"])
def test_plans_name_every_point_once_and_only_known_models(suite):
    plan = suite.plan()
    assert list(plan) == list(SHARES)
    keys = [key_of(point) for points in plan.values() for point in points]
    assert len(keys) == len(set(keys))
    for kind, points in plan.items():
        assert points
        for point in points:
            assert point["kind"] == kind
            assert line_fault(point | {"skipped": "not measured"}) is None
            assert set(point) <= {"kind", *KINDS[kind].point, *KINDS[kind].optional}
            assert {point.get("model"), point.get("draft_model")} <= {None, *SHAPES}


def test_a_cpu_plan_holds_512_tokens_in_one_step_and_a_gpu_plan_batches_of_512():
    assert max(p["batch"] * p["tokens"] for p in SUITES["cpu"].plan()["step"]) == 512
    steps = SUITES["cuda"].plan()["step"]
    assert {p["batch"] for p in steps} >= {1, 512}
    assert max(p["context_tokens"] for p in steps) == 32768
    assert {p["graphs"] for p in steps} == {True, False}


@pytest.mark.parametrize("suite", ALL, ids=["cuda", "cpu", "toy"])
def test_every_target_runs_single_layers_at_the_corners(suite):
    singles = [point for point in suite.plan()["step"] if "layers" in point]
    assert {point["layers"] for point in singles} == {1}
    assert {point["model"] for point in singles} == set(suite.targets)
    for name, axis in (("batch", suite.batches), ("tokens", suite.queries), ("context_tokens", suite.contexts)):
        assert {point[name] for point in singles} == {axis[0], axis[-1]}


@pytest.mark.parametrize("suite", ALL, ids=["cuda", "cpu", "toy"])
def test_acceptance_is_measured_on_every_text_with_every_drafter(suite):
    points = suite.plan()["acceptance"]
    assert len({(point["drafter"], point["text"]) for point in points}) == len(points) == 9
    assert (points[0]["drafter"], points[0]["text"]) == ("small", "held_out")
    for point in points:
        assert point["gamma"] == 8
        # Positions that the pair never saw in training would be no test of it.
        assert point["context_tokens"] + point["output_tokens"] <= RECIPES[suite.pair].course.tokens
    assert [point["weights"] for point in suite.plan()["divergence"]] == ["trained", "random"]


def test_shares_are_parts_of_a_whole():
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_drafters_share_their_target_s_vocabulary():
    for suite in ALL:
        for target, drafter in suite.drafts.items():
            assert SHAPES[target].vocab == SHAPES[drafter].vocab
            assert SHAPES[drafter].parameters < SHAPES[target].parameters / 4
        assert all(0 < layers < SHAPES[name].layers for name, layers in suite.early_exit.items())


def test_matrices_are_those_of_the_model():
    shape = SHAPES["llama-8b"]
    per_layer = sum(n * k for n, k in matrices_of("llama-8b")[:4])
    head = shape.vocab * shape.hidden
    norms = (2 * shape.layers + 1) * shape.hidden
    assert shape.layers * per_layer + 2 * head + norms == shape.parameters


def test_the_kind_furthest_behind_its_share_goes_next():
    plan = {kind: [{"kind": kind, "i": i} for i in range(400)] for kind in ("step", "copy")}
    spent_s = dict.fromkeys(plan, 0.0)
    taken = []
    for point in islice(interleave(plan, spent_s), 110):
        spent_s[point["kind"]] += 1.0
        taken.append(point["kind"])
    assert taken.count("step") == pytest.approx(110 * SHARES["step"] / (SHARES["step"] + SHARES["copy"]), abs=1.0)
    spent_s["copy"] += 1e6
    assert [p["kind"] for p in islice(interleave(plan, spent_s), 50)] == ["step"] * 50
