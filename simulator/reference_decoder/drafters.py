"""Where drafts come from: a smaller model, the target's own first layers, or the row's own text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simulator.reference_decoder.model import KvCache, Model, TreeMask, first_argmax
from simulator.reference_decoder.speculative import PLAIN, View, prefill
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.verification import Proposal, distribution, draw_tokens


class ModelDrafter:
    """A model that drafts level by level, one pass per depth of the tree. Subclasses say whose cache it fills."""

    def __init__(self, model: Model, tree: Tree, layers: int | None, catch_up: bool) -> None:
        if tree.depth < 1:
            raise ValueError(f"tree.depth={tree.depth} must be at least 1; for plain decoding give no drafter")
        self.model, self.tree = model, tree
        self._layers, self._catch_up = layers, catch_up
        self._cache: KvCache | None = None

    @property
    def slots(self) -> int:
        """See `Drafter`."""
        return self.tree.nodes

    @property
    def cache(self) -> KvCache:
        """Where the drafter's keys and values are."""
        if self._cache is None:
            raise RuntimeError("start() must come first")
        return self._cache

    def propose(self, view: View) -> Proposal:
        """Drafted greedily, or drawn from the drafter's distribution where the target samples too."""
        tree, device = self.tree, self.model.device
        t = tree.on(device)
        tokens = torch.zeros(view.batch, tree.nodes, dtype=torch.long, device=device)
        tokens[:, 0] = view.pending
        probs: Tensor | None = None
        if view.temperature > 0.0:
            probs = torch.zeros(view.batch, tree.nodes, self.model.vocab, device=device)
        for depth in range(tree.depth):
            level = tree.level(depth)
            nodes = slice(level.start, level.stop)
            logits = self._root(view) if depth == 0 else self._inner(view, tokens, nodes, t.depth, t.visible)
            if probs is not None:
                probs[:, nodes] = distribution(logits, view.temperature)
            for place, node in enumerate(level):
                children = tree.children(node)
                if not children:
                    continue
                if probs is None and len(children) == 1:
                    best = first_argmax(logits[:, place])[:, None]
                elif probs is None:
                    best = logits[:, place].topk(len(children), dim=-1).indices
                else:
                    best = draw_tokens(probs[:, node], len(children), view.generator)
                tokens[:, children[0] : children[-1] + 1] = best
        return Proposal(tokens, tree, probs=probs)

    def _root(self, view: View) -> Tensor:
        """Logits after the pending token, [batch, 1, vocab]."""
        if not self._catch_up:
            return self._forward(view.pending[:, None], view.lengths[:, None], view.live + 1)
        # The deepest draft of the last round, if it was accepted, never went through the drafter. Passing it again
        # where it did costs nothing and writes the same values, so that all rows have two tokens.
        tokens = torch.stack((view.previous, view.pending), dim=1)
        positions = torch.stack(((view.lengths - 1).clamp(min=0), view.lengths), dim=1)
        return self._forward(tokens, positions, view.live + 1)[:, 1:]

    def _inner(self, view: View, tokens: Tensor, nodes: slice, depth: Tensor, visible: Tensor) -> Tensor:
        """Logits after the nodes of one level, [batch, nodes of the level, vocab]."""
        positions = view.lengths[:, None] + depth[nodes]
        live = view.live + nodes.stop
        if self.tree.is_chain:
            return self._forward(tokens[:, nodes], positions, live)
        slots = view.lengths[:, None] + torch.arange(nodes.start, nodes.stop, device=tokens.device)
        mask = TreeMask(visible[nodes], view.lengths)
        return self._forward(tokens[:, nodes], positions, live, mask, slots)

    def _forward(
        self, tokens: Tensor, positions: Tensor, live: int, tree: TreeMask | None = None, slots: Tensor | None = None
    ) -> Tensor:
        return self.model.forward(tokens, positions, self.cache, live, tree=tree, slots=slots, layers=self._layers)


