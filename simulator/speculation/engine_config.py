"""vLLM's ``--speculative-config``, read as it is and written back.

Options and defaults are those of vllm/config/speculative.py at commit 002e77c1 (read 2026-11-24), with the older
``disable_by_batch_size``, ``acceptance_method``, ``posterior_*``, ``speculative_token_tree`` and ``synthetic_acceptance_rate``
of earlier versions. SGLang's flags and TensorRT-LLM's YAML are in `engine_flags` and `engine_trtllm`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from simulator.errors import InputError, UnknownName
from simulator.speculation.acceptance import MAX_GAMMA
from simulator.speculation.engine_fields import (
    EngineSpeculation,
    Option,
    count,
    parsed,
    result,
    schedule,
    sort_options,
    steps_of,
)
from simulator.speculation.engine_names import bundled_name, drafters_of, drafts_elsewhere, kind_of, repository

WHERE = "speculative-config"
MOST_SEQUENCES = 1024
"""Up to where a schedule is written for vLLM, whose ranges must end: the most sequences it runs by default on a large GPU."""

_OPTIONS: dict[str, Option] = {
    "method": Option("text", "used"),
    "model": Option("text", "used"),
    "num_speculative_tokens": Option("count", "used"),
    "num_speculative_tokens_per_batch_size": Option("list", "used"),
    "disable_by_batch_size": Option("count", "used"),
    "draft_tensor_parallel_size": Option("count", "used"),
    "quantization": Option("text", "used"),
    "disable_padded_drafter_batch": Option("flag", "used"),
    "rejection_sample_method": Option("text", "used", "standard"),
    "synthetic_acceptance_rates": Option("list", "used"),
    "synthetic_acceptance_length": Option("number", "used"),
    "synthetic_acceptance_rate": Option("number", "used"),
    "speculative_token_tree": Option("any", "used"),
    "acceptance_method": Option("text", "acceptance", "rejection_sampler"),
    "posterior_threshold": Option("number", "acceptance"),
    "posterior_alpha": Option("number", "acceptance"),
    "prompt_lookup_max": Option("count", "acceptance"),
    "prompt_lookup_min": Option("count", "acceptance"),
    "suffix_decoding_max_tree_depth": Option("count", "acceptance"),
    "suffix_decoding_max_cached_requests": Option("count", "acceptance"),
    "suffix_decoding_max_spec_factor": Option("number", "acceptance"),
    "suffix_decoding_min_token_prob": Option("number", "acceptance"),
    "draft_sample_method": Option("text", "acceptance", "greedy"),
    "use_heterogeneous_vocab": Option("flag", "acceptance", False),
    "disable_eagle_block_drop": Option("flag", "acceptance", False),
    "prefill_token_shift": Option("flag", "acceptance", True),
    "enforce_eager": Option("flag", "unpriced", False),
    "parallel_drafting": Option("flag", "unpriced", False),
    "max_model_len": Option("count", "unpriced"),
    "kv_cache_dtype": Option("text", "unpriced", "auto"),
    "moe_backend": Option("text", "unpriced"),
    "attention_backend": Option("text", "unpriced"),
    "index_share_for_mtp_iteration": Option("flag", "unpriced"),
    "use_local_argmax_reduction": Option("flag", "unpriced", False),
    "enable_adaptive_verification": Option("flag", "unpriced", False),
    "adaptive_verification": Option("flag", "unpriced", False),
    "dspark_draft_topk": Option("count", "unpriced"),
    "disable_mqa_scorer": Option("flag", "unpriced", False),
    "revision": Option("text", "idle"),
    "code_revision": Option("text", "idle"),
    "draft_load_config": Option("mapping", "idle"),
    "disable_logprobs": Option("flag", "idle"),
    "disable_log_stats": Option("flag", "idle"),
}

_MTP = (
    "mtp", "deepseek_mtp", "dots3_note_mtp", "mimo_mtp", "mimo_v2_mtp", "glm4_moe_mtp", "glm4_moe_lite_mtp", "glm_ocr_mtp",
    "ernie_mtp", "nemotron_h_mtp", "exaone_moe_mtp", "exaone4_5_mtp", "qwen3_next_mtp", "qwen4_exp_mtp", "qwen3_5_mtp",
    "longcat_flash_mtp", "bailing_hybrid_v3_mtp", "minimax_m3_mtp", "bailing_hybrid_mtp", "kimi_k3_mtp", "pangu_ultra_moe_mtp",
    "step3p5_mtp", "hy_v3_mtp", "hy_v4_mtp", "gemma4_mtp", "inkling_mtp", "glm5_next_mtp",
)  # fmt: skip
_METHODS: dict[str, str] = {
    "draft_model": "model", "eagle": "eagle", "eagle3": "eagle3", "medusa": "medusa", "ngram": "ngram", "[ngram]": "ngram",
    "ngram_gpu": "ngram", "suffix": "suffix", **dict.fromkeys(_MTP, "mtp"),
}  # fmt: skip
"""vLLM's methods and the kinds of drafter they are here; the older names of MTP are one method in vLLM too."""
_UNKNOWN_HERE = {
    "mlp_speculator": "its heads are conditioned on one another, a kind of drafter that memwall has no cost for",
    "dflash": "it drafts a block in one pass of several layers, a kind of drafter that memwall has no cost for",
    "dspark": "it drafts a block in one pass of several layers, a kind of drafter that memwall has no cost for",
    "extract_hidden_states": "it drafts nothing",
    "custom_class": "its cost is known to nobody else",
}
_WEIGHTS = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "ptpc_fp8": "fp8", "awq": "int4", "awq_marlin": "int4", "gptq": "int4",
    "gptq_marlin": "int4", "mxfp4": "mxfp4", "experts_int8": "int8", "tpu_int8": "int8",
}  # fmt: skip
"""vLLM's names of quantisation methods whose weights have one format whatever the checkpoint."""


