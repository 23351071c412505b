"""The search over candidates: every combination of GPU type, TP, formats and drafting, in closed form, for one load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from simulator import catalog
from simulator.architecture import Decoder, load_decoder
from simulator.cost.efficiency import load_efficiency
from simulator.deployment import EngineChoice
from simulator.errors import DoesNotFit, InputError
from simulator.hardware import load_gpu
from simulator.memory import MemoryBudget
from simulator.planning.bench import Bench, Benches
from simulator.planning.candidates import Asked, Candidate, Plans, Rejected, Why
from simulator.planning.capacity import Capacity, Level
from simulator.planning.steady_state import open_loop
from simulator.planning.step_prices import PLAIN_DECODING, Drafting
from simulator.planning.work import Work
from simulator.quantization import Quantization, WeightFormat
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.drafters import Drafter, check_pair, load_drafter
from simulator.units import show

TPS = (1, 2, 4, 8)
FORMATS: tuple[str, ...] = get_args(WeightFormat)
"""Formats of the weights that can be asked for; ``model``: as in the checkpoint."""
BENCHES = Benches()
"""What a process has found so far."""


@dataclass(frozen=True)
class DraftOption:
    """A drafter to try, beside plain decoding."""

    drafter: str
    """Bundled name or path."""
    gammas: tuple[int, ...] = (1, 3, 5)
    """Drafts per round."""
    acceptance: AcceptanceConfig | None = None
    """None: as published for it."""


def find_plans(
    model: str | Decoder,
    rate_per_s: float,
    work: Work,
    level: Level,
    *,
    gpus: Sequence[str],
    tps: Sequence[int] = TPS,
    formats: Sequence[str] = ("model",),
    drafts: Sequence[DraftOption] = (),
    engine: str | EngineChoice = "vllm",
    prices_usd_per_h: Mapping[str, float] | None = None,
    base: Path | None = None,
    benches: Benches = BENCHES,
    progress: Callable[[int, int], None] | None = None,
) -> Plans:
    """Every combination of `gpus`, `tps`, `formats` and plain decoding or one of `drafts`, for `rate_per_s` requests of `work`.

    `prices_usd_per_h`: USD per hour of one GPU by name, instead of those in the profiles. `benches` keeps what does not depend
    on the load for the next call. `progress` is called with targets tried and targets in all; what it raises ends the search.

    Raises InputError or UnknownName for what cannot be asked; what cannot serve is among `Plans.rejected`.
    """
    decoder = load_decoder(model, base=base) if isinstance(model, str) else model
    _check(decoder, rate_per_s, work, level, gpus, tps, formats)
    devices = {gpu.name: gpu for gpu in (load_gpu(name, base=base) for name in gpus)}
    own = {load_gpu(name, base=base).name: _price(name, usd) for name, usd in (prices_usd_per_h or {}).items()}
    prices = {name: own.get(name, gpu.price_usd_per_s) for name, gpu in devices.items()}
    drafters = [(load_drafter(option.drafter, base=base), option) for option in drafts]
    ways = [(drafter, _draftings(drafter, option, decoder, work)) for drafter, option in drafters]
    quantizations = {name: _quantization(name) for name in formats}
    choice = EngineChoice(name=engine) if isinstance(engine, str) else engine
    search = _Search(Asked(rate_per_s, work, level), prices, benches)
    title, degrees, tried = choice.name, sorted(set(tps)), 0
    for gpu in devices.values():
        loaded, efficiency = choice.load(base, gpu), load_efficiency(gpu)
        title = loaded.title
        for tp in degrees:
            for name, quantization in quantizations.items():
                if progress is not None:
                    progress(tried, len(devices) * len(degrees) * len(quantizations))
                tried += 1
                try:
                    plain = benches.plain(decoder, gpu, tp, quantization, loaded, efficiency)
                except InputError as error:
                    why: Why = "format" if error.field.startswith("quantization") else "tp"
                    search.rejected.append(Rejected(gpu, tp, name, why, str(error)))
                    continue
                search.try_all(plain, name, ways)
    return Plans(
        decoder, title, search.asked, tuple(devices.values()), prices, frozenset(own) & frozenset(devices),
        tuple(search.candidates), tuple(search.rejected),
    )  # fmt: skip


def auto_draft(model: str | Decoder, gammas: Sequence[int] = (1, 3, 5), base: Path | None = None) -> DraftOption | None:
    """The bundled drafter to try first for `model`: one that was made for it and has published acceptance, heads on its
    features before models of their own (their drafts cost least). None where there is none."""
    decoder = load_decoder(model, base=base) if isinstance(model, str) else model
    found = []
    for name in catalog.names("drafter"):
        drafter = load_drafter(name)
        if decoder.name in drafter.targets and drafter.acceptance is not None and not drafter.draft_gpus:
            found.append(drafter)
    order = ("eagle3", "mtp", "eagle", "medusa", "model")
    best = min(found, key=lambda d: (order.index(d.kind) if d.kind in order else len(order), d.name), default=None)
    return None if best is None else DraftOption(best.name, tuple(gammas))


class _Search:
    """Tries one deployment after the other."""

    def __init__(self, asked: Asked, prices: Mapping[str, float | None], benches: Benches):
        self.asked, self.prices, self.benches = asked, prices, benches
        self.candidates: list[Candidate] = []
        self.rejected: list[Rejected] = []

    def try_all(self, plain: Bench, format_: str, ways: Sequence[tuple[Drafter, Sequence[Drafting]]]) -> None:
        """Plain decoding and all `ways` to draft on one target."""
        if (missing := _missing(plain.budget(0))) is not None:  # with a drafter less fits
            self._reject(plain, format_, None, "memory", missing)
            return
        self._try(plain, format_, PLAIN_DECODING)
        for drafter, draftings in ways:
            try:
                bench = self.benches.beside(plain, drafter)
            except InputError as error:
                refused = Rejected(
                    plain.deployment.gpu, plain.deployment.target.tp, format_, "drafter", str(error), drafter.name
                )
                self.rejected.append(refused)
                continue
            for drafting in draftings:
                if (missing := _missing(bench.budget(drafting.shape.nodes))) is not None:
                    self._reject(bench, format_, drafting, "memory", missing)
                else:
                    self._try(bench, format_, drafting)

    def _try(self, bench: Bench, format_: str, drafting: Drafting) -> None:
        asked, deployment = self.asked, bench.deployment
        try:
            found = bench.capacity(drafting, asked.work, asked.level)
        except DoesNotFit as error:
            self._reject(bench, format_, drafting, "memory", str(error))
            return
        if not found.enough:
            why, reason = unloaded_reason(found)
            self._reject(bench, format_, drafting, why, reason, found)
            return
        replicas = max(1, math.ceil(asked.rate_per_s / found.rate_per_s - 1e-9))
        state = open_loop(found.curve, np.array([asked.rate_per_s / replicas]), asked.level.slo)
        self.candidates.append(
            Candidate(asked, deployment, format_, drafting, found, replicas, state, self.prices[deployment.gpu.name])
        )

    def _reject(
        self, bench: Bench, format_: str, drafting: Drafting | None, why: Why, reason: str, found: Capacity | None = None
    ) -> None:  # fmt: skip
        deployment = bench.deployment
        drafter = deployment.drafter.name if deployment.drafter else None
        gamma = drafting.shape.depth if drafting else None
        self.rejected.append(
            Rejected(deployment.gpu, deployment.target.tp, format_, why, reason, drafter, gamma, found)
        )


def unloaded_reason(found: Capacity) -> tuple[Why, str]:
    """Which objective is missed with nobody else there, and by how much."""
    curve, level = found.curve, found.level
    rates = np.array([float(found.unloaded.requests_per_s[0])])
    missed, said = [], []
    for name, label in (("tpot_s", "TPOT"), ("ttft_s", "TTFT")):
        limit = getattr(level.slo, name)
        if limit is None:
            continue
        alone = level.only(name)  # type: ignore[arg-type]
        state = open_loop(curve, rates, alone.slo)
        if alone.met(state)[0]:
            continue
        missed.append(label.lower())
        mean = float(getattr(found.unloaded, name)[0])
        if mean > limit:
            said.append(f"{label} is {show(mean, 's')} even unloaded, above {show(limit, 's')}")
        else:
            met = float(state.goodput_per_s[0] / state.requests_per_s[0])
            said.append(
                f"only {met:.0%} of requests keep a {label} of {show(limit, 's')} even unloaded (mean {show(mean, 's')})"
            )
    if not missed:
        return "both", "TTFT and TPOT are met one at a time, but too few requests meet both even unloaded"
    return ("both" if len(missed) > 1 else "tpot" if missed == ["tpot"] else "ttft"), "; ".join(said)


def _missing(found: MemoryBudget) -> str | None:
    """What is missing for one token of KV cache, in words; None where it fits."""
    if found.kv_bytes >= found.kv_bytes_per_token:
        return None
    needed = found.usable_bytes - found.kv_bytes + found.kv_bytes_per_token
    weights = found.weight_bytes + found.draft_weight_bytes
    return (
        f"needs {show(needed, 'bytes')} on each GPU ({show(weights, 'bytes')} of it weights), "
        f"more than the {show(found.usable_bytes, 'bytes')} the engine may use"
    )


def _draftings(drafter: Drafter, option: DraftOption, decoder: Decoder, work: Work) -> list[Drafting]:
    config = option.acceptance or drafter.acceptance
    if config is None:
        raise InputError("acceptance", "(absent)", f"be given for {drafter.name}, of which none is published")
    if not option.gammas or not all(1 <= g <= MAX_GAMMA for g in option.gammas):
        raise InputError("gamma", list(option.gammas), f"be at least one number, each between 1 and {MAX_GAMMA}")
    check_pair(decoder, drafter)
    _check_context(decoder, work, max(option.gammas))
    law = config.law(kind=drafter.kind)
    possible = [g for g in sorted(set(option.gammas)) if g <= drafter.most_drafts]
    if not possible:
        raise InputError("gamma", min(option.gammas), f"be at most the {drafter.most_drafts} drafts of {drafter.name}")
    return [Drafting(f"γ = {g}", drafter.shape(g), law) for g in possible]


def _check(
    decoder: Decoder, rate_per_s: float, work: Work, level: Level, gpus: Sequence[str], tps: Sequence[int], formats: Sequence[str]
) -> None:  # fmt: skip
    if not (math.isfinite(rate_per_s) and 0.0 < rate_per_s <= 1e6):
        raise InputError("rate", rate_per_s, "be above 0 and at most 1,000,000 requests per second")
    if not 0.0 < level.share < 1.0:
        raise InputError(
            "share", level.share, "be above 0 and below 1: no load is so small that every request is certain"
        )
    if level.slo.e2e_s is not None:
        raise InputError("e2e_s", level.slo.e2e_s, "be left out: plans are made for TTFT and TPOT")
    if work.output_tokens < 2.0:
        raise InputError("output", work.output_tokens, "be at least 2 tokens: a first one has no time per token")
    for field, values in (("gpus", gpus), ("tps", tps), ("formats", formats)):
        if not values:
            raise InputError(field, "(empty)", "name at least one")
    if not all(tp >= 1 for tp in tps):
        raise InputError("tps", list(tps), "be at least 1 each")
    _check_context(decoder, work, 0)


def _check_context(decoder: Decoder, work: Work, drafts: int) -> None:
    limit, longest = decoder.max_context_tokens, work.prompt_tokens + work.output_tokens
    if limit is not None and longest + drafts > limit:
        rule = f"leave room for prompt, answer and drafts in the {limit:,} tokens of context that {decoder.name} has"
        raise InputError("prompt", round(work.prompt_tokens), rule)


def _quantization(name: str) -> Quantization:
    if name not in FORMATS:
        raise InputError("formats", name, f"be one of {', '.join(FORMATS)}")
    return Quantization.model_validate({"weights": name})


def _price(name: str, usd_per_h: float) -> float:
    if not (math.isfinite(usd_per_h) and usd_per_h > 0.0):
        raise InputError(f"prices.{name}", usd_per_h, "be above 0 USD/h; leave it out where none is known")
    return usd_per_h / 3600.0
