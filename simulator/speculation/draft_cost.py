"""What a drafter's passes cost, and what of its target it shares instead of holding its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.architecture import Decoder
from simulator.cost.efficiency import Efficiency
from simulator.cost.forward import AttentionKind, ForwardCost, LinearParts
from simulator.errors import InputError
from simulator.experts import SPLIT_EVENLY
from simulator.operators import FloatArray, Operator, feature_operators, head_operators, medusa_operators
from simulator.quantization import Quantization
from simulator.speculation.drafters import SHARES_LAYERS, Drafter


def _formats(drafter: Drafter, decoder: Decoder, tp: int, target: ForwardCost) -> Quantization:
    """Number formats of a drafter with a model: its own, but those of the target for an LM head that it borrows."""
    own = drafter.quantization
    borrows = drafter.kind == "eagle" and tp == target.tp and decoder.head_vocab_size == target.decoder.vocab_size
    if borrows and own.lm_head == "model":
        return own.model_copy(update={"lm_head": target.quantization.lm_head})
    return own


class DraftCost(ForwardCost):
    """Passes of `drafter` beside `target`. A pass of Medusa is one of all its heads; a pass of any other drafter takes one level
    further. Raises InputError where they cannot be on the target's GPUs."""

    def __init__(self, drafter: Drafter, target: ForwardCost, efficiency: Efficiency | None = None):
        decoder = drafter.decoder_for(target.decoder)
        if decoder is None:
            raise InputError("draft", drafter.name, "be a drafter with a model")
        if target.pp > 1 and drafter.kind in SHARES_LAYERS:
            raise InputError("pp", target.pp, f"be 1 for {drafter.name}, which drafts with the target's own layers")
        self.drafter, self.target = drafter, target
        self.heads = drafter.heads if drafter.kind == "medusa" else 0
        tp = drafter.tensor_parallel(target.tp)
        own = drafter.decoder is not None
        super().__init__(
            replace(decoder, layer_kinds=(), layer_order=()) if self.heads else decoder,
            target.gpu,
            tp=tp,
            experts=SPLIT_EVENLY if own or self.heads or tp != target.tp else target.experts,
            quantization=_formats(drafter, decoder, tp, target) if own else target.quantization,
            link=target.link,
            network=target.network,
            efficiency=efficiency or target.efficiency,
            back_to_back=True,
        )
        if self.heads:  # the serving loop wants one kind of layers; there is none of it
            self.kinds = (AttentionKind(0.0, float("inf"), 0.0, 0.0, 0.0),)

    def on(self, efficiency: Efficiency) -> DraftCost:
        """The same passes on other efficiencies."""
        return DraftCost(self.drafter, self.target, efficiency)

    def beside(self, target: ForwardCost) -> DraftCost:
        """The same drafter beside another target. Raises InputError where they do not match."""
        return DraftCost(self.drafter, target)

    @property
    def apart(self) -> bool:
        """Whether it is on GPUs of its own."""
        return self.drafter.parallel is not None

    @property
    def borrows_layers(self) -> bool:
        """Whether it is made of the target's own weights."""
        return self.drafter.kind in SHARES_LAYERS

    @property
    def modules(self) -> int:
        """Copies of its layers in memory, each with a KV cache; a pass runs one of them. More than one for MTP only."""
        return (self.drafter.modules or self.target.decoder.mtp_modules) if self.drafter.kind == "mtp" else 1

    @property
    def own_kv_bytes_per_token(self) -> float:
        """KV cache of its own, bytes of one token on one rank."""
        return self.modules * self.shape.kv_bytes_per_token * self.decoder.layers if self.drafter.reads_prompts else 0.0

    @property
    def heads_bytes(self) -> float:
        """Medusa: weights of all heads on one rank, K·(L·h² + h·V/tp) values (arXiv:2401.10774 §2.1), bytes."""
        return sum(times * float(o.weight_bytes[0]) for times, o in self._head_operators(np.ones(1)))

    def intake(self, tokens: FloatArray) -> FloatArray:
        """What the first pass of a round does beside the others with the `tokens` [points] that are new to the drafter: EAGLE-3
        brings the features of three target layers to one width. Seconds, bytes, FLOP [3, points]."""
        operators = [(1, o) for o in feature_operators(self.decoder, self.formats, np.asarray(tokens, float))]
        if not operators:
            return np.zeros((3, len(tokens)))
        return np.stack([self._sum(operators, what) for what in range(3)])

    def _parts(self, tokens: FloatArray) -> LinearParts:
        if not self.heads:
            return super()._parts(tokens)
        zero = np.zeros_like(np.asarray(tokens, dtype=float))
        return LinearParts({}, [Operator("nothing", "elementwise", zero, zero, zero, zero)], [])

    def _head_operators(self, rows: FloatArray) -> list[tuple[int, Operator]]:
        if not self.heads:
            return super()._head_operators(rows)
        blocks = medusa_operators(self.decoder, self.formats, rows)
        return [
            *((self.heads * self.drafter.head_layers, o) for o in blocks),
            *((self.heads, o) for o in head_operators(self.decoder, self.formats, self.tp, rows)),
        ]
