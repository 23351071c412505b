"""How many GPUs? Every way to serve a load on hardware that is to be had, the cheapest of them, and whether it holds when simulated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from pydantic import Field

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.errors import InputError, UnknownName
from simulator.explorer.answer import Answer, Better, Download, Grid, Number, Plot, Tell, Uploads
from simulator.explorer.controls import Controls
from simulator.explorer.link import Settings
from simulator.explorer.page import Question
from simulator.figures import serving, style
from simulator.figures.candidates import candidates_figure, cheapest_figure
from simulator.figures.candidates_page import candidates_page
from simulator.figures.page import scenario_yaml
from simulator.hardware import gpu_aliases
from simulator.output.candidates_report import COLUMNS, cells, conditions, plan_text, sections, verdict
from simulator.output.evidence_report import columns_csv
from simulator.output.plan_check_report import check_conditions, check_section, check_sentence
from simulator.planning.candidate_search import FORMATS, DraftOption, auto_draft, find_plans
from simulator.planning.candidates import Candidate, Plans
from simulator.planning.capacity import Level
from simulator.planning.matching_drafters import drafters_for
from simulator.planning.plan_check import PlanCheck, check_cheapest, plan_scenario
from simulator.planning.work import Work
from simulator.serving.compiled import is_cold
from simulator.serving.first_call import compile_step_loop
from simulator.serving.simulation import Stopped
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.typical import doubt_sentence

T = TypeVar("T")
Checks = tuple[PlanCheck, ...]
LOADS = (
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.7,
    1,
    1.5,
    2,
    3,
    5,
    7,
    *(m * 10**d for d in (0, 1, 2) for m in (10, 15, 20, 30, 50, 70)),
)
PROMPTS = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16_384, 32_768, 65_536)
ANSWERS = (8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
TTFT_MS = (50, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10_000)
TPOT_MS = (3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200)
SHARES = (50, 75, 90, 95, 98, 99)
TPS = ("1", "2", "4", "8")
NONE = "none"
"""In the place of a drafter."""
MADE_FOR_IT = "the drafter made for the model"
_CONTROLS = {
    "rate": "load", "prompt": "prompt_tokens", "output": "answer_tokens", "gamma": "speculate", "draft": "speculate",
    "target": "speculate", "model": "model", "alpha": "acceptance",
}  # fmt: skip
"""Fields of what is called, by the control that holds them."""


class Load(Settings):
    """What has to be served, how well, and on what."""

    model: str = "llama-3.1-8b"
    """Bundled model."""
    load: int | float = 50
    """Requests per second; whole ones are shown as such."""
    prompt_tokens: int = 1024
    """Of every prompt."""
    answer_tokens: int = 256
    """Of the mean answer."""
    ttft_target_ms: int = Field(default=1000, ge=1)
    """Time to first token at most, ms."""
    tpot_target_ms: int = Field(default=40, ge=1)
    """Mean time per token after it at most, ms."""
    share: int = 95
    """Percent of the requests that must meet both."""
    gpus: tuple[str, ...] = ("h100-sxm", "h200-sxm", "b200", "a100-sxm-80gb", "l40s", "mi300x")
    """Bundled GPUs."""
    tps: tuple[str, ...] = TPS
    """GPUs that may share the model."""
    formats: tuple[str, ...] = ("model",)
    """Formats of the weights; ``model``: as in the checkpoint."""
    speculate: str = MADE_FOR_IT
    """`NONE`, `MADE_FOR_IT`, or a bundled drafter."""
    acceptance: float | None = None
    """Conditional acceptance rate, the same at every depth; None: as published."""
    engine: str = "vllm"
    """Bundled engine."""
    prices: str = ""
    """USD per hour of one GPU, e.g. ``h100-sxm=2.1, b200=5``; those left out are as in the profiles."""
    check: bool = False
    """Whether the cheapest plan is simulated."""


class HowManyGpus(Question[Load]):
    """The page."""

    path = "gpus"
    title = "How many GPUs?"
    settings = Load
    slow = True  # a warm one comes before anybody sees progress; many GPUs, or a check, take seconds

    def controls(self, draw: Controls) -> Load:
        """Load and objectives first, then what is to be had."""
        chosen: dict[str, object] = {
            "model": draw.choice("model", "Model", catalog.names("model")),
            "load": draw.steps("load", "Requests per second", LOADS),
            "prompt_tokens": draw.steps("prompt_tokens", "Tokens of a prompt", PROMPTS),
            "answer_tokens": draw.steps("answer_tokens", "Tokens of an answer, on average", ANSWERS),
            "ttft_target_ms": draw.steps("ttft_target_ms", "Objective: TTFT at most, ms", TTFT_MS),
            "tpot_target_ms": draw.steps("tpot_target_ms", "Objective: TPOT at most, ms", TPOT_MS),
            "share": draw.steps("share", "Requests that must meet both, %", SHARES),
            "check": draw.toggle(
                "check", "Check the cheapest by simulation", help="10,000 requests or more, on the GPUs of the cheapest plan."
            ),
            "gpus": draw.several("gpus", "GPUs to choose from", catalog.names("gpu")),
            "prices": draw.text(
                "prices", "Your prices, USD per GPU and hour", placeholder="h100-sxm=2.1, b200=5",
                help="GPUs that are left out keep their dated list price, which stands below the figures.",
            ),
            "tps": draw.several("tps", "GPUs that share the model (tensor parallel)", TPS),
            "formats": draw.several("formats", "Formats of the weights", FORMATS, help="model: as in the checkpoint."),
        }  # fmt: skip
        model = str(chosen["model"])
        chosen["speculate"] = draw.choice(
            "speculate", "Speculation", [NONE, MADE_FOR_IT, *_drafters(model)], help="Tried beside plain decoding, with γ = 1, 3, 5."
        )  # fmt: skip
        if chosen["speculate"] != NONE:
            chosen["acceptance"] = draw.maybe(
                "acceptance", "Conditional acceptance rate", 0.0, 1.0, 0.05, otherwise="as published"
            )
        chosen["engine"] = draw.choice("engine", "Engine", catalog.names("engine"))
        return Load(**chosen)

    def answer(self, settings: Load, uploads: Uploads, tell: Tell) -> Answer:
        """All plans, and the simulation of the cheapest where it is asked for. Raises MemwallError, and Stopped where `tell.stop`
        is set before there is anything to keep."""
        # A link may hold anything, a path on this machine too: only what is bundled is read.
        _known("model", [settings.model], catalog.names("model"), "model")
        _known("gpus", settings.gpus, catalog.names("gpu"), "GPU")
        _known("engine", [settings.engine], catalog.names("engine"), "engine")
        _known("tps", settings.tps, TPS, "number of GPUs")
        draft, notes = _draft(settings)
        plans = _plans(settings, draft, tell)
        notes += _doubt(plans.chosen, draft)
        checks = _checked(plans, draft, tell) if settings.check else ()
        if settings.check and not checks:
            notes.append("There is no plan to simulate.")
        return _answer(settings, plans, draft, checks, notes)


# --- what is asked ----------------------------------------------------------------------------------------------------
@lru_cache(64)
def _drafters(model: str) -> tuple[str, ...]:
    return tuple(drafters_for(load_decoder(model)))


@lru_cache(64)
def _made_for(model: str) -> DraftOption | None:
    return auto_draft(model)


def _draft(settings: Load) -> tuple[DraftOption | None, list[str]]:
    """What is tried beside plain decoding, and what should be known about that."""
    if settings.speculate == NONE:
        return None, []
    acceptance = None if settings.acceptance is None else AcceptanceConfig(alpha=settings.acceptance)
    if settings.speculate != MADE_FOR_IT:
        _known("speculate", [settings.speculate], _drafters(settings.model), f"drafter for {settings.model}")
        return DraftOption(settings.speculate, acceptance=acceptance), []
    found = _made_for(settings.model)
    if found is None:
        return None, [
            f"No bundled drafter with a published acceptance was made for {settings.model}: plain decoding only."
        ]
    return DraftOption(found.drafter, found.gammas, acceptance), []


def _doubt(plan: Candidate | None, draft: DraftOption | None) -> list[str]:
    """What one published number leaves open of the rounds of the cheapest plan."""
    if plan is None or plan.drafter is None or draft is None:
        return []
    config = draft.acceptance or plan.drafter.acceptance
    doubt = None if config is None else doubt_sentence(config, plan.drafter.kind, plan.gamma)
    return [doubt] if doubt else []


def _plans(settings: Load, draft: DraftOption | None, tell: Tell) -> Plans:
    def told(done: int, of: int) -> None:
        tell("GPUs, shares and formats tried", done, of)
        if tell.stop.is_set():
            raise Stopped("Stopped before all GPUs were tried. Change a control to ask again.")

    try:
        return find_plans(
            settings.model, settings.load, Work.of_lengths(settings.prompt_tokens, settings.answer_tokens),
            Level(Slo(ttft_s=settings.ttft_target_ms / 1e3, tpot_s=settings.tpot_target_ms / 1e3), share=settings.share / 100.0),
            gpus=settings.gpus, tps=[int(tp) for tp in settings.tps], formats=settings.formats, drafts=[draft] if draft else [],
            engine=settings.engine, prices_usd_per_h=prices_of(settings.prices), progress=told,
        )  # fmt: skip
    except InputError as error:
        field = _CONTROLS.get(error.field.rsplit(".", maxsplit=1)[-1])
        if field is None or isinstance(error, UnknownName):
            raise
        raise InputError(field, error.value, error.rule, suggestion=error.suggestion) from None


def prices_of(text: str) -> dict[str, float]:
    """USD per hour by bundled GPU, of ``h100-sxm=2.1, b200=5``. Raises InputError."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.replace(";", ",").split(","))):
        name, sign, number = (p.strip() for p in part.partition("="))
        if not sign or not name:
            raise InputError("prices", part, "be GPUs and USD per hour, such as h100-sxm=2.1, b200=5")
        gpu = _gpu_names().get(name.lower())
        if gpu is None:
            raise UnknownName("prices", name, catalog.names("gpu"), kind="GPU")
        try:
            usd = float(number.removeprefix("$"))
        except ValueError:
            raise InputError("prices", part, "have a number of USD per hour after the sign, such as b200=5") from None
        if not 0.0 < usd <= 1e6:
            raise InputError("prices", part, "be above 0 and at most 1,000,000 USD per hour")
        found[gpu] = usd
    return found


