"""config.json → Decoder. Not our file: keys we do not use are ignored, defaults are those of the model's family in
transformers, and what we do use is checked once, here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from simulator.architecture import Attention, Decoder, LayerKind, Mla, Mlp, Moe
from simulator.config_fields import Fields
from simulator.errors import InputError, UnknownName
from simulator.model_families import FAMILIES, NO_DECODERS, Family
from simulator.quantization_config import weight_quantization

MAX_LAYERS = 10**6
_NESTED = ("text_config", "llm_config", "language_config")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32"}


def decoder_from(config: Mapping[str, Any], *, name: str, where: str) -> Decoder:
    """See `architecture.parse_config`."""
    config, model_type = _text_model(config, where)
    family = FAMILIES[model_type]
    given = Fields({**family.defaults, **config}, where)
    hidden_size = given.count("hidden_size", "n_embd")
    layers = given.count("num_hidden_layers", "n_layer", at_most=MAX_LAYERS)
    context = given.optional("max_position_embeddings", "n_positions")
    if context is None and family.learned_positions is not None:
        raise given.error("max_position_embeddings", "(absent)", "be given: it is the length of the position table")
    windows = _windows(given, layers)
    mlps = _mlps(given, family, layers, hidden_size)
    shapes = list(zip(windows, mlps, strict=True))
    kinds = Counter(shapes)
    number = {shape: i for i, shape in enumerate(kinds)}
    attention = _attention(given, family, hidden_size)
    projected = given.count("word_embed_proj_dim", default=hidden_size)
    if projected != hidden_size:
        raise given.error("word_embed_proj_dim", projected, f"equal hidden_size={hidden_size}")
    vocab = given.count("vocab_size")
    return Decoder(
        name=name,
        model_type=model_type,
        hidden_size=hidden_size,
        vocab_size=vocab,
        max_context_tokens=context,
        attention=attention,
        layer_kinds=tuple(LayerKind(count, window, mlp) for (window, mlp), count in kinds.items()),
        layer_order=tuple(number[shape] for shape in shapes),
        tied_head=given.flag("tie_word_embeddings", default=family.tied),
        dtype=_dtype(given),
        quantization=weight_quantization(given, layers, hidden_size),
        extra_input_size=given.count("memwall_extra_input_size", default=0, at_least=0),
        feature_size=given.count("memwall_feature_size", default=0, at_least=0),
        attention_input_size=given.count("memwall_attention_input_size", default=0, at_least=0),
        draft_vocab_size=given.count("draft_vocab_size", default=0, at_least=0, at_most=vocab),
        mtp_modules=given.count("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, at_least=0),
    )


def _text_model(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """The language model's own fields and its model_type; a multimodal config keeps them one level down."""
    if not isinstance(config, Mapping):
        raise InputError("content", type(config).__name__, "be a mapping of fields to values", where=where)
    outer = Fields(config, where)
    model_type = config.get("model_type")
    for inner in _NESTED:
        text = outer.nested(inner)
        if text is not None:
            # What the inner config leaves out (dtype, quantisation, tying) is said once, outside.
            config = {**config, **{k: v for k, v in text.data.items() if v is not None or k not in config}}
            if text.data.get("model_type") is None and f"{model_type}_text" in FAMILIES:
                model_type = f"{model_type}_text"
            else:
                model_type = config.get("model_type")
            break
    if model_type is None:
        raise outer.error("model_type", "(absent)", "be given, e.g. 'llama'")
    if not isinstance(model_type, str):
        raise outer.error("model_type", model_type, "be a text such as 'llama'")
    if model_type in NO_DECODERS or config.get("is_encoder_decoder") is True:
        raise outer.error("model_type", model_type, "be a decoder-only transformer language model")
    if model_type not in FAMILIES:
        raise UnknownName("model_type", model_type, FAMILIES, where=where, kind="decoder family")
    return config, model_type


def _attention(given: Fields, family: Family, hidden_size: int) -> Attention:
    heads = given.count("num_attention_heads", "n_head")
    bias = given.flag("attention_bias", "enable_bias", "use_bias", default=False)
    if family.mla or given.optional("kv_lora_rank") is not None:
        mla = Mla(
            q_lora_rank=given.optional("q_lora_rank"),
            kv_lora_rank=given.count("kv_lora_rank"),
            qk_nope_head_dim=given.count("qk_nope_head_dim"),
            qk_rope_head_dim=given.count("qk_rope_head_dim"),
            v_head_dim=given.count("v_head_dim"),
        )
        return Attention(heads, heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim, bias, False, mla)
    kv_heads = given.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise given.error("num_key_value_heads", kv_heads, f"divide num_attention_heads={heads}")
    head_dim = given.optional("head_dim")
    if head_dim is None:
        if hidden_size % heads:
            raise given.error(
                "hidden_size", hidden_size, f"be a multiple of num_attention_heads={heads}, or head_dim given"
            )
        head_dim = hidden_size // heads
    return Attention(heads, kv_heads, head_dim, bias, given.flag("use_qk_norm", default=family.qk_norm), None)


