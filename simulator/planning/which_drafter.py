"""Which speculative method? Every drafter that fits a target, each at what is best for it, side by side by batch.

All are priced on the same target, so that what the methods have in common cancels. Acceptance is not of one making: each
drafter has the rates that somebody published, mostly on other texts than the next one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from simulator import catalog
from simulator.deployment import Deployment
from simulator.errors import DoesNotFit, InputError, UnknownName
from simulator.memory import Concurrency, draft_weights_on_gpu, kv_bytes_per_token, weights_on_gpu
from simulator.planning.crossover import SpeculateResult, speculate
from simulator.speculation.acceptance import MAX_GAMMA, Acceptance, AcceptanceConfig
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.drafters import Drafter, load_drafter
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import PLAIN
from simulator.speculation.tree_law import StaticYield, TreeAcceptance
from simulator.speculation.tree_search import MAX_DEPTH
from simulator.speculation.tree_size import Drafted, Priced, TreeSizes, price, tree_sizes
from simulator.speculation.typical import acceptance_interval
from simulator.uncertainty import Interval, intervals

GIVEN = "rates given"
"""What stands for the text of acceptance that a user gave."""
UNNAMED = "a text that is not named"


@dataclass(frozen=True)
class Choice:
    """What one drafter does best at one batch."""

    priced: Priced
    speedup: float
    """Tokens per second over plain decoding of the same batch."""
    interval: Interval
    """Of the speed-up, as far as times are uncertain; acceptance is as given."""
    known_to: tuple[float, float] | None
    """Least and most speed-up where one number of acceptance leaves it open; None where more is known."""
    cost_ratio: float
    """USD per token over plain decoding's: GPUs over the target's alone, divided by the speed-up."""
    usd_per_million_tokens: float | None
    """None where the GPU has no price."""

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.priced.round.sequences

    @property
    def is_tree(self) -> bool:
        """Whether several candidates per position are drafted."""
        return self.priced.drafted.tree is not None and not self.priced.drafted.shape.is_chain

    @property
    def depth(self) -> int:
        """γ, or the tree's levels."""
        return self.priced.drafted.shape.depth

    @property
    def nodes(self) -> int:
        """Tokens verified beside the one of a plain step."""
        return self.priced.drafted.shape.nodes

    @property
    def pays(self) -> bool:
        """Whether it beats plain decoding with room for all sequences."""
        return self.priced.fits and self.speedup > 1.0


@dataclass(frozen=True, eq=False)
class Compared:
    """One drafter beside the target."""

    deployment: Deployment
    drafter: Drafter
    config: AcceptanceConfig
    given: bool
    """Whether its acceptance is the user's, not the published one."""
    chains: SpeculateResult
    trees: TreeSizes | None
    choices: dict[int, Choice]
    """By batch."""
    pays_up_to: int
    """Largest batch at which a chain of the grid pays, 0 for none; `largest_batch` where it pays as far as anything runs."""
    largest_batch: int
    """That the KV cache holds beside it at this context and the engine runs."""
    concurrency: Concurrency
    """At the largest of the drafts chosen."""
    weight_bytes: float
    """On each GPU that drafts, beside the target or on GPUs of its own."""
    draft_kv_bytes_per_token: float
    """Likewise."""

    @property
    def name(self) -> str:
        """The drafter's."""
        return self.drafter.name

    @property
    def title(self) -> str:
        """For people."""
        return self.drafter.title

    @property
    def extra_gpus(self) -> int:
        """That do nothing but draft."""
        return self.drafter.draft_gpus

    @property
    def dataset(self) -> str:
        """The text of its acceptance."""
        return GIVEN if self.given else self.config.dataset or UNNAMED

    @property
    def source(self) -> str:
        """Where its acceptance comes from."""
        return "given" if self.given else self.config.source or "the drafter's file"

    @property
    def measured_depth(self) -> int | None:
        """Drafts in a row of which acceptance is known; None where one rate stands for all depths."""
        rates = self.config.marginal or self.config.conditional
        return len(rates) if rates else self.config.at_gamma


