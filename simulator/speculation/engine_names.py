"""Hugging Face names of draft models → drafters and models that memwall has, and back."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from simulator import catalog
from simulator.errors import UnknownName
from simulator.records import read_mapping

_BUNDLED: dict[str, str] = {
    "yuhuili/EAGLE-LLaMA3.1-Instruct-8B": "eagle-llama-3.1-8b",
    "yuhuili/EAGLE-LLaMA3-Instruct-8B": "eagle-llama-3.1-8b",
    "lmsys/sglang-EAGLE-LLaMA3-Instruct-8B": "eagle-llama-3.1-8b",
    "yuhuili/EAGLE-LLaMA3-Instruct-70B": "eagle-llama-3.1-70b",
    "yuhuili/EAGLE-Vicuna-7B-v1.3": "eagle-vicuna-7b",
    "yuhuili/EAGLE-Vicuna-13B-v1.3": "eagle-vicuna-13b",
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": "eagle3-llama-3.1-8b",
    "RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3": "eagle3-llama-3.1-8b",
    "jamesliu1/sglang-EAGLE3-Llama-3.1-Instruct-8B": "eagle3-llama-3.1-8b",
    "lmsys/sglang-EAGLE3-LLaMA3.1-Instruct-8B": "eagle3-llama-3.1-8b",
    "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B": "eagle3-llama-3.1-70b",
    "RedHatAI/Qwen3-8B-speculator.eagle3": "eagle3-qwen3-8b",
    "RedHatAI/Qwen3-32B-speculator.eagle3": "eagle3-qwen3-32b",
    "RedHatAI/Qwen3-235B-A22B-speculator.eagle3": "eagle3-qwen3-235b-a22b",
    "lmsys/Qwen3-235B-A22B-EAGLE3": "eagle3-qwen3-235b-a22b",
    "RedHatAI/gpt-oss-20b-speculator.eagle3": "eagle3-gpt-oss-20b",
    "FasterDecoding/medusa-vicuna-7b-v1.3": "medusa-vicuna-7b",
    "FasterDecoding/medusa-v1.0-vicuna-7b-v1.5": "medusa-vicuna-7b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "JackFram/llama-68m": "llama-68m",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
}
"""Repositories of heads are named by nobody's rule; the first of several for one drafter is the one that is written out."""

_SAME = {"llama-3.3-70b": "llama-3.1-70b", "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3"}
"""Models of one and the same shape."""
_TAILS = re.compile(
    r"[-_](instruct|chat|hf|base|it|v\d(\.\d)*|fp8|bf16|fp4|nvfp4|awq|gptq|int4|int8|w4a16|w8a8|dynamic|\d{4})$"
)


def bundled_name(identifier: str, *, kind: str | None = None, target: str | None = None) -> tuple[str, str]:
    """The bundled drafter or model that `identifier` means, and a remark where it only stands in for it.

    `identifier`: a Hugging Face repository, a bundled name, or the path of a drafter file or a config.json. `kind`: kind of
    drafter that the engine's method makes of it; `target`: bundled name or repository of the model that it drafts for, by which a
    head that memwall does not have is priced as the one it has for that model. Raises UnknownName with the nearest name.
    """
    known = {name.lower(): name for name in (*catalog.names("model"), *catalog.names("drafter"))}
    if identifier.lower() in known:
        return known[identifier.lower()], ""
    if identifier.endswith((".yaml", ".yml", ".json")):
        return identifier, ""  # whether there is such a file is asked where it is read
    meant = {key.lower(): name for key, name in _BUNDLED.items()}.get(identifier.lower())
    if meant is not None and meant.lower() in known:
        return meant, ""
    plain = _plain(identifier)
    if plain in known and kind in (None, "model"):
        return known[plain], ""
    for name in drafters_of(kind, target) if target is not None and kind not in (None, "model") else ():
        return name, f"the drafter is priced as {name}, which stands in for {identifier}"
    raise UnknownName("model", identifier, [*known.values(), *_BUNDLED], kind="draft model")


def drafters_of(kind: str | None, target: str | None) -> list[str]:
    """Bundled drafters of this kind for this model (bundled name or repository), made for it before made for any; all of the kind
    where no model is named, that of the kind's own name first."""
    model = None if target is None else _plain(target)
    found = []
    for name in catalog.names("drafter"):
        data = _drafter_file(name)
        targets = data.get("targets") or ()
        if data.get("kind") == kind and (model is None or not targets or model in targets):
            found.append(name)
    return sorted(found, key=lambda name: (name == kind) == (model is not None))


def repository(name: str) -> str:
    """The Hugging Face repository of a bundled drafter or model; the name itself where none is known."""
    data = _drafter_file(name) if name in catalog.names("drafter") else {}
    if data.get("kind") == "model" and data.get("model"):
        name = str(data["model"])
    return next((identifier for identifier, bundled in _BUNDLED.items() if bundled == name), name)


def drafts_elsewhere(name: str) -> bool:
    """Whether a bundled drafter has GPUs of its own, which no engine's speculative options can say."""
    return name in catalog.names("drafter") and _drafter_file(name).get("parallel") is not None


def kind_of(name: str) -> str:
    """Kind of the drafter `name`: a bundled one's, else "model"."""
    return str(_drafter_file(name).get("kind", "model")) if name in catalog.names("drafter") else "model"


@cache
def _drafter_file(name: str) -> dict[str, Any]:
    return read_mapping(catalog.locate("drafter", name))


def _plain(identifier: str) -> str:
    """ "meta-llama/Llama-3.2-1B-Instruct" → "llama-3.2-1b"."""
    name = identifier.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    name = re.sub(r"llama-?(\d)", r"llama-\1", name)
    models = {*catalog.names("model"), *_SAME}
    while name not in models and (shorter := _TAILS.sub("", name)) != name:
        name = shorter
    return _SAME.get(name, name)
