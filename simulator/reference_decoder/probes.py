"""Probe: measures one point. One method per kind; what each line of the file means is told in `measurements`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from simulator.reference_decoder.acceptance import of_output, of_text, summary
from simulator.reference_decoder.batcher import Request, poisson_requests, serve
from simulator.reference_decoder.clock import Clock, Rotation, Timing
from simulator.reference_decoder.divergence import compare
from simulator.reference_decoder.drafters import EarlyExit, NGram, SmallModel
from simulator.reference_decoder.graphs import Graphed, graphed
from simulator.reference_decoder.model import DTYPES, AttentionMethod, Decoder, KvCache, Model, attend
from simulator.reference_decoder.pair import Pair, passages, train_pair
from simulator.reference_decoder.points import Point
from simulator.reference_decoder.shapes import SHAPES
from simulator.reference_decoder.speculative import Decoding, Drafter, View, generate
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.training import TooLong
from simulator.reference_decoder.verification import ForcedAlpha

MANY = 200
"""Tiny kernels that are timed as one."""
PAD_TO = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Batch sizes that graphs exist for while serving."""
LIVE_STEP, WHOLE_CACHE = 256, 2**40
"""Slots attended to by graphs are rounded up to a multiple; while serving to the whole cache, so that one graph per batch
size is enough and none is captured in between."""
ROUNDS = 16
"""Most rounds of one measurement: the context grows meanwhile."""


class TooLarge(Exception):
    """A point that does not fit this device, found out before trying."""


