"""TensorRT-LLM's ``speculative_config``, read as it is.

Fields are those of the decoding configs of the LLM API, 1.4.0rc1 (nvidia.github.io/TensorRT-LLM, read 2026-11-24), with the
older names ``speculative_model_dir``, ``eagle3_one_model``, ``greedy_sampling``, ``posterior_threshold``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError, UnknownName
from simulator.speculation.acceptance import MAX_GAMMA
from simulator.speculation.engine_fields import EngineSpeculation, Option, count, parsed, result, schedule, sort_options
from simulator.speculation.engine_names import bundled_name, drafters_of, kind_of
from simulator.speculation.shape import MAX_NODES

WHERE = "trtllm-config"

_OPTIONS: dict[str, Option] = {
    "decoding_type": Option("text", "used"),
    "max_draft_len": Option("count", "used"),
    "max_total_draft_tokens": Option("count", "used"),
    "speculative_model": Option("text", "used"),
    "speculative_model_dir": Option("text", "used"),
    "num_nextn_predict_layers": Option("count", "used"),
    "max_concurrency": Option("count", "used"),
    "draft_len_schedule": Option("mapping", "used"),
    "use_dynamic_tree": Option("flag", "used", False),
    "dynamic_tree_max_topK": Option("count", "used"),
    "eagle_choices": Option("list", "used"),
    "num_medusa_heads": Option("count", "used"),
    "medusa_choices": Option("list", "used"),
    "use_relaxed_acceptance_for_thinking": Option("flag", "acceptance", False),
    "relaxed_topk": Option("count", "acceptance"),
    "relaxed_delta": Option("number", "acceptance"),
    "begin_thinking_phase_token": Option("count", "acceptance"),
    "end_thinking_phase_token": Option("count", "acceptance"),
    "greedy_sampling": Option("flag", "acceptance", True),
    "posterior_threshold": Option("number", "acceptance"),
    "use_rejection_sampling": Option("flag", "acceptance", False),
    "max_matching_ngram_size": Option("count", "acceptance"),
    "is_keep_all": Option("flag", "acceptance"),
    "is_use_oldest": Option("flag", "acceptance"),
    "is_public_pool": Option("flag", "acceptance"),
    "acceptance_rate_window_size": Option("count", "unpriced"),
    "acceptance_rate_threshold": Option("number", "unpriced"),
    "acceptance_window": Option("count", "unpriced"),
    "acceptance_length_threshold": Option("number", "unpriced"),
    "allow_advanced_sampling": Option("flag", "unpriced", False),
    "advanced_sampling_mode": Option("text", "unpriced"),
    "enable_penalty": Option("flag", "unpriced", False),
    "spec_dec_variant": Option("count", "unpriced"),
    "moe_backend": Option("text", "unpriced"),
    "num_eagle_layers": Option("count", "unpriced"),
    "max_non_leaves_per_layer": Option("count", "unpriced"),
    "sa_config": Option("mapping", "unpriced"),
    "use_mtp_vanilla": Option("flag", "unpriced", False),
    "eagle3_one_model": Option("flag", "unpriced", True),
    "eagle3_layers_to_capture": Option("list", "idle"),
    "eagle3_model_arch": Option("text", "idle"),
    "load_format": Option("text", "idle"),
}
_TYPES = {
    "Eagle": "eagle",
    "Eagle3": "eagle3",
    "MTP": "mtp",
    "NGram": "ngram",
    "Draft_Target": "model",
    "Medusa": "medusa",
}
_UNKNOWN_HERE = ("PARD", "SA", "AUTO", "User_Provided", "Lookahead", "SaveState", "DFlash")


def read_tensorrt_llm(data: Mapping[str, Any] | str, target: str | None = None) -> EngineSpeculation:
    """TensorRT-LLM's speculative configuration: a mapping, a JSON text, or ``@`` and the path of a YAML file, that holds the
    fields or a ``speculative_config`` with them. `target`: as in `engine_config.read_vllm`.

    Raises InputError or UnknownName.
    """
    values = sort_options(_mapping(data), _OPTIONS, WHERE)
    kind = _kind(values)
    notes: list[str] = []
    speculation: dict[str, Any] = {"draft": _draft(values, kind, target, notes)}
    gamma = count(values, "max_draft_len", 1, MAX_GAMMA, WHERE)
    if gamma is None:
        gamma = count(values, "num_nextn_predict_layers", 1, MAX_GAMMA, WHERE) if kind == "mtp" else None
    if gamma is None:
        raise InputError("max_draft_len", "(absent)", "be given", where=WHERE)
    speculation["gamma"] = gamma
    tree = _tree(values, gamma)
    if tree is not None:
        speculation["tree"] = tree
        speculation["gamma"] = tree.get("depth", gamma)
    policy = _policy(values, gamma)
    if policy is not None:
        speculation["policy"] = policy
    lossy = [name for name in ("use_relaxed_acceptance_for_thinking",) if values.get(name)]
    lossy += ["greedy_sampling=False"] if values.get("greedy_sampling") is False else []
    return result(speculation, values, _OPTIONS, notes=notes, lossy=lossy)


def _mapping(data: Mapping[str, Any] | str) -> dict[str, Any]:
    found = parsed(data, WHERE)
    inner = found.get("speculative_config")
    return dict(inner) if isinstance(inner, Mapping) else found


def _kind(values: Mapping[str, Any]) -> str:
    given = str(values.get("decoding_type", "(absent)"))
    by_lower = {name.lower().replace("_", ""): name for name in (*_TYPES, *_UNKNOWN_HERE)}
    name = by_lower.get(given.lower().replace("_", ""))
    if name is None:
        raise UnknownName("decoding_type", given, by_lower.values(), where=WHERE, kind="decoding type")
    if name in _UNKNOWN_HERE:
        raise InputError("decoding_type", given, f"be one that memwall prices: {', '.join(_TYPES)}", where=WHERE)
    return _TYPES[name]


def _draft(values: Mapping[str, Any], kind: str, target: str | None, notes: list[str]) -> str:
    if kind in ("ngram", "mtp"):
        found = drafters_of(kind, target if kind == "mtp" else None)
        if not found:
            rule = f"be one that memwall has a drafter for; there is none of kind {kind}" + (
                f" for {target}" if target else ""
            )
            raise InputError("decoding_type", values.get("decoding_type"), rule, where=WHERE)
        return found[0]
    model = values.get("speculative_model", values.get("speculative_model_dir"))
    if not model:
        raise InputError("speculative_model", "(absent)", "be given", where=WHERE)
    try:
        name, remark = bundled_name(str(model), kind=kind, target=target)
    except UnknownName as error:
        error.where = WHERE
        raise
    bundled = kind_of(name)
    if kind in ("eagle", "eagle3") and bundled in ("eagle", "eagle3"):
        kind = bundled  # older versions call both Eagle
    if bundled != kind and not name.endswith((".yaml", ".yml", ".json")):
        raise InputError(
            "speculative_model", model, f"be a drafter of kind {kind}, but {name} is of kind {bundled}", where=WHERE
        )
    notes += [remark] if remark else []
    return name


def _tree(values: Mapping[str, Any], gamma: int) -> dict[str, Any] | None:
    name = "eagle_choices" if "eagle_choices" in values else "medusa_choices" if "medusa_choices" in values else None
    if name is not None:
        from simulator.records import validate
        from simulator.speculation.tree_config import TreeConfig

        paths = [list(path) if isinstance(path, list | tuple) else path for path in values[name]]
        validate(TreeConfig, {"paths": paths}, f"{WHERE}: {name}")
        return {"paths": paths}
    if not values.get("use_dynamic_tree"):
        return None
    top_k = count(values, "dynamic_tree_max_topK", 1, MAX_NODES, WHERE)
    nodes = count(values, "max_total_draft_tokens", 1, MAX_NODES, WHERE)
    if top_k is None:
        raise InputError("dynamic_tree_max_topK", "(absent)", "be given with use_dynamic_tree", where=WHERE)
    most = min(top_k + (gamma - 1) * top_k * top_k, MAX_NODES)
    nodes = most if nodes is None else nodes
    if not gamma <= nodes <= most:
        rule = f"be {gamma} to the {most} that {gamma} steps of top {top_k} can give"
        raise InputError("max_total_draft_tokens", nodes, rule, where=WHERE)
    return {"nodes": nodes, "depth": gamma, "kind": "dynamic", "top_k": top_k}


def _policy(values: Mapping[str, Any], gamma: int) -> dict[str, Any] | None:
    most = count(values, "max_concurrency", 1, 1 << 20, WHERE)
    table = values.get("draft_len_schedule")
    if table is None:
        return None if most is None else {"off_above": most}
    if most is not None:
        raise InputError("draft_len_schedule", table, "be left out with max_concurrency", where=WHERE)
    lengths: dict[int, int] = {}
    for key, tokens in table.items():
        # {4: 4, 8: 2} is 4 tokens for 1 to 4 sequences, 2 for 5 to 8, none beyond.
        text = str(key)[:12]
        good = text.isascii() and text.isdigit() and int(text) >= 1
        if not good or isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= gamma:
            rule = f"map numbers of sequences to 0 to {gamma} tokens, max_draft_len at most"
            raise InputError("draft_len_schedule", f"{key}: {tokens}", rule, where=WHERE)
        lengths[int(text)] = tokens
    if not lengths:
        raise InputError("draft_len_schedule", "{}", "have an entry", where=WHERE)
    ends = sorted(lengths)
    firsts = [1, *(end + 1 for end in ends)]
    return schedule(list(zip(firsts, [*(lengths[end] for end in ends), 0], strict=True)), gamma)