@lru_cache(1)
def _gpu_names() -> Mapping[str, str]:
    known = {name: name for name in catalog.names("gpu")} | gpu_aliases()
    return {alias.lower(): name for alias, name in known.items()}


def _known(field: str, names: Iterable[str], known: Collection[str], kind: str) -> None:
    for name in names:
        if name not in known:
            raise UnknownName(field, name, known, kind=kind)


def _checked(plans: Plans, draft: DraftOption | None, tell: Tell) -> Checks:
    if is_cold():
        tell("Compiling the step loop, which is done once", 0, 0)
    compile_step_loop()

    def told(variant: str, done: int, of: int) -> None:
        tell(f"Simulating {style.VARIANT_NAMES.get(variant, variant)}", done, of)

    checks = check_cheapest(plans, told, acceptance=draft.acceptance if draft else None, stop=tell.stop)
    if tell.stop.is_set():
        raise Stopped("Stopped before the simulation was there. Switch the check off to see the plans alone.")
    return checks


# --- the answer -------------------------------------------------------------------------------------------------------
def _answer(settings: Load, plans: Plans, draft: DraftOption | None, checks: Checks, notes: list[str]) -> Answer:
    acceptance = draft.acceptance if draft else None
    downloads = [Download("All plans as CSV", "plans.csv", "text/csv", lambda: columns_csv(_columns(plans)))]
    code: dict[str, str] = {}
    shown = {"The cheapest plan": ("plan", plans.chosen)}
    if len(checks) > 1 and checks[-1].holds:
        shown["The plan that holds"] = ("plan-that-holds", checks[-1].plan)
    for title, (name, plan) in shown.items():
        if plan is not None:
            text = scenario_yaml(plan_scenario(plan, acceptance=acceptance))
            code[f"{title} as scenario YAML"] = text
            downloads.append(
                Download(f"{title} as scenario", f"{name}.yaml", "application/yaml", partial(_as_is, text))
            )
    if code:
        code["Simulate it on the command line"] = "memwall simulate plan.yaml --html plan.html\n"
    code["In Python"] = python = _python(settings, draft)
    plots = [Plot("candidates", partial(candidates_figure, plans))]
    if plans.candidates:
        plots.append(Plot("cheapest", partial(cheapest_figure, plans)))
    said, more, drawn, sentence = conditions(plans), sections(plans), [], ""
    if checks:
        # Figures are drawn now, so that the answer does not hold the requests of a simulation.
        drawn = [serving.latency_figure(checks[0].result, latency) for latency in serving.LATENCIES[:2]]
        plots += [Plot(f"check-{i}", partial(_as_is, figure), wide=False) for i, figure in enumerate(drawn)]
        more = [check_section(checks), *more]
        method = check_conditions(checks)
        said, sentence = [*(c for c in said if c[0] not in dict(method)), *method], check_sentence(checks)
    found = [verdict(plans), sentence] if not checks or checks[0].holds else [sentence, verdict(plans)]
    said_all = " ".join(filter(None, found))
    page = partial(candidates_page, plans, said_all, said, more, drawn, python, notes=notes)
    downloads.append(Download("This page as HTML", "gpus.html", "text/html", page))
    return Answer(
        verdict=said_all,
        conditions=said,
        numbers=_numbers(plans.chosen, checks[0] if checks else None),
        plots=plots,
        sections=[s._replace(title=s.title[:1].upper() + s.title[1:]) for s in more],
        grids=[Grid("All plans as a table", lambda: _columns(plans))],
        downloads=downloads,
        notes=notes,
        code=code,
    )


