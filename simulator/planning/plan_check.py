"""A plan in closed form held against the simulator: the scenario that serves the load as planned, and how it fared."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simulator.engine_choice import EngineChoice
from simulator.errors import InputError
from simulator.planning.candidates import Candidate, Plans
from simulator.scenario import Scenario, load_scenario
from simulator.serving.confidence import HalfWidth, batch_means
from simulator.serving.outcomes import HAS_ENDED, Outcomes
from simulator.serving.simulation import Progress, Run, SimulationResult, simulate
from simulator.serving.window import meets
from simulator.speculation.acceptance import AcceptanceConfig

LEAST_REQUESTS, MOST_REQUESTS = 10_000, 100_000
TURNS = 20
"""How often all requests in flight are replaced: fewer would be mostly a fleet that fills and empties."""
_WARMUP_TURNS = 2
MOST_REPLICAS = 1024
"""Of a scenario."""
MOST_TRIED = 8
"""Plans that are simulated, cheapest first, until one holds."""


def replicas_checked(plan: Candidate) -> int:
    """As many of the plan's replicas as `MOST_REQUESTS` keep busy for `TURNS` times a request's stay."""
    held = plan.asked.rate_per_s / plan.replicas * _stay_s(plan)
    return max(1, min(plan.replicas, math.floor(MOST_REQUESTS / (TURNS * held)), MOST_REPLICAS))


def plan_scenario(plan: Candidate, *, acceptance: AcceptanceConfig | None = None, seed: int = 0) -> Scenario:
    """What `plan` says, as a scenario: its replicas, or `replicas_checked` of them at their share of the load, behind the router
    that looks for the fewest outstanding requests.

    The model, drafter and engine must be bundled ones. `acceptance` as in the `DraftOption` that led to the plan. Prompts are all of the
    mean length, answers uniform over half to one and a half times theirs.
    """
    asked, deployment = plan.asked, plan.deployment
    replicas = replicas_checked(plan)
    rate = asked.rate_per_s * replicas / plan.replicas
    held = rate * _stay_s(plan)
    requests = min(MOST_REQUESTS, max(LEAST_REQUESTS, math.ceil(TURNS * held)))
    name = deployment.target.decoder.name
    title = f"{name} at {asked.rate_per_s:.4g} requests/s on {plan.gpus:,} × {plan.gpu.name}"
    if replicas < plan.replicas:
        title += f": {replicas:,} of the {plan.replicas:,} replicas, at their share of the load"
    data: dict[str, Any] = {
        "name": "plan",
        "title": title,
        "model": name,
        "gpu": plan.gpu.name,
        "tp": plan.tp,
        "replicas": replicas,
        "engine": {"name": deployment.engine.name, **_changed_settings(plan)},
        "traffic": {"kind": "poisson", "rate_per_s": rate, "requests": requests, "lengths": asked.work.lengths},
        "slo": asked.level.slo.model_dump(exclude_none=True),
        "seed": seed,
        "warmup": round(min(0.5, max(0.05, _WARMUP_TURNS * held / requests)), 3),
    }
    if plan.format != "model":
        data["quantization"] = {"weights": plan.format}
    if plan.drafter is not None:
        if plan.drafting.shape.nodes != plan.gamma:
            raise InputError("drafting", plan.drafting.name, "be a chain of drafts")
        data["speculation"] = {"draft": plan.drafter.name, "gamma": plan.gamma}
        if acceptance is not None:
            data["speculation"]["acceptance"] = acceptance.model_dump(exclude_defaults=True)
    return load_scenario(data, where="plan")


@dataclass(frozen=True)
class PlanCheck:
    """How the simulated plan fared."""

    plan: Candidate
    result: SimulationResult

    @property
    def replicas(self) -> int:
        """Of the plan, as many as were simulated."""
        return self.result.scenario.replicas

    @property
    def share_met(self) -> float:
        """Of the measured requests, all objectives."""
        return self.result.main.summary.good_share

    @property
    def share_met_plain(self) -> float | None:
        """The same requests on the same GPUs without speculation; None where the plan does not speculate."""
        return self.result.plain.summary.good_share if len(self.result.runs) > 1 else None

    @cached_property
    def share_width(self) -> HalfWidth | None:
        """± with 90 % of `share_met`, as a share; None: too few requests."""
        return _share_width(self.result.main, self.result.scenario)

    @property
    def holds(self) -> bool:
        """Whether as many requests as asked for meet the objectives."""
        return self.share_met >= self.plan.asked.level.share


def check_plan(
    plan: Candidate,
    progress: Progress | None = None,
    *,
    acceptance: AcceptanceConfig | None = None,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> PlanCheck:
    """Simulates `plan_scenario`; `progress` and `stop` as in `simulate`."""
    return PlanCheck(plan, simulate(plan_scenario(plan, acceptance=acceptance, seed=seed), progress, stop=stop))


def check_cheapest(
    plans: Plans,
    progress: Progress | None = None,
    *,
    acceptance: AcceptanceConfig | None = None,
    seed: int = 0,
    stop: threading.Event | None = None,
    most: int = MOST_TRIED,
) -> tuple[PlanCheck, ...]:
    """`check_plan` of the chosen plan and, while none holds, of the next dearer ones, `most` in all: the last one holds, or none
    does. Empty where there is no plan; ends early where `stop` is set."""
    in_turn = plans.by_cost or ((plans.chosen,) if plans.chosen else ())
    found: list[PlanCheck] = []
    for plan in in_turn[:most]:
        found.append(check_plan(plan, progress, acceptance=acceptance, seed=seed, stop=stop))
        if found[-1].holds or (stop is not None and stop.is_set()):
            break
    return tuple(found)


def _stay_s(plan: Candidate) -> float:
    return plan.ttft_s + plan.tpot_s * (plan.asked.work.output_tokens - 1.0)


def _changed_settings(plan: Candidate) -> dict[str, Any]:
    """Settings of the plan's engine that are not its profile's."""
    engine = plan.deployment.engine
    own = EngineChoice(name=engine.name).load(None, plan.gpu).settings.model_dump()
    return {name: value for name, value in engine.settings.model_dump().items() if value != own[name]}


def _share_width(run: Run, scenario: Scenario) -> HalfWidth | None:
    outcomes = Outcomes.of(run.requests)
    which = outcomes.measured & HAS_ENDED[outcomes.status]
    return batch_means(meets(outcomes, [scenario.slo])[which].astype(float))
