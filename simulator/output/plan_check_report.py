"""How a plan in closed form fared in the simulation, in words and as a table."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.output.candidates_report import plan_text
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.planning.plan_check import PlanCheck
from simulator.units import show


def check_sentence(checks: Sequence[PlanCheck]) -> str:
    """Whether the simulated plan holds, beside what the closed form says; where it does not, which dearer one does. `checks` as
    `check_cheapest` gives them."""
    check, last = checks[0], checks[-1]
    found = check.result.main.summary
    closed = f"(the closed form says {share_text(check.plan.share_met)})"
    said = f"Simulated, {share_text(check.share_met)} of {found.measured:,} requests meet the objectives {closed}"
    if check.holds:
        said += ": the plan holds."
        if check.share_met_plain is not None and check.share_met_plain < check.plan.asked.level.share:
            said += (
                f" Without speculation the same GPUs would serve {share_text(check.share_met_plain)} of them so well."
            )
        return said
    said += f", fewer than the {check.plan.asked.level.share:.0%} asked for: the plan is too tight."
    if last.holds:
        return f"{said} The next that holds is {plan_text(last.plan)}, with {share_text(last.share_met)} of them."
    if len(checks) > 1:
        return f"{said} Nor do the {len(checks) - 1} next dearer plans hold."
    return said


def check_section(checks: Sequence[PlanCheck]) -> Section:
    """Closed form and simulation side by side, and the simulation without speculation where the plan speculates."""
    headers = ("plan", "", "SLO met", "TTFT, mean", "TTFT, p99", "TPOT, mean", "TPOT, p99")
    lines: list[tuple[str, ...]] = []
    for check in checks:
        plan = check.plan
        lines.append(
            (plan_text(plan), "closed form", f"{plan.share_met:.2%}", show(plan.ttft_s, "s"), NONE, show(plan.tpot_s, "s"), NONE)
        )  # fmt: skip
        for name, run in zip(("simulated", "simulated, plain decoding"), check.result.runs, strict=False):
            found = run.summary
            share = f"{found.good_share:.2%}"
            if name == "simulated" and check.share_width is not None:
                share += f" ± {check.share_width.half_width:.2%}"
            times = (show(t, "s") for d in (found.ttft_s, found.tpot_s) for t in (d.mean, d.p99))
            lines.append(("", name, share, *times))
    note = "±: 90 % over other draws of the same traffic"
    if any(check.replicas > 1 for check in checks):
        note += "    the simulated router picks the replica with the fewest requests, the closed form spreads them at random"
    return Section("closed form and simulation", Table(headers, lines), note)


def check_conditions(checks: Sequence[PlanCheck]) -> list[tuple[str, str]]:
    """What was simulated, and how plans were made."""
    check = checks[0]
    n, scenario = len(check.result.traffic), check.result.scenario
    text = f"{n:,} requests of the same load, seed {scenario.seed}"
    if check.replicas < check.plan.replicas:
        text += f", on {check.replicas:,} of the {check.plan.replicas:,} replicas at their share of it"
    return [("simulation", text), ("method", "closed form of a steady load, and a simulation of the cheapest plan")]


def share_text(share: float) -> str:
    """A share of requests, where neither all nor none is said of what is only nearly so."""
    return "all" if share >= 1.0 else "more than 99.9%" if share >= 0.9995 else f"{share:.1%}"
