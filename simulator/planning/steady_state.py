"""A replica under steady load in closed form: how long steps, answers and queues are at each number of requests.

In step with each other, every request goes through a cycle of w + n + M steps: it joins (w), its prompt is read in n pieces,
and its answer takes M rounds. Seen by one of b requests, the b − 1 others are anywhere in their cycles (arrival theorem), so
beside it (b − 1)·M/(w + n + M) decode and (b − 1)·n/(w + n + M) pieces of prompts come per step. That gives the length of
the cycle, W(b), and with Little's law the rate b / W(b) at which b requests are served.

A closed loop of N users who ask again at once is b = N, up to the batch that the KV cache and the engine allow. Under open
load of rate λ the number of requests is a birth-death chain that goes down from b at rate b / W(b): its law is that of
processor sharing whatever the lengths (Cohen, Acta Informatica 12, 1979), and beyond the largest batch that of a queue whose
wait is corrected for the lengths' variation by (1 + cv²)/2 (Allen and Cunneen).

Left out: preemption while the KV cache is full, prefix hits, and answers that end within the round that their prompt ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.errors import DoesNotFit, InputError
from simulator.memory import MemoryBudget
from simulator.operators import FloatArray
from simulator.planning.step_prices import DeploymentTables, Drafting, Parts, StepPrices
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import chain_tokens

QUEUED = 0.02
"""Share of a request's stay that it may spend in queues, for the batch or for its prompt's turn, where a load is said to be
carried: what waits there does not decode, and makes the others quicker by as much."""
_REQUESTS = 512
"""Requests whose luck stands for that of all."""


@dataclass(frozen=True)
class Curve:
    """One way to draft at one work: everything by the number of requests in the batch, 1 … `most` [most]."""

    drafting: Drafting
    work: Work
    budget: MemoryBudget
    room: float
    """Sequences that the KV cache holds at once, on average over their lives."""
    rounds: float
    """Rounds of one answer."""
    parts: Parts
    """A step that a decoding sequence sees, prompts that are read beside it included."""
    alone: Parts
    """The same step without prompts."""
    stay_s: FloatArray
    """W(b): from joining the batch to the last token."""
    first_s: FloatArray
    """Of this, up to the first token."""
    line_s: FloatArray
    """Of that, waiting for other prompts to be read, where they come faster than the token budget reads them."""

    @property
    def most(self) -> int:
        """Requests in the batch at most."""
        return len(self.stay_s)

    @cached_property
    def tpot_s(self) -> FloatArray:
        """Mean time per output token after the first."""
        return (self.stay_s - self.first_s) / (self.work.output_tokens - 1.0)

    @cached_property
    def luck(self) -> FloatArray:
        """TPOT of single requests over the mean one, sorted [requests]."""
        return _luck(self.drafting, self.work.output_tokens - 1.0)

    @cached_property
    def requests_per_s(self) -> FloatArray:
        """b / W(b)."""
        return np.arange(1.0, self.most + 1.0) / self.stay_s


@dataclass(frozen=True)
class Load:
    """Steady states of one curve at several loads [loads]."""

    batch: FloatArray
    """Requests in the batch, mean over time."""
    waiting: FloatArray
    """Requests that wait for a place in it, mean over time; infinite where there is no steady state."""
    tpot_s: FloatArray
    """Mean over requests."""
    ttft_s: FloatArray
    """Mean; infinite where the queue only grows."""
    requests_per_s: FloatArray
    goodput_per_s: FloatArray
    """Requests that meet the objectives, per second."""
    carried: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    """Whether the load finds room: requests queue for at most `QUEUED` of their stay, and no queue only grows."""


def curve(tables: DeploymentTables, drafting: Drafting, work: Work, memory: MemoryBudget | None = None) -> Curve:
    """The curve of `drafting`; `memory`: what `Deployment.fit` finds for it, where that is known. Raises DoesNotFit where weights
    leave no room for one sequence of it, InputError where the token budget does not hold one round."""
    deployment, shape = tables.deployment, drafting.shape
    settings = deployment.engine.settings
    budget = memory or deployment.fit(gamma=shape.nodes)
    look_ahead = shape.nodes + 1
    held = budget.held_bytes(work.context_tokens + look_ahead + settings.block_tokens / 2.0, hybrid=settings.hybrid_kv)
    room = budget.kv_bytes / held
    if room < 1.0:
        held_tokens = math.ceil(work.context_tokens + look_ahead)
        raise DoesNotFit(f"the KV cache has no room for one sequence of {held_tokens:,} tokens with {drafting.name}")
    if settings.max_batched_tokens <= look_ahead:
        rule = f"be above the {look_ahead} tokens of a round"
        raise InputError("max_batched_tokens", settings.max_batched_tokens, rule, where="engine")
    most = max(1, min(settings.max_sequences, int(room), (settings.max_batched_tokens - 1) // look_ahead))
    prices = StepPrices(tables, drafting, work, most)
    batch = np.arange(1.0, most + 1.0)
    rounds = drafting.rounds(work.output_tokens - 1.0)
    # With overlapped scheduling a newcomer waits for the schedule after, unless nobody runs.
    joining = np.where(batch > 1.0, 1.0, 0.0) if settings.overlap else np.zeros(most)
    left = prices.budget_left(batch)
    largest = np.minimum(left, settings.prefill_chunk_tokens or np.inf)
    pieces = np.ceil(work.prompt_tokens / np.maximum(1.0, np.minimum(largest, work.prompt_tokens)))
    cycle = joining + pieces + rounds
    per_pass = np.minimum(left / (work.prompt_tokens / pieces), settings.prompts_per_pass or np.inf)
    # Where prompts come faster than the token budget reads them, they line up; the last one of a step takes what is left of it.
    flow = np.minimum(1.0, per_pass / (batch * pieces / cycle))
    others = batch - 1.0
    decoding, reading = others * rounds / cycle * flow, others * pieces / cycle * flow
    first_s, line_s = np.zeros(most), np.zeros(most)
    filled = [np.zeros(most) for _ in Parts._fields]
    for n in np.unique(pieces).tolist():
        here = pieces == n
        chunk = work.prompt_tokens / n
        seen = prices.parts(np.minimum(1.0 + decoding[here], most), reading[here], chunk, int(n))
        for whole, part in zip(filled, seen, strict=True):
            whole[here] = part
        own = prices.parts(decoding[here], 1.0 + reading[here], chunk, int(n))
        if settings.prefill == "first":  # while its prompt is read nobody decodes
            own = prices.parts(np.zeros(int(here.sum())), 1.0 + reading[here], chunk, int(n))
        line_s[here] = cycle[here] * (1.0 / flow[here] - 1.0) * seen.seconds
        first_s[here] = joining[here] * seen.seconds + n * own.seconds + line_s[here]
    parts = Parts(*filled)
    nobody = np.zeros(most)
    alone = prices.parts(np.minimum(1.0 + decoding, most), nobody, 0.0, 1)
    return Curve(drafting, work, budget, room, rounds, parts, alone, first_s + rounds * parts.seconds, first_s, line_s)


def closed_loop(curve: Curve, users: FloatArray, slo: Slo | None = None) -> Load:
    """Steady states with so many `users` [loads] who ask again as soon as they have their answer."""
    batch = np.minimum(users, float(curve.most))
    at = np.arange(1.0, curve.most + 1.0)
    tpot_s, first_s, rate = (np.interp(batch, at, x) for x in (curve.tpot_s, curve.first_s, curve.requests_per_s))
    waiting = users - batch
    ttft_s = first_s + waiting / rate
    objectives = slo or Slo()
    share = _share_within(curve, tpot_s, objectives)
    if objectives.ttft_s is not None:
        share = share * np.clip((objectives.ttft_s - ttft_s) / np.maximum(ttft_s, 1e-12) * 4.0 + 0.5, 0.0, 1.0)
    queued_s = waiting / rate + np.interp(batch, at, curve.line_s)
    carried = queued_s <= QUEUED * (ttft_s + tpot_s * (curve.work.output_tokens - 1.0))
    return Load(batch, waiting, tpot_s, ttft_s, rate, rate * share, carried)


def open_loop(curve: Curve, rates_per_s: FloatArray, slo: Slo | None = None) -> Load:
    """Steady states with Poisson arrivals of these rates [loads]."""
    objectives = slo or Slo()
    down = curve.requests_per_s
    top = float(down[-1])
    lam = np.asarray(rates_per_s, dtype=float)[:, None]
    # Π λ / down over 1 … b
    log_weight = np.log(lam) * np.arange(curve.most + 1.0) - np.concatenate([[0.0], np.cumsum(np.log(down))])
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    rho = lam[:, 0] / top
    steady = rho < 1.0
    share = np.where(steady, rho, 0.5)
    tail = weight[:, -1] * share / (1.0 - share)  # more requests than places
    total = weight.sum(axis=1) + tail
    p, p_tail = weight / total[:, None], tail / total
    b = np.arange(1.0, curve.most + 1.0)
    batch = p[:, 1:] @ b + p_tail * curve.most
    decoding = curve.tpot_s * (curve.work.output_tokens - 1.0) / curve.stay_s
    decode_s = (p[:, 1:] @ (b * decoding) + p_tail * curve.most * decoding[-1]) / lam[:, 0]
    start_s = (p[:, 1:] @ (b * (1.0 - decoding)) + p_tail * curve.most * (1.0 - decoding[-1])) / lam[:, 0]
    longer = (1.0 + curve.work.output_cv**2) / 2.0
    waiting = (p[:, -1] * share / (1.0 - share) ** 2) * longer
    mean_step_s = p[:, 1:] @ curve.parts.seconds + p_tail * float(curve.parts.seconds[-1])
    tpot_s = np.where(steady, decode_s / (curve.work.output_tokens - 1.0), curve.tpot_s[-1])
    ttft_s = np.where(steady, start_s + 0.5 * mean_step_s + waiting / lam[:, 0], np.inf)
    served = np.minimum(lam[:, 0], top)
    within = _share_within(curve, curve.tpot_s, objectives)
    good = p[:, 1:] @ within + p[:, 0] * within[0] + p_tail * within[-1]
    if objectives.ttft_s is not None:
        limit = objectives.ttft_s
        quick = np.clip((limit - curve.first_s) / curve.parts.seconds, 0.0, 1.0)
        soon = p[:, :-1] @ np.concatenate([quick[:1], quick[:-1]])
        room_s = max(0.0, limit - float(curve.first_s[-1]))
        late = np.exp(-top * (1.0 - share) / longer * room_s)
        good = good * np.minimum(1.0, soon + (p[:, -1] + p_tail) * (1.0 - late))
    good = np.where(steady | (objectives.ttft_s is None and objectives.e2e_s is None), good, 0.0)
    line_s = (
        p[:, 1:] @ (b * curve.line_s / curve.stay_s) + p_tail * curve.most * curve.line_s[-1] / curve.stay_s[-1]
    ) / lam[:, 0]
    queued_s = waiting / lam[:, 0] + line_s
    carried = steady & (queued_s <= QUEUED * (ttft_s + tpot_s * (curve.work.output_tokens - 1.0)))
    return Load(
        np.where(steady, batch, curve.most), np.where(steady, waiting, np.inf), tpot_s, ttft_s, served, served * good, carried
    )  # fmt: skip


def _share_within(curve: Curve, tpot_s: FloatArray, slo: Slo) -> FloatArray:
    """Share of requests whose TPOT meets the objectives where its mean is `tpot_s` [points].

    A request's TPOT is the mean's multiple by its own luck: 1/τ_r of its rates, and the noise of its n/τ rounds, whose
    relative standard deviation is √(Var X / (n·τ)).
    """
    limits = []
    n = curve.work.output_tokens - 1.0
    if slo.tpot_s is not None:
        limits.append(np.full_like(tpot_s, slo.tpot_s))
    if slo.e2e_s is not None:
        at = np.arange(1.0, curve.most + 1.0)
        first_s = np.interp(np.linspace(1.0, curve.most, len(tpot_s)), at, curve.first_s)
        limits.append((slo.e2e_s - first_s) / n)
    if not limits:
        return np.ones_like(tpot_s)
    limit = np.minimum.reduce(limits)
    luck = curve.luck
    return np.asarray(np.searchsorted(luck, limit / tpot_s, side="right") / len(luck))


def _luck(drafting: Drafting, tokens: float) -> FloatArray:
    """TPOT of single requests over the mean one, sorted [requests]."""
    law, depth = drafting.law, drafting.shape.depth
    if law is None or not depth:
        return np.ones(1)
    rates, row_of = law.stretch_rates(0, _REQUESTS, depth)
    state_tokens = 1.0 + law.match_probability ** (0 if law.matches_in_stretches else 1) * (chain_tokens(rates) - 1.0)
    weights = law.stretch_weights
    own = 1.0 / ((weights / state_tokens).sum(axis=-1) if state_tokens.ndim > 1 else 1.0 / state_tokens)
    slowness = 1.0 / own[row_of]
    tau = drafting.tokens_per_round
    variance = max(0.0, drafting.square_tokens - tau**2)
    noise = math.sqrt(variance / (max(tokens, 1.0) * tau))
    from scipy.special import ndtri

    order = np.argsort((np.arange(_REQUESTS) * 0.6180339887498949) % 1.0)  # spread evenly over the requests
    quantile = (order + 0.5) / _REQUESTS
    return np.sort(slowness / slowness.mean() * (1.0 + noise * ndtri(quantile)))
