"""Schema: the fields that a line of each kind must have, and of what type. What they mean is told in `measurements`.

Standard library only: files are read where there is no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NamedTuple

Json = dict[str, Any]


class Rule(NamedTuple):
    """What a field's value must be."""

    says: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    """No bool, and finite as a float: JSON as Python reads it also knows NaN, Infinity and whole numbers of any size."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _list_of(rule: Rule) -> Rule:
    return Rule(
        f"a list, each of whose values is {rule.says}",
        lambda value: isinstance(value, list) and all(map(rule.holds, value)),
    )


def _or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.says}, or null", lambda value: value is None or rule.holds(value))


COUNT = Rule("a whole number of at least 1", lambda value: _whole(value) and value >= 1)
WHOLE = Rule("a whole number of at least 0", lambda value: _whole(value) and value >= 0)
AMOUNT = Rule("a finite number above 0", lambda value: _number(value) and value > 0)
AT_LEAST_0 = Rule("a finite number of at least 0", lambda value: _number(value) and value >= 0)
SHARE = Rule("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and bool(value))
MAPPING = Rule("a mapping", lambda value: isinstance(value, dict))
DTYPE = _one_of("fp32", "bf16", "fp16")

SPREAD = ("min_s", "q1_s", "median_s", "q3_s", "max_s")
TIMES = {**dict.fromkeys(SPREAD, AMOUNT), "n": COUNT}
QUIET = {"disturbance": AMOUNT, "attempts": COUNT}
SHAPE = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "head_dim", "width", "vocab"), COUNT)
HEADER = {"device_kind": _one_of("cpu", "cuda"), "device": TEXT, "dtype": DTYPE}
HEADER_OPTIONAL = {
    **dict.fromkeys(("torch", "cuda", "driver", "attention", "python", "date", "compute_capability"), _or_none(TEXT)),
    **dict.fromkeys(("memory_bytes", "last_cache_bytes", "sm_count", "shared_memory_per_sm_bytes"), _or_none(COUNT)),
    "threads": _or_none(COUNT),
    "power_limit_w": _or_none(AMOUNT),
    "clocks": _or_none(MAPPING),
    **dict.fromkeys(("fuse", "toy"), FLAG),
}


@dataclass(frozen=True)
class Kind:
    """One kind of line."""

    point: Mapping[str, Rule]
    """Name the point, together."""
    results: Mapping[str, Rule]
    optional: Mapping[str, Rule] = field(default_factory=dict)
    """Fields of the point that only some have."""
    needs: Sequence[tuple[str, str, str]] = ()
    """Which: a field, its value, and the field that this value asks for."""
    extra: Mapping[str, Rule] = field(default_factory=dict)
    """Results that only some have."""
    timed: bool = True
    """Has the times of repeated work."""
    check: Callable[[Json], str | None] = lambda line: None
    """What must hold between fields of a measured line: the sentence that says what does not."""


def _as_long(line: Json, length: int, of: str, names: Sequence[str]) -> str | None:
    for name in names:
        if len(line[name]) != length:
            return f"{name} has {len(line[name])} values and must have {length}, one per {of}"
    return None


def _serving(line: Json) -> str | None:
    requests = ("arrival_s", "first_token_s", "finished_s", "output_lengths")
    rounds = ("round_rows", "round_tokens")
    return _as_long(line, line["requests"], "request", requests) or _as_long(
        line, len(line["round_s"]), "round", rounds
    )


def _acceptance(line: Json) -> str | None:
    gamma, accepted, drafted = line["gamma"], line["accepted_by_request"], line["drafted_by_request"]
    lengths = [len(rounds) for rounds in accepted]
    if [len(rounds) for rounds in drafted] != lengths:
        return "drafted_by_request must have as many rounds as accepted_by_request for every request"
    for ours, theirs in zip(accepted, drafted, strict=True):
        for a, d in zip(ours, theirs, strict=True):
            if not a <= d <= gamma:
                return f"accepted_by_request holds {a} of {d} drafted; it must be accepted <= drafted <= gamma={gamma}"
    spread = [line[f"tokens_per_round_{name}"] for name in ("min", "q1", "median", "q3", "max")]
    return (
        _as_long(line, line["requests"], "request", ("accepted_by_request",))
        or _as_long(line, gamma, "depth", ("acceptance_by_depth", "rounds_by_depth"))
        or (
            None if spread == sorted(spread) else "tokens_per_round_min to _max must not fall: min, q1, median, q3, max"
        )
    )


def _divergence(line: Json) -> str | None:
    if line["diverged"] > line["sequences"]:
        return f"diverged={line['diverged']} must be at most sequences={line['sequences']}"
    return _as_long(line, line["diverged"], "diverged sequence", ("positions", "margins"))


_TRANSFER = Kind(
    point={"size_bytes": COUNT, "cache": _one_of("cold", "resident")},
    results={"moved_bytes": COUNT},
)
_DRAFTED = {
    "model": TEXT, "drafter": _one_of("plain", "small", "early_exit", "tree"), "draft_model": _or_none(TEXT),
    "gamma": WHOLE, "alpha": SHARE, "graphs": FLAG,
}  # fmt: skip
_DRAFTED_OPTIONAL = {"exit_layers": COUNT, "widths": _list_of(COUNT)}
_DRAFTED_NEEDS = (("drafter", "early_exit", "exit_layers"), ("drafter", "tree", "widths"))

KINDS: dict[str, Kind] = {
    "copy": _TRANSFER,
    "read": _TRANSFER,
    "matmul": Kind(
        point={"tokens": COUNT, "outputs": COUNT, "inputs": COUNT, "dtype": DTYPE},
        results={"flop": AMOUNT, "moved_bytes": COUNT},
    ),
    "attention": Kind(
        point={
            "sequences": COUNT, "query_tokens": COUNT, "context_tokens": WHOLE, "heads": COUNT, "kv_heads": COUNT,
            "head_dim": COUNT, "dtype": DTYPE,
        },
        results={"flop": AMOUNT, "moved_bytes": COUNT},
    ),
    "launch": Kind(
        point={"what": _one_of("kernel", "graph_kernel", "graph_replay", "read_back", "round")},
        optional={"gamma": WHOLE, "graphs": FLAG},
        needs=(("what", "round", "gamma"), ("what", "round", "graphs")),
        results={},
    ),
    "step": Kind(
        point={"model": TEXT, "batch": COUNT, "tokens": COUNT, "context_tokens": WHOLE, "graphs": FLAG},
        optional={"layers": COUNT},
        results={"parameters": COUNT, "live_tokens": COUNT},
    ),
    "draft": Kind(
        point={"model": TEXT, "gamma": COUNT, "batch": COUNT, "context_tokens": WHOLE, "graphs": FLAG},
        results={"parameters": COUNT},
    ),
    "round": Kind(
        point={**_DRAFTED, "batch": COUNT, "context_tokens": WHOLE},
        optional=_DRAFTED_OPTIONAL,
        needs=_DRAFTED_NEEDS,
        results={"tokens_per_round": AMOUNT, "accepted": AT_LEAST_0},
    ),
    "serving": Kind(
        point={
            **_DRAFTED, "load": AMOUNT, "requests": COUNT, "max_batch": COUNT, "prompt_tokens": COUNT,
            "output_tokens": COUNT,
        },
        optional=_DRAFTED_OPTIONAL,
        needs=_DRAFTED_NEEDS,
        results={
            **dict.fromkeys(("rate_per_s", "tokens_per_s", "ttft_median_s", "ttft_p99_s", "duration_s"), AMOUNT),
            "arrival_s": _list_of(AT_LEAST_0),
            **dict.fromkeys(("first_token_s", "finished_s", "prefill_s", "round_s"), _list_of(AMOUNT)),
            **dict.fromkeys(("output_lengths", "round_rows", "round_tokens"), _list_of(COUNT)),
        },
        extra=dict.fromkeys(("accepted_by_request", "drafted_by_request"), _list_of(_list_of(WHOLE))),
        check=_serving,
    ),
    "acceptance": Kind(
        point={
            "model": TEXT, "drafter": _one_of("small", "early_exit", "ngram"), "draft_model": _or_none(TEXT),
            "gamma": COUNT, "text": _one_of("greedy", "sampled", "held_out"), "requests": COUNT,
            "context_tokens": COUNT, "output_tokens": COUNT, "graphs": FLAG,
        },
        optional={"exit_layers": COUNT},
        needs=(("drafter", "early_exit", "exit_layers"),),
        results={
            **dict.fromkeys(("accepted_by_request", "drafted_by_request"), _list_of(_list_of(WHOLE))),
            "acceptance_by_depth": _list_of(_or_none(SHARE)), "rounds_by_depth": _list_of(WHOLE),
            "tokens_per_round": AMOUNT,
            **{f"tokens_per_round_{name}": AMOUNT for name in ("min", "q1", "median", "q3", "max")},
            "repeated_share": SHARE, "duration_s": AMOUNT,
            "training_s": AMOUNT, "training_bytes": COUNT, "corpus_sha256": TEXT,
            **dict.fromkeys(("target_bits_per_byte", "target_training_bits_per_byte"), AMOUNT),
            **dict.fromkeys(("draft_bits_per_byte", "draft_training_bits_per_byte"), AMOUNT),
        },
        timed=False,
        check=_acceptance,
    ),
    "divergence": Kind(
        point={
            "model": TEXT, "weights": _one_of("trained", "random"), "draft_model": TEXT, "gamma": COUNT,
            "sequences": COUNT, "context_tokens": COUNT, "output_tokens": COUNT, "graphs": FLAG,
        },
        results={
            "diverged": WHOLE, "positions": _list_of(WHOLE), "margins": _list_of(AT_LEAST_0),
            "median_margin": AT_LEAST_0, "duration_s": AMOUNT,
        },
        timed=False,
        check=_divergence,
    ),
}  # fmt: skip


def header_fault(line: Json) -> str | None:
    """What is wrong with a header; None if nothing is."""
    fault = _fields_fault(line, HEADER) or _fields_fault(line, _present(line, HEADER_OPTIONAL))
    if fault is not None:
        return fault
    for name, shape in line.items():
        if name.startswith("shape_of_"):
            if not isinstance(shape, dict):
                return f"{name}={_short(shape)} must be a mapping"
            fault = _fields_fault(shape, SHAPE)
            if fault is not None:
                return f"{name}.{fault}"
    return None


def line_fault(line: Json) -> str | None:
    """What is wrong with a measurement: a field that is missing, of another type or out of range, or a spread out of
    order. None if nothing is."""
    kind = KINDS.get(line["kind"]) if isinstance(line["kind"], str) else None
    if kind is None:
        close = get_close_matches(str(line["kind"]), KINDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"kind={_short(line['kind'])} must be one of {', '.join(KINDS)}{hint}"
    fault = _fields_fault(line, kind.point) or _fields_fault(line, _present(line, kind.optional))
    if fault is not None:
        return fault
    for name, value, needed in kind.needs:
        if line[name] == value and needed not in line:
            return f"{needed} is missing, which {name}={value!r} needs"
    if "skipped" in line:
        return _fields_fault(line, {"skipped": TEXT})
    fault = _fields_fault(
        line, {**(TIMES if kind.timed else {}), **kind.results, **_present(line, {**kind.extra, **QUIET})}
    )
    if fault is not None:
        return fault
    for low, high in pairwise(SPREAD) if kind.timed else ():
        if line[low] > line[high]:
            return f"{low}={_short(line[low])} must be at most {high}={_short(line[high])}"
    return kind.check(line)


def _present(line: Json, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {name: rule for name, rule in rules.items() if name in line}


def _fields_fault(line: Json, rules: Mapping[str, Rule]) -> str | None:
    for name, rule in rules.items():
        if name not in line:
            return f"{name} is missing; it must be {rule.says}"
        if not rule.holds(line[name]):
            return f"{name}={_short(line[name])} must be {rule.says}"
    return None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "(a number too long to print)"
    return text if len(text) <= 60 else f"{text[:57]}..."
