"""How many GPUs? Every way to serve a load on hardware that is to be had, and the cheapest that meets the objectives: records.

A candidate is a GPU type, a TP degree, number formats, and a way to draft. One replica of it carries at most its capacity
(`planning.capacity`), the load needs so many replicas of it, and at their share of the load each is in a steady state that
says what users see. What cannot be a candidate is kept with its reason.

Left out: requests are spread over the replicas at random, each of which then sees Poisson arrivals (a balancer that looks at
queues does better); pipelines, experts on GPUs of their own, replicas that fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from simulator.architecture import Decoder
from simulator.deployment import Deployment
from simulator.hardware import Gpu
from simulator.planning.capacity import Capacity, Level, Limit
from simulator.planning.relaxation import Relaxation, relaxations
from simulator.planning.steady_state import Load
from simulator.planning.step_prices import Drafting
from simulator.planning.work import Work
from simulator.speculation.drafters import Drafter

Why = Literal["tp", "format", "drafter", "memory", "ttft", "tpot", "both"]
"""Why something is no candidate: what cannot be, does not fit, or misses an objective even unloaded."""


class Asked(NamedTuple):
    """What has to be served, and how well."""

    rate_per_s: float
    """Requests, Poisson."""
    work: Work
    level: Level

    @property
    def tokens_per_s(self) -> float:
        """Output tokens."""
        return self.rate_per_s * self.work.output_tokens


@dataclass(frozen=True)
class Candidate:
    """One way to serve all of the load."""

    asked: Asked
    deployment: Deployment
    """One replica."""
    format: str
    drafting: Drafting
    capacity: Capacity
    replicas: int
    state: Load
    """Of one replica at its share of the load [1]."""
    price_usd_per_s: float | None
    """Of one GPU; None: not known."""

    @property
    def gpu(self) -> Gpu:
        """The GPU type."""
        return self.deployment.gpu

    @property
    def tp(self) -> int:
        """GPUs that share each layer."""
        return self.deployment.target.tp

    @property
    def drafter(self) -> Drafter | None:
        """None: plain decoding."""
        return self.deployment.drafter

    @property
    def gamma(self) -> int:
        """Drafts per round, 0 without."""
        return self.drafting.shape.depth

    @property
    def gpus(self) -> int:
        """In all."""
        return self.replicas * self.deployment.gpus

    @property
    def busy(self) -> float:
        """Share of what the replicas carry that the load is."""
        return self.asked.rate_per_s / (self.replicas * self.capacity.rate_per_s)

    @property
    def usd_per_s(self) -> float | None:
        """Of all GPUs."""
        return None if self.price_usd_per_s is None else self.gpus * self.price_usd_per_s

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Per million output tokens at this load."""
        return None if self.usd_per_s is None else self.usd_per_s / self.asked.tokens_per_s * 1e6

    @property
    def tpot_s(self) -> float:
        """Mean over requests."""
        return float(self.state.tpot_s[0])

    @property
    def ttft_s(self) -> float:
        """Mean over requests."""
        return float(self.state.ttft_s[0])

    @property
    def share_met(self) -> float:
        """Of the requests, all objectives."""
        return min(1.0, float(self.state.goodput_per_s[0] / self.state.requests_per_s[0]))  # sums of shares round

    @property
    def tokens_per_s_per_user(self) -> float:
        """1 / TPOT."""
        return 1.0 / self.tpot_s

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Output tokens."""
        return self.asked.tokens_per_s / self.gpus

    @property
    def joules_per_token(self) -> float:
        """Per output token, every GPU at its TDP: an estimate, and an upper one."""
        return self.gpus * self.gpu.tdp_w / self.asked.tokens_per_s

    @cached_property
    def limit(self) -> Limit:
        """What keeps a replica from carrying more."""
        return self.capacity.limit


@dataclass(frozen=True)
class Rejected:
    """What is no candidate."""

    gpu: Gpu
    tp: int
    format: str
    why: Why
    reason: str
    """In words."""
    drafter: str | None = None
    """Name; None: plain decoding, and with it all drafters where there is no `gamma`."""
    gamma: int | None = None
    """Drafts per round, 0 without a drafter; None: whatever is drafted."""
    capacity: Capacity | None = None
    """Of what misses an objective even unloaded."""


@dataclass(frozen=True)
class Plans:
    """All candidates for one load, and what is none."""

    decoder: Decoder
    engine_title: str
    asked: Asked
    gpus: tuple[Gpu, ...]
    prices_usd_per_s: Mapping[str, float | None]
    """By GPU name."""
    own_prices: frozenset[str]
    """Names of the GPUs whose price the user gave."""
    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]

    @cached_property
    def by_cost(self) -> tuple[Candidate, ...]:
        """Those with a price, cheapest first; of equal ones the one with fewer GPUs, then the quicker."""
        priced = [c for c in self.candidates if c.usd_per_s is not None]
        return tuple(sorted(priced, key=lambda c: (round((c.usd_per_s or 0.0) * 3600.0, 9), c.gpus, c.tpot_s)))

    @property
    def cheapest(self) -> Candidate | None:
        """None where nothing that has a price meets the objectives."""
        return self.by_cost[0] if self.by_cost else None

    @property
    def chosen(self) -> Candidate | None:
        """The cheapest; where nothing has a price the one with the fewest GPUs, then the quickest."""
        return self.cheapest or min(self.fewest_of.values(), key=lambda c: (c.gpus, c.tpot_s), default=None)

    @property
    def cheapest_plain(self) -> Candidate | None:
        """The cheapest without speculation."""
        return next((c for c in self.by_cost if c.drafter is None), None)

    @property
    def runner_up(self) -> Candidate | None:
        """The cheapest on another GPU type; where no other serves, the next with another TP, format or drafter, or the next."""
        if not self.by_cost:
            return None
        first, *others = self.by_cost
        elsewhere = [c for c in others if c.gpu.name != first.gpu.name]
        unlike = [c for c in others if (c.tp, c.format, c.drafter) != (first.tp, first.format, first.drafter)]
        return next(iter([*elsewhere, *unlike, *others]), None)

    @cached_property
    def cheapest_of(self) -> dict[str, Candidate]:
        """The cheapest candidate of each GPU type that has one, by name, cheapest first."""
        found: dict[str, Candidate] = {}
        for one in self.by_cost:
            found.setdefault(one.gpu.name, one)
        return found

    @cached_property
    def fewest_of(self) -> dict[str, Candidate]:
        """Of each GPU type without a price the candidate with the fewest GPUs, then the quickest."""
        found: dict[str, Candidate] = {}
        for one in sorted(self.candidates, key=lambda c: (c.gpus, c.tpot_s)):
            if one.price_usd_per_s is None:
                found.setdefault(one.gpu.name, one)
        return found

    @cached_property
    def fronts(self) -> dict[str, tuple[Candidate, ...]]:
        """By GPU type, its candidates that no other of the type is both as cheap and as fast as; cheapest first."""
        return {name: front(c for c in self.by_cost if c.gpu.name == name) for name in self.cheapest_of}

    @cached_property
    def front(self) -> tuple[Candidate, ...]:
        """The same over all GPU types."""
        return front(self.by_cost)

    @property
    def unpriced(self) -> tuple[Gpu, ...]:
        """GPU types without a price, whether they have candidates (then they are in `fewest_of`) or not."""
        return tuple(gpu for gpu in self.gpus if self.prices_usd_per_s[gpu.name] is None)

    @cached_property
    def relaxations(self) -> tuple[Relaxation, ...]:
        """Where nothing meets the objectives: the nearest ones that something would meet. Empty else, and where nothing fits."""
        return () if self.candidates else relaxations(r.capacity for r in self.rejected if r.capacity is not None)


def front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other one beats in cost per token or speed per user without losing in the other; cheapest first. All have
    a price."""
    found: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.usd_per_s or 0.0, c.tpot_s)):
        if not found or one.tpot_s < found[-1].tpot_s:
            found.append(one)
    return tuple(found)
