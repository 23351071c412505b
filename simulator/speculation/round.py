"""One draft-verify round: what it costs, how many tokens it yields, what it wastes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from simulator.cost.forward import ForwardCost
from simulator.cost.tables import SECONDS
from simulator.engine import Engine
from simulator.operators import FloatArray
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.drafters import Drafter
from simulator.speculation.shape import PLAIN, DraftShape, chain
from simulator.speculation.tree_cost import tree_extra_s
from simulator.speculation.waste import Passes, RoundWork, attention_of, pass_sizes, round_works


class Ask(NamedTuple):
    """A round of `sequences` equal sequences to be priced."""

    sequences: int
    context_tokens: int
    shape: DraftShape = PLAIN
    tokens: float = 1.0
    """τ of `shape`: tokens that reach each user per round (`Acceptance.live_tokens`)."""
    match: float = 1.0
    """Share of the rounds of a sequence in which anything is drafted (`Acceptance.match_share`)."""
    drafter: bool = True
    """Whether a drafter is there at all, busy or not."""


@dataclass(frozen=True)
class RoundInputs:
    """The passes of a round."""

    target: ForwardCost
    draft: ForwardCost | None
    shape: DraftShape
    context_tokens: int
    full_share: float
    """Share of sequences that pass all nodes through the target, padded ones included."""
    read_tokens: float
    """Tokens of each sequence that are new to the drafter."""
    gpus: int
    """Of target and drafter together."""


@dataclass(frozen=True)
class RoundCost:
    """A round of `sequences` equal sequences, seconds on one tensor-parallel group."""

    sequences: int
    gamma: int
    """Drafts in a row that can be accepted: γ of a chain, the depth of a tree."""
    verify_s: float
    draft_s: float
    """What the round waits for the drafter's passes, host time left out; all of them, unless it has GPUs of its own."""
    host_s: float
    tokens_per_sequence: float
    """τ: tokens that reach each user per round, averaged over the rounds of a full batch (`Acceptance.live_tokens`)."""
    drafted_per_sequence: float
    """Tokens verified beside the one that a plain step computes (γ, or a tree's nodes), times the share of rounds that find a
    draft at all."""
    draft_busy_s: float = 0.0
    """The drafter's passes, whether the round waits for them or not."""
    inputs: RoundInputs | None = field(default=None, repr=False, compare=False)
    """What `work` is computed from."""
    known_work: RoundWork | None = field(default=None, repr=False, compare=False)
    """`work`, where `with_work` has computed it."""

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.verify_s + self.draft_s + self.host_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token of one sequence, a ratio of means."""
        return self.seconds / self.tokens_per_sequence

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences per second."""
        return self.sequences * self.tokens_per_sequence / self.seconds

    @property
    def wasted_tokens_per_sequence(self) -> float:
        """Drafted tokens per round that do not reach the user."""
        return self.drafted_per_sequence - (self.tokens_per_sequence - 1.0)

    @cached_property
    def work(self) -> RoundWork:
        """Bytes and FLOP of the round's passes, and of a plain step's."""
        if self.known_work is not None:
            return self.known_work
        return round_works(self._given.target, self._given.draft, [self._passes])[0]

    @property
    def wasted_flop_per_token(self) -> float:
        """FLOP that reach nobody, of all GPUs, per token that reaches a user: the drafter's own, and of verification's the share
        of tokens that were rejected or padding (`RoundWork.wasted_flop`)."""
        verified = 1.0 + self._given.shape.nodes * self._given.full_share
        return self.work.wasted_flop(1.0 - self.tokens_per_sequence / verified) / self._emitted

    @property
    def wasted_bytes_per_token(self) -> float:
        """HBM bytes of the round beyond those of one plain step, of all GPUs, per token that reaches a user."""
        return self.work.extra_bytes / self._emitted

    @property
    def bytes_per_token(self) -> float:
        """All HBM bytes of the round, of all GPUs, per token that reaches a user; below a plain step's where it pays."""
        return (self.work.verify.bytes_ + self.work.draft.bytes_) / self._emitted

    @property
    def joules_per_token(self) -> float:
        """An estimate: every GPU, those that only draft included, draws its TDP as long as the round takes."""
        given = self._given
        return given.gpus * given.target.gpu.tdp_w * self.seconds / self._emitted

    @property
    def wasted_joules_per_token(self) -> float:
        """An estimate: the TDP of the GPUs that do it, times the time of what a plain step would not do (all draft passes, and
        how much longer verification takes), per token that reaches a user."""
        given, power_w = self._given, self._given.target.gpu.tdp_w
        draft_gpus = given.draft.gpus if given.draft and given.gpus > given.target.gpus else given.target.gpus
        gpu_s = given.target.gpus * (self.verify_s - self.work.plain_verify_s) + draft_gpus * self.draft_busy_s
        return power_w * gpu_s / self._emitted

    @property
    def _given(self) -> RoundInputs:
        if self.inputs is None:
            raise ValueError("made by hand, this RoundCost does not know its passes")
        return self.inputs

    @property
    def _passes(self) -> Passes:
        given = self._given
        return Passes(given.shape, self.sequences, given.context_tokens, given.full_share, given.read_tokens)

    @property
    def _emitted(self) -> float:
        return self.sequences * self.tokens_per_sequence


