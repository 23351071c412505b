"""How many GPUs, in words and tables: the cheapest plan and what binds it, the others by GPU type, and what could not serve."""

from __future__ import annotations

import math
from typing import Any

from simulator.cost.efficiency import PRIOR_ERROR
from simulator.output import rows
from simulator.output.report import NONE
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.planning.candidates import Candidate, Plans, Rejected
from simulator.planning.capacity import Level, Limit, saturated_by
from simulator.planning.relaxation import Relaxation
from simulator.slo import Slo
from simulator.units import show

LIMITS: dict[Limit, str] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "both": "TTFT and TPOT",
    "kv": "KV cache room",
    "sequences": "engine's batch limit",
    "tokens": "engine's token budget",
    "saturation": "GPUs are saturated",
}
"""What binds, in a few words."""
_CAUSES = {**rows.CAUSES, "draft": "the drafter"}


# --- sentences ----------------------------------------------------------------------------------------------------------
def verdict(plans: Plans) -> str:
    """The cheapest plan, what binds it, the runner-up, and what has no price; or what would have to be given up."""
    best, fewest = plans.cheapest, plans.chosen
    if best is not None:
        said = [
            f"Cheapest: {plan_text(best)}.",
            result_text(best),
            basis_text(best),
            binding_text(best),
            _runner_up(plans),
            _without_speculation(plans),
        ]
    elif fewest is not None:
        said = [
            f"Nothing that has a price meets {level_text(plans.asked.level)}.",
            f"Without one: {plan_text(fewest)}.", result_text(fewest), basis_text(fewest), binding_text(fewest),
        ]  # fmt: skip
    else:
        said = [_nothing(plans)]
    return " ".join(part for part in (*said, price_text(plans)) if part)


def plan_text(one: Candidate, drafts: str = "") -> str:
    """ "3 × NVIDIA H200 (3 replicas, EAGLE-3 head …, γ = 3) for 10.8 USD/h"; `drafts`: how to say the drafting instead."""
    parts = [replicas_text(one)]
    if one.format != "model":
        parts.append(f"{one.format} weights")
    parts.append(drafts or drafts_text(one))
    cost = f" for {usd_per_h(one)} USD/h" if one.usd_per_s is not None else ""
    return f"{one.gpus:,} × {one.gpu.title} ({', '.join(parts)}){cost}"


def replicas_text(one: Candidate) -> str:
    """ "3 replicas of 2 GPUs"."""
    each = one.deployment.gpus
    return rows.count(one.replicas, "replica") + (f" of {each} GPUs" if each > 1 else "")


def drafts_text(one: Candidate) -> str:
    """ "EAGLE-3 head …, γ = 3"."""
    return "plain decoding" if one.drafter is None else f"{one.drafter.title}, {one.drafting.name}"


def result_text(one: Candidate) -> str:
    """What it costs per token and what users see."""
    cost = one.usd_per_million_tokens
    start = "" if cost is None else f"{cost:.3g} USD per million output tokens, "
    met = f"{one.share_met:.1%}" if one.share_met < 0.9995 else "More than 99.9%"
    return (
        f"{start}{one.tokens_per_s_per_user:.3g} tokens/s per user, TTFT {show(one.ttft_s, 's')} on average. {met} of requests "
        "meet the objectives."
    )


def basis_text(one: Candidate) -> str:
    """That nobody measured this GPU; empty where somebody did."""
    if one.deployment.target.efficiency.tag == "calibrated":
        return ""
    return f"Not calibrated: nobody measured {one.gpu.title} here, and its times may well be off by {PRIOR_ERROR:.0%}."


def binding_text(one: Candidate) -> str:
    """What keeps a replica from carrying more."""
    limit, curve, level = one.limit, one.capacity.curve, one.asked.level
    slo = level.slo
    few = f"fewer than {level.share:.0%} of requests keep"
    beyond = {
        "ttft": f"{few} a TTFT of {show(slo.ttft_s or 0.0, 's')}",
        "tpot": f"{few} a TPOT of {show(slo.tpot_s or 0.0, 's')}",
        "both": f"{few} both objectives",
        "kv": f"requests wait, as the KV cache holds {curve.most:,} at once",
        "sequences": f"requests wait for one of the {curve.most:,} places in the engine's batch",
        "tokens": f"requests wait, as the engine's token budget holds {rows.count(curve.most, 'round')} at once",
        "saturation": "requests wait, and a larger batch would serve hardly more",
    }[limit]
    if limit == "saturation":
        beyond += f": most of a step goes to {_CAUSES[saturated_by(one.deployment, curve)]}"
    rate = f"{one.capacity.rate_per_s:.3g} requests/s"
    if one.replicas == 1:
        return f"One replica is enough, at {one.busy:.0%} of the {rate} it carries; beyond them {beyond}."
    binds = {
        "both": "TTFT and TPOT bind",
        "sequences": "The engine's batch limit binds",
        "tokens": "The engine's token budget binds",
    }
    start = binds.get(limit, "The GPUs are saturated" if limit == "saturation" else f"{LIMITS[limit]} binds")
    return f"{start}: beyond {rate} per replica {beyond}."


