"""What a published row is taken for: a deployment that serves it, and what of that is a guess.

Nothing is refused for being vague: what is guessed (the context length, a GPU that is only implied) stands in the notes, and
`contexts` holds both ends of what is plausible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from simulator import catalog
from simulator.architecture import WeightQuantization, load_decoder
from simulator.calibration.published_rows import VAGUE, Row
from simulator.deployment import Deployment, deploy
from simulator.errors import InputError
from simulator.hardware import load_gpu
from simulator.memory import weights_on_gpu
from simulator.operators import embedding_weight_bytes
from simulator.quantization import Quantization
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.drafters import load_drafter
from simulator.speculation.round import RoundCost, round_cost
from simulator.speculation.shape import DraftShape

CONTEXT_TOKENS = (400, 100, 1000)
"""Assumed where a source is silent, and the ends of what chat and MT-bench ask for: a few hundred tokens of both."""
GENERATED_TOKENS = 200
"""What gpt-fast generates unless told otherwise; its figures are means over them."""

_FORMATS = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
_GPT_FAST = "gpt-fast"
_GPT_FAST_GROUP = 32  # its int4 stores a bf16 scale and zero point for so many values
_WATTS = re.compile(r"\b\d+ ?W\b")


@dataclass(frozen=True)
class Case:
    """What a row is taken for."""

    deployment: Deployment
    contexts: tuple[int, int, int]
    """Assumed, shortest and longest plausible tokens of context."""
    notes: tuple[str, ...]


def case_of(row: Row) -> Case:
    """Raises MemwallError, saying what of the row cannot be priced."""
    if row.gamma and row.accept_length is None:
        raise InputError("accept_len", "(absent)", "be given to price a round", where=row.id)
    notes = []
    hardware = " ".join(_WATTS.sub("", VAGUE.sub("", row.hardware)).replace("(", " ").replace(")", " ").split())
    if not hardware:
        raise InputError("hardware", row.hardware or "(absent)", "be stated", where=row.id)
    several = re.match(r"(\d{1,3}) ?x (.+)", hardware, re.ASCII)
    tp, hardware = (int(several[1]), several[2]) if several else (1, hardware)
    gpu = load_gpu(hardware)
    vague = "" if row.states_gpu else "implied or likely, not stated"
    limit = _WATTS.search(row.hardware)
    limited = f"limited to {limit[0]}, which the profile is not" if limit else ""
    guessed = ", ".join(text for text in (vague, limited) if text)
    notes.append(f"on {f'{tp} ' if tp > 1 else ''}{gpu.name}" + (f" ({guessed})" if guessed else ""))
    words = VAGUE.sub("", row.target).replace("(", " ").replace(")", " ").lower().split()
    stated = [word for word in words if word in _FORMATS]
    group = next((int(word[1:]) for word in words if re.fullmatch(r"g[1-9]\d{0,4}", word, re.ASCII)), None)
    decoder = load_decoder("-".join(w for w in words if w not in _FORMATS and not re.fullmatch(r"g\d+", w)))
    if VAGUE.search(row.target):
        notes.append(f"model taken to be {decoder.name}")
    quantization = Quantization()
    if stated and stated[0] in ("fp8", "int8", "int4"):
        if row.engine.lower().startswith(_GPT_FAST):
            # Weight only, LM head included, the embedding not.
            dtype = stated[0]
            block = group or _GPT_FAST_GROUP if dtype == "int4" else decoder.hidden_size
            scales = WeightQuantization(dtype, block, 4.0 if dtype == "int4" else 2.0, frozenset({"embedding"}))
            decoder, quantization = replace(decoder, quantization=scales), Quantization(activations="bf16")
            notes.append("kernels of narrow weights are not calibrated: bf16's efficiency taken")
        else:
            quantization = Quantization(weights=stated[0])
    name = row.engine.lower().split()[0] if row.engine.split() else ""
    bundled = name in catalog.names("engine")
    if not bundled:
        notes.append(f"no profile of {row.engine or 'the engine'}: no host time, the hardware's own limit")
    served = deploy(
        decoder, gpu, tp=tp, quantization=quantization, engine=name if bundled else "ideal",
        draft=_drafter(row, decoder.name) if row.gamma else None,
    )  # fmt: skip
    contexts, says = _contexts(row)
    served.fit(context_tokens=contexts[0], sequences=row.batch, gamma=row.gamma)
    if row.batch == 1 and not row.gamma and tp == 1 and decoder.active_parameters == decoder.parameters:
        read_bytes = weights_on_gpu(served.target) - embedding_weight_bytes(decoder, served.target.formats, 1)
        rate = read_bytes / row.step_s
        notes.append(
            f"measured, {read_bytes / 1e9:.2f} GB of weights at {rate / 1e9:.0f} GB/s, "
            f"{rate / gpu.hbm_bytes_per_s:.0%} of the datasheet's"
        )
    return Case(served, contexts, (*notes, says))


def _drafter(row: Row, model: str) -> str:
    """The bundled drafter that a row means: by name, or the EAGLE head that was trained for this target."""
    known, name = catalog.names("drafter"), row.draft.lower()
    kind = {"eagle": "eagle", "eagle-1": "eagle", "eagle-3": "eagle3", "eagle3": "eagle3"}.get(name)
    if kind:
        heads = [head for head in known if head.startswith(f"{kind}-") and model in load_drafter(head).targets]
        name = next(iter(heads), name)
    for candidate in (name, name.replace("-", "")):
        if candidate in known:
            return candidate
    raise InputError("draft", row.draft or "(absent)", "be a bundled drafter", where=row.id)


def _contexts(row: Row) -> tuple[tuple[int, int, int], str]:
    prompt = re.match(r"(\d{1,6})-tok prompt", row.dataset, re.ASCII)
    if prompt and row.engine.lower().startswith(_GPT_FAST):
        start = int(prompt[1])
        contexts = (start + GENERATED_TOKENS // 2, start, start + GENERATED_TOKENS)
    else:
        contexts = CONTEXT_TOKENS
    return contexts, f"{contexts[0]} tokens of context assumed, {contexts[1]} to {contexts[2]} plausible"


def price(row: Row, served: Deployment, context_tokens: int) -> RoundCost:
    """A step or round of `row` as `served` does it."""
    law = shape = None
    if row.tree:
        width, nodes = row.tree
        shape = DraftShape(nodes, row.gamma, (1, *(width,) * (row.gamma - 1)))
    if row.gamma:
        # Any law with this mean prices the same round: only the mean enters.
        share = min(1.0, ((row.accept_length or 1.0) - 1.0) / row.gamma)
        law = AcceptanceConfig(marginal=(share,) * row.gamma).law()
    return round_cost(
        served.target, served.engine, sequences=row.batch, context_tokens=context_tokens, gamma=row.gamma,
        acceptance=law, draft=served.draft, drafter=served.drafter, shape=shape,
    )  # fmt: skip
