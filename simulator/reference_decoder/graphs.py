"""Graphed: a model whose forward pass is captured once per shape as a CUDA graph and then replayed.

Without a graph the host launches some twenty kernels per layer and is slower than the device for small batches. On a CPU,
and for shapes whose capture fails, the pass runs eagerly.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simulator.reference_decoder.model import Decoder, KvCache, Model, TreeMask

NO_GRAPH = "no CUDA graph for"
"""Begins the warning that a shape runs eagerly."""


class _Captured(NamedTuple):
    graph: Any
    inputs: dict[str, Tensor]
    """Where a replay reads from."""
    logits: Tensor
    """Where it writes to; the next replay overwrites it."""
    kept: tuple[Tensor, ...]
    """What the graph reads besides, held so that its memory is not given away."""


class Graphed:
    """Use it like the model. Logits are valid until the next pass: everything runs on one stream, in order."""

    def __init__(self, model: Decoder, *, live_step: int = 256, longest_query: int = 64) -> None:
        """`live_step`: attended slots are rounded up to a multiple (what is too much is masked), so that a growing
        context needs few graphs. `longest_query`: passes of more tokens per row are prefills and run eagerly."""
        self.model, self._live_step, self._longest_query = model, live_step, longest_query
        self._graphs: dict[tuple[object, ...], _Captured | None] = {}
        # One memory pool for all graphs: their intermediates share memory, as only one runs at a time.
        self._pool: Any = torch.cuda.graph_pool_handle()

    @property
    def vocab(self) -> int:
        """Tokens to choose from."""
        return self.model.vocab

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        return self.model.device

    def new_cache(self, batch: int, max_len: int) -> KvCache:
        """An empty cache."""
        return self.model.new_cache(batch, max_len)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KvCache,
        live: int,
        *,
        tree: TreeMask | None = None,
        slots: Tensor | None = None,
        layers: int | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        given = {"tokens": tokens, "positions": positions, "slots": slots, "last": last}
        if tree is not None:
            given["start"] = tree.start
        inputs = {name: value for name, value in given.items() if value is not None}
        visible = None if tree is None else tree.visible
        captured = None
        if tokens.shape[1] <= self._longest_query:
            live = min(-(-live // self._live_step) * self._live_step, cache.max_len)
            where = None if visible is None else (visible.data_ptr(), visible.shape)
            key = (cache.data.data_ptr(), cache.data.shape, tokens.shape, live, layers, where, *inputs)
            if key not in self._graphs:
                self._graphs[key] = self._capture(inputs, cache, live, visible, layers)
            captured = self._graphs[key]
        if captured is None:
            return self._run(inputs, cache, live, visible, layers)
        for name, value in inputs.items():
            captured.inputs[name].copy_(value)
        captured.graph.replay()
        return captured.logits

    def _run(
        self, inputs: dict[str, Tensor], cache: KvCache, live: int, visible: Tensor | None, layers: int | None
    ) -> Tensor:
        return self.model.forward(
            inputs["tokens"],
            inputs["positions"],
            cache,
            live,
            tree=None if visible is None else TreeMask(visible, inputs["start"]),
            slots=inputs.get("slots"),
            layers=layers,
            last=inputs.get("last"),
        )

    def _capture(
        self, inputs: dict[str, Tensor], cache: KvCache, live: int, visible: Tensor | None, layers: int | None
    ) -> _Captured | None:
        static = {name: value.clone() for name, value in inputs.items()}
        cuda: Any = torch.cuda
        try:
            # Libraries choose kernels and allocate workspaces in their first calls, which must not be captured. Running
            # a pass several times is harmless: it writes the same keys and values to the same slots.
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(2):
                    self._run(static, cache, live, visible, layers)
            cuda.current_stream().wait_stream(side)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, pool=self._pool):
                logits = self._run(static, cache, live, visible, layers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"{NO_GRAPH} {tuple(inputs['tokens'].shape)}, running eagerly: {error}", stacklevel=2)
            return None
        return _Captured(graph, static, logits, (cache.data, *([] if visible is None else [visible])))


def graphed(model: Decoder, *, live_step: int = 256) -> Model:
    """The model with graphs where there is a GPU, the model itself elsewhere."""
    return Graphed(model, live_step=live_step) if model.device.type == "cuda" else model
