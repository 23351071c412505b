"""A model cut into the stages of a pipeline: which layers are on which group of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.architecture import Decoder
from simulator.errors import InputError


@dataclass(frozen=True)
class PipelineStage:
    """Consecutive layers on one tensor-parallel group."""

    counts: tuple[int, ...]
    """Layers of each of the decoder's `layer_kinds`."""
    first: bool
    """Whether it embeds the tokens."""
    last: bool
    """Whether it has the final norm, the LM head and the sampler."""

    @property
    def layers(self) -> int:
        """Layers of all kinds."""
        return sum(self.counts)


def stage_layers(layers: int, pp: int) -> list[int]:
    """Layers of each of `pp` stages: ⌊layers/pp⌋, and what is left over one each, from the last stage but one towards the first.

    Source: vLLM, `vllm.distributed.utils.get_pp_indices`: the last stage, and then the first, are spared for the LM head and
    the embedding.
    """
    each, left = divmod(layers, pp)
    return [each + (pp - 1 - left <= i < pp - 1) for i in range(pp)]


def pipeline_stages(decoder: Decoder, pp: int) -> tuple[PipelineStage, ...]:
    """The stages of `decoder`. Raises InputError unless every stage gets a layer."""
    if not 1 <= pp <= max(1, decoder.layers):  # Medusa heads have no layers
        raise InputError("pp", pp, f"be between 1 and the {decoder.layers} layers of {decoder.name}")
    stages, at = [], 0
    for i, layers in enumerate(stage_layers(decoder.layers, pp)):
        part = decoder.layer_order[at : at + layers]
        counts = tuple(part.count(kind) for kind in range(len(decoder.layer_kinds)))
        stages.append(PipelineStage(counts, first=i == 0, last=i == pp - 1))
        at += layers
    return tuple(stages)
