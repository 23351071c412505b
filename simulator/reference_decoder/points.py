"""Which points are measured, and in which order: a plan per kind, from which a time budget takes as much as it can.

Within a kind the ends of every axis come first, then the middles, so that a plan cut short still spans the whole range.
Between kinds, the one that has had the least of its share of time goes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from simulator.reference_decoder.pair import RECIPES
from simulator.reference_decoder.shapes import SHAPES

Point = dict[str, Any]

SHARES = {
    "copy": 0.03, "read": 0.03, "matmul": 0.16, "attention": 0.12, "launch": 0.02,
    "step": 0.28, "draft": 0.07, "round": 0.12, "serving": 0.09, "acceptance": 0.05, "divergence": 0.03,
}  # fmt: skip
"""Of the time budget; training the pair whose acceptance is measured comes on top. Steps come first: they are what a simulator composes and what its predictions are held against."""

LONGEST_DRAFT = 8
"""Tokens that are drafted where acceptance is measured: every shorter chain can be read off."""


@dataclass(frozen=True)
class Suite:
    """What is worth measuring on one kind of device."""

    dtype: str
    targets: Sequence[str]
    drafts: Mapping[str, str]
    """Drafter of each target that has one."""
    graphs: Sequence[bool]
    sizes_bytes: Sequence[int]
    matmul_tokens: Sequence[int]
    batches: Sequence[int]
    queries: Sequence[int]
    contexts: Sequence[int]
    most_step_tokens: int
    """Tokens of one pass, over all rows."""
    most_kv_bytes: int
    """Cache of one point."""
    gammas: Sequence[int]
    alphas: Sequence[float]
    requests: int
    output_tokens: int
    max_batch: int
    pair: str
    """Target of the pair that is trained (see `pair.RECIPES`), whose acceptance is measured."""
    requests_drafted: int
    """Of each acceptance, and sequences of each divergence."""
    context_drafted: int
    """Bytes that a request of the trained pair begins with; with its output no more than the pair was trained on."""
    output_drafted: int
    early_exit: Mapping[str, int] = field(default_factory=dict)
    """Layers after which a target drafts for itself."""
    tree: Sequence[int] = (3, 2, 1)
    """Widths by depth of the one token tree that is measured."""

    def plan(self) -> dict[str, list[Point]]:
        """Points of every kind, most informative first."""
        makers: dict[str, Callable[[], Iterator[Point]]] = {
            "copy": self._transfers, "read": self._transfers, "matmul": self._matmuls, "attention": self._attentions,
            "launch": self._launches, "step": self._steps, "draft": self._drafts, "round": self._rounds,
            "serving": self._servings, "acceptance": self._acceptances, "divergence": self._divergences,
        }  # fmt: skip
        plan = {}
        for kind, make in makers.items():
            points = [{"kind": kind, **point} for point in make()]
            plan[kind] = list({repr(point): point for point in points}.values())
        return plan

    def _transfers(self) -> Iterator[Point]:
        for size, cache in spread(self.sizes_bytes, ("cold", "resident")):
            if cache == "cold" or size <= 64 * 2**20:
                yield {"size_bytes": size, "cache": cache}

    def _matmuls(self) -> Iterator[Point]:
        matrices = sorted(
            {matrix for name in self.targets for matrix in matrices_of(name)}, key=lambda nk: nk[0] * nk[1]
        )
        for m, (n, k) in spread(self.matmul_tokens, matrices):
            yield {"tokens": m, "outputs": n, "inputs": k, "dtype": self.dtype}

    def _attentions(self) -> Iterator[Point]:
        heads = list(dict.fromkeys((s.heads, s.kv_heads, s.head_dim) for s in map(SHAPES.__getitem__, self.targets)))
        for batch, query, context, (h, kv, d) in spread(self.batches, self.queries, self.contexts, heads):
            if batch * query <= self.most_step_tokens and 4 * batch * context * kv * d <= self.most_kv_bytes:
                yield {
                    "sequences": batch, "query_tokens": query, "context_tokens": context, "heads": h, "kv_heads": kv,
                    "head_dim": d, "dtype": self.dtype,
                }  # fmt: skip

    def _launches(self) -> Iterator[Point]:
        yield {"what": "kernel"}
        if True in self.graphs:
            yield {"what": "graph_kernel"}
            yield {"what": "graph_replay"}
        yield {"what": "read_back"}
        for gamma, graphs in product((0, 4), self.graphs):
            yield {"what": "round", "gamma": gamma, "graphs": graphs}

    def _fits(self, model: str, batch: int, context: int) -> bool:
        return 2 * SHAPES[model].kv_values_per_token * batch * context <= self.most_kv_bytes

    def _steps(self) -> Iterator[Point]:
        # Graphs are how a step is served; one without them for every eight shows what the host would cost.
        # At the corners one layer with the head, too: what a layer takes can then be told from the rest.
        count, axes = 0, (self.batches, self.queries, self.contexts)
        for model, batch, query, context in spread(self.targets, *axes):
            if batch * query <= self.most_step_tokens and self._fits(model, batch, context):
                point = {"model": model, "batch": batch, "tokens": query, "context_tokens": context}
                yield point | {"graphs": self.graphs[0]}
                if all(x in (axis[0], axis[-1]) for x, axis in zip((batch, query, context), axes, strict=True)):
                    yield point | {"graphs": self.graphs[0], "layers": 1}
                if len(self.graphs) > 1 and count % 8 == 0:
                    yield point | {"graphs": self.graphs[1]}
                count += 1

    def _drafts(self) -> Iterator[Point]:
        models = list(dict.fromkeys(self.drafts.values()))
        for model, gamma, batch, context in spread(models, self.gammas, self.batches, self.contexts):
            if self._fits(model, batch, context):
                yield {
                    "model": model, "gamma": gamma, "batch": batch, "context_tokens": context, "graphs": self.graphs[0],
                }  # fmt: skip

    def _rounds(self) -> Iterator[Point]:
        context = self.contexts[len(self.contexts) // 2]
        for i, (target, batch, gamma) in enumerate(spread(list(self.drafts), self.batches, self.gammas)):
            if batch * (gamma + 1) > self.most_step_tokens or not self._fits(target, batch, context):
                continue
            # What is accepted hardly changes how long a round takes; that it does not is seen without every pair.
            alpha = self.alphas[i % len(self.alphas)]
            base = {"model": target, "batch": batch, "context_tokens": context, "graphs": self.graphs[0]}
            none = {"draft_model": None, "gamma": 0, "alpha": 0.0}
            yield base | none | {"drafter": "plain"}
            yield base | {"drafter": "small", "draft_model": self.drafts[target], "gamma": gamma, "alpha": alpha}
            if target in self.early_exit:
                exit_ = {"drafter": "early_exit", "draft_model": None, "exit_layers": self.early_exit[target]}
                yield base | exit_ | {"gamma": gamma, "alpha": alpha}
            widths = list(self.tree)
            tree = {"drafter": "tree", "draft_model": self.drafts[target], "gamma": len(widths), "widths": widths}
            yield base | tree | {"alpha": self.alphas[0]}

    def _servings(self) -> Iterator[Point]:
        for load, target in product((0.7, 0.4, 1.2), self.drafts):
            base = {
                "model": target, "load": load, "requests": self.requests, "max_batch": self.max_batch,
                "prompt_tokens": self.contexts[0], "output_tokens": self.output_tokens, "graphs": self.graphs[0],
            }  # fmt: skip
            yield base | {"drafter": "plain", "draft_model": None, "gamma": 0, "alpha": 0.0}
            small = {"drafter": "small", "draft_model": self.drafts[target], "gamma": self.gammas[0]}
            yield base | small | {"alpha": self.alphas[0]}

    def _acceptances(self) -> Iterator[Point]:
        for drafter, text in product(("small", "early_exit", "ngram"), ("held_out", "sampled", "greedy")):
            point = {
                "model": self.pair, "drafter": drafter, "draft_model": RECIPES[self.pair].draft, "gamma": LONGEST_DRAFT,
                "text": text, "requests": self.requests_drafted, "context_tokens": self.context_drafted,
                "output_tokens": self.output_drafted, "graphs": self.graphs[0],
            }  # fmt: skip
            if drafter != "small":
                point["draft_model"] = None
            yield point | ({"exit_layers": SHAPES[self.pair].layers // 2} if drafter == "early_exit" else {})

    def _divergences(self) -> Iterator[Point]:
        target = next(iter(self.drafts))
        pairs = (("trained", self.pair, RECIPES[self.pair].draft), ("random", target, self.drafts[target]))
        for weights, model, draft in pairs:
            less = 1 if weights == "trained" else 2  # the random one is a hundred times larger
            yield {
                "model": model, "weights": weights, "draft_model": draft, "gamma": 4,
                "sequences": self.requests_drafted // less, "context_tokens": self.context_drafted,
                "output_tokens": self.output_drafted // less, "graphs": self.graphs[0],
            }  # fmt: skip


def matrices_of(name: str) -> list[tuple[int, int]]:
    """(out, in) of a model's linear operators."""
    s = SHAPES[name]
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    return [
        (qkv, s.hidden), (s.hidden, s.heads * s.head_dim), (2 * s.width, s.hidden), (s.hidden, s.width),
        (s.vocab, s.hidden),
    ]  # fmt: skip