def _runner_up(plans: Plans) -> str:
    best, other = plans.cheapest, plans.runner_up
    if best is None or other is None or best.usd_per_s is None or other.usd_per_s is None:
        return ""
    same = other.drafter is not None and best.drafter is not None and other.drafter.name == best.drafter.name
    text = plan_text(other, other.drafting.name if same else "")
    return f"Runner-up: {text}, {_dearer(other, best)}, {other.tokens_per_s_per_user:.3g} tokens/s per user."


def _without_speculation(plans: Plans) -> str:
    """What plain decoding would cost, where the cheapest plan speculates and the runner-up does not say it."""
    best, plain = plans.cheapest, plans.cheapest_plain
    if best is None or best.drafter is None or (plain is not None and plain is plans.runner_up):
        return ""
    if plain is None:
        return "Without speculation nothing that has a price meets the objectives."
    return f"Without speculation: {plan_text(plain)}, {_dearer(plain, best)}, {plain.tokens_per_s_per_user:.3g} tokens/s per user."


def _dearer(other: Candidate, than: Candidate) -> str:
    more = (other.usd_per_s or 0.0) / (than.usd_per_s or math.inf) - 1.0
    return "the same cost" if more < 0.005 else f"{more:.0%} more" if more < 1.0 else f"{more + 1.0:.2g} times as much"


def price_text(plans: Plans) -> str:
    """Which GPUs could serve and have no price; empty where there is none."""
    names = [one.gpu.title for one in plans.fewest_of.values()]
    if not names:
        return ""
    which = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"No price is known for {which}: give one in USD/h to have {'it' if len(names) == 1 else 'them'} compared by cost."


def level_text(level: Level) -> str:
    """ "TTFT 1 s and TPOT 40 ms for 95 % of requests"."""
    return f"{slo_text(level.slo)} for {level.share:.0%} of requests"


def slo_text(slo: Slo) -> str:
    """ "TTFT 1 s and TPOT 40 ms"."""
    found = [f"{n} {show(v, 's')}" for n, v in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s)) if v is not None]
    return " and ".join(found) or "no objective"


def _nothing(plans: Plans) -> str:
    name = plans.decoder.name
    if plans.relaxations:
        ways = "; or ".join(_relaxed(one) for one in plans.relaxations)
        return f"Nothing meets {level_text(plans.asked.level)}. Nearest: {ways}."
    missed = [r for r in plans.rejected if r.why == "memory"]
    if missed:
        nearest = max(missed, key=lambda r: r.gpu.hbm_bytes * r.tp)
        return f"{name} fits on none of these: {nearest.gpu.title} with TP {nearest.tp} {_says(nearest)}."
    first = plans.rejected[0]
    return f"{name} can be served on none of these. {first.gpu.title}, TP {first.tp}: {first.reason}."


def _says(one: Rejected) -> str:
    return one.reason if one.reason.startswith("needs ") else f"does not do: {one.reason}"


def _relaxed(one: Relaxation) -> str:
    deployment, drafting = one.capacity.deployment, one.capacity.curve.drafting
    drafts = "" if deployment.drafter is None else f" with {deployment.drafter.title}, {drafting.name}"
    limits = [f"{name[:-2].upper()} {show(getattr(one.slo, name), 's')}" for name in one.relaxed]
    return f"{' and '.join(limits)}, which {rows.gpus_text(deployment)}{drafts} would meet while hardly loaded"


# --- tables -------------------------------------------------------------------------------------------------------------
HEADERS = (
    "GPU", "GPUs", "replicas", "TP", "weights", "drafts", "USD/h", "USD per 1M tokens", "tokens/s per user", "TTFT", "SLO met",
    "tokens/s per GPU", "J per token", "load", "binds",
)  # fmt: skip


def conditions(plans: Plans) -> list[tuple[str, str]]:
    """What the plans hold under."""
    asked = plans.asked
    spread = f", their length varies by {asked.work.output_cv:.0%}" if asked.work.output_cv else ""
    bases: dict[str, dict[str, None]] = {}
    for c in plans.candidates:
        bases.setdefault(c.deployment.target.efficiency.label, {})[c.gpu.name] = None
    rest_on = "; ".join(f"{', '.join(names)}: {label}" for label, names in bases.items())
    return [
        ("model", plans.decoder.name),
        ("load", f"{asked.rate_per_s:.4g} requests/s, Poisson, spread over the replicas at random"),
        ("work", f"prompts of {asked.work.prompt_tokens:,.0f} tokens, answers of {asked.work.output_tokens:,.0f}{spread}"),
        ("objectives", level_text(asked.level)),
        ("engine", plans.engine_title),
        ("prices", "; ".join(prices(plans))),
        ("times rest on", rest_on or NONE),
        ("method", "closed form of a steady load, no simulation"),
        ("left out", "pipelines, experts on GPUs of their own, replicas that fail: a replica is one tensor-parallel group"),
    ]  # fmt: skip


