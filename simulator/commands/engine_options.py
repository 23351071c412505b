"""Options that take an engine's own speculative configuration, and what they say of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.scenario import Scenario
    from simulator.speculation.engine_fields import EngineSpeculation

_NAMES = {"speculative_config": "vllm", "sglang_flags": "sglang", "trtllm_config": "tensorrt-llm"}
"""Options, and whose configuration each takes."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; at most one of them may be given."""
    group = parser.add_argument_group("an engine's own configuration, as it is")
    group.add_argument(
        "--speculative-config", metavar="JSON", help="vLLM's --speculative-config, or @ and the file that holds it"
    )
    group.add_argument(
        "--sglang-flags",
        metavar="FLAGS",
        help="SGLang's launch command with its --speculative-… flags in quotes, or @FILE",
    )
    group.add_argument(
        "--trtllm-config", metavar="JSON", help="TensorRT-LLM's speculative_config, or @ and its YAML file"
    )


def engine_speculation(args: argparse.Namespace, target: str | None) -> EngineSpeculation | None:
    """What the option given describes; None without one. `target`: name of the model served. Raises InputError."""
    given = [name for name in _NAMES if getattr(args, name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InputError(given[1].replace("_", "-"), "(given)", f"be left out with {given[0].replace('_', '-')}")
    text = getattr(args, given[0])
    if given[0] == "speculative_config":
        from simulator.speculation.engine_config import read_vllm

        return read_vllm(text, target)
    if given[0] == "sglang_flags":
        from simulator.speculation.engine_flags import read_sglang

        return read_sglang(text, target)
    from simulator.speculation.engine_trtllm import read_tensorrt_llm

    return read_tensorrt_llm(text, target)


def own_engine(args: argparse.Namespace) -> str | None:
    """The engine whose configuration is given; None without one."""
    return next((engine for name, engine in _NAMES.items() if getattr(args, name) is not None), None)


def remarks(args: argparse.Namespace, read: EngineSpeculation | None, engine: str) -> list[str]:
    """A paragraph on what became of the options, for the end of a report; none where all of them count. `engine`: what serves."""
    lines = read.remarks() if read is not None else []
    theirs = own_engine(args)
    if theirs is not None and theirs != engine:
        lines.append(f"It is {theirs}'s; what schedules and takes the host's time is {engine}.")
    return [f"Of the engine's configuration: {' '.join(lines)}"] if lines else []


def as_changes(read: EngineSpeculation, current: Any) -> list[tuple[str, Any]]:
    """Changes of a scenario by dotted name. `current` is its ``speculation``: acceptance and whatever else it says of the same
    drafter stay."""
    fields = dict(read.speculation)
    if isinstance(current, dict) and _same_look_up(current.get("draft"), fields["draft"]):
        fields["draft"] = current["draft"]  # engines do not tell n-grams of one text from those of another
    if isinstance(current, dict) and current.get("draft") == fields["draft"] and "acceptance" not in fields:
        fields |= {k: v for k, v in current.items() if k == "acceptance"}
    return [("speculation", fields), *read.settings.items()]


def _same_look_up(current: Any, engines: str) -> bool:
    from simulator.speculation.engine_names import kind_of

    try:
        return isinstance(current, str) and kind_of(current) == kind_of(engines) in ("ngram", "suffix")
    except InputError:
        return False


def deployment_changes(args: argparse.Namespace, read: EngineSpeculation | None) -> dict[str, Any]:
    """The same for a deployment outside of a scenario: keywords of `arguments.deployment`."""
    if read is None:
        return {}
    from simulator.quantization import Quantization
    from simulator.records import validate

    formats = read.speculation.get("draft_quantization")
    own = {} if args.engine is not None else {"name": own_engine(args)}
    return {
        "engine": own | {name.removeprefix("engine."): value for name, value in read.settings.items()},
        "draft_tp": read.speculation.get("draft_tp"),
        "draft_quantization": validate(Quantization, formats, "draft_quantization") if formats else None,
    }


def acceptance_doubt(scenario: Scenario) -> list[str]:
    """A paragraph on what one number leaves open of a scenario's acceptance; none where more is known."""
    speculation = scenario.speculation
    if speculation is None or speculation.acceptance is None or speculation.acceptance.at_gamma is None:
        return []
    from simulator.speculation.drafters import load_drafter
    from simulator.speculation.typical import doubt_sentence

    kind = load_drafter(speculation.draft, base=scenario.base).kind
    sentence = doubt_sentence(speculation.acceptance, kind, speculation.gamma)
    return [sentence] if sentence else []