def speculation_from_vllm(data: Mapping[str, Any] | str, target: str | None = None) -> dict[str, Any]:
    """The fields of a scenario's ``speculation`` that vLLM's configuration describes; see `read_vllm`."""
    return read_vllm(data, target).speculation


def read_vllm(data: Mapping[str, Any] | str, target: str | None = None) -> EngineSpeculation:
    """vLLM's speculative configuration, a mapping or JSON text. `target`: bundled name or repository of the model served, which
    tells the drafter where the configuration names none (MTP) or one that memwall only has a likeness of.

    Raises InputError or UnknownName for what vLLM would not take, or memwall cannot price.
    """
    given = parsed(data, WHERE)
    for name in ("tensor_parallel_size", "tensor-parallel-size"):
        if name in given:
            raise InputError(name, given[name], "be called draft_tensor_parallel_size, as vLLM demands", where=WHERE)
    values = sort_options(given, _OPTIONS, WHERE)
    method = _method(values)
    kind = _METHODS[method]
    notes: list[str] = []
    speculation: dict[str, Any] = {"draft": _draft(values, kind, target, notes)}
    gamma = _gamma(values, kind, notes)
    paths = _tree(values.get("speculative_token_tree"), gamma)
    if paths is not None:
        gamma = max(len(path) for path in paths)
        if gamma < len(paths):
            speculation["tree"] = {"paths": [list(path) for path in paths]}
    speculation["gamma"] = gamma
    policy = _policy(values, gamma)
    if policy is not None:
        speculation["policy"] = policy
    acceptance = _synthetic(values, gamma)
    if acceptance is not None:
        speculation["acceptance"] = acceptance
    lossy = [f"{name}={values[name]}" for name in ("acceptance_method",) if "typical" in str(values.get(name))]
    settings = {"engine.draft_batch": "ragged"} if values.get("disable_padded_drafter_batch") else {}
    speculation |= _drafter_fields(values, kind, notes)
    return result(speculation, values, _OPTIONS, settings=settings, notes=notes, lossy=lossy)


