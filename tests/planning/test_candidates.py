"""How many GPUs? Costs by hand, the front and the cheapest by brute force, monotony, and that nothing is lost without a reason."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.hardware import load_gpu
from simulator.planning.bench import Benches
from simulator.planning.candidate_search import DraftOption, auto_draft, find_plans
from simulator.planning.candidates import Candidate, Plans, front
from simulator.planning.capacity import Level
from simulator.planning.steady_state import open_loop
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig

WORK = Work.of_lengths(512, 256)
LEVEL = Level(Slo(ttft_s=1.0, tpot_s=0.03))
GPUS = ("h100", "a100-80gb", "l40s", "mi325x")
DRAFTS = (DraftOption("llama-3.2-1b", (1, 3), AcceptanceConfig(alpha=0.7)),)
BENCHES = Benches()


def search(
    rate: float = 40.0, level: Level = LEVEL, model: str = "llama-3.1-8b", work: Work = WORK, **changes: object
) -> Plans:
    given_: dict[str, object] = {"gpus": GPUS, "drafts": DRAFTS, "benches": BENCHES, **changes}
    return find_plans(model, rate, work, level, **given_)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plans() -> Plans:
    return search()


def test_every_combination_is_a_candidate_or_has_a_reason(plans: Plans) -> None:
    mine = Counter((c.gpu.name, c.tp, c.gamma) for c in plans.candidates)
    mine += Counter((r.gpu.name, r.tp, r.gamma) for r in plans.rejected)
    assert set(mine.values()) == {1}
    names = [load_gpu(name).name for name in GPUS]
    assert set(mine) == {(name, tp, gamma) for name in names for tp in (1, 2, 4, 8) for gamma in (0, 1, 3)}
    assert all(r.reason for r in plans.rejected)


def test_costs_are_those_by_hand(plans: Plans) -> None:
    assert plans.cheapest is not None
    for one in plans.candidates:
        assert one.replicas == math.ceil(40.0 / one.capacity.rate_per_s)
        assert one.gpus == one.replicas * one.tp
        assert one.busy == pytest.approx(40.0 / one.replicas / one.capacity.rate_per_s)
        assert one.busy <= 1.0
        tokens_per_s = 40.0 * WORK.output_tokens
        assert one.tokens_per_s_per_gpu == pytest.approx(tokens_per_s / one.gpus)
        assert one.joules_per_token == pytest.approx(one.gpus * load_gpu(one.gpu.name).tdp_w / tokens_per_s)
        price = load_gpu(one.gpu.name).price_usd_per_s
        if price is not None:
            assert one.usd_per_s == pytest.approx(one.gpus * price)
            assert one.usd_per_million_tokens == pytest.approx(one.gpus * price * 1e6 / tokens_per_s)


def test_users_see_the_steady_state_at_their_share_of_the_load(plans: Plans) -> None:
    for one in plans.candidates[::3]:
        state = open_loop(one.capacity.curve, np.array([40.0 / one.replicas]), LEVEL.slo)
        assert one.tokens_per_s_per_user == pytest.approx(1.0 / float(state.tpot_s[0]))
        assert one.ttft_s == pytest.approx(float(state.ttft_s[0]))
        assert one.share_met >= LEVEL.share


def test_the_cheapest_is_the_brute_force_one(plans: Plans) -> None:
    costs = [c.usd_per_s for c in plans.candidates if c.usd_per_s is not None]
    assert plans.cheapest is not None
    assert plans.cheapest.usd_per_s == min(costs)
    ties = [c for c in plans.candidates if c.usd_per_s == pytest.approx(min(costs))]
    fewest = min(c.gpus for c in ties)
    assert plans.cheapest.tpot_s == min(c.tpot_s for c in ties if c.gpus == fewest)
    assert plans.runner_up is not None
    elsewhere = [c.usd_per_s for c in plans.by_cost if c.gpu.name != plans.cheapest.gpu.name]
    assert plans.runner_up.usd_per_s == min(elsewhere)  # type: ignore[type-var]
    for name, one in plans.cheapest_of.items():
        assert one.usd_per_s == min(c.usd_per_s for c in plans.by_cost if c.gpu.name == name)  # type: ignore[type-var]


def dominated(one: Candidate, others: tuple[Candidate, ...]) -> bool:
    return any(
        o.usd_per_s <= one.usd_per_s and o.tpot_s <= one.tpot_s and (o.usd_per_s < one.usd_per_s or o.tpot_s < one.tpot_s)  # type: ignore[operator]
        for o in others
    )  # fmt: skip


def test_fronts_are_the_brute_force_ones(plans: Plans) -> None:
    def points(candidates: object) -> set[tuple[float | None, float]]:
        return {(c.usd_per_s, c.tpot_s) for c in candidates}  # type: ignore[attr-defined]

    assert points(plans.front) == points(c for c in plans.by_cost if not dominated(c, plans.by_cost))
    for name, found in plans.fronts.items():
        mine = tuple(c for c in plans.by_cost if c.gpu.name == name)
        assert points(found) == points(c for c in mine if not dominated(c, mine))
        assert found == front(reversed(mine))


# --- prices --------------------------------------------------------------------------------------------------------------
def test_a_gpu_without_a_price_stays_but_is_not_the_cheapest(plans: Plans) -> None:
    assert [gpu.name for gpu in plans.unpriced] == ["mi325x"]
    free = [c for c in plans.candidates if c.gpu.name == "mi325x"]
    assert free
    assert all(c.usd_per_s is None and c.usd_per_million_tokens is None for c in free)
    assert not set(map(id, free)) & set(map(id, plans.by_cost))
    assert plans.fewest_of["mi325x"].gpus == min(c.gpus for c in free)
    alone = search(gpus=("mi325x",))
    assert alone.candidates
    assert alone.cheapest is None
    assert alone.runner_up is None


def test_own_prices_go_before_the_profiles(plans: Plans) -> None:
    given_ = search(prices_usd_per_h={"mi325x": 0.01, "h100": 7.2})
    assert given_.cheapest is not None
    assert given_.cheapest.gpu.name == "mi325x"
    assert given_.prices_usd_per_s["h100-sxm"] == pytest.approx(7.2 / 3600.0)
    assert given_.own_prices == {"mi325x", "h100-sxm"}
    assert not given_.unpriced
    assert plans.own_prices == frozenset()


@settings(max_examples=15)
@given(factor=st.floats(0.2, 1.0), gpu=st.sampled_from(["h100-sxm", "l40s", "a100-sxm-80gb"]))
def test_a_lower_price_never_costs_more(factor: float, gpu: str) -> None:
    before = search()
    price = load_gpu(gpu).price_usd_per_s
    assert price is not None
    after = search(prices_usd_per_h={gpu: price * 3600.0 * factor})
    assert before.cheapest is not None
    assert after.cheapest is not None
    assert (after.cheapest.usd_per_s or 0.0) <= (before.cheapest.usd_per_s or 0.0) * (1.0 + 1e-9)


@settings(max_examples=15)
@given(rate=st.floats(0.5, 300.0), more=st.floats(1.0, 3.0), looser=st.floats(1.0, 2.0))
def test_looser_objectives_and_less_load_never_cost_more(rate: float, more: float, looser: float) -> None:
    slo = LEVEL.slo
    costs = [
        search(r, level).cheapest.usd_per_s  # type: ignore[union-attr]
        for r, level in (
            (rate, LEVEL),
            (rate, Level(Slo(ttft_s=looser * (slo.ttft_s or 0.0), tpot_s=looser * (slo.tpot_s or 0.0)))),
            (rate * more, LEVEL),
        )
    ]
    assert costs[1] <= costs[0] * (1.0 + 1e-9)  # type: ignore[operator]
    assert costs[0] <= costs[2] * (1.0 + 1e-9)  # type: ignore[operator]


def test_more_bandwidth_and_more_arithmetic_never_cost_more(tmp_path: Path) -> None:
    data = yaml.safe_load(catalog.locate("gpu", "h100-sxm").read_text())
    costs = []
    for factor in (1.0, 1.2, 1.6):
        data["name"] = f"faster-{factor:g}"
        data["figures"]["hbm_bandwidth"]["value"] = 3.35e12 * factor
        data["figures"]["flop_bf16"]["value"] = 989.5e12 * factor
        path = tmp_path / f"faster-{factor:g}.yaml"
        path.write_text(yaml.safe_dump(data))
        found = search(300.0, gpus=(str(path),), prices_usd_per_h={str(path): 2.0})
        assert found.cheapest is not None
        costs.append(found.cheapest.usd_per_s)
    assert costs == sorted(costs, reverse=True)  # type: ignore[type-var]
    assert costs[-1] < costs[0]  # type: ignore[operator]


def test_an_hour_of_more_load_costs_about_as_much_per_token() -> None:
    few, many = search(200.0), search(2000.0)
    assert few.cheapest is not None
    assert many.cheapest is not None
    assert many.cheapest.usd_per_million_tokens <= few.cheapest.usd_per_million_tokens * 1.001  # type: ignore[operator]
    assert many.cheapest.usd_per_million_tokens >= few.cheapest.usd_per_million_tokens * 0.5  # type: ignore[operator]


# --- what is no candidate ------------------------------------------------------------------------------------------------
def test_what_does_not_fit_says_by_how_much() -> None:
    found = search(model="llama-3.1-70b", drafts=(), gpus=("l40s", "h100"))
    (one,) = (r for r in found.rejected if r.gpu.name == "l40s" and r.tp == 2)
    assert one.why == "memory"
    weights = 70.6e9  # parameters in bf16, over two GPUs
    assert f"{2.0 * weights / 2.0 / 1e9:.1f} GB of it weights" in one.reason
    assert "the engine may use" in one.reason


def test_tp_that_cannot_be_is_rejected() -> None:
    found = search(tps=(3, 16))
    assert not found.candidates
    assert {r.why for r in found.rejected} == {"tp"}
    assert {r.tp for r in found.rejected} == {3, 16}
    assert found.cheapest is None
    assert found.relaxations == ()


def test_formats_that_cannot_be_are_rejected() -> None:
    found = search(model="gpt-oss-20b", drafts=(), formats=("bf16", "model"), gpus=("h100",), tps=(1,))
    assert [r.why for r in found.rejected] == ["format"]
    assert [c.format for c in found.candidates] == ["model"]


def test_fewer_bits_need_no_more_gpus() -> None:
    found = search(model="llama-3.1-70b", drafts=(), formats=("model", "fp8"), gpus=("h100",))
    gpus = {f: min(c.gpus for c in found.candidates if c.format == f) for f in ("model", "fp8")}
    assert gpus["fp8"] < gpus["model"]


def test_objectives_missed_unloaded_are_said_with_the_figure() -> None:
    found = search(gpus=("l4",), tps=(1,), drafts=(), level=Level(Slo(ttft_s=1.0, tpot_s=0.03)))
    (one,) = found.rejected
    assert one.why == "tpot"
    assert one.capacity is not None
    unloaded_ms = float(one.capacity.curve.tpot_s[0]) * 1e3
    assert f"TPOT is {unloaded_ms:.1f} ms even unloaded, above 30 ms" in one.reason


def test_drafters_of_another_model_are_an_error() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        search(drafts=(DraftOption("llama-68m", (1,), AcceptanceConfig(alpha=0.7)),))


@pytest.mark.parametrize(
    ("slo", "relaxed"),
    [
        (Slo(ttft_s=1.0, tpot_s=0.0005), {("tpot_s",)}),
        (Slo(ttft_s=0.001, tpot_s=0.03), {("ttft_s",)}),
        (Slo(ttft_s=0.001, tpot_s=0.0005), {("ttft_s", "tpot_s")}),
        (Slo(tpot_s=0.0005), {("tpot_s",)}),
    ],
)
def test_the_nearest_relaxation_is_met_and_a_tighter_one_is_not(slo: Slo, relaxed: set[tuple[str, ...]]) -> None:
    found = search(level=Level(slo))
    assert not found.candidates
    assert {r.relaxed for r in found.relaxations} == relaxed
    for one in found.relaxations:
        assert search(level=one.level).candidates
        if len(one.relaxed) == 1:
            (name,) = one.relaxed
            tighter = one.slo.model_copy(update={name: 0.98 * getattr(one.slo, name)})
            assert not search(level=Level(tighter)).candidates


def test_what_fits_nowhere_has_no_relaxation() -> None:
    found = search(model="llama-3.1-405b", drafts=(), gpus=("l40s",))
    assert found.relaxations == ()
    assert {r.why for r in found.rejected} == {"memory"}


# --- what is kept --------------------------------------------------------------------------------------------------------
def test_what_was_asked_before_changes_nothing() -> None:
    def figures(plans: Plans) -> list[tuple[object, ...]]:
        return [(c.gpu.name, c.tp, c.gamma, c.replicas, c.tpot_s, c.ttft_s, c.limit) for c in plans.candidates]

    kept = Benches()
    search(10.0, work=Work.of_lengths(3000, 64), benches=kept)
    search(10.0, level=Level(Slo(ttft_s=0.2)), benches=kept)
    assert figures(search(benches=kept)) == figures(search(benches=Benches())) == figures(search())


def test_a_changed_gpu_is_measured_anew(tmp_path: Path) -> None:
    kept, rates = Benches(), []
    data = yaml.safe_load(catalog.locate("gpu", "h100-sxm").read_text())
    data["name"] = "mine"
    path = tmp_path / "mine.yaml"
    for bandwidth in (3.35e12, 1.5e12):
        data["figures"]["hbm_bandwidth"]["value"] = bandwidth
        path.write_text(yaml.safe_dump(data))
        found = search(gpus=(str(path),), tps=(1,), drafts=(), benches=kept)
        rates.append(found.candidates[0].capacity.rate_per_s)
    assert rates[1] < 0.9 * rates[0]


def test_the_load_alone_asks_for_no_new_capacity() -> None:
    kept = Benches()
    first, second = (search(rate, benches=kept, gpus=("h100",)) for rate in (5.0, 500.0))
    assert [a.capacity for a in first.candidates] == [b.capacity for b in second.candidates]
    assert all(a.capacity is b.capacity for a, b in zip(first.candidates, second.candidates, strict=True))


# --- drafters and errors ---------------------------------------------------------------------------------------------------
def test_the_drafter_tried_by_itself_is_one_with_published_acceptance() -> None:
    for model in ("llama-3.1-8b", "llama-3.1-70b", "deepseek-v3", "gpt-oss-20b"):
        option = auto_draft(model, (2,))
        assert option is not None
        assert option.gammas == (2,)
        found = search(
            model=model, drafts=(option,), gpus=("b200",), tps=(8,), level=Level(Slo(ttft_s=5.0, tpot_s=0.2))
        )
        assert {c.gamma for c in found.candidates} == {0, 2}
    assert auto_draft("qwen2.5-7b") is None


def test_drafting_where_it_pays_costs_less() -> None:
    tight = Level(Slo(ttft_s=1.0, tpot_s=0.009))
    with_, without = search(level=tight), search(level=tight, drafts=())
    assert with_.cheapest is not None
    assert without.cheapest is not None
    assert (with_.cheapest.usd_per_s or 0.0) <= (without.cheapest.usd_per_s or 0.0)
    assert with_.cheapest.gamma > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"level": Level(Slo(tpot_s=0.03), 1.0)}, "share"),
        ({"level": Level(Slo(e2e_s=3.0))}, "e2e_s"),
        ({"gpus": ()}, "gpus"),
        ({"tps": ()}, "tps"),
        ({"tps": (0,)}, "tps"),
        ({"formats": ("bf17",)}, "formats"),
        ({"work": Work.of_lengths(512, 1)}, "output"),
        ({"work": Work.of_lengths(200_000, 256)}, "prompt"),
        ({"prices_usd_per_h": {"h100": 0.0}}, "prices.h100"),
        ({"prices_usd_per_h": {"h100": -2.0}}, "prices.h100"),
        ({"drafts": (DraftOption("llama-3.2-1b"),)}, "acceptance"),
        ({"drafts": (replace(DRAFTS[0], gammas=()),)}, "gamma"),
        ({"drafts": (replace(DRAFTS[0], gammas=(0,)),)}, "gamma"),
    ],
)
def test_what_cannot_be_asked_is_said(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        search(**changes)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_unknown_names_are_said() -> None:
    for changes in ({"gpus": ("h1000",)}, {"prices_usd_per_h": {"h1000": 1.0}}, {"drafts": (DraftOption("nobody"),)}):
        with pytest.raises(UnknownName):
            search(**changes)  # type: ignore[arg-type]


def test_lengths_of_work() -> None:
    work = Work.of_lengths(512, 256)
    answers = np.arange(128, 385)
    assert work.output_tokens == answers.mean()
    assert work.context_tokens == pytest.approx(512 + (answers**2).mean() / (2 * answers.mean()))
    assert work.output_cv == pytest.approx(answers.std() / answers.mean())
    same = Work.of_context(round(work.context_tokens), 256)
    assert same.prompt_tokens == pytest.approx(512, abs=1)
    for lengths in ((0, 10), (10, 0)):
        with pytest.raises(InputError):
            Work.of_lengths(*lengths)