def round_cost(
    target: ForwardCost,
    engine: Engine,
    *,
    sequences: int,
    context_tokens: int,
    gamma: int = 0,
    acceptance: Acceptance | None = None,
    draft: ForwardCost | None = None,
    drafter: Drafter | None = None,
    shape: DraftShape | None = None,
) -> RoundCost:
    """Cost of a round of `shape` (left out: of `gamma` drafts in a row by `drafter`); a plain decode step where it drafts nothing.

    Verification passes B·(nodes + 1) tokens through the target, of a tree with a mask (`tree_extra_s`). The first pass of a
    drafter with a KV cache of its own takes the τ tokens that the last round left behind, further ones `shape.pass_tokens` of
    each sequence (DESIGN §4). Without `draft` the drafts are looked up: only the share of sequences with a match is verified at
    full length. `acceptance` is a law of accepted drafts by depth, of a chain or of the tree whose shape is given. The host's
    work for a round is done where anybody has drafts; passes without a captured graph wait for their launches. On GPUs of its own
    the drafter works ahead, host time between its passes included (`waited_draft_s`).
    """
    if shape is None:
        shape = drafter.shape(gamma) if drafter else chain(gamma, passes=None if draft else 0)
    tau, match = expected(acceptance, shape.depth)
    return round_costs(
        target, engine, [Ask(sequences, context_tokens, shape, tau, match)], draft=draft, drafter=drafter
    )[0]


def expected(acceptance: Acceptance | None, depth: int) -> tuple[float, float]:
    """`Ask.tokens` and `Ask.match` of `depth` drafts in a row under this law."""
    return (acceptance.live_tokens(depth), acceptance.match_share(depth)) if acceptance and depth else (1.0, 1.0)


def round_costs(
    target: ForwardCost,
    engine: Engine,
    asks: Sequence[Ask],
    *,
    draft: ForwardCost | None = None,
    drafter: Drafter | None = None,
) -> list[RoundCost]:
    """`round_cost` of each of `asks`, their passes priced together, which takes little longer than one of them would."""
    plans = [_plan(engine, ask, draft if ask.drafter else None, drafter if ask.drafter else None) for ask in asks]
    verify_s = _at(
        lambda tokens: target.linear(tokens) + target.head(tokens),
        (_verified_tokens(target, p.ask.sequences, n, p.ask.shape.nodes) for p in plans for n in p.full),
    )
    draft_s = _DraftTimes(draft, plans) if draft else None
    return [_assembled(target, engine, plan, verify_s, draft_s) for plan in plans]


