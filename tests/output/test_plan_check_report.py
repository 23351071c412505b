"""Simulated plans in words: figures are those of the records, and a plan that does not hold is never said to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from simulator.output.candidates_report import plan_text
from simulator.output.plan_check_report import check_conditions, check_section, check_sentence, share_text
from simulator.planning.candidate_search import DraftOption, find_plans
from simulator.planning.capacity import Level
from simulator.planning.plan_check import PlanCheck, check_plan
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.units import show

ACCEPTANCE = AcceptanceConfig(alpha=0.7)
PLANS = find_plans(
    "llama-3.1-8b", 40.0, Work.of_lengths(512, 64), Level(Slo(ttft_s=1.0, tpot_s=0.03)), gpus=("h100",), tps=(1, 2),
    drafts=[DraftOption("llama-3.2-1b", (3,), ACCEPTANCE)],
)  # fmt: skip


@pytest.fixture(scope="module")
def checks() -> list[PlanCheck]:
    plain = next(c for c in PLANS.by_cost if c.drafter is None)
    drafting = next(c for c in PLANS.by_cost if c.drafter is not None)
    return [check_plan(plan, acceptance=ACCEPTANCE) for plan in (drafting, plain)]


@dataclass(frozen=True)
class Missed(PlanCheck):
    """One of which too few requests meet the objectives."""

    @property
    def share_met(self) -> float:
        return 0.5


def test_what_holds(checks: list[PlanCheck]) -> None:
    said = check_sentence(checks[:1])
    assert "the plan holds" in said
    assert f"of {checks[0].result.main.summary.measured:,} requests" in said
    assert f"closed form says {share_text(checks[0].plan.share_met)}" in said


def test_what_is_too_tight_and_what_holds_instead(checks: list[PlanCheck]) -> None:
    missed = Missed(checks[0].plan, checks[0].result)
    said = check_sentence([missed, checks[1]])
    assert "50.0% of" in said
    assert "fewer than the 95% asked for: the plan is too tight." in said
    assert f"The next that holds is {plan_text(checks[1].plan)}" in said
    assert "the plan holds" not in said
    neither = check_sentence([missed, missed, missed])
    assert "Nor do the 2 next dearer plans hold" in neither
    assert "Nor" not in check_sentence([missed])


def test_the_table_has_both_forms_of_each(checks: list[PlanCheck]) -> None:
    section = check_section(checks)
    rows = section.table.rows
    assert [row[1] for row in rows] == [
        "closed form", "simulated", "simulated, plain decoding", "closed form", "simulated",
    ]  # fmt: skip
    assert {len(row) for row in rows} == {len(section.table.headers)}
    for row, check in ((rows[0], checks[0]), (rows[3], checks[1])):
        assert row[0] == plan_text(check.plan)
        assert row[5] == show(check.plan.tpot_s, "s")
    for row, run in zip((rows[1], rows[2], rows[4]), (*checks[0].result.runs, *checks[1].result.runs), strict=True):
        assert row[2].startswith(f"{run.summary.good_share:.2%}")
        assert row[3:] == tuple(
            show(t, "s")
            for d in (run.summary.ttft_s, run.summary.tpot_s)
            for t in (d.mean, d.p99)
        )  # fmt: skip


def test_conditions_say_how_much_was_simulated(checks: list[PlanCheck]) -> None:
    said: Any = dict(check_conditions(checks))
    assert f"{len(checks[0].result.traffic):,} requests" in said["simulation"]
    assert "replicas" not in said["simulation"]
    more = PlanCheck(replace(checks[0].plan, replicas=900), checks[0].result)
    assert "of the 900 replicas" in dict(check_conditions([more]))["simulation"]


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "all"), (0.99996, "more than 99.9%"), (0.9994, "99.9%"), (0.5, "50.0%"), (0.0, "0.0%")]
)
def test_shares(share: float, text: str) -> None:
    assert share_text(share) == text
