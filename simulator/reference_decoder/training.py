"""Training: a decoder learns text, byte by byte; seeded, so that the same machine makes the same weights on a CPU.

On a GPU matrices are multiplied in bf16 and sums are added in no fixed order, so weights agree only roughly.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simulator.reference_decoder.checkpoint import weights_of
from simulator.reference_decoder.model import Decoder

WARM_UP, LAST = 0.05, 0.02
"""The learning rate rises over the first twentieth of the steps, then falls along a cosine to so small a part of itself."""
BETAS, WEIGHT_DECAY, MOST_GRADIENT = (0.9, 0.99), 0.1, 1.0
TRIAL = range(5, 20)
"""Steps that tell how long all will take: the first ones load libraries."""
EVALUATED_WINDOWS = 128


class TooLong(Exception):
    """Training would take longer than it may."""


@dataclass(frozen=True)
class Course:
    """How long and how fast a model learns."""

    steps: int
    batch: int
    """Windows of text per step."""
    tokens: int
    """Of each window: what the model can look back on."""
    learning_rate: float


def logits_of(model: Decoder, tokens: Tensor) -> Tensor:
    """What `Decoder.forward` computes for whole texts from position 0, without a cache, so that gradients can flow.

    tokens: [batch, tokens] → [batch, tokens, vocab]
    """
    s = model.shape
    batch, length = tokens.shape
    cos, sin = model.rotary(torch.arange(length, device=model.device)[None])
    x = functional.embedding(tokens, model.embedding)
    update = torch.zeros((), dtype=model.dtype, device=model.device)
    for layer in model.layers:
        x, h = model.add_norm(x, update, layer.attention_norm, s.norm_eps)
        q, k, v = (part.transpose(1, 2) for part in model.project(layer, h, cos, sin))  # [batch, ·, tokens, head_dim]
        k, v = (part.repeat_interleave(s.heads // s.kv_heads, dim=1) for part in (k, v))
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        o = functional.linear(o.transpose(1, 2).reshape(batch, length, -1), layer.out)
        x, h = model.add_norm(x, o, layer.mlp_norm, s.norm_eps)
        update = functional.linear(model.swiglu(functional.linear(h, layer.gate_up)), layer.down)
    _, h = model.add_norm(x, update, model.norm, s.norm_eps)
    return functional.linear(h, model.head)


def train(model: Decoder, texts: Sequence[bytes], course: Course, *, seed: int = 0, limit_s: float = math.inf) -> None:
    """Cross entropy, AdamW, windows from anywhere in the texts. Raises TooLong when `limit_s` would not be enough."""
    weights = list(weights_of(model).values())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=course.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    text = _tensor(texts)
    random = torch.Generator().manual_seed(seed)
    begin_s = math.inf
    try:
        for step in range(course.steps):
            if step == TRIAL.start:
                begin_s = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = course.learning_rate * _rate(step, course.steps)
            starts = torch.randint(len(text) - course.tokens, (course.batch,), generator=random)
            loss = _loss(model, _windows(text, starts, course.tokens))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(weights, MOST_GRADIENT)
            optimizer.step()
            if step + 1 == TRIAL.stop:
                loss.item()  # waits for the device
                needed_s = (time.perf_counter() - begin_s) / len(TRIAL) * course.steps
                if needed_s > limit_s:
                    raise TooLong(f"training would take about {needed_s:.0f} s, and {limit_s:.0f} s are allowed")
    finally:
        for weight in weights:
            # Decoding writes in place and is captured in graphs: nothing there may wait for gradients.
            weight.requires_grad_(False)
            weight.grad = None


def bits_per_byte(model: Decoder, texts: Sequence[bytes], tokens: int) -> float:
    """Cross entropy over windows spread evenly over the texts."""
    text = _tensor(texts)
    starts = torch.linspace(0, len(text) - tokens - 1, EVALUATED_WINDOWS).long()
    with torch.no_grad():
        losses = [float(_loss(model, _windows(text, some, tokens))) for some in starts.chunk(8)]
    return sum(losses) / len(losses) / math.log(2.0)


def _tensor(texts: Sequence[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).long()


def _windows(text: Tensor, starts: Tensor, tokens: int) -> Tensor:
    """[len(starts), tokens + 1]: inputs and, one further, what they should predict."""
    return text[starts[:, None] + torch.arange(tokens + 1)]


def _loss(model: Decoder, windows: Tensor) -> Tensor:
    """Nats per byte."""
    windows = windows.to(model.device)
    # On a CPU single precision is as fast for models this small.
    fast = torch.autocast("cuda", torch.bfloat16) if model.device.type == "cuda" else contextlib.nullcontext()
    with fast:
        logits = logits_of(model, windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def _rate(step: int, steps: int) -> float:
    rise = min(1.0, (step + 1) / (WARM_UP * steps + 1))
    return rise * (LAST + (1.0 - LAST) * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