def prices(plans: Plans) -> list[str]:
    """Per GPU and hour, and who says so."""
    found: dict[str, list[str]] = {}
    for gpu in plans.gpus:
        usd = plans.prices_usd_per_s[gpu.name]
        if usd is None:
            continue
        source = "given" if gpu.name in plans.own_prices else _price_source(gpu.provenance)
        found.setdefault(source, []).append(f"{gpu.name} {usd * 3600.0:.3g}")
    said = [f"{', '.join(each)} USD/h ({source})" for source, each in found.items()]
    missing = [gpu.name for gpu in plans.unpriced]
    return [*said, f"none for {', '.join(missing)}"] if missing else said


def _price_source(provenance: Any) -> str:
    known = provenance.get("price")
    return f"{known.source.title}, {known.source.date}" if known is not None else "profile"


def sections(plans: Plans) -> list[Section]:
    """The cheapest of each GPU type, what is worth its money for speed, and what could not serve."""
    found = []
    by_type = [*plans.cheapest_of.values(), *plans.fewest_of.values()]
    note = (
        "load: of what the replicas carry    J per token: every GPU at its TDP, an estimate    binds: what keeps a replica from "
        "carrying more"
    )
    if by_type:
        found.append(Section("the cheapest plan on each GPU", Table(HEADERS, [plan_row(c) for c in by_type]), note))
    if len(plans.front) > 1:
        title = "worth it for speed: nothing cheaper is as fast"
        found.append(Section(title, Table(HEADERS, [plan_row(c) for c in plans.front])))
    if plans.rejected:
        table = Table(("GPU", "TP", "weights", "drafts", "why not"), _rejected_rows(plans.rejected))
        found.append(Section("what cannot serve this", table))
    return found


def plan_row(one: Candidate) -> tuple[str, ...]:
    """A row under `HEADERS`."""
    cost = one.usd_per_million_tokens
    return (
        one.gpu.title, f"{one.gpus:,}", f"{one.replicas:,}", str(one.tp), one.format, drafts_text(one), usd_per_h(one),
        NONE if cost is None else f"{cost:.3g}", f"{one.tokens_per_s_per_user:.3g}", show(one.ttft_s, "s"), f"{one.share_met:.1%}",
        f"{one.tokens_per_s_per_gpu:,.0f}", f"{one.joules_per_token:.2g}", f"{one.busy:.0%}", LIMITS[one.limit],
    )  # fmt: skip


def usd_per_h(one: Candidate) -> str:
    """In USD per hour, or that there is no price."""
    return "no price" if one.usd_per_s is None else f"{one.usd_per_s * 3600.0:,.2f}"


def _rejected_rows(rejected: tuple[Rejected, ...]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, int, str, str], list[Rejected]] = {}
    for one in rejected:
        groups.setdefault((one.gpu.title, one.tp, one.format, one.why), []).append(one)
    return [
        (title, str(tp), format_, "; ".join(dict.fromkeys(_refused_drafts(each))), each[0].reason)
        for (title, tp, format_, _), each in groups.items()
    ]


def _refused_drafts(group: list[Rejected]) -> list[str]:
    """ "plain", "eagle3-llama-3.1-8b γ = 1, 3"."""
    found = []
    for one in group:
        gammas = [str(r.gamma) for r in group if r.drafter == one.drafter and r.gamma]
        plain = "plain" if one.gamma == 0 else "whatever is drafted"
        found.append(plain if one.drafter is None else one.drafter + (f" γ = {', '.join(gammas)}" if gammas else ""))
    return found


COLUMNS = (
    "gpu", "tp", "weights", "drafter", "gamma", "replicas", "gpus", "usd_per_h", "usd_per_million_tokens", "tokens_per_s_per_user",
    "tpot_s", "ttft_s", "share_met", "tokens_per_s_per_gpu", "joules_per_token", "capacity_per_s", "busy", "binds", "rejected",
    "reason",
)  # fmt: skip
"""Of `cells`."""


def cells(plans: Plans) -> list[dict[str, Any]]:
    """One mapping per candidate, then per rejected one, for files: `COLUMNS` in SI units and USD, None where there is nothing."""
    found = [
        (
            c.gpu.name, c.tp, c.format, c.drafter.name if c.drafter else None, c.gamma, c.replicas, c.gpus,
            None if c.usd_per_s is None else c.usd_per_s * 3600.0, c.usd_per_million_tokens, c.tokens_per_s_per_user, c.tpot_s,
            c.ttft_s, c.share_met, c.tokens_per_s_per_gpu, c.joules_per_token, c.capacity.rate_per_s, c.busy, c.limit, None, None,
        )
        for c in plans.candidates
    ]  # fmt: skip
    nothing = (None,) * (len(COLUMNS) - 7)
    refused = [
        (r.gpu.name, r.tp, r.format, r.drafter, r.gamma, *nothing, r.why, r.reason) for r in plans.rejected
    ]  # fmt: skip
    return [dict(zip(COLUMNS, cell, strict=True)) for cell in [*found, *refused]]