def _windows(given: Fields, layers: int) -> list[int | None]:
    """Window of each layer in tokens, None for full attention."""
    window = given.optional("sliding_window")
    if not given.flag("use_sliding_window", default=True):
        window = None
    types = given.listed("layer_types")
    counts = given.nested("layer_types_counts")
    if types and len(types) != layers:
        raise given.error("layer_types", f"{len(types)} entries", f"have num_hidden_layers={layers} entries")
    if not types and counts is not None:
        number = {kind: counts.count(kind, at_least=0, at_most=MAX_LAYERS) for kind in counts.data}
        if sum(number.values()) != layers:
            raise given.error("layer_types_counts", sum(number.values()), f"add up to num_hidden_layers={layers}")
        # In what order is not said; models alternate, so each kind is spread evenly over the depth.
        places = [(j / n, at, kind) for at, (kind, n) in enumerate(number.items()) for j in range(n)]
        types = [kind for *_, kind in sorted(places)]
    if types:
        return [_window(given, kind, window) for kind in types]
    # Every pattern-th layer sees everything, the others the window (Gemma 2 and 3, gpt-oss, Command R7B).
    pattern = given.optional("sliding_window_pattern", "_sliding_window_pattern")
    first = given.count("max_window_layers", default=0, at_least=0) if window else 0
    return [window if i >= first and not (pattern and (i + 1) % pattern == 0) else None for i in range(layers)]


def _window(given: Fields, kind: object, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise given.error("layer_types", kind, "be full_attention or sliding_attention")
    if window is None:
        raise given.error(
            "sliding_window", window, "be given (and use_sliding_window not false) where layer_types has windows"
        )
    return window


def _mlps(given: Fields, family: Family, layers: int, hidden_size: int) -> list[Mlp | Moe]:
    """MLP or experts of each layer."""
    bias = given.flag("mlp_bias", "enable_bias", "use_bias", default=False)
    width = given.optional("intermediate_size", "ffn_dim", "n_inner")
    if width is None and family.learned_positions == 0:
        width = 4 * hidden_size  # GPT-2 leaves n_inner null
    experts = given.optional("num_experts", "num_local_experts", "n_routed_experts", at_least=1 if family.moe else 0)
    if experts is None and family.moe:
        raise given.error("num_experts", "(absent)", "be given (or num_local_experts, n_routed_experts)")
    if not experts:
        if width is None:
            raise given.error("intermediate_size", "(absent)", "be given")
        return [Mlp(width, family.gated, bias)] * layers
    per_token = given.count("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
    if per_token > experts:
        raise given.error("num_experts_per_tok", per_token, f"be at most the {experts} experts")
    expert_width = given.count("moe_intermediate_size", default=width)
    shared = given.count("n_shared_experts", default=0, at_least=0) * expert_width
    shared = given.count("shared_expert_intermediate_size", default=shared, at_least=0)
    moe = Moe(experts, per_token, expert_width, family.gated, bias, shared)
    first = given.count("first_k_dense_replace", default=0, at_least=0)
    every = given.count("moe_layer_freq", default=1)
    step = given.count("decoder_sparse_step", default=1)
    dense = set()
    for i in given.listed("mlp_only_layers"):
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < layers:
            raise given.error("mlp_only_layers", i, f"name layers between 0 and {layers - 1}")
        dense.add(i)
    sparse = [i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(layers)]
    if all(sparse):
        return [moe] * layers
    if width is None:
        raise given.error("intermediate_size", "(absent)", "be given for the layers without experts")
    return [moe if s else Mlp(width, family.gated, bias) for s in sparse]


def _dtype(given: Fields) -> str:
    """Format of the unquantised weights; bf16 where the file does not say, as every recent checkpoint is."""
    found = {n: given.data[n] for n in ("dtype", "torch_dtype") if given.data.get(n) is not None}
    for name, value in found.items():
        if not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES:
            raise given.error(name, value, "be bfloat16, float16 or float32")
    formats = [_DTYPES[value.removeprefix("torch.")] for value in found.values()]
    if len(set(formats)) > 1:
        raise given.error("torch_dtype", found["torch_dtype"], f"equal dtype={found['dtype']}")
    return formats[0] if formats else "bf16"
