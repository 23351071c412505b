"""Plans held against the simulator: the scenario is the plan's, its share is counted anew, and dear plans hold where cheap ones do not."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.engine_choice import EngineChoice
from simulator.figures.page import scenario_yaml
from simulator.planning import plan_check
from simulator.planning.candidate_search import DraftOption, find_plans
from simulator.planning.candidates import Plans
from simulator.planning.capacity import Level
from simulator.planning.plan_check import check_cheapest, check_plan, plan_scenario, replicas_checked
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig

LEVEL = Level(Slo(ttft_s=1.0, tpot_s=0.03))
ACCEPTANCE = AcceptanceConfig(alpha=0.7)


def search(rate: float = 40.0, output: int = 64, level: Level = LEVEL, **changes: object) -> Plans:
    given: dict[str, object] = {
        "gpus": ("h100", "l40s"), "drafts": (DraftOption("llama-3.2-1b", (3,), ACCEPTANCE),), "tps": (1, 2), **changes,
    }  # fmt: skip
    return find_plans("llama-3.1-8b", rate, Work.of_lengths(512, output), level, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plans() -> Plans:
    return search()


def test_the_scenario_is_the_plan(plans: Plans) -> None:
    for plan in plans.candidates:
        scenario = plan_scenario(plan, acceptance=ACCEPTANCE)
        assert (scenario.model, scenario.gpu, scenario.tp) == ("llama-3.1-8b", plan.gpu.name, plan.tp)
        assert scenario.replicas == plan.replicas
        assert scenario.traffic.rate_per_s == 40.0
        assert scenario.slo == LEVEL.slo
        own, planned = scenario.deployment(), plan.deployment
        assert own.target.formats == planned.target.formats
        assert own.engine.settings == planned.engine.settings
        assert (own.drafter and own.drafter.name) == (plan.drafter and plan.drafter.name)
        if plan.gamma:
            assert scenario.speculation.gamma == plan.gamma
            assert scenario.speculation.acceptance == ACCEPTANCE


def test_its_yaml_gives_it_back(plans: Plans, tmp_path) -> None:
    scenario = plan_scenario(plans.cheapest, acceptance=ACCEPTANCE, seed=7)
    path = tmp_path / "plan.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    assert load_scenario(path).model_dump() == scenario.model_dump()


def test_formats_and_settings_of_the_engine_are_kept() -> None:
    (plan,) = search(
        gpus=("h100",), tps=(1,), drafts=(), formats=("fp8",), engine=EngineChoice(max_sequences=48)
    ).candidates
    scenario = plan_scenario(plan)
    assert scenario.quantization.weights == "fp8"
    assert scenario.engine.model_dump(exclude_none=True) == {"name": "vllm", "max_sequences": 48}


def test_lengths_are_those_of_the_work(plans: Plans) -> None:
    requests = simulate(plan_scenario(plans.cheapest, acceptance=ACCEPTANCE)).traffic
    work = plans.asked.work
    assert set(requests.prompt_tokens) == {round(work.prompt_tokens)}
    assert requests.output_tokens.mean() == pytest.approx(work.output_tokens, rel=0.02)
    assert requests.output_tokens.std() / requests.output_tokens.mean() == pytest.approx(work.output_cv, rel=0.03)


def test_the_share_is_that_of_its_requests(plans: Plans) -> None:
    check = check_plan(plans.cheapest, acceptance=ACCEPTANCE)
    records = check.result.main.requests
    records = records[records["measured"] == 1]
    ttft = records["first_token_s"] - records["arrival_s"]
    tpot = (records["finish_s"] - records["first_token_s"]) / (records["output_tokens"] - 1)
    good = (ttft <= LEVEL.slo.ttft_s) & (tpot <= LEVEL.slo.tpot_s)
    assert check.share_met == pytest.approx(float(np.mean(good)), abs=2e-4)
    assert check.holds == (check.share_met >= 0.95)


def test_a_roomy_plan_is_served_as_the_closed_form_says() -> None:
    # A single replica at a small part of what it carries. Hardly loaded, the closed form's TTFT is some percent short.
    plan = search(rate=1.0, gpus=("h100",), tps=(1,), drafts=()).cheapest
    assert plan is not None
    check = check_plan(plan)
    found = check.result.main.summary
    assert check.share_met == pytest.approx(plan.share_met, abs=0.005)
    assert check.share_met_plain is None
    assert found.tpot_s.mean == pytest.approx(plan.tpot_s, rel=0.03)
    assert found.ttft_s.mean == pytest.approx(plan.ttft_s, rel=0.1)
    assert check.share_width is not None
    assert check.share_width.half_width < 0.01


def test_of_many_replicas_some_are_simulated_at_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = search(rate=3000.0, gpus=("h100",), tps=(1,), drafts=()).cheapest
    assert plan is not None
    monkeypatch.setattr(plan_check, "LEAST_REQUESTS", 200)
    monkeypatch.setattr(plan_check, "MOST_REQUESTS", 4000)
    few = replicas_checked(plan)
    assert 1 <= few < plan.replicas
    scenario = plan_scenario(plan)
    assert scenario.replicas == few
    assert scenario.traffic.rate_per_s / few == pytest.approx(3000.0 / plan.replicas)
    assert scenario.traffic.requests <= 4000
    assert f"{few:,} of the {plan.replicas:,} replicas" in scenario.title


# --- which plan holds ---------------------------------------------------------------------------------------------------
def test_cheapest_first_until_one_holds(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Fake:
        def __init__(self, plan: object, holds: bool):
            self.plan, self.holds = plan, holds

    def fake(plan: object, *_: object, **__: object) -> Fake:
        tried.append(plan)
        return Fake(plan, len(tried) == 3)

    monkeypatch.setattr(plan_check, "check_plan", fake)
    found = check_cheapest(plans)
    assert [c.plan for c in found] == tried == list(plans.by_cost[:3])
    tried.clear()
    assert len(check_cheapest(plans, most=2)) == 2
    tried.clear()
    stop = threading.Event()
    stop.set()
    assert len(check_cheapest(plans, stop=stop)) == 1


def test_where_nothing_serves_nothing_is_simulated() -> None:
    none = search(level=Level(Slo(tpot_s=1e-5)))
    assert none.chosen is None
    assert check_cheapest(none) == ()


def test_where_nothing_has_a_price_the_fewest_gpus_are_simulated() -> None:
    free = search(rate=5.0, gpus=("mi325x",), drafts=())
    (check,) = check_cheapest(free)
    assert check.plan is free.chosen
    assert check.plan.gpus == min(c.gpus for c in free.candidates)
