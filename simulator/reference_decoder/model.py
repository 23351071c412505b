"""Decoder: tokens and positions → logits, over a static KV cache.

One forward pass serves prefill, decoding, verification of chains and trees, and early exit: what differs is which slots
of the cache the new tokens are written to, and which slots each of them may see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from simulator.reference_decoder.shapes import ConfigError, Llama3Rope, Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AttentionMethod = Literal["auto", "sdpa", "matmul"]


def first_argmax(scores: Tensor) -> Tensor:
    """Index of the largest score along the last dimension; the first one wins a tie.

    Everything greedy here goes through this function: two argmaxes that break ties differently would make speculative
    and plain output diverge although both are right.
    """
    return torch.argmax(scores, dim=-1)  # documented to return the first of several maxima, on every device


@dataclass(frozen=True)
class KvCache:
    """Keys and values of every layer and slot; a token's slot is its position, except inside a token tree."""

    data: Tensor
    """[layers, 2, batch, kv_heads, max_len, head_dim]"""

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.data.shape[2])

    @property
    def max_len(self) -> int:
        """Slots per row."""
        return int(self.data.shape[4])

    def rows(self, start: int, stop: int) -> KvCache:
        """A view of some rows."""
        return KvCache(self.data[:, :, start:stop])

    def copy_row(self, source: int, target: int) -> None:
        """Row `target` becomes row `source`."""
        self.data[:, :, target].copy_(self.data[:, :, source])

    def keep_path(self, start: Tensor, path: Tensor) -> None:
        """Move the accepted nodes of a token tree to the slots of their positions, in one gather and one scatter.

        start: [batch], slot of the tree's root; path: [batch, depth + 1], node at each depth, itself where unused.
        """
        rows = torch.arange(start.shape[0], device=start.device)[:, None]
        steps = torch.arange(path.shape[1], device=path.device)
        kept = self.data[:, :, rows, :, start[:, None] + path]  # [batch, depth + 1, layers, 2, kv_heads, head_dim]
        self.data[:, :, rows, :, start[:, None] + steps] = kept


class TreeMask(NamedTuple):
    """Which nodes of a token tree see which; nodes are written to slots `start + node`."""

    visible: Tensor
    """[query, nodes] bool: the node itself and its ancestors."""
    start: Tensor
    """[batch], slot of the root; everything before it is visible."""


