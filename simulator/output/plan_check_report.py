"""How a plan in closed form fared in the simulation, in words and as a table."""

from __future__ import annotations

from simulator.output.candidates_report import plan_text, slo_text
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.planning.plan_check import PlanCheck
from simulator.units import show


def check_sentence(check: PlanCheck) -> str:
    """Whether the simulated plan holds, beside what the closed form says, and how the same GPUs fare without speculation."""
    asked = check.plan.asked.level
    found = check.result.main.summary
    many = f"Simulated, {share_text(check.share_met)} of {found.measured:,} requests meet the objectives"
    closed = f"the closed form says {share_text(check.plan.share_met)}"
    if check.holds:
        said = f"{many}: the plan holds ({closed})."
    else:
        said = f"{many}, fewer than the {asked.share:.0%} asked for: the plan is too tight ({closed}). One more replica helps."
    if check.share_met_plain is not None:
        said += f" Without speculation {share_text(check.share_met_plain)} of them would."
    return said


def check_section(check: PlanCheck) -> Section:
    """Closed form and simulation side by side, and the simulation without speculation where the plan speculates."""
    plan, runs = check.plan, check.result.runs
    width = check.share_width
    headers = ("", "closed form", "simulated", *(("simulated, plain decoding",) if len(runs) > 1 else ()))
    summaries = [run.summary for run in runs]
    share = [f"{s.good_share:.2%}" for s in summaries]
    if width is not None and share:
        share[0] += f" ± {width.half_width:.2%}"
    lines = [
        ("requests that meet the objectives", f"{plan.share_met:.2%}", *share),
        ("TTFT, mean", show(plan.ttft_s, "s"), *(show(s.ttft_s.mean, "s") for s in summaries)),
        ("TTFT, p99", NONE, *(show(s.ttft_s.p99, "s") for s in summaries)),
        ("TPOT, mean", show(plan.tpot_s, "s"), *(show(s.tpot_s.mean, "s") for s in summaries)),
        ("TPOT, p99", NONE, *(show(s.tpot_s.p99, "s") for s in summaries)),
    ]
    note = "± holds with 90 % over other draws of the same traffic. " if width is not None else ""
    if check.replicas > 1:
        note += (
            "The simulated router picks the replica with the fewest requests; the closed form spreads them at random."
        )
    return Section("Closed form and simulation", Table(headers, lines), note.strip())


def check_conditions(check: PlanCheck) -> list[tuple[str, str]]:
    """What was simulated."""
    scenario = check.result.scenario
    all_ = (
        "" if check.replicas == check.plan.replicas else f", {check.replicas:,} of the {check.plan.replicas:,} replicas"
    )
    n = len(check.result.traffic)
    text = f"{plan_text(check.plan)}: {n:,} requests{all_}, seed {scenario.seed}, {slo_text(scenario.slo)}"
    return [("simulation", text)]


def share_text(share: float) -> str:
    """A share of requests, where neither all nor none is said of what is only nearly so."""
    return "all" if share >= 1.0 else "more than 99.9%" if share >= 0.9995 else f"{share:.1%}"
