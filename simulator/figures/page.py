"""Results as HTML pages: verdict, conditions, table, figures, and what reproduces them."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from simulator import units
from simulator.calibration.measured_points import measured_points
from simulator.decoding import DecodeResult, Timeline
from simulator.deployment import Deployment
from simulator.experts import SPLIT_EVENLY
from simulator.figures import breakdown, classes, gains, gamma_map, roofline, serving, speedup, style
from simulator.figures import timeline as timelines
from simulator.figures.html_page import HtmlPart, html_page
from simulator.hardware import Gpu
from simulator.output import rows
from simulator.output.cluster_conditions import gpus_of_all, kind_names
from simulator.output.cluster_report import cluster_sections
from simulator.output.report import (
    Block,
    decode_report,
    speculate_report,
    speculate_sentence,
)
from simulator.output.simulation_report import (
    class_sections,
    confidence_section,
    interval_section,
    remarks,
    simulation_section,
    simulation_sentence,
    warnings,
)
from simulator.output.tables import Section
from simulator.pass_work import pass_works
from simulator.planning.crossover import SpeculateResult
from simulator.scenario import Scenario
from simulator.serving.intervals import Intervals
from simulator.serving.simulation import SimulationResult


def decode_page(result: DecodeResult, timeline: Timeline | None = None) -> str:
    """A decode step taken apart, as HTML."""
    schedule = timeline or result.timeline()
    tag = style.tag_of(result.deployment)
    part = HtmlPart(
        title=f"Why is decoding slow? {result.deployment.target.decoder.name} on {result.deployment.gpu.title}",
        verdict=result.verdict,
        conditions=rows.decode_conditions(result),
        tables=_sections(decode_report(result)),
        figures=[
            breakdown.cause_figure(result),
            timelines.gantt_figure(schedule, tag),
            timelines.gantt_figure(schedule, tag, 1, min(timelines.TILE_LAYERS, schedule.layers)),
            breakdown.operator_figure(result),
            roofline.roofline_figure(result, pass_works(result), measured_points(result.deployment.gpu)),
            breakdown.memory_figure(result.budget, tag),
        ],
    )
    return html_page([part], decode_call(result))


def speculate_page(result: SpeculateResult, more: Sequence[Section] = (), notes: Sequence[str] = ()) -> str:
    """Speed-up over batch and γ, as HTML; `more` tables and `notes` of the command line."""
    part = HtmlPart(
        title=f"What does speculation buy? {result.deployment.target.decoder.name} on {result.deployment.gpu.title}",
        verdict=speculate_sentence(result),
        conditions=rows.speculate_conditions(result),
        tables=[*_sections(speculate_report(result)), *more],
        notes=notes,
        figures=[speedup.speedup_figure(result), gamma_map.gamma_figure(result)],
    )
    return html_page([part], speculate_call(result))


def simulation_page(result: SimulationResult, intervals: Intervals | None = None, notes: Sequence[str] = ()) -> str:
    """A simulated scenario, as HTML; `notes` of the command line."""
    scenario = result.scenario
    compared = gains.difference_figure(result)
    figures = [] if compared is None else [compared]
    figures += [serving.latency_figure(result, latency) for latency in serving.LATENCIES]
    figures += [serving.load_figure(result), serving.arrivals_figure(result)]
    ends = serving.ends_figure(result)
    if ends is not None:
        figures.append(ends)
    histogram = serving.tokens_per_round_figure(result)
    if histogram is not None:
        figures.append(histogram)
    tables = [simulation_section(result), *cluster_sections(result)]
    if len(result.main.summary.classes) > 1:
        tables += class_sections(result)
        drawn = (classes.classes_figure(result, latency) for latency in serving.LATENCIES)
        figures += [figure for figure in drawn if figure is not None]
    confidence = confidence_section(result)
    if confidence is not None:
        tables.append(confidence)
    if intervals is not None:
        tables.append(interval_section(result, intervals))
        figures.append(serving.interval_figure(result, intervals))
    kinds = result.main.kinds
    different = {(kind.deployment.gpu.name, kind.budget): i for i, kind in reversed(list(enumerate(kinds)))}
    for i in sorted(different.values()):
        of = f"{kind_names(kinds)[i]}; " if len(kinds) > 1 else ""
        figures.append(breakdown.memory_figure(kinds[i].budget, of + style.tag_of(kinds[i].deployment)))
    part = HtmlPart(
        title=scenario.title or f"Many users: {scenario.model} on {gpus_of_all(kinds)}",
        verdict=simulation_verdict(result),
        conditions=rows.simulation_conditions(result),
        tables=tables,
        notes=notes,
        figures=figures,
    )
    return html_page([part], scenario_yaml(scenario))


def simulation_verdict(result: SimulationResult) -> str:
    """What speculation bought, or what users see; before it whatever puts a figure in question, after it what else to know."""
    whole = len(result.runs) > 1 and not rows.interruption(result)
    sentence = simulation_sentence(result) if whole else plain_sentence(result)
    return " ".join([*warnings(result), sentence, *remarks(result)])


def plain_sentence(result: SimulationResult) -> str:
    """What users see where nothing speculates."""
    found = result.main.summary
    if not found.measured:
        return "No request outside of the warm-up has finished."
    after = f" and {units.show(found.tpot_s.p50, 's')} for each token after it" if found.tpot_s.n else ""
    return (
        f"{found.measured:,} requests: half of them wait at most {units.show(found.ttft_s.p50, 's')} for the first token{after}; "
        f"{found.output_tokens_per_s:,.0f} output tokens/s in all."
    )


# --- what reproduces a result -----------------------------------------------------------------------------------------
def scenario_yaml(scenario: Scenario) -> str:
    """The scenario as the YAML file that gives it back; engine, γ and seed are written out even where they are defaults."""
    data = scenario.model_dump(mode="json", exclude_defaults=True)
    data = {**data, "engine": scenario.engine.model_dump(mode="json", exclude_none=True), "seed": scenario.seed}
    if scenario.speculation is not None:
        data["speculation"] = {**data["speculation"], "gamma": scenario.speculation.gamma}
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None))


def decode_call(result: DecodeResult) -> str:
    """The Python call that gives this step again."""
    arguments = f"batch={result.batch}, context_tokens={result.context_tokens}, new_tokens={result.new_tokens}"
    return f"{deploy_call(result.deployment)}\nresult = decode(deployment, {arguments})\n"


def speculate_call(result: SpeculateResult) -> str:
    """The Python call that gives this grid again."""
    return (
        f"{deploy_call(result.deployment)}\n"
        f"acceptance = Acceptance({result.acceptance.rates!r}, {result.acceptance.request_icc!r}, "
        f"{result.acceptance.match_probability!r})\n"
        f"result = speculate(deployment, acceptance, gammas={list(result.gammas)!r}, batches={list(result.batches)!r}, "
        f"context_tokens={result.context_tokens})\n"
    )


def deploy_call(deployment: Deployment) -> str:
    target = deployment.target
    names = "Acceptance, EngineChoice, Quantization, decode, deploy, speculate"
    changed = target.quantization.model_dump(exclude_defaults=True)
    quantization = ", ".join(f"{k}={v!r}" for k, v in changed.items())
    settings = ", ".join(f"{k}={v!r}" for k, v in deployment.engine.settings.model_dump().items())
    draft = f", draft={deployment.drafter.name!r}" if deployment.drafter else ""
    experts = target.experts
    spread = {"ep": experts.ep, "expert_skew": experts.skew, "expert_exponent": experts.exponent}
    several: dict[str, object] = {"pp": target.pp} if target.pp > 1 else {}
    several |= spread if experts != SPLIT_EVENLY else {}
    several |= {"network": target.network.name} if several else {}
    more = "".join(f"{name}={value!r}, " for name, value in several.items())
    made_up = "from simulator.hardware import load_gpu, what_if\n" if target.gpu.what_if is not None else ""
    return (
        f"from simulator import {names}\n{made_up}\n"
        f"engine = EngineChoice(name={deployment.engine.name!r}, {settings})\n"
        f"deployment = deploy({target.decoder.name!r}, {_gpu_call(target.gpu)}, tp={target.tp}, {more}engine=engine, "
        f"link={target.link.name!r}, quantization=Quantization({quantization}){draft})"
    )


def _gpu_call(gpu: Gpu) -> str:
    wish = gpu.what_if
    if wish is None:
        return repr(gpu.name)
    return f"what_if(load_gpu({wish.of.name!r}), hbm_bandwidth_factor={wish.hbm_bandwidth_factor!r})"


def _sections(report: Sequence[Block]) -> list[Section]:
    """The tables of what the command line prints; a page has its own sentences."""
    return [block for block in report if isinstance(block, Section)]
