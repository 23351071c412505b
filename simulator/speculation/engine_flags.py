"""SGLang's ``--speculative-…`` flags, read out of a launch command and written back.

Flags and defaults are those of docs/advanced_features/speculative_decoding.md at commit 067ad4d3 (read 2026-11-24). SGLang
counts the token that the target computes anyway among its draft tokens: ``--speculative-num-draft-tokens`` n verifies n
tokens, n − 1 of them drafted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.errors import InputError, UnknownName
from simulator.records import read_mapping
from simulator.speculation.acceptance import MAX_GAMMA
from simulator.speculation.engine_fields import (
    EngineSpeculation,
    Form,
    Option,
    count,
    result,
    schedule,
    sort_options,
    steps_of,
)
from simulator.speculation.engine_names import bundled_name, drafters_of, drafts_elsewhere, kind_of, repository
from simulator.speculation.shape import MAX_NODES

WHERE = "sglang-flags"
_PREFIX = "speculative_"

_OPTIONS: dict[str, Option] = {
    "algorithm": Option("text", "used"),
    "draft_model_path": Option("text", "used"),
    "draft_model": Option("text", "used"),
    "num_steps": Option("count", "used"),
    "eagle_topk": Option("count", "used"),
    "num_draft_tokens": Option("count", "used"),
    "draft_model_quantization": Option("text", "used", "unquant"),
    "accept_threshold_single": Option("number", "acceptance", 1.0),
    "accept_threshold_acc": Option("number", "acceptance", 1.0),
    "use_rejection_sampling": Option("flag", "acceptance"),
    "ngram_min_match_window_size": Option("count", "acceptance"),
    "ngram_max_match_window_size": Option("count", "acceptance"),
    "ngram_match_type": Option("text", "acceptance"),
    "ngram_max_trie_depth": Option("count", "acceptance"),
    "ngram_capacity": Option("count", "acceptance"),
    "ngram_min_bfs_breadth": Option("count", "unpriced", 1),
    "ngram_max_bfs_breadth": Option("count", "unpriced", 1),
    "token_map": Option("text", "unpriced"),
    "adaptive": Option("flag", "unpriced"),
    "adaptive_config": Option("text", "unpriced"),
    "attention_mode": Option("text", "unpriced"),
    "draft_attention_backend": Option("text", "unpriced"),
    "draft_window_size": Option("count", "unpriced"),
    "moe_runner_backend": Option("text", "unpriced"),
    "moe_a2a_backend": Option("text", "unpriced"),
    "skip_dp_mlp_sync": Option("flag", "unpriced"),
    "draft_model_revision": Option("text", "idle"),
    "draft_load_format": Option("text", "idle"),
    "draft_model_override_args": Option("text", "idle"),
}
_ALGORITHMS = {"EAGLE": "eagle", "NEXTN": "mtp", "EAGLE3": "eagle3", "STANDALONE": "model", "NGRAM": "ngram"}
_UNKNOWN_HERE = ("DFLASH", "DSPARK")
_LIKE_LLAMA = ("llama", "vicuna", "grok")
"""Families for which SGLang drafts a tree of 5 steps where no sizes are given; for all others a chain of 3."""


def read_sglang(flags: Sequence[str] | str, target: str | None = None) -> EngineSpeculation:
    """SGLang's flags, as a list or as the text of a launch command, whose other flags belong to the engine and are passed over.
    ``@path`` names a file that holds the command. `target`: as in `engine_config.read_vllm`.

    Raises InputError or UnknownName.
    """
    values = sort_options(_values(_words(flags)), _OPTIONS, WHERE)
    algorithm = str(values["algorithm"]).upper() if "algorithm" in values else "(absent)"
    if algorithm in _UNKNOWN_HERE:
        rule = "be another one: it drafts a block in one pass of several layers, which memwall has no cost for"
        raise InputError("speculative-algorithm", algorithm, rule, where=WHERE)
    if algorithm not in _ALGORITHMS:
        known = [*_ALGORITHMS, *_UNKNOWN_HERE]
        raise UnknownName("speculative-algorithm", algorithm, known, where=WHERE, kind="algorithm")
    notes: list[str] = []
    path = values.get("draft_model_path", values.get("draft_model"))
    kind = _ALGORITHMS[algorithm]
    if algorithm == "EAGLE" and (path is None or (target is not None and str(path) == target)):
        kind = "mtp"  # SGLang serves a model's own MTP modules by this name
    speculation: dict[str, Any] = {"draft": _draft(path, kind, target, notes)}
    if kind == "ngram":
        tokens = count(values, "num_draft_tokens", 2, MAX_GAMMA + 1, WHERE)
        window = count(values, "ngram_max_match_window_size", 1, MAX_GAMMA, WHERE) or 12
        speculation["gamma"] = (tokens if tokens is not None else max(2, window)) - 1
        if values.get("ngram_max_bfs_breadth", 10) != 1:
            notes.append("the continuations that SGLang's n-gram cache offers side by side are priced as one chain")
    else:
        speculation |= _shape(values, kind, target, notes)
    options = _OPTIONS
    slots = _slots(values) if "tree" not in speculation and kind != "ngram" else None
    if slots is not None:
        speculation["gamma"] = max(steps for _, steps in slots) or speculation["gamma"]
        policy = schedule(slots, speculation["gamma"])
        speculation |= {"policy": policy} if policy is not None else {}
        options = {**_OPTIONS, "adaptive": Option("flag", "used"), "adaptive_config": Option("text", "used")}
    lossy = [
        f"{name}={values[name]:g}"
        for name in ("accept_threshold_single", "accept_threshold_acc")
        if values.get(name, 1.0) < 1.0
    ]
    return result(speculation, values, options, notes=notes, lossy=lossy)


def sglang_flags(speculation: Mapping[str, Any]) -> list[str]:
    """SGLang's flags for a scenario's ``speculation`` (draft, gamma or a dynamic tree): `read_sglang` backwards.

    Raises InputError for what SGLang has no flags for: schedules by batch, trees with paths of their own.
    """
    draft, gamma = str(speculation["draft"]), int(speculation.get("gamma", 4))
    kind = kind_of(draft)
    algorithms = {"eagle": "EAGLE", "eagle3": "EAGLE3", "mtp": "EAGLE", "model": "STANDALONE", "ngram": "NGRAM"}
    if drafts_elsewhere(draft):
        raise InputError("draft", draft, "be on the target's GPUs for SGLang")
    if kind not in algorithms:
        raise InputError("draft", draft, f"be of a kind that SGLang has: {', '.join(algorithms)}, not {kind}")
    if steps_of(speculation.get("policy"), gamma) != [(1, gamma)]:
        raise InputError("policy", speculation["policy"], "be fixed for SGLang, which drafts alike at every batch")
    flags = ["--speculative-algorithm", algorithms[kind]]
    if kind in ("eagle", "eagle3", "model"):
        flags += ["--speculative-draft-model-path", repository(draft)]
    tree = speculation.get("tree")
    if kind == "ngram":
        if tree is not None:
            raise InputError("tree", tree, "be left out for n-grams")
        return [*flags, "--speculative-num-draft-tokens", str(gamma + 1), "--speculative-ngram-max-bfs-breadth", "1"]
    steps, top_k, nodes = gamma, 1, gamma
    if tree is not None:
        if not isinstance(tree, Mapping) or tree.get("kind") != "dynamic":
            raise InputError("tree", tree, "be dynamic for SGLang: nodes, depth, kind dynamic and top_k")
        steps, top_k, nodes = int(tree["depth"]), int(tree.get("top_k", 10)), int(tree["nodes"])
    sizes = {"num-steps": steps, "eagle-topk": top_k, "num-draft-tokens": nodes + 1}
    return [*flags, *(word for name, size in sizes.items() for word in (f"--speculative-{name}", str(size)))]


def _shape(values: Mapping[str, Any], kind: str, target: str | None, notes: list[str]) -> dict[str, Any]:
    steps = count(values, "num_steps", 1, MAX_GAMMA, WHERE)
    top_k = count(values, "eagle_topk", 1, MAX_NODES, WHERE)
    tokens = count(values, "num_draft_tokens", 2, MAX_NODES + 1, WHERE)
    if steps is None:
        if top_k is not None or tokens is not None:
            raise InputError("speculative-num-steps", "(absent)", "be given with the other two sizes", where=WHERE)
        family = any(name in (target or "").lower() for name in _LIKE_LLAMA)
        steps, top_k, tokens = (5, 4, 8) if family and kind != "model" else (3, 1, 4)
        notes.append(f"sizes left to SGLang: {steps} steps, top {top_k}, {tokens} draft tokens are taken")
    top_k = 1 if top_k is None else top_k
    if top_k == 1:
        return {"gamma": steps}  # SGLang sets the draft tokens to steps + 1 itself
    candidates = top_k + (steps - 1) * top_k * top_k
    nodes = (tokens if tokens is not None else candidates + 1) - 1
    if not 1 <= nodes <= min(candidates, MAX_NODES):
        rule = f"be 2 to the {candidates + 1} that {steps} steps of top {top_k} can give"
        raise InputError("speculative-num-draft-tokens", nodes + 1, rule, where=WHERE)
    depth = min(steps, nodes)
    return {"gamma": depth, "tree": {"nodes": nodes, "depth": depth, "kind": "dynamic", "top_k": top_k}}


def _slots(values: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """(First batch, steps) of the adaptive configuration where each of its slots has one number of steps; None where it chooses
    among several by what was accepted, or its file is not here. Raises InputError for slots that cannot be."""
    path = values.get("adaptive_config")
    if path is None or not values.get("adaptive") or not Path(path).expanduser().is_file():
        return None
    found: dict[int, int] = {}
    for batch, slot in read_mapping(Path(path).expanduser()).items():
        steps = slot.get("candidate_steps") if isinstance(slot, Mapping) else None
        whole = isinstance(steps, list) and all(type(n) is int and 0 <= n <= MAX_GAMMA for n in steps)
        if not whole or not steps or re.fullmatch(r"[1-9]\d{0,6}", str(batch)) is None:
            rule = f"have first batches as names, and candidate_steps of 0 to {MAX_GAMMA} each"
            raise InputError(str(batch), slot, rule, where=path)
        if len(steps) > 1:
            return None
        found[int(batch)] = steps[0]
    if not found:
        return None
    slots = sorted(found.items())
    return slots if slots[0][0] == 1 else [(1, slots[0][1]), *slots[1:]]


def _draft(path: str | None, kind: str, target: str | None, notes: list[str]) -> str:
    if kind in ("ngram", "mtp"):
        found = drafters_of(kind, target if kind == "mtp" else None)
        if not found:
            rule = f"come with a draft model; memwall has no drafter of kind {kind}" + (
                f" for {target}" if target else ""
            )
            raise InputError("speculative-algorithm", kind.upper(), rule, where=WHERE)
        return found[0]
    if path is None:
        raise InputError("speculative-draft-model-path", "(absent)", "be given", where=WHERE)
    try:
        name, remark = bundled_name(path, kind=kind, target=target)
    except UnknownName as error:
        error.where = WHERE
        raise
    bundled = kind_of(name)
    if bundled != kind and not name.endswith((".yaml", ".yml", ".json")):
        rule = f"be a drafter of kind {kind}, but {name} is of kind {bundled}"
        raise InputError("speculative-draft-model-path", path, rule, where=WHERE)
    notes += [remark] if remark else []
    return name


def _words(flags: Sequence[str] | str) -> list[str]:
    if not isinstance(flags, str):
        return [str(word) for word in flags]
    text = flags.strip()
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError):
            raise InputError(WHERE, flags, "name a readable file of text after @") from None
    try:
        return shlex.split(text.replace("\\\n", " "))
    except ValueError:
        raise InputError(WHERE, flags, "be flags as in a shell, quotes closed") from None


def _values(words: Sequence[str]) -> dict[str, Any]:
    """Values by flag without its prefix; those of other flags are passed over."""
    values: dict[str, Any] = {}
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or not name.startswith(_PREFIX):
            continue
        key = name.removeprefix(_PREFIX)
        if key not in _OPTIONS:
            known = [f"--speculative-{option.replace('_', '-')}" for option in _OPTIONS]
            raise UnknownName(flag, flag, known, where=WHERE, kind="field")
        if key in values:
            raise InputError(flag, "(twice)", "be given once", where=WHERE)
        form = _OPTIONS[key].form
        if form == "flag":
            values[key] = True
        elif equals:
            values[key] = _typed(flag, value, form)
        elif i + 1 < len(words) and not words[i + 1].startswith("--"):
            values[key] = _typed(flag, words[i + 1], form)
        else:
            raise InputError(flag, "(absent)", "be followed by its value", where=WHERE)
    return values


def _typed(flag: str, text: str, form: Form) -> Any:
    if form == "text":
        return text
    try:
        return int(text) if form == "count" else float(text)
    except ValueError:
        what = "a whole number" if form == "count" else "a number"
        raise InputError(flag, text, f"be {what}", where=WHERE) from None