def vllm_config(speculation: Mapping[str, Any], *, most_sequences: int = MOST_SEQUENCES) -> dict[str, Any]:
    """What vLLM's ``--speculative-config`` must be for a scenario's ``speculation`` (draft, gamma, policy): `read_vllm` backwards.

    `most_sequences` ends the last range of a schedule. Raises InputError for what vLLM has no options for: dynamic trees,
    policies that look at more than the batch.
    """
    draft, gamma = str(speculation["draft"]), int(speculation.get("gamma", 4))
    kind = kind_of(draft)
    methods = {"model": "draft_model", "eagle": "eagle", "eagle3": "eagle3", "medusa": "medusa", "ngram": "ngram",
               "suffix": "suffix", "mtp": "mtp"}  # fmt: skip
    if drafts_elsewhere(draft):
        raise InputError("draft", draft, "be on the target's GPUs for vLLM")
    if kind not in methods:
        raise InputError("draft", draft, f"be of a kind that vLLM has: {', '.join(methods)}, not {kind}")
    config: dict[str, Any] = {"method": methods[kind]}
    if kind in ("model", "eagle", "eagle3", "medusa"):
        config["model"] = repository(draft)
    config["num_speculative_tokens"] = gamma
    if speculation.get("draft_tp") is not None:
        config["draft_tensor_parallel_size"] = int(speculation["draft_tp"])
    weights = (speculation.get("draft_quantization") or {}).get("weights", "model")
    if weights in ("fp8", "mxfp4"):
        config["quantization"] = weights  # every other format is the checkpoint's own matter
    if speculation.get("tree") is not None:
        raise InputError("tree", speculation["tree"], "be left out for vLLM, which drafts chains")
    steps = steps_of(speculation.get("policy"), gamma)
    if steps != [(1, gamma)]:
        ends = [first - 1 for first, _ in steps[1:]]
        last = max(most_sequences, steps[-1][0])
        ranges = zip(steps, [*ends, last], strict=True)
        config["num_speculative_tokens_per_batch_size"] = [[first, end, g] for (first, g), end in ranges]
        config["num_speculative_tokens"] = max(gamma, *(g for _, g in steps))
    return config


def _method(values: Mapping[str, Any]) -> str:
    # As vLLM tells it where it is not given, from the name of the draft model.
    method, model = values.get("method"), str(values.get("model", ""))
    if method is None:
        name = model.lower()
        if model in ("ngram", "[ngram]"):
            method = "ngram"
        elif not model:
            raise InputError("method", "(absent)", "be given where there is no model", where=WHERE)
        else:
            method = next((m for part, m in (("eagle-", "eagle"), ("eagle3", "eagle3"), ("medusa", "medusa")) if part in name),
                          "draft_model")  # fmt: skip
    if method in _UNKNOWN_HERE:
        raise InputError("method", method, f"be another one: {_UNKNOWN_HERE[method]}", where=WHERE)
    if method not in _METHODS:
        raise UnknownName("method", str(method), [*_METHODS, *_UNKNOWN_HERE], where=WHERE, kind="method")
    return str(method)


def _draft(values: Mapping[str, Any], kind: str, target: str | None, notes: list[str]) -> str:
    if kind in ("ngram", "suffix", "mtp"):
        found = drafters_of(kind, target if kind == "mtp" else None)
        if not found and kind == "suffix":
            notes.append("suffix decoding is priced as prompt look-up, which drafts from the same kind of text")
            found = drafters_of("ngram", None)
        if not found:
            rule = f"be one that memwall has a drafter for; there is none of kind {kind}" + (
                f" for {target}" if target else ""
            )
            raise InputError("method", values.get("method"), rule, where=WHERE)
        return found[0]
    if not values.get("model"):
        raise InputError("model", "(absent)", f"be given for method {values.get('method')}", where=WHERE)
    try:
        name, remark = bundled_name(str(values["model"]), kind=kind, target=target)
    except UnknownName as error:
        error.where = WHERE
        raise
    bundled = kind_of(name)
    if bundled != kind and not name.endswith((".yaml", ".yml", ".json")):
        raise InputError(
            "model", values["model"], f"be a drafter of kind {kind}, but {name} is of kind {bundled}", where=WHERE
        )
    notes += [remark] if remark else []
    return name


def _gamma(values: Mapping[str, Any], kind: str, notes: list[str]) -> int:
    gamma = count(values, "num_speculative_tokens", 1, MAX_GAMMA, WHERE)
    if gamma is not None:
        return gamma
    if kind == "suffix":
        depth = count(values, "suffix_decoding_max_tree_depth", 1, MAX_GAMMA, WHERE) or 24
        notes.append(f"without num_speculative_tokens vLLM drafts up to {depth} tokens, the depth of its suffix trees")
        return depth
    if kind == "mtp":
        notes.append("without num_speculative_tokens vLLM drafts as many tokens as there are modules; 1 is taken here")
        return 1
    raise InputError("num_speculative_tokens", "(absent)", "be given", where=WHERE)


