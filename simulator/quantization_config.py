"""``quantization_config`` of a config.json → how the checkpoint stores its matrices, scales included."""

from __future__ import annotations

import re

from simulator.architecture import WeightQuantization
from simulator.config_fields import MAX_SIZE, Fields
from simulator.errors import UnknownName


def weight_quantization(given: Fields, layers: int, hidden_size: int) -> WeightQuantization | None:
    q = given.nested("quantization_config")
    if q is None:
        return None
    method = q.data.get("quant_method")
    # One scale per output channel covers a column of about hidden_size values.
    dtype, block, scale_bytes = "", hidden_size, 4.0
    if method in ("fp8", "fbgemm_fp8"):
        dtype = "fp8"
        if q.listed("weight_block_size"):
            block = _area(q, "weight_block_size")
        elif method == "fp8":
            block = hidden_size**2  # one scale per matrix
    elif method == "mxfp4":
        dtype, block, scale_bytes = "mxfp4", 32, 1.0
    elif method in ("gptq", "awq"):
        bits = q.count("bits", "w_bit", at_most=64)
        dtype = _integer(q, "bits", bits)
        block = _group(q, ("group_size", "q_group_size"), hidden_size)
        scale_bytes = 2.0 + bits / 8  # fp16 scale and a packed zero point, stored even when symmetric
    elif method == "compressed-tensors":
        dtype, block, scale_bytes = _compressed(q, hidden_size)
    else:
        known = ["fp8", "fbgemm_fp8", "mxfp4", "gptq", "awq", "compressed-tensors"]
        raise UnknownName("quantization_config.quant_method", str(method), known, where=given.where, kind="method")
    return WeightQuantization(dtype, block, scale_bytes, _unquantized(q, str(method), layers))


def _compressed(q: Fields, hidden_size: int) -> tuple[str, int, float]:
    groups = q.nested("config_groups")
    schemes = set()
    for name in groups.data if groups else ():
        group = groups.nested(name) if groups else None
        weights = group.nested("weights") if group else None
        if weights is not None:
            schemes.add(_compressed_scheme(weights, hidden_size))
    if len(schemes) != 1:
        raise q.error("config_groups", f"{len(schemes)} weight formats", "describe exactly one weight format")
    return schemes.pop()


def _compressed_scheme(w: Fields, hidden_size: int) -> tuple[str, int, float]:
    bits, kind, strategy = w.count("num_bits", at_most=64), w.data.get("type"), w.data.get("strategy")
    if kind == "float":
        group = w.optional("group_size", at_least=-1)
        if bits == 4 and group == 32:
            return "mxfp4", 32, 1.0
        if bits != 8:
            raise w.error("num_bits", bits, "be 8 for float weights (or 4 in groups of 32)")
        dtype = "fp8"
    elif kind in (None, "int"):
        dtype = _integer(w, "num_bits", bits)
    else:
        raise w.error("type", kind, "be int or float")
    if strategy == "tensor":
        block = hidden_size**2
    elif strategy == "block":
        block = _area(w, "block_structure")
    else:
        block = _group(w, ("group_size",), hidden_size)
    return dtype, block, 2.0 + (0.0 if w.flag("symmetric", default=True) else bits / 8)


def _integer(q: Fields, name: str, bits: int) -> str:
    if bits not in (4, 8):
        raise q.error(name, bits, "be 4 or 8")
    return f"int{bits}"


def _group(q: Fields, names: tuple[str, ...], hidden_size: int) -> int:
    group = q.count(*names, default=-1, at_least=-1)
    if group == 0:
        raise q.error(names[0], group, "be at least 1, or -1 for one scale per channel")
    return hidden_size if group == -1 else group


def _area(q: Fields, name: str) -> int:
    sides = q.listed(name)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= MAX_SIZE for s in sides):
        raise q.error(name, sides, "be two whole numbers such as [128, 128]")
    return int(sides[0] * sides[1])


def _unquantized(q: Fields, method: str, layers: int) -> frozenset[str]:
    """Parts kept in the model's dtype: those no engine quantises, and those that the exclusion list names."""
    parts = {"embedding", "router"}
    if not q.flag("lm_head", default=False):
        parts.add("lm_head")
    if method == "mxfp4":
        parts.add("attention")  # the method packs experts only
    exempt: set[int] = set()
    for key in ("modules_to_not_convert", "ignore", "ignored_layers"):
        for pattern in q.listed(key):
            if not isinstance(pattern, str):
                raise q.error(key, pattern, "be a list of module names")
            if re.search(r"attn|attention", pattern):
                index = re.search(r"(?:layers|h)\\?\.(\d{1,7})\\?\.", pattern)
                exempt.update([int(index[1])] if index else range(layers))
    # A list that exempts single layers (the first and last, say) leaves attention as a whole quantised.
    if 2 * len(exempt) > layers:
        parts.add("attention")
    return frozenset(parts)