def with_work(costs: Sequence[RoundCost]) -> list[RoundCost]:
    """`costs` of one target and drafter, their `work` computed at once; each by itself would take as long as many together."""
    given = [cost._given for cost in costs]
    draft = next((g.draft for g in given if g.draft is not None), None)
    works = round_works(given[0].target, draft, [cost._passes for cost in costs]) if given else []
    return [replace(cost, known_work=work) for cost, work in zip(costs, works, strict=True)]


class _Plan(NamedTuple):
    """A round before its passes are priced."""

    ask: Ask
    draft: ForwardCost | None
    drafter: Drafter | None
    full: dict[int, float]
    """`verified_by`."""
    share: float
    """`RoundInputs.full_share`."""
    read: float
    """`RoundInputs.read_tokens`."""

    @property
    def drafts(self) -> bool:
        return self.draft is not None and self.ask.shape.passes > 0

    def sizes(self) -> tuple[FloatArray, FloatArray]:
        return pass_sizes(self.ask.shape, self.ask.sequences, self.read)


def _plan(engine: Engine, ask: Ask, draft: ForwardCost | None, drafter: Drafter | None) -> _Plan:
    full = verified_by(ask.sequences, ask.match, engine.settings.verify == "padded")
    share = sum(matched * weight for matched, weight in full.items()) / ask.sequences
    read = ask.tokens if engine.settings.draft_batch == "ragged" else ask.shape.depth + 1.0
    if engine.settings.draft == "before":  # the last token in the cache, and the one after it
        read = 2.0
    if drafter is not None and not drafter.reads_prompts:
        read = 1.0
    return _Plan(ask, draft, drafter, full, share, read)


class _DraftTimes:
    """Seconds of the drafter's passes in all `plans`, attention left out, by tokens and by rows."""

    def __init__(self, draft: ForwardCost, plans: Sequence[_Plan]):
        sizes = [plan.sizes() for plan in plans if plan.drafts]
        self.linear_s = _at(draft.linear, (t for tokens, _ in sizes for t in tokens.tolist()))
        self.head_s = _at(draft.head, (r for _, rows in sizes for r in rows.tolist()))
        self.intake_s: dict[float, float] = {}
        if isinstance(draft, DraftCost):
            intake = draft.intake
            self.intake_s = _at(lambda tokens: intake(tokens)[SECONDS], (tokens[0] for tokens, _ in sizes))

    def passes_s(self, plan: _Plan) -> FloatArray:
        """Of one round [passes], of which the first takes `read` tokens of each sequence."""
        (tokens, rows), ask, draft = plan.sizes(), plan.ask, plan.draft
        assert draft is not None
        pairs = zip(tokens.tolist(), rows.tolist(), strict=True)
        seconds = np.array([self.linear_s[t] + self.head_s[r] for t, r in pairs])
        seconds[0] += self.intake_s.get(tokens[0], 0.0)
        for passes, new, cached in attention_of(ask.shape, ask.context_tokens, plan.read):
            seconds[passes] += draft.attention((new,), (cached,), (ask.sequences,))
        return seconds