def _tree(text: Any, gamma: int) -> list[tuple[int, ...]] | None:
    # Older versions take a tree of EAGLE drafts, as text: "[(0,), (0, 0), (1,)]".
    if text is None:
        return None
    try:
        paths = ast.literal_eval(text) if isinstance(text, str) and len(text) < 20_000 else text
        checked = [tuple(int(rank) for rank in path) for path in paths]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        raise InputError(
            "speculative_token_tree", text, "be a list of paths such as [(0,), (0, 0), (1,)]", where=WHERE
        ) from None
    from simulator.speculation.tree import Tree

    tree = Tree.from_paths(tuple(checked))
    if tree.nodes != gamma:
        rule = f"be the {tree.nodes} nodes of speculative_token_tree"
        raise InputError("num_speculative_tokens", gamma, rule, where=WHERE)
    return checked


def _policy(values: Mapping[str, Any], gamma: int) -> dict[str, Any] | None:
    above = count(values, "disable_by_batch_size", 2, 1 << 20, WHERE)
    ranges = values.get("num_speculative_tokens_per_batch_size")
    if ranges is None:
        # vLLM 0 stopped speculating as soon as so many sequences were running.
        return None if above is None else {"off_above": above - 1}
    name = "num_speculative_tokens_per_batch_size"
    if above is not None:
        raise InputError(name, ranges, "be left out with disable_by_batch_size", where=WHERE)
    for entry in ranges:
        whole = isinstance(entry, list | tuple) and len(entry) == 3
        if not whole or not all(isinstance(n, int) and not isinstance(n, bool) for n in entry):
            raise InputError(name, entry, "be [first batch, last batch, tokens], all whole numbers", where=WHERE)
        first, last, tokens = entry
        if not 1 <= first <= last <= 1 << 20:
            raise InputError(name, entry, "have a first batch of at least 1 and a last one not below it", where=WHERE)
        if not 0 <= tokens <= gamma:
            rule = f"draft 0 to {gamma} tokens, num_speculative_tokens at most"
            raise InputError(name, entry, rule, where=WHERE)
    if not ranges or ranges[0][0] != 1 or any(b[0] != a[1] + 1 for a, b in pairwise(ranges)):
        raise InputError(name, ranges, "be ranges that begin with 1 and follow one another", where=WHERE)
    return schedule([(first, tokens) for first, _, tokens in ranges], gamma)


def _synthetic(values: Mapping[str, Any], gamma: int) -> dict[str, Any] | None:
    # vLLM can accept drafts by lot instead of by verifying them, for benchmarks.
    method = values.get("rejection_sample_method", "standard")
    given = [
        n
        for n in ("synthetic_acceptance_rates", "synthetic_acceptance_length", "synthetic_acceptance_rate")
        if n in values
    ]
    if method not in ("standard", "strict", "probabilistic", "block", "synthetic"):
        known = ("standard", "block", "synthetic", "strict", "probabilistic")
        raise UnknownName("rejection_sample_method", str(method), known, where=WHERE, kind="method")
    if method != "synthetic":
        if given:
            raise InputError(given[0], values[given[0]], "come with rejection_sample_method synthetic", where=WHERE)
        return None
    if len(given) != 1:
        raise InputError(
            "rejection_sample_method", "synthetic", "come with one of its rates or its length", where=WHERE
        )
    from simulator.records import validate
    from simulator.speculation.acceptance import AcceptanceConfig

    value = values[given[0]]
    if given[0] == "synthetic_acceptance_rates":
        if len(value) != gamma:
            raise InputError(given[0], value, f"have {gamma} entries, one for each drafted token", where=WHERE)
        found: dict[str, Any] = {"marginal": list(value)}
    elif given[0] == "synthetic_acceptance_rate":
        found = {"rate": value, "at_gamma": gamma}
    else:
        if not 1.0 <= value <= gamma + 1.0:
            raise InputError(given[0], value, f"be between 1 and {gamma + 1}", where=WHERE)
        # The least varied of all laws of this length: so many drafts always, perhaps one more.
        found = {"marginal": [min(1.0, max(0.0, value - 1.0 - depth)) for depth in range(gamma)]}
    found["source"] = "synthetic, as vLLM's configuration says"
    validate(AcceptanceConfig, found, WHERE)
    return found


def _drafter_fields(values: Mapping[str, Any], kind: str, notes: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    tp = count(values, "draft_tensor_parallel_size", 1, 1024, WHERE)
    if tp is not None and kind in ("model", "eagle", "eagle3"):
        fields["draft_tp"] = tp
    weights = values.get("quantization")
    if weights is not None:
        if weights in _WEIGHTS:
            fields["draft_quantization"] = {"weights": _WEIGHTS[weights]}
        else:
            notes.append(f"quantization={weights} is left to the drafter's own formats")
    return fields