def spread(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The product of the axes, ends before middles before quarters; equal importance in the order of the axes."""
    ranked = [sorted(zip(_importance(len(axis)), axis, strict=True), key=lambda pair: pair[0]) for axis in axes]
    combinations = sorted(product(*ranked), key=lambda pairs: sum(rank for rank, _ in pairs))
    return [tuple(value for _, value in pairs) for pairs in combinations]


def _importance(length: int) -> list[int]:
    """For each place of an axis how late it is halved to: the ends first, then the middle of each gap."""
    rank = [0] * length
    gaps, depth = [(0, length - 1)], 1
    while gaps:
        halves = []
        for low, high in gaps:
            middle = (low + high) // 2
            if middle not in (low, high):
                rank[middle] = depth
                halves += [(low, middle), (middle, high)]
        gaps, depth = halves, depth + 1
    return rank


def interleave(plan: Mapping[str, list[Point]], spent_s: Mapping[str, float]) -> Iterator[Point]:
    """The next point of the kind furthest behind its share; `spent_s` is kept up to date by whoever measures."""
    left = {kind: iter(points) for kind, points in plan.items()}
    while left:
        kind = min(left, key=lambda name: spent_s.get(name, 0.0) / SHARES[name])
        point = next(left[kind], None)
        if point is None:
            del left[kind]
        else:
            yield point


MIB = 2**20

SUITES = {
    "cuda": Suite(
        dtype="bf16",
        targets=("llama-8b", "cpu-82m", "llama-70b-slice", "llama-1b"),
        drafts={"llama-8b": "llama-1b", "llama-1b": "llama-68m"},
        graphs=(True, False),
        sizes_bytes=[MIB * 4**i for i in range(6)] + [2 * 2**30],
        matmul_tokens=(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192),
        batches=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        queries=(1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64),
        contexts=(128, 512, 1024, 2048, 4096, 8192, 16384, 32768),
        most_step_tokens=8192,
        most_kv_bytes=36 * 2**30,
        gammas=(4, 1, 2, 8),
        alphas=(0.7, 0.9, 0.4),
        requests=64,
        output_tokens=128,
        max_batch=32,
        pair="bytes-24m",
        requests_drafted=64,
        context_drafted=128,
        output_drafted=128,
        early_exit={"llama-8b": 4},
    ),
    "cpu": Suite(
        dtype="bf16",
        targets=("cpu-82m", "cpu-150m", "cpu-250m"),
        drafts={"cpu-82m": "cpu-6m", "cpu-250m": "cpu-20m"},
        graphs=(False,),
        sizes_bytes=[MIB // 4 * 4**i for i in range(6)],
        matmul_tokens=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512),
        batches=(1, 2, 4, 8, 16, 32),
        queries=(1, 2, 3, 4, 5, 8, 12, 16, 32, 64),
        contexts=(64, 256, 512, 1024, 2048),
        most_step_tokens=512,
        most_kv_bytes=2**29,
        gammas=(4, 1, 2, 7),
        alphas=(0.7, 0.9, 0.4),
        requests=12,
        output_tokens=24,
        max_batch=8,
        pair="bytes-500k",
        requests_drafted=32,
        context_drafted=96,
        output_drafted=64,
        early_exit={"cpu-82m": 2},
    ),
}

TOY = Suite(
    dtype="fp32",
    targets=("toy",),
    drafts={"toy": "toy-draft"},
    graphs=(False,),
    sizes_bytes=(2**14, 2**18),
    matmul_tokens=(1, 16),
    batches=(1, 4),
    queries=(1, 4),
    contexts=(16, 64),
    most_step_tokens=16,
    most_kv_bytes=2**24,
    gammas=(2, 1),
    alphas=(0.7,),
    requests=4,
    output_tokens=6,
    max_batch=2,
    pair="toy",
    requests_drafted=4,
    context_drafted=32,
    output_drafted=24,
    early_exit={"toy": 1},
)
"""Checks the pipeline in a second or two; its times mean nothing."""
