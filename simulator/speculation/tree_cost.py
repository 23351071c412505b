"""What a tree costs beside the tokens of a chain: a mask instead of "everything before me", and moving what was accepted.

Fast attention kernels know causal masks only. vLLM verified trees with a Triton kernel that adds a [nodes + 1, nodes + 1] bias
(vllm pull request 20401; trees were taken out again, pull request 42121); a FlashAttention-2 kernel that knows trees was 1.5
to 1.9 times as fast as that one (vllm flash-attention pull request 81). SGLang does one pass over the context and one over
the tree, and joins them (sglang pull requests 27942, 29706).

In a chain the accepted tokens are the first ones. Of a tree they lie anywhere among the nodes, and their keys and values are
moved to the front (sglang pull request 26866).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.forward import ForwardCost
from simulator.cost.roofline import elementwise_time
from simulator.operators import FloatArray
from simulator.speculation.shape import DraftShape

MASKED_ATTENTION = 1.7
"""Time of attention with a tree's mask over causal attention of as many tokens: an estimate, the middle of those 1.5 to 1.9,
which were taken on a GPU that is not named."""


def tree_extra_s(
    target: ForwardCost, shape: DraftShape, sequences: int, context_tokens: int, accepted_tokens: float
) -> float:
    """Seconds that a round takes longer because its drafts are a tree; 0 for a chain.

    (f − 1)·A + moved bytes / bandwidth, f = `MASKED_ATTENTION`, A = attention of B·(nodes + 1) tokens. Moved: B masks of
    (nodes + 1)² bytes in each layer, and keys and values of `accepted_tokens` per sequence, read and written once.
    """
    if shape.is_chain:
        return 0.0
    parts = target.micro_batches(sequences)
    share = -(-sequences // parts)
    attention_s = target.attention((shape.nodes + 1,), (context_tokens,), (share,))
    return (MASKED_ATTENTION - 1.0) * attention_s + float(tree_moves_s(target, shape.nodes, share, accepted_tokens))


def tree_moves_s(target: ForwardCost, nodes: int, sequences: ArrayLike, accepted_tokens: float) -> FloatArray:
    """Seconds [as `sequences`] of reading masks and moving what was accepted, of one micro-batch of `sequences`."""
    layers, trees = target.decoder.layers, np.asarray(sequences, dtype=float)
    mask_bytes = trees * (nodes + 1) ** 2 * layers
    moved_bytes = 2.0 * trees * accepted_tokens * target.shape.kv_bytes_per_token * layers
    moved = elementwise_time(mask_bytes + moved_bytes, 1.0, target.gpu, target.efficiency.elementwise)
    return np.asarray(moved.total_s)