@dataclass(frozen=True)
class LeftOut:
    """A drafter that is not compared."""

    name: str
    title: str
    why: Literal["acceptance", "fit", "text"]
    """No acceptance is known, or it does not go with the target."""
    reason: str
    """In words that go on after its name."""
    looks_up: bool = False
    """Whether the share of rounds with a match is needed as well."""


@dataclass(frozen=True)
class Comparison:
    """Drafters side by side, at one context length."""

    deployment: Deployment
    """The target without a drafter."""
    context_tokens: int
    gammas: tuple[int, ...]
    trees: tuple[int, ...]
    """Sizes, nodes; empty where only chains are compared."""
    batches: tuple[int, ...]
    plain: dict[int, Priced]
    """By batch: nothing drafted."""
    compared: tuple[Compared, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that acceptance was measured on."""
        return tuple(dict.fromkeys(one.dataset for one in self.compared))

    def on(self, text: str) -> tuple[Compared, ...]:
        """The drafters whose acceptance was measured on `text`."""
        return tuple(one for one in self.compared if one.dataset == text)

    def ranking(self, batch: int, among: Sequence[Compared] | None = None) -> list[Compared]:
        """Those that pay at `batch`, fastest first; empty where plain decoding is fastest."""
        paying = [one for one in (self.compared if among is None else among) if one.choices[batch].pays]
        return sorted(paying, key=lambda one: -one.choices[batch].speedup)

    def winner(self, batch: int, among: Sequence[Compared] | None = None) -> Compared | None:
        """The fastest at `batch`; None: plain decoding."""
        return next(iter(self.ranking(batch, among)), None)

    def cheapest(self, batch: int) -> Compared | None:
        """The one with the fewest USD per token at `batch`, GPUs of its own counted; None: plain decoding."""
        fitting = [one for one in self.compared if one.choices[batch].priced.fits]
        best = min(fitting, key=lambda one: one.choices[batch].cost_ratio, default=None)
        return best if best is not None and best.choices[batch].cost_ratio < 1.0 else None


def compare_drafters(
    plain: Deployment,
    *,
    names: Sequence[str] = (),
    acceptance: Mapping[str, AcceptanceConfig] | None = None,
    gammas: Sequence[int] = tuple(range(1, 9)),
    trees: Sequence[int] = (),
    batches: Sequence[int] = (1, 8, 32, 128),
    context_tokens: int = 1024,
    base: Path | None = None,
) -> Comparison:
    """Every drafter of `names` (left out: `candidates`, and those with `acceptance`) beside `plain`, by batch. `acceptance` goes
    before what is published. Nobody asked for by name is compared by what is published of one kind of text that it copies from
    (look-ups), unless there is nothing else. Trees of so many nodes are tried where the drafter ranks its candidates.

    Raises UnknownName for an unknown drafter, InputError for grids out of bounds or where nothing can be compared, DoesNotFit where the
    target alone does not fit.
    """
    if not gammas or not all(1 <= gamma <= MAX_GAMMA for gamma in gammas):
        raise InputError("gamma", list(gammas), f"be at least one number, each between 1 and {MAX_GAMMA}")
    given = dict(acceptance or {})
    if plain.drafter is not None:
        raise InputError("draft", plain.drafter.name, "be left out of what drafters are compared for")
    plain.fit(context_tokens=context_tokens)
    wanted = list(dict.fromkeys(names)) or list(dict.fromkeys([*candidates(plain), *given]))
    drafters = [load_drafter(name, base=base) for name in wanted]
    known = {word: i for i, d in enumerate(drafters) for word in (d.name, wanted[i])}
    for name in given:
        if name not in known:
            raise UnknownName("acceptance", name, [d.name for d in drafters], kind="one of the drafters compared")
    own = {known[name]: config for name, config in given.items()}
    compared, left_out, copying = [], [], []
    for i, drafter in enumerate(drafters):
        config = own.get(i, drafter.acceptance)
        try:
            serving = plain.beside(drafter)
            serving.fit(context_tokens=context_tokens, gamma=min(gammas))
            possible = _possible(drafter, gammas)
        except (InputError, DoesNotFit) as error:
            left_out.append(LeftOut(drafter.name, drafter.title, "fit", _reason(error)))
            continue
        if config is None:
            left_out.append(_unpublished(drafter))
            continue
        inputs = (serving, drafter, config, i in own, possible, trees, batches, context_tokens)
        if drafter.looks_up and not names and i not in own:
            copying.append(inputs)
        else:
            compared.append(_compared(*inputs))
    if compared:
        left_out += [
            LeftOut(
                d.name,
                d.title,
                "text",
                f"it copies from the text; published of {config.dataset or 'one text'} alone",
                True,
            )
            for _, d, config, *_ in copying
        ]
    else:
        compared = [_compared(*inputs) for inputs in copying]
    if not compared:
        first = left_out[0]
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        why = f"{first.name}: {first.reason}{more}"
        raise InputError("drafts", [d.name for d in drafters], f"name one that can be compared; {why}")
    return Comparison(
        plain, context_tokens, tuple(sorted(set(gammas))), tuple(sorted(set(trees))), tuple(sorted(set(batches))),
        {b: price(plain, Drafted(PLAIN, None), b, context_tokens) for b in sorted(set(batches))},
        tuple(compared), tuple(left_out),
    )  # fmt: skip


def candidates(plain: Deployment) -> list[str]:
    """Bundled drafters made for or measured with the target, or for any; `mtp` where its config names modules."""
    target = plain.target.decoder
    found = []
    for name in catalog.names("drafter"):
        drafter = load_drafter(name)
        offered = name == "mtp" and target.mtp_modules > 0
        if offered or not drafter.targets or target.name in drafter.targets:
            found.append(name)
    return found


def _possible(drafter: Drafter, gammas: Sequence[int]) -> tuple[int, ...]:
    found = tuple(sorted(g for g in set(gammas) if g <= drafter.most_drafts))
    if not found:
        raise InputError("draft", drafter.name, f"make {min(gammas)} drafts in a row, but makes {drafter.most_drafts}")
    return found


def _reason(error: InputError | DoesNotFit) -> str:
    if isinstance(error, InputError) and error.field == "draft":
        return f"must {error.rule}"
    return str(error)


def _unpublished(drafter: Drafter) -> LeftOut:
    depends = "no acceptance is published for it"
    if not drafter.targets:
        depends = "its acceptance depends on the text, none is published that goes for all"
    return LeftOut(drafter.name, drafter.title, "acceptance", depends, drafter.looks_up)


def _compared(
    serving: Deployment,
    drafter: Drafter,
    config: AcceptanceConfig,
    given: bool,
    gammas: tuple[int, ...],
    trees: Sequence[int],
    batches: Sequence[int],
    context_tokens: int,
) -> Compared:
    law = config.law(kind=drafter.kind)
    chains = speculate(serving, law, gammas=gammas, batches=batches, context_tokens=context_tokens)
    sizes = None
    if trees and not drafter.looks_up:
        depths = range(1, min(max(gammas), MAX_DEPTH) + 1)
        sizes = tree_sizes(serving, law, nodes=trees, depths=depths, batches=batches, context_tokens=context_tokens)
    best = {batch: _best(chains, sizes, law, batch) for batch in chains.batches}
    plain = {batch: chains.cells[gammas[0], batch].plain for batch in chains.batches}
    off = _Speedups(best, context_tokens)
    ends = intervals(serving, off)
    laws = acceptance_interval(config, drafter.kind) or ()
    doubts = [off(serving, other) for other in laws]
    gpu, ratio = serving.gpu, serving.gpus / serving.target.gpus
    choices = {}
    for batch, priced in best.items():
        speedup = priced.tokens_per_s / plain[batch].tokens_per_s
        open_ = [speedup, *(found[str(batch)] for found in doubts)]
        usd = None if gpu.price_usd_per_s is None else gpu.price_usd_per_s * serving.gpus / priced.tokens_per_s * 1e6
        choices[batch] = Choice(
            priced, speedup, ends[str(batch)], (min(open_), max(open_)) if doubts else None, ratio / speedup, usd
        )
    most_nodes = max(choice.nodes for choice in choices.values())
    room = serving.concurrency(context_tokens=context_tokens, gamma=most_nodes)
    smallest = serving.concurrency(context_tokens=context_tokens, gamma=gammas[0])
    largest = max(1, min(smallest.speculative, serving.engine.settings.max_sequences))
    return Compared(
        serving, drafter, config, given, chains, sizes, choices, _pays_up_to(chains, largest), largest, room,
        *_draft_bytes(serving),
    )  # fmt: skip


def _best(chains: SpeculateResult, sizes: TreeSizes | None, law: Acceptance, batch: int) -> Priced:
    """Of chains and trees what gives most tokens per second among those that fit (among all where none does)."""
    drafter = chains.deployment.drafter
    assert drafter is not None
    options = [
        Priced(Drafted(drafter.shape(gamma), law), cell.round, cell.fits)
        for gamma in chains.gammas
        for cell in [chains.cells[gamma, batch]]
    ]
    if sizes is not None:
        options += [sizes.trees[batch, nodes] for nodes in sizes.nodes]
    fitting = [option for option in options if option.fits] or options
    return max(fitting, key=lambda option: (option.tokens_per_s, -option.drafted.shape.nodes))


class _Speedups:
    """Speed-up of what was chosen at each batch, on a deployment whose times differ, or by another law of acceptance."""

    def __init__(self, chosen: Mapping[int, Priced], context_tokens: int):
        self.chosen, self.context_tokens = chosen, context_tokens

    def __call__(self, deployment: Deployment, law: Acceptance | None = None) -> dict[str, float]:
        found = {}
        for batch, priced in self.chosen.items():
            drafted = priced.drafted if law is None else _by_law(priced.drafted, law)
            plain = price(deployment, Drafted(PLAIN, None), batch, self.context_tokens)
            found[str(batch)] = price(deployment, drafted, batch, self.context_tokens).tokens_per_s / plain.tokens_per_s
        return found


def _by_law(drafted: Drafted, law: Acceptance) -> Drafted:
    if drafted.tree is None:
        return replace(drafted, law=law)
    through = StaticYield(drafted.tree, RankLaw.typical(law.rates))
    return replace(drafted, law=TreeAcceptance.of(law, through))


def _pays_up_to(chains: SpeculateResult, largest: int) -> int:
    """The last crossing found up to `largest`, by bisection between batches of the grid."""
    pays = _payer(chains)
    if pays(largest):
        return largest
    low = max((b for b in chains.batches if b < largest and chains.best_gamma(b)), default=0)
    if low == 0:
        if not pays(1):
            return 0
        low = 1
    high = next((b for b in chains.batches if low < b < largest), largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


def _payer(chains: SpeculateResult) -> Callable[[int], bool]:
    order = list(chains.gammas)

    def pays(batch: int) -> bool:
        for gamma in order:
            one = speculate(
                chains.deployment, chains.acceptance, gammas=(gamma,), batches=(batch,),
                context_tokens=chains.context_tokens,
            )  # fmt: skip
            if one.best_gamma(batch):
                order.remove(gamma)
                order.insert(0, gamma)  # where one pays, it mostly does at the next batch too
                return True
        return False

    return pays


def _draft_bytes(serving: Deployment) -> tuple[float, float]:
    """Weights of the drafter on one GPU that drafts, and its KV cache of one token there, bytes."""
    draft = serving.draft
    if draft is None:
        return 0.0, 0.0
    apart = isinstance(draft, DraftCost) and draft.apart
    weights = weights_on_gpu(draft) if apart else draft_weights_on_gpu(draft, serving.target)
    return weights, kv_bytes_per_token(draft)