class SmallModel(ModelDrafter):
    """An independent model with a cache of its own; it reads the prompt too."""

    def __init__(self, model: Model, tree: Tree) -> None:
        super().__init__(model, tree, layers=None, catch_up=True)

    def start(self, cache: KvCache) -> None:
        """See `Drafter`."""
        self._cache = self.model.new_cache(cache.batch, cache.max_len)

    def admit(self, first: int, tokens: Tensor, lengths: Tensor) -> None:
        """See `Drafter`."""
        prefill(self.model, self.cache.rows(first, first + tokens.shape[0]), tokens, lengths)

    def keep(self, start: Tensor, path: Tensor) -> None:
        """See `Drafter`."""
        if not self.tree.is_chain:
            self.cache.keep_path(start, path)

    def copy_row(self, source: int, target: int) -> None:
        """See `Drafter`."""
        self.cache.copy_row(source, target)


class EarlyExit(ModelDrafter):
    """The target's own first layers and its head (arXiv:2404.16710). The cache is the target's: what is drafted fills
    the first layers with the values that verification writes once more, and nothing is ever missing."""

    def __init__(self, model: Model, tree: Tree, layers: int) -> None:
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1")
        super().__init__(model, tree, layers=layers, catch_up=False)

    def start(self, cache: KvCache) -> None:
        """See `Drafter`."""
        self._cache = cache

    def admit(self, first: int, tokens: Tensor, lengths: Tensor) -> None:
        """The target's prefill did it."""

    def keep(self, start: Tensor, path: Tensor) -> None:
        """The target's cache is moved by the target."""

    def copy_row(self, source: int, target: int) -> None:
        """Likewise."""


class NGram:
    """Prompt look-up: what followed the last n tokens when they last occurred in this row, longest n first."""

    def __init__(self, gamma: int, device: torch.device | str = "cpu", longest: int = 3, shortest: int = 1) -> None:
        if gamma < 1 or not 1 <= shortest <= longest:
            raise ValueError(f"gamma={gamma} must be at least 1, and 1 <= shortest={shortest} <= longest={longest}")
        self._tree, self._device = Tree.chain(gamma), torch.device(device)
        self._sizes = range(longest, shortest - 1, -1)

    @property
    def slots(self) -> int:
        """See `Drafter`."""
        return self._tree.nodes

    def propose(self, view: View) -> Proposal:
        """Works on the host, which knows the rows' tokens anyway."""
        gamma = self._tree.depth
        drafts = np.zeros((view.batch, gamma), dtype=np.int64)
        drafted = np.zeros(view.batch, dtype=np.bool_)
        for i, history in enumerate(view.histories):
            found = look_up(history, gamma, self._sizes)
            if found:
                # A match near the end is short; the rest is filled up, and may be right by luck.
                drafts[i], drafted[i] = found + [found[-1]] * (gamma - len(found)), True
        pending = view.pending[:, None]
        if not drafted.any():
            return Proposal(pending, PLAIN)
        tokens = torch.cat((pending, torch.from_numpy(drafts).to(self._device)), dim=1)
        return Proposal(tokens, self._tree, torch.from_numpy(drafted).to(self._device))

    def start(self, cache: KvCache) -> None:
        """No state beyond the rows' tokens."""

    def admit(self, first: int, tokens: Tensor, lengths: Tensor) -> None:
        """Likewise."""

    def keep(self, start: Tensor, path: Tensor) -> None:
        """Likewise."""

    def copy_row(self, source: int, target: int) -> None:
        """Likewise."""


def look_up(history: Sequence[int], gamma: int, sizes: Sequence[int]) -> list[int]:
    """Up to `gamma` tokens that followed the latest earlier occurrence of the last n tokens, for the first n of `sizes`
    that has one; empty if none has."""
    text = np.asarray(history, dtype=np.int64)
    for size in sizes:
        if len(text) <= size:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)  # the last one ends before the last token
        hits = np.flatnonzero((windows == text[-size:]).all(axis=1))
        if hits.size:
            after = int(hits[-1]) + size
            return [int(token) for token in text[after : after + gamma]]
    return []
