"""What tensor parallelism costs at both ends of a pass, where the vocabulary is split over the ranks."""

import numpy as np
import pytest

from simulator.cost.collectives import all_gather_s, all_reduce_s
from simulator.cost.forward import Batch, ForwardCost
from simulator.deployment import deploy


def passed(tp: int, batch: Batch) -> tuple[ForwardCost, dict[str, object]]:
    target = deploy("llama-3.1-70b", "h100-sxm", tp=tp).target
    return target, {o.name: o for o in target.pass_cost(batch).operators}


def test_split_embedding_rows_are_summed_and_split_logits_gathered():
    target, found = passed(4, Batch.decode(64, 1000, new_tokens=5))
    e = target.efficiency.all_reduce
    embedding, logits = found["embedding_all_reduce"], found["logits_all_gather"]
    assert embedding.message_bytes == 320 * 8192 * 2
    assert embedding.total_s == pytest.approx(float(all_reduce_s(embedding.message_bytes, 4, target.link, e)))
    assert logits.message_bytes == 320 * 128_256 * 2
    assert logits.total_s == pytest.approx(float(all_gather_s(logits.message_bytes, 4, target.link, e)))
    assert embedding.by_cause() == {"communication": embedding.total_s}


def test_every_rank_samples_from_all_logits():
    # As the memory budget has it: two fp32 copies of whole rows on each GPU, however many share the model.
    samplers = [passed(tp, Batch.decode(64, 1000))[1]["sampler"].activation_bytes for tp in (4, 8)]
    assert samplers == [64 * 128_256 * 2 * 4] * 2


def test_one_gpu_has_nothing_to_exchange():
    target = deploy("llama-3.1-8b", "h100-sxm").target
    assert target.pass_cost(Batch.decode(8, 100)).by_cause()["communication"] == 0.0


def test_a_chunk_that_needs_no_logits_gathers_none():
    target, found = passed(4, Batch((512,), (0,), 0))
    assert "logits_all_gather" not in found
    assert "embedding_all_reduce" in found
    assert target.head(np.zeros(1))[0] == 0.0
