"""Bytes per value of each tensor class: weights, KV cache, activations, LM head; block scales counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.architecture import Decoder
from simulator.errors import InputError
from simulator.hardware import BYTES_PER_VALUE
from simulator.records import Record

WeightFormat = Literal["model", "fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4"]
KvFormat = Literal["model", "fp32", "bf16", "fp16", "fp8", "int8", "int4"]
ActivationFormat = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8"]

# format -> (values that share a scale, bytes of that scale and its zero point)
_WEIGHT_SCALES: dict[str, tuple[int, float]] = {
    "fp8": (128 * 128, 4.0),  # DeepSeek-style 128 x 128 blocks, fp32 scale
    "int8": (4096, 4.0),  # one fp32 scale per output channel; the channel length is a few thousand
    "int4": (128, 2.5),  # groups of 128 with an fp16 scale and a 4-bit zero point (GPTQ, AWQ)
    "mxfp4": (32, 1.0),  # OCP microscaling: one e8m0 byte per 32 values
}
_KV_SCALES: dict[str, tuple[int, float]] = {
    "int8": (128, 2.0),  # one fp16 scale per token and head
    "int4": (64, 2.5),  # groups of 64 with scale and zero point (KIVI)
}
_ACTIVATION_OF_WEIGHT = {"fp8": "fp8", "int8": "int8"}  # int4 and mxfp4 weights are widened to 16 bit


class Quantization(Record):
    """Number format of each tensor class; ``model`` means as the checkpoint's config.json says."""

    weights: WeightFormat = "model"
    """Matrices of the layers."""
    kv: KvFormat = "model"
    """KV cache."""
    activations: ActivationFormat = "auto"
    """Inputs of the matrix products; auto: fp8 and int8 weights bring their own, the rest is 16 bit."""
    lm_head: WeightFormat = "model"
    """LM head; stays in 16 bit unless given, as engines keep it, or quantised in the checkpoint."""


@dataclass(frozen=True)
class Formats:
    """`Quantization` resolved for one model: formats and bytes per value, scales included."""

    weights: str
    weight_bytes: float
    attention_weight_bytes: float
    router_weight_bytes: float
    input_weight_bytes: float
    """The matrix in front of a feature head's layer; quantised checkpoints leave it alone."""
    head_bytes: float
    embedding_bytes: float
    kv: str
    kv_bytes: float
    activations: str
    activation_bytes: float
    model_bytes: float
    """Bytes of one value of the residual stream."""


def resolve(q: Quantization, decoder: Decoder) -> Formats:
    """Formats of `decoder` under `q`. Raises InputError for a scheme that contradicts the checkpoint."""
    native = decoder.dtype
    stored = decoder.quantization
    weights = q.weights
    # Naming the format that the checkpoint has changes nothing.
    as_stored = stored is not None and weights in ("model", stored.dtype)
    if weights == "model":
        weights = stored.dtype if stored else native  # type: ignore[assignment]
    elif stored is not None and BYTES_PER_VALUE[weights] > BYTES_PER_VALUE[stored.dtype]:
        raise InputError(
            "quantization.weights", weights, f"not be wider than the checkpoint, which is stored in {stored.dtype}"
        )
    block, scale_bytes = _WEIGHT_SCALES.get(weights, (1, 0.0))
    if stored is not None and as_stored:
        block, scale_bytes = stored.block, stored.scale_bytes
    weight_bytes = BYTES_PER_VALUE[weights] + scale_bytes / block
    kept = stored.unquantized if stored is not None and as_stored else frozenset({"router", "lm_head"})
    native_bytes = BYTES_PER_VALUE[native]
    kv = native if q.kv == "model" else q.kv
    kv_block, kv_scale_bytes = _KV_SCALES.get(kv, (1, 0.0))
    activations = q.activations
    if activations == "auto":
        activations = _ACTIVATION_OF_WEIGHT.get(weights, native)  # type: ignore[assignment]
    head = native if q.lm_head == "model" else q.lm_head
    head_block, head_scale = _WEIGHT_SCALES.get(head, (1, 0.0))
    head_bytes = BYTES_PER_VALUE[head] + head_scale / head_block
    if q.lm_head == "model" and "lm_head" not in kept:
        head_bytes = weight_bytes
    return Formats(
        weights=weights,
        weight_bytes=weight_bytes,
        attention_weight_bytes=native_bytes if "attention" in kept else weight_bytes,
        router_weight_bytes=native_bytes if "router" in kept else weight_bytes,
        input_weight_bytes=native_bytes if stored is not None and as_stored else weight_bytes,
        head_bytes=head_bytes,
        embedding_bytes=native_bytes,
        kv=kv,
        kv_bytes=BYTES_PER_VALUE[kv] + kv_scale_bytes / kv_block,
        activations=activations,
        activation_bytes=BYTES_PER_VALUE[activations],
        model_bytes=native_bytes,
    )
