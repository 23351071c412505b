"""Deployments on the bench: tables, curves and capacities of each, found once however often a planner asks.

What a replica carries depends on neither the load, nor prices, nor how many replicas there are; who moves those alone finds
everything here. A bench is kept as long as everything that its times follow from is the same.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from simulator.architecture import Decoder
from simulator.cost.efficiency import Efficiency
from simulator.deployment import Deployment, deploy
from simulator.engine import Engine
from simulator.hardware import Gpu
from simulator.memory import MemoryBudget, budget
from simulator.planning.capacity import Capacity, Level, capacity
from simulator.planning.steady_state import Curve, curve
from simulator.planning.step_prices import DeploymentTables, Drafting
from simulator.planning.work import Work
from simulator.quantization import Quantization
from simulator.speculation.drafters import Drafter

_KEPT_BENCHES = 400
_KEPT_CURVES = 64
"""Of one deployment: some ways to draft at some works."""
_LEAST_TOKENS = 4096
"""Smallest tables: most ways to draft at one work then share them."""


class Bench:
    """One deployment, without a drafter or with one."""

    def __init__(self, deployment: Deployment, plain: Bench | None = None):
        """`plain`: the bench of the same target without a drafter, whose tables are shared where they can be."""
        self.deployment, self._plain = deployment, plain
        self._tables: dict[int, DeploymentTables] = {}
        self.curve = lru_cache(_KEPT_CURVES)(self._curve)
        """The `Curve` of a way to draft at a work. Raises DoesNotFit or InputError."""
        self.budget = lru_cache(_KEPT_CURVES)(self._budget)
        """Memory of one GPU with room for the logits of so many drafts per sequence; it may be negative."""
        self.capacity = lru_cache(_KEPT_CURVES)(self._capacity)
        """The `Capacity` of a way to draft at a work, for a `Level`. Raises likewise."""

    def _budget(self, drafts: int) -> MemoryBudget:
        return budget(self.deployment.target, self.deployment.engine, self.deployment.draft, drafts)

    def _curve(self, drafting: Drafting, work: Work) -> Curve:
        tables = self._with_room(most_tokens(self.deployment, drafting, work))
        return curve(tables, drafting, work, self.budget(drafting.shape.nodes))

    def _capacity(self, drafting: Drafting, work: Work, level: Level) -> Capacity:
        return capacity(self.deployment, self.curve(drafting, work), level)

    def _with_room(self, tokens: int) -> DeploymentTables:
        """Tables for passes of so many tokens or a little more, sampled: up to a percent off at token counts between. What was
        asked before changes nothing about them."""
        size = max(_LEAST_TOKENS, 1 << (tokens - 1).bit_length())
        if size not in self._tables:
            found = DeploymentTables(self.deployment, size, sampled=True)
            if self._plain is not None and self.deployment.engine.settings.graph_sizes_of == "tokens":
                found.share(self._plain._with_room(size))
            self._tables[size] = found
        return self._tables[size]


def most_tokens(deployment: Deployment, drafting: Drafting, work: Work) -> int:
    """Tokens of the largest pass that a curve asks for: every sequence's round, and the prompts that come beside a full batch
    (of b requests b·n/(n + M) read a piece of P/n tokens, and each at least its own)."""
    settings = deployment.engine.settings
    round_tokens = max(drafting.shape.depth, drafting.shape.nodes, *drafting.shape.pass_tokens, 0) + 1
    most = settings.max_sequences
    largest = min(settings.max_batched_tokens, settings.prefill_chunk_tokens or settings.max_batched_tokens)
    pieces = max(1.0, work.prompt_tokens / largest)
    reading = 2.0 + most * (pieces + 1.0) / (pieces + drafting.rounds(work.output_tokens - 1.0))
    prompts = min(float(settings.max_batched_tokens), reading * min(work.prompt_tokens, float(largest)))
    return math.ceil(most * round_tokens + prompts)


class Benches:
    """Benches by what stands on them, the latest `_KEPT_BENCHES`; for all threads of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, ...], tuple[tuple[object, ...], Bench]] = OrderedDict()
        self._lock = threading.Lock()

    def plain(
        self, decoder: Decoder, gpu: Gpu, tp: int, quantization: Quantization, engine: Engine, efficiency: Efficiency
    ) -> Bench:
        """The bench of a target alone; `efficiency`: what the GPU's calibration says now. Raises InputError."""
        key = (decoder.name, gpu.name, str(tp), quantization.model_dump_json(), engine.name)
        made_of = (decoder, gpu, engine, efficiency)
        return self._get(
            key, made_of, lambda: Bench(deploy(decoder, gpu, tp=tp, quantization=quantization, engine=engine))
        )

    def beside(self, plain: Bench, drafter: Drafter) -> Bench:
        """The same target with `drafter`. Raises InputError where they do not match."""
        target = plain.deployment.target
        key = (
            target.decoder.name, target.gpu.name, str(target.tp), target.quantization.model_dump_json(),
            plain.deployment.engine.name, drafter.name,
        )  # fmt: skip
        return self._get(key, (plain, drafter), lambda: Bench(plain.deployment.beside(drafter), plain))

    def _get(self, key: tuple[str, ...], made_of: tuple[object, ...], make: Callable[[], Bench]) -> Bench:
        with self._lock:
            known = self._kept.get(key)
            if known is not None and known[0] == made_of:
                self._kept.move_to_end(key)
                return known[1]
        made = make()
        with self._lock:
            self._kept[key] = (made_of, made)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT_BENCHES:
                self._kept.popitem(last=False)
        return made