class Model(Protocol):
    """What speculative decoding needs of a model. Tests script it, `graphs` replays it."""

    @property
    def vocab(self) -> int:
        """Tokens to choose from."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        ...

    def new_cache(self, batch: int, max_len: int) -> KvCache:
        """An empty cache."""
        ...

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
        """tokens, positions: [batch, query] → logits [batch, query, vocab].

        `live`: slots of the cache to attend to, at least the largest slot written + 1. `slots`: where the tokens go,
        `positions` unless given. `layers`: exit after so many. `last`: [batch], the one query whose logits are wanted;
        the result is [batch, 1, vocab].
        """
        ...


class Layer(NamedTuple):
    """Weights of one layer; matrices are [out, in]."""

    attention_norm: Tensor
    qkv: Tensor
    """[(heads + 2 kv_heads) head_dim, hidden]: queries, keys, values."""
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    """[2 width, hidden]"""
    down: Tensor


def add_norm(x: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream with `update` added, and its RMSNorm."""
    x = x + update
    return x, functional.rms_norm(x, weight.shape, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), halves paired as in Hugging Face checkpoints.

    x: [batch, query, heads, head_dim]; cos, sin: [batch, query, 1, head_dim], sin negated in its first half.
    """
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, dims=-1), sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [..., 2 width] → [..., width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


class Decoder:
    """A Llama-style model with random weights (seeded) or those of a safetensors checkpoint."""

    def __init__(
        self,
        shape: Shape,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        attention: AttentionMethod = "auto",
        fuse: bool = False,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.attention = attention
        self._generator = torch.Generator(self.device).manual_seed(seed)
        h, d = shape.hidden, shape.head_dim
        qkv = (shape.heads + 2 * shape.kv_heads) * d
        deep = 1.0 / math.sqrt(2.0 * shape.layers)  # keeps the residual stream's size independent of depth
        # A tied head of unit-size embeddings would make every model repeat its last token for ever.
        self.embedding = self._random(shape.vocab, h, scale=None if shape.tied_head else 1.0)
        self.layers = [
            Layer(
                attention_norm=self._ones(h),
                qkv=self._random(qkv, h),
                qkv_bias=self._random(1, qkv)[0] if shape.qkv_bias else None,
                q_norm=self._ones(d) if shape.qk_norm else None,
                k_norm=self._ones(d) if shape.qk_norm else None,
                out=self._random(h, shape.heads * d, scale=deep / math.sqrt(shape.heads * d)),
                mlp_norm=self._ones(h),
                gate_up=self._random(2 * shape.width, h),
                down=self._random(h, shape.width, scale=deep / math.sqrt(shape.width)),
            )
            for _ in range(shape.layers)
        ]
        self.norm = self._ones(h)
        self.head = self.embedding if shape.tied_head else self._random(shape.vocab, h)
        self._frequencies = _rotary_frequencies(shape).to(self.device)
        # torch.compile makes one kernel of each; worth it where launches are not hidden, hence a choice.
        wrap: Callable[[Any], Any] = torch.compile if fuse else lambda f: f
        self.add_norm, self.rotate, self.swiglu = wrap(add_norm), wrap(rotate), wrap(swiglu)

    def _random(self, *size: int, scale: float | None = None) -> Tensor:
        weights = torch.empty(size, dtype=self.dtype, device=self.device)
        return weights.normal_(std=size[-1] ** -0.5 if scale is None else scale, generator=self._generator)

    def _ones(self, size: int) -> Tensor:
        return torch.ones(size, dtype=self.dtype, device=self.device)

    @property
    def vocab(self) -> int:
        """Tokens to choose from."""
        return self.shape.vocab

    def new_cache(self, batch: int, max_len: int) -> KvCache:
        """A cache of zeros: what no token has written is masked, but NaN · 0 would not be 0."""
        s = self.shape
        if s.max_tokens is not None and max_len > s.max_tokens:
            raise ConfigError(f"max_len={max_len} must be at most {s.max_tokens}, the model's sliding window")
        size = (s.layers, 2, batch, s.kv_heads, max_len, s.head_dim)
        return KvCache(torch.zeros(size, dtype=self.dtype, device=self.device))

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
        batch = tokens.shape[0]
        slots = positions if slots is None else slots
        rows = torch.arange(batch, device=self.device)[:, None]
        mask = self._mask(slots, live, tree)
        cos, sin = self.rotary(positions)
        eps = self.shape.norm_eps
        x = functional.embedding(tokens, self.embedding)  # x: [batch, query, hidden]
        update = torch.zeros((), dtype=self.dtype, device=self.device)
        for layer, kv in zip(self.layers[:layers], cache.data, strict=False):
            x, h = self.add_norm(x, update, layer.attention_norm, eps)
            h = self._attend(layer, self.project(layer, h, cos, sin), kv, rows, slots, live, mask)
            x, h = self.add_norm(x, h, layer.mlp_norm, eps)
            update = functional.linear(self.swiglu(functional.linear(h, layer.gate_up)), layer.down)
        if last is not None:
            x, update = x[rows, last[:, None]], update[rows, last[:, None]]  # [batch, 1, hidden]
        _, h = self.add_norm(x, update, self.norm, eps)
        return functional.linear(h, self.head)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [batch, query] → cos and sin as `rotate` takes them: [batch, query, 1, head_dim]."""
        angles = positions[:, :, None, None] * self._frequencies  # [batch, query, 1, head_dim / 2]
        cos, sin = angles.cos().repeat(1, 1, 1, 2).to(self.dtype), angles.sin()
        return cos, torch.cat((-sin, sin), dim=-1).to(self.dtype)

    def project(self, layer: Layer, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h: [batch, query, hidden] → queries, keys (both with their positions) and values: [batch, query, ·, head_dim]."""
        s = self.shape
        batch, query, _ = h.shape
        qkv = functional.linear(h, layer.qkv, layer.qkv_bias).view(batch, query, s.heads + 2 * s.kv_heads, s.head_dim)
        qk, v = qkv[:, :, : s.heads + s.kv_heads], qkv[:, :, s.heads + s.kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q = functional.rms_norm(qk[:, :, : s.heads], layer.q_norm.shape, layer.q_norm, s.norm_eps)
            k = functional.rms_norm(qk[:, :, s.heads :], layer.k_norm.shape, layer.k_norm, s.norm_eps)
            qk = torch.cat((q, k), dim=2)
        qk = self.rotate(qk, cos, sin)
        return qk[:, :, : s.heads], qk[:, :, s.heads :], v

    def _attend(
        self,
        layer: Layer,
        projected: tuple[Tensor, Tensor, Tensor],
        kv: Tensor,
        rows: Tensor,
        slots: Tensor,
        live: int,
        mask: Tensor,
    ) -> Tensor:
        """kv: [2, batch, kv_heads, max_len, head_dim] → [batch, query, hidden]."""
        s = self.shape
        q, k, v = projected
        batch, query = q.shape[:2]
        kv[0][rows, :, slots] = k
        kv[1][rows, :, slots] = v
        # The query heads that share a KV head become further queries of it: K and V are then read once, by any kernel.
        group = s.heads // s.kv_heads
        q = q.reshape(batch, query, s.kv_heads, group, s.head_dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch, s.kv_heads, group * query, s.head_dim)
        keys, values = kv[0, :batch, :, :live], kv[1, :batch, :, :live]  # [batch, kv_heads, live, head_dim]
        o = attend(q, keys, values, mask, self.attention)
        o = o.view(batch, s.kv_heads, group, query, s.head_dim).permute(0, 3, 1, 2, 4)
        return functional.linear(o.reshape(batch, query, s.heads * s.head_dim), layer.out)

    def _mask(self, slots: Tensor, live: int, tree: TreeMask | None) -> Tensor:
        """[batch, 1, group · query, live]: 0 where a query may look, -inf elsewhere; computed once for all layers."""
        key = torch.arange(live, device=self.device)
        if tree is None:
            visible = key <= slots[:, :, None]  # [batch, query, live]
        else:
            node = key - tree.start[:, None]  # [batch, live]; negative: before the tree
            known = node.clamp(0, tree.visible.shape[1] - 1)
            inside = tree.visible[:, known].transpose(0, 1) & (node < tree.visible.shape[1])[:, None]
            visible = (node < 0)[:, None] | inside
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        mask = torch.where(visible, zero, float("-inf"))
        return mask.repeat(1, self.shape.heads // self.shape.kv_heads, 1)[:, None]


FEW_BLOCKS = 264
"""Thread blocks under which a GPU of some 130 multiprocessors idles in a kernel that does not split the keys."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, method: AttentionMethod = "auto") -> Tensor:
    """softmax(q kᵀ / √head_dim + mask) v.

    q: [batch, kv_heads, queries, head_dim]; k, v: [batch, kv_heads, live, head_dim]; mask: [batch, 1, queries, live].
    """
    if method == "auto":
        # With a mask PyTorch's fused kernels give each (row, head, 64 queries) one block, however many keys there are.
        few = q.shape[0] * q.shape[1] * -(-q.shape[2] // 64) < FEW_BLOCKS
        method = "matmul" if few and q.is_cuda and k.shape[2] > 256 else "sdpa"
    if method == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, mask)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + mask
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


def _rotary_frequencies(shape: Shape) -> Tensor:
    """[head_dim / 2], radians per position."""
    pair = torch.arange(0, shape.head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / shape.rope_theta ** (pair / shape.head_dim)
    scaling = shape.rope_scaling
    if isinstance(scaling, Llama3Rope):
        turns = scaling.original_max_position_embeddings * frequency / (2.0 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / scaling.factor)
    return frequency if scaling is None else frequency / scaling


def load_weights(model: Decoder, folder: Path) -> None:
    """Overwrite the weights with those of a Hugging Face checkpoint in safetensors files. Needs that package."""
    from safetensors import safe_open

    def copy(target: Tensor | None, *names: str) -> None:
        if target is not None:
            target.copy_(torch.cat([stored.pop(name).to(target.device) for name in names]))

    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the handle is no mapping)
    if not stored:
        raise ConfigError(f"folder={str(folder)!r} must hold *.safetensors files")
    try:
        copy(model.embedding, "model.embed_tokens.weight")
        copy(model.norm, "model.norm.weight")
        if not model.shape.tied_head:
            copy(model.head, "lm_head.weight")
        for i, layer in enumerate(model.layers):
            a, m = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            copy(layer.attention_norm, f"model.layers.{i}.input_layernorm.weight")
            copy(layer.qkv, *(f"{a}{x}_proj.weight" for x in "qkv"))
            copy(layer.qkv_bias, *(f"{a}{x}_proj.bias" for x in "qkv"))
            copy(layer.q_norm, f"{a}q_norm.weight")
            copy(layer.k_norm, f"{a}k_norm.weight")
            copy(layer.out, f"{a}o_proj.weight")
            copy(layer.mlp_norm, f"model.layers.{i}.post_attention_layernorm.weight")
            copy(layer.gate_up, f"{m}gate_proj.weight", f"{m}up_proj.weight")
            copy(layer.down, f"{m}down_proj.weight")
    except KeyError as error:
        raise ConfigError(f"folder={str(folder)!r} must hold the tensor {error.args[0]}") from None