def _numbers(plan: Candidate | None, check: PlanCheck | None) -> list[Number]:
    note = "no plan meets the objectives" if plan is None else plan_text(plan)

    def number(label: str, value: float | None, dimension: str, better: Better, said: str = note) -> Number:
        return Number(label, None if value is None else float(value), dimension, better, said)

    def of(field: str) -> float | None:
        return None if plan is None else getattr(plan, field)

    usd_per_h = None if plan is None or plan.usd_per_s is None else plan.usd_per_s * 3600.0
    found = [
        number("USD per hour", usd_per_h, "usd", "lower"),
        number("Per million tokens", of("usd_per_million_tokens"), "usd", "lower", "output tokens at this load"),
        number("GPUs", of("gpus"), "", "lower"),
        number("TPOT, mean", of("tpot_s"), "s", "lower"),
        number("TTFT, mean", of("ttft_s"), "s", "lower"),
        number("Meet the objectives", of("share_met"), "%", "higher", "of the requests, in closed form"),
        number("Tokens/s per GPU", of("tokens_per_s_per_gpu"), "", "higher", "output tokens"),
        number("J per token", of("joules_per_token"), "", "lower", "every GPU at its TDP: an estimate, and an upper one"),
    ]  # fmt: skip
    if check is not None:
        width = check.share_width
        said = f"{check.result.main.summary.measured:,} simulated requests"
        said += "" if width is None else f"; other draws: ± {width.half_width:.2%} with 90 %"
        found.insert(6, number("Meet them, simulated", check.share_met, "%", "higher", said))
    return found