def _assembled(
    target: ForwardCost, engine: Engine, plan: _Plan, pass_s: dict[float, float], drafting: _DraftTimes | None
) -> RoundCost:
    ask, drafter = plan.ask, plan.drafter
    sequences, context_tokens, shape, tau, match = ask[:5]
    nodes = shape.nodes
    verify_s = verify_gap_s = 0.0
    for matched, weight in plan.full.items():
        one_s = pass_s[_verified_tokens(target, sequences, matched, nodes)]
        whole, full = _micro_batch(target, sequences, matched)
        one_s += target.attention((nodes + 1, 1), (context_tokens,) * 2, (full, whole - full))
        if matched:
            one_s += tree_extra_s(target, shape, matched, context_tokens, (tau - 1.0) / plan.share)
        verify_s += weight * one_s
        verify_gap_s += weight * _verify_gap_s(target, engine, sequences, matched, nodes, one_s)
    draft_s = between_s = 0.0
    if plan.draft is not None and drafting is not None and plan.drafts:
        passes_s = drafting.passes_s(plan)
        draft_s = float(passes_s.sum())
        widths, layers = (max(1, round(plan.read)), *shape.pass_tokens[1:]), plan.draft.decoder.layers
        between_s = shape.passes * engine.host_draft_pass_s + sum(
            engine.launch_gap_s(sequences, width, layers, s) for width, s in zip(widths, passes_s.tolist(), strict=True)
        )
    apart = drafter.exposed_share if drafter else 1.0
    waited_s, all_waited_s = (waited_draft_s(s, verify_s, apart) for s in (draft_s, draft_s + between_s))
    host_s = engine.host_s(
        sequences, speculating=nodes > 0, ngram=nodes > 0 and plan.draft is None, gpu_s=verify_s + all_waited_s,
    )  # fmt: skip
    if nodes:
        host_s -= engine.host_speculative_round_s * (1.0 - match) ** sequences  # nobody has drafts
    host_s += verify_gap_s + (all_waited_s - waited_s)
    gpus = target.gpus + (drafter.draft_gpus if drafter else 0)
    inputs = RoundInputs(target, plan.draft, shape, context_tokens, plan.share, plan.read, gpus)
    return RoundCost(sequences, shape.depth, verify_s, waited_s, host_s, tau, nodes * match, draft_s, inputs)


def _at(price: Callable[[FloatArray], FloatArray], points: Iterable[float]) -> dict[float, float]:
    """`price` at each of `points`, in one call."""
    wanted = sorted(set(points))
    return dict(zip(wanted, price(np.array(wanted, dtype=float)).tolist(), strict=True)) if wanted else {}


def verified_by(sequences: int, match: float, padded: bool) -> dict[int, float]:
    """How many sequences verify all nodes and the others one token, with the share of rounds in which it is so.

    Ragged: those with a match. A mean between two whole numbers of matches is their mixture, so that a batch of 1 with a match in
    40 % of its rounds pays for those 40 %. Padded: all of them, unless nobody has a match, (1 − match)^B.
    """
    if padded:
        nobody = (1.0 - match) ** sequences
        return {n: w for n, w in ((0, nobody), (sequences, 1.0 - nobody)) if w > 0.0}
    fewer = math.floor(sequences * match)
    share = sequences * match - fewer
    return {n: w for n, w in ((fewer, 1.0 - share), (fewer + 1, share)) if w > 0.0}


def waited_draft_s(draft_s: float, verify_s: float, exposed_share: float) -> float:
    """What drafting adds to a round, s: e·D + (1 − e)·max(0, D − V), with D = `draft_s`, V = `verify_s`, e = `exposed_share`.

    On the target's own GPUs (e = 1) all of it. On GPUs of its own a drafter works while the target verifies: in the share
    1 − e of rounds that can use what it made ahead, the target waits only for what takes longer than verifying does
    (arXiv:2408.11850 §4); in the others for all of it (DESIGN §4: T_verify + (1 − hit)·T_draft).
    """
    return exposed_share * draft_s + (1.0 - exposed_share) * max(0.0, draft_s - verify_s)


def _verify_gap_s(
    target: ForwardCost, engine: Engine, sequences: int, matched: int, nodes: int, verify_s: float
) -> float:
    """What the target's pass waits for its launches where no graph covers its tokens, of the largest micro-batch, s."""
    tokens = -(-(sequences + matched * nodes) // target.micro_batches(sequences))
    if engine.settings.captured(tokens, per_sequence=nodes + 1):
        return 0.0
    return max(0.0, engine.eager_s(target.decoder.layers) - verify_s)


def _micro_batch(target: ForwardCost, sequences: int, matched: int) -> tuple[int, int]:
    """Sequences in the largest part of a pipeline's step, which sets the pace, and how many of them have drafts."""
    parts = target.micro_batches(sequences)
    return -(-sequences // parts), -(-matched // parts)


def _verified_tokens(target: ForwardCost, sequences: int, matched: int, nodes: int) -> float:
    """Tokens that pass through the target at once."""
    whole, full = _micro_batch(target, sequences, matched)
    return float(whole + full * nodes)