class Probe:
    """Keeps models between points, as building them takes longer than most measurements."""

    def __init__(
        self,
        device: torch.device,
        dtype: str,
        clock: Clock,
        *,
        attention: AttentionMethod = "auto",
        fuse: bool = False,
        training_limit_s: float = math.inf,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`training_limit_s`: no pair is trained that takes longer. `say`: told what takes long."""
        self.device, self.dtype, self.clock = device, dtype, clock
        self._attention, self._fuse = attention, fuse
        self._training_limit_s, self._say = training_limit_s, say
        self._pairs: dict[str, Pair] = {}
        self._no_pair: TooLong | None = None
        self.training_s = 0.0
        """Spent on training so far."""
        self._models: dict[str, Decoder] = {}
        self._kinds: dict[str, Callable[[Point], dict[str, Any]]] = {
            "copy": self._transfer, "read": self._transfer, "matmul": self._matmul, "attention": self._attend,
            "launch": self._launch, "step": self._step, "draft": self._draft, "round": self._round,
            "serving": self._serving, "acceptance": self._acceptance, "divergence": self._divergence,
        }  # fmt: skip

    def measure(self, point: Point) -> dict[str, Any]:
        """The point's results. Raises TooLarge, training.TooLong, CorpusError, or what PyTorch raises when memory runs
        out."""
        return self._kinds[point["kind"]](point)

    def release(self) -> None:
        """Forget the models and return memory to the system, after it ran out."""
        self._models.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _transfer(self, point: Point) -> dict[str, Any]:
        size, copying = point["size_bytes"], point["kind"] == "copy"
        moved = (1 + copying) * size
        resident = point["cache"] == "resident"
        self._need(moved if resident else moved * self.clock.turns(moved))
        first = torch.ones(1 + copying, size // 4, device=self.device)
        buffers = Rotation(first, self.clock, resident=resident)

        def work() -> None:
            buffer = buffers.next()
            if copying:
                buffer[1].copy_(buffer[0])
            else:
                torch.sum(buffer)

        return {"moved_bytes": moved} | self.clock.time(work, queued=True).fields()

    def _matmul(self, point: Point) -> dict[str, Any]:
        m, n, k, dtype = point["tokens"], point["outputs"], point["inputs"], DTYPES[point["dtype"]]
        weight_bytes = dtype.itemsize * n * k
        self._need(dtype.itemsize * m * (n + k) + (self.clock.turns(weight_bytes) + 2) * weight_bytes)
        # Random, not zeros: a matrix unit draws less power on zeros and runs faster than it ever will in use.
        x = torch.randn(m, k, device=self.device).to(dtype)
        weights = Rotation(torch.randn(n, k, device=self.device).to(dtype), self.clock)
        timing = self.clock.time(lambda: functional.linear(x, weights.next()), queued=True)
        return {"flop": 2 * m * n * k, "moved_bytes": dtype.itemsize * (m * k + n * k + m * n)} | timing.fields()

    def _attend(self, point: Point) -> dict[str, Any]:
        rows, query, context = point["sequences"], point["query_tokens"], point["context_tokens"]
        heads, kv_heads, dim, dtype = point["heads"], point["kv_heads"], point["head_dim"], DTYPES[point["dtype"]]
        live, queries = context + query, heads // kv_heads * query
        kv_bytes = 2 * dtype.itemsize * rows * kv_heads * live * dim
        self._need(self.clock.turns(kv_bytes) * kv_bytes + 2 * dtype.itemsize * rows * queries * live)
        q = torch.randn(rows, kv_heads, queries, dim, device=self.device).to(dtype)
        late = torch.arange(live, device=self.device) > context + torch.arange(query, device=self.device)[:, None]
        mask = torch.zeros(query, live, dtype=dtype, device=self.device).masked_fill(late, float("-inf"))
        mask = mask.repeat(rows, 1, heads // kv_heads, 1)
        kv = torch.randn(2, rows, kv_heads, live, dim, device=self.device, dtype=dtype)
        cache = Rotation(kv, self.clock)

        def work() -> None:
            buffer = cache.next()
            attend(q, buffer[0], buffer[1], mask, self._attention)

        flop = 4 * rows * heads * dim * query * (context + (query + 1) / 2)
        return {"flop": flop, "moved_bytes": kv_bytes} | self.clock.time(work, queued=True).fields()

    def _launch(self, point: Point) -> dict[str, Any]:
        what, one = point["what"], torch.zeros(1, device=self.device)

        def many() -> None:
            for _ in range(MANY):
                one.add_(1.0)

        if what == "kernel":
            return self.clock.wall(many, settle=False).scaled(1.0 / MANY).fields()
        if what == "read_back":
            return self.clock.wall(one.cpu if self.device.type == "cuda" else one.item).fields()
        if what == "round":
            model, small = (
                self._model(name, graphs=point["graphs"], live_step=WHOLE_CACHE) for name in ("toy", "toy-draft")
            )
            drafter = SmallModel(small, Tree.chain(point["gamma"])) if point["gamma"] else None
            decoding = Decoding(model, 8, 1024, drafter=drafter, forced=ForcedAlpha(0.7))
            decoding.admit_synthetic(8, 64, 900)
            return self.clock.wall(decoding.step).fields()
        cuda: Any = torch.cuda
        many()
        self.clock.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            many()
        if what == "graph_kernel":
            return self.clock.time(graph.replay, queued=True).scaled(1.0 / MANY).fields()
        return self.clock.wall(graph.replay, settle=False).fields()

    def _step(self, point: Point) -> dict[str, Any]:
        model = self._model(point["model"], graphs=point["graphs"])
        rows, query, context = point["batch"], point["tokens"], point["context_tokens"]
        live = context + query
        cache = self._cache(point["model"], model, rows, live, query)
        tokens = torch.randint(model.vocab, (rows, query), device=self.device)
        positions = torch.arange(context, live, device=self.device).expand(rows, -1).contiguous()
        layers, shape = point.get("layers"), SHAPES[point["model"]]
        timing = self.clock.time(lambda: model.forward(tokens, positions, cache, live, layers=layers))
        run = shape if layers is None else shape.sliced(layers)
        return {"parameters": run.parameters, "live_tokens": live} | timing.fields()

    def _draft(self, point: Point) -> dict[str, Any]:
        rows, context, gamma = point["batch"], point["context_tokens"], point["gamma"]
        model = self._model(point["model"], graphs=point["graphs"])
        drafter = SmallModel(model, Tree.chain(gamma))
        size = context + gamma + 1
        self._need_for_model(point["model"], rows, size, 2)
        drafter.start(KvCache(torch.empty(1, 2, rows, 1, size, 1, device="meta")))  # only its sizes are asked for
        drafter.cache.data.normal_()
        token = torch.randint(model.vocab, (rows,), device=self.device)
        lengths = torch.full((rows,), context, device=self.device)
        view = View(rows, context, lengths, token, token, [], 0.0, torch.Generator(self.device))
        timing = self.clock.time(lambda: drafter.propose(view))
        return {"parameters": SHAPES[point["model"]].parameters} | timing.fields()

    def _round(self, point: Point) -> dict[str, Any]:
        rows, context = point["batch"], point["context_tokens"]
        drafter, depth = self._drafter(point), point["gamma"]
        room = (ROUNDS + 4) * (depth + 1) + 8
        slots = drafter.slots if drafter else 1
        self._need_for_model(point["model"], rows, context + room + slots, slots)
        decoding = Decoding(
            self._model(point["model"], graphs=point["graphs"]), rows, context + room, drafter=drafter,
            forced=ForcedAlpha(point["alpha"], seed=1),
        )  # fmt: skip
        decoding.admit_synthetic(rows, context, room)
        timing = self.clock.wall(decoding.step, most=ROUNDS)
        # Warm-up rounds count here: what is emitted does not depend on how warm the device is.
        emitted = np.array([row.accepted for row in decoding.rows]) + 1
        means = {"tokens_per_round": float(emitted.mean()), "accepted": float(emitted.mean() - 1.0)}
        return means | timing.fields()

    def _serving(self, point: Point) -> dict[str, Any]:
        prompt, output, count = point["prompt_tokens"], point["output_tokens"], point["requests"]
        plain = {"drafter": "plain", "draft_model": None, "gamma": 0, "alpha": 0.0}
        # All at once: how many requests per second the machine can take without speculation.
        burst = [Request(0.0, [1] * prompt, output)] * point["max_batch"]
        busy_s = max(done.finished_s for done in serve(self._decoding(point | plain), burst).served)
        rate = point["load"] * point["max_batch"] / busy_s
        decoding = self._decoding(point)
        run = serve(decoding, poisson_requests(rate, count, prompt, output, decoding.model.vocab, seed=0))
        ttft = [s.ttft_s for s in run.served]
        tokens = [len(s.row.output) for s in run.served]
        duration_s = max(s.finished_s for s in run.served)
        return {
            "rate_per_s": rate, "duration_s": duration_s, "tokens_per_s": sum(tokens) / duration_s,
            "ttft_median_s": float(np.median(ttft)), "ttft_p99_s": float(np.quantile(ttft, 0.99)),
            "arrival_s": _rounded([s.arrival_s for s in run.served]),
            "first_token_s": _rounded([s.first_token_s for s in run.served]),
            "finished_s": _rounded([s.finished_s for s in run.served]), "output_lengths": tokens,
            "prefill_s": _rounded(run.prefill_s), "round_s": _rounded(run.round_s), "round_rows": run.round_rows,
            "round_tokens": run.round_tokens,
        } | ({} if point["drafter"] == "plain" else {
            "accepted_by_request": [s.row.accepted for s in run.served],
            "drafted_by_request": [s.row.drafted for s in run.served],
        }) | Timing.of([s.tpot_s for s in run.served]).fields()  # fmt: skip

    def _acceptance(self, point: Point) -> dict[str, Any]:
        pair, gamma, graphs = self._pair(point["model"]), point["gamma"], point["graphs"]
        begin_s = time.perf_counter()
        tree = Tree.chain(gamma)
        target = graphed(pair.target, live_step=WHOLE_CACHE) if graphs else pair.target
        drafter: Drafter = NGram(gamma, self.device)
        if point["drafter"] == "small":
            drafter = SmallModel(graphed(pair.draft, live_step=WHOLE_CACHE) if graphs else pair.draft, tree)
        elif point["drafter"] == "early_exit":
            drafter = EarlyExit(target, tree, point["exit_layers"])
        context, output = point["context_tokens"], point["output_tokens"]
        texts = passages(pair.corpus, point["requests"], context + output)
        if point["text"] == "held_out":
            trace = of_text(target, drafter, texts, context, output)
        else:
            trace = of_output(
                target, drafter, [text[:context] for text in texts], output,
                temperature=float(point["text"] == "sampled"), pad=isinstance(target, Graphed),
            )  # fmt: skip
        return summary(trace, gamma) | {"duration_s": time.perf_counter() - begin_s} | pair.fields()

    def _divergence(self, point: Point) -> dict[str, Any]:
        graphs, output, count = point["graphs"], point["output_tokens"], point["sequences"]
        if point["weights"] == "trained":
            pair = self._pair(point["model"])
            target, small = pair.target, pair.draft
            prompts = passages(pair.corpus, count, point["context_tokens"])
        else:
            target, small = (self._decoder(point[name]) for name in ("model", "draft_model"))
            random = torch.Generator().manual_seed(0)
            prompts = torch.randint(target.vocab, (count, point["context_tokens"]), generator=random).tolist()
        self._need_for_model(point["model"], count, point["context_tokens"] + output + 8, point["gamma"] + 1)
        begin_s = time.perf_counter()
        pad = (count,) if graphs and self.device.type == "cuda" else ()
        outputs = []
        for speculative in (False, True):
            model, draft = (graphed(m, live_step=WHOLE_CACHE) if graphs else m for m in (target, small))
            drafter = SmallModel(draft, Tree.chain(point["gamma"])) if speculative else None
            rows = generate(model, prompts, output, drafter=drafter, pad_to=pad)
            outputs.append([row.output for row in rows])
        return compare(target, prompts, *outputs) | {"duration_s": time.perf_counter() - begin_s}

    def _pair(self, name: str) -> Pair:
        """Trained when it is first asked for."""
        if self._no_pair is not None:
            raise self._no_pair
        if name not in self._pairs:
            begin_s = time.perf_counter()
            try:
                self._pairs[name] = train_pair(
                    name, device=self.device, dtype=DTYPES[self.dtype], attention=self._attention, fuse=self._fuse,
                    limit_s=self._training_limit_s, say=self._say,
                )  # fmt: skip
            except TooLong as error:
                self._no_pair = error
                raise
            finally:
                self.training_s += time.perf_counter() - begin_s
        return self._pairs[name]

    def _decoding(self, point: Point) -> Decoding:
        drafter = self._drafter(point, WHOLE_CACHE)
        slots = drafter.slots if drafter else 1
        longest = point["prompt_tokens"] + 2 * point["output_tokens"]
        self._need_for_model(point["model"], point["max_batch"], longest + slots, slots)
        model = self._model(point["model"], graphs=point["graphs"], live_step=WHOLE_CACHE)
        sizes = [size for size in PAD_TO if size <= point["max_batch"]]
        captured = isinstance(model, Graphed)
        forced = ForcedAlpha(point["alpha"])
        decoding = Decoding(
            model, point["max_batch"], longest, drafter=drafter, forced=forced, pad_to=sizes if captured else ()
        )
        # Every batch size once, so that no graph is captured while requests are served.
        few = Request(0.0, [1] * point["prompt_tokens"], min(2 * (point["gamma"] + 2), point["output_tokens"]))
        for size in sizes if captured else sizes[-1:]:
            serve(decoding, [few] * size)
        return decoding

    def _drafter(self, point: Point, live_step: int = LIVE_STEP) -> Drafter | None:
        kind = point["drafter"]
        if kind == "plain":
            return None
        if kind == "early_exit":
            target = self._model(point["model"], graphs=point["graphs"], live_step=live_step)
            return EarlyExit(target, Tree.chain(point["gamma"]), point["exit_layers"])
        tree = Tree.branching(point["widths"]) if kind == "tree" else Tree.chain(point["gamma"])
        return SmallModel(self._model(point["draft_model"], graphs=point["graphs"], live_step=live_step), tree)

    def _decoder(self, name: str) -> Decoder:
        if name not in self._models:
            self._need(DTYPES[self.dtype].itemsize * SHAPES[name].parameters)
            self._models[name] = Decoder(
                SHAPES[name], dtype=DTYPES[self.dtype], device=self.device, attention=self._attention, fuse=self._fuse
            )
        return self._models[name]

    def _model(self, name: str, *, graphs: bool, live_step: int = LIVE_STEP) -> Model:
        model = self._decoder(name)
        # New graphs for every point: kept ones would hold the caches of all points measured so far.
        return graphed(model, live_step=live_step) if graphs else model

    def _cache(self, name: str, model: Model, rows: int, live: int, query: int) -> KvCache:
        self._need_for_model(name, rows, live, query)
        cache = model.new_cache(rows, live)
        cache.data.normal_()
        return cache

    def _need_for_model(self, name: str, rows: int, live: int, query: int) -> None:
        """Cache, logits, masks and the widest activations of one pass."""
        s, tokens = SHAPES[name], rows * query
        values = rows * live * s.kv_values_per_token + tokens * (2 * s.vocab + 4 * s.width)
        values += 3 * tokens * live * s.heads // s.kv_heads
        self._need(DTYPES[self.dtype].itemsize * values)

    def _need(self, size_bytes: int) -> None:
        free_bytes = free_memory_bytes(self.device)
        if size_bytes > free_bytes:
            raise TooLarge(f"needs {size_bytes / 1e9:.1f} GB of memory, {free_bytes / 1e9:.1f} GB are free")


def free_memory_bytes(device: torch.device) -> int:
    """What may be allocated. On a shared host no more than half of what is there."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 // 2
    except (OSError, StopIteration):
        return 4 * 2**30


def _rounded(seconds: list[float]) -> list[float]:
    return [round(x, 7) for x in seconds]