def _as_is(made: T) -> T:
    return made


def _columns(plans: Plans) -> dict[str, list[object]]:
    rows = cells(plans)
    return {name: [row[name] for row in rows] for name in COLUMNS}


def _python(settings: Load, draft: DraftOption | None) -> str:
    """The call that gives these plans again."""
    work = f"Work.of_lengths({settings.prompt_tokens}, {settings.answer_tokens})"
    level = f"Level(Slo(ttft_s={settings.ttft_target_ms / 1e3:g}, tpot_s={settings.tpot_target_ms / 1e3:g}), share={settings.share / 100:g})"
    imports = [
        "from simulator.output.candidates_report import verdict",
        f"from simulator.planning.candidate_search import {'DraftOption, ' if draft else ''}find_plans",
        "from simulator.planning.capacity import Level",
        "from simulator.planning.work import Work",
        "from simulator.slo import Slo",
    ]
    drafts = ""
    if draft is not None:
        acceptance = ""
        if draft.acceptance is not None:
            acceptance = f", AcceptanceConfig(alpha={draft.acceptance.alpha!r})"
            imports.append("from simulator.speculation.acceptance import AcceptanceConfig")
        drafts = f"    drafts=[DraftOption({draft.drafter!r}, {draft.gammas!r}{acceptance})],\n"
    prices = prices_of(settings.prices)
    return (
        "\n".join(imports)
        + f"\n\nplans = find_plans(\n    {settings.model!r}, {settings.load:g}, {work},\n    {level},\n    gpus={settings.gpus!r},\n"
        f"    tps={tuple(map(int, settings.tps))!r}, formats={settings.formats!r}, engine={settings.engine!r},\n{drafts}"
        + (f"    prices_usd_per_h={prices!r},\n" if prices else "")
        + ")\nprint(verdict(plans))\n"
    )
