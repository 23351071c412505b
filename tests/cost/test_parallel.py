"""Pipelines and spread experts: the three views still agree, equal stages add up, the slowest one sets the pace."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.architecture import Decoder, load_decoder
from simulator.cost.collectives import all_to_all_s, point_to_point_s
from simulator.cost.forward import Batch, ForwardCost
from simulator.cost.streaming import stream
from simulator.experts import ExpertPlacement
from simulator.hardware import load_gpu, load_link
from simulator.pipeline import PipelineStage
from tests.cost.test_forward import batches, by_tables

GPU = load_gpu("h100-sxm")
COSTS = {
    "equal stages": ForwardCost(load_decoder("llama-3-70b"), GPU, tp=2, pp=4),
    "unequal stages": ForwardCost(load_decoder("deepseek-v3"), GPU, tp=8, pp=4),
    "windows": ForwardCost(load_decoder("gemma-3-27b"), GPU, pp=4),
    "experts": ForwardCost(load_decoder("mixtral-8x7b"), GPU, tp=8, experts=ExpertPlacement(8, 1.5, 0.8)),
    "both": ForwardCost(load_decoder("gpt-oss-120b"), GPU, tp=4, pp=2, experts=ExpertPlacement(4, 1.2)),
    "wide": ForwardCost(load_decoder("deepseek-v3"), GPU, experts=ExpertPlacement(32, 1.3)),
}
TABLES = {name: cost.tables(1024, 64) for name, cost in COSTS.items()}
PIPELINES = [name for name, cost in COSTS.items() if cost.pp > 1]


def part(decoder: Decoder, stage: PipelineStage) -> Decoder:
    """The layers of one stage as a model of their own."""
    counts = zip(decoder.layer_kinds, stage.counts, strict=True)
    kinds = tuple(dataclasses.replace(kind, count=n) for kind, n in counts if n)
    order = tuple(i for i, kind in enumerate(kinds) for _ in range(kind.count))
    return dataclasses.replace(decoder, layer_kinds=kinds, layer_order=order)


def stage_seconds(cost: ForwardCost, batch: Batch) -> list[float]:
    """What each stage takes for a micro-batch by itself: its layers, and what happens once where it is first or last."""
    found = []
    for stage in cost.stages:
        alone = ForwardCost(part(cost.decoder, stage), cost.gpu, tp=cost.tp, experts=cost.experts)
        taken = alone.pass_cost(batch)
        seconds = sum(o.repeat * o.total_s for _, group in taken.layers for o in group)
        seconds += sum(o.total_s for o in taken.before) if stage.first else 0.0
        seconds += sum(o.total_s for o in taken.after) if stage.last else 0.0
        found.append(seconds)
    return found


def handing_over_s(cost: ForwardCost, batch: Batch) -> float:
    return sum(o.repeat * o.total_s for o in cost.pass_cost(batch).operators if o.name.startswith("stage_"))


# One cost in three views


@settings(max_examples=40)
@given(st.sampled_from(list(COSTS)), batches)
def test_three_views_agree(name, batch):
    cost = COSTS[name]
    assert cost.seconds(batch) == pytest.approx(cost.pass_cost(batch).seconds, rel=1e-12)
    assert by_tables(TABLES[name], batch) == pytest.approx(cost.seconds(batch), rel=1e-12)


@settings(max_examples=15)
@given(st.sampled_from(list(COSTS)), st.integers(1, 60), st.integers(0, 5000))
def test_tables_hold_the_bytes_and_flop_of_all_stages(name, sequences, context):
    taken, tables = COSTS[name].pass_cost(Batch.decode(sequences, context)), TABLES[name]
    moved = taken.total("weight_bytes") + taken.total("activation_bytes")
    assert tables.linear[0, 1, sequences] + tables.head[1, sequences] == pytest.approx(moved, rel=1e-12)
    flop = sum(o.flop * o.repeat for o in taken.operators if "attention" not in o.name)
    assert tables.linear[0, 2, sequences] + tables.head[2, sequences] == pytest.approx(flop, rel=1e-12)
    assert tables.pipeline == COSTS[name].pp


@settings(max_examples=20)
@given(st.sampled_from(list(COSTS)), batches)
def test_causes_add_up_and_streaming_takes_as_long(name, batch):
    taken = COSTS[name].pass_cost(batch)
    causes = taken.by_cause()
    assert sum(causes.values()) == pytest.approx(taken.seconds, rel=1e-9)
    assert min(causes.values()) >= -1e-15
    assert stream(taken.stages(), GPU.desk_bytes)[-1].compute_end_s == pytest.approx(taken.seconds, rel=1e-9)


# The pace of a pipeline


@settings(max_examples=25)
@given(st.sampled_from(PIPELINES), batches)
def test_the_slowest_stage_sets_the_pace(name, batch):
    cost = COSTS[name]
    each = stage_seconds(cost, batch)
    paced = cost.pp * max(each) + handing_over_s(cost, batch)
    charged = cost.seconds(batch)
    # Never faster than the slowest stage lets it be, and at most one layer of each stage slower.
    assert charged >= paced * (1 - 1e-12)
    per_layer = max(s / stage.layers for s, stage in zip(each, cost.stages, strict=True))
    assert charged <= paced + cost.pp * per_layer


@settings(max_examples=15)
@given(st.integers(1, 16), st.integers(0, 3000))
def test_equal_stages_take_what_the_layers_take(sequences, context):
    cost, batch = COSTS["equal stages"], Batch.decode(sequences, context)
    whole = ForwardCost(cost.decoder, GPU, tp=2)
    layers = sum(o.repeat * o.total_s for _, group in whole.pass_cost(batch).layers for o in group)
    ends = sum(o.total_s for o in whole.pass_cost(batch).after)
    # Every stage waits for the one with the final norm, the LM head and the sampler.
    expected = layers + cost.pp * ends + handing_over_s(cost, batch)
    assert cost.seconds(batch) == pytest.approx(expected, rel=1e-9)


def test_the_lm_head_fits_beside_the_layers_that_its_stage_has_fewer():
    # 61 layers in four stages: 15, 15, 16, 15; the head of DeepSeek-V3 takes less than a layer of experts.
    cost = COSTS["unequal stages"]
    alone = ForwardCost(cost.decoder, GPU, tp=8).head(np.array([64.0]))[0]
    assert alone > 0
    assert cost.head(np.array([64.0]))[0] == 0
    # Eighty equal layers leave no room but the embedding: the head is waited for in every stage.
    equal, one = COSTS["equal stages"], ForwardCost(load_decoder("llama-3-70b"), GPU, tp=2)
    assert equal.head(np.array([64.0]))[0] == pytest.approx(4 * one.head(np.array([64.0]))[0], rel=0.03)


def test_handing_over_by_hand():
    cost = COSTS["equal stages"]  # two GPUs each send half of hidden state and residual
    send = next(o for o in cost.pass_cost(Batch.decode(10, 100)).operators if o.name == "stage_send")
    assert send.repeat == 4
    assert send.message_bytes == 10 * 2 * 8192 * 2 / 2
    assert send.total_s == pytest.approx(point_to_point_s(send.message_bytes, cost.link, cost.efficiency.all_reduce))


def test_stages_on_several_nodes_hand_over_through_the_network():
    decoder = load_decoder("llama-3.1-405b")
    near, far = (ForwardCost(decoder, GPU, tp=tp, pp=2) for tp in (4, 8))
    send = next(o for o in far.pass_cost(Batch.decode(10, 100)).operators if o.name == "stage_send")
    network = load_link("infiniband-ndr-400")
    assert send.total_s == pytest.approx(point_to_point_s(send.message_bytes, network, far.efficiency.all_reduce))
    slower = next(o for o in near.pass_cost(Batch.decode(10, 100)).operators if o.name == "stage_send")
    assert send.total_s > slower.total_s


def test_a_pipeline_of_one_is_none():
    decoder, batch = load_decoder("gemma-3-27b"), Batch((1, 4, 100), (2000, 10, 0), 3)
    one, none = ForwardCost(decoder, GPU, pp=1), ForwardCost(decoder, GPU)
    assert one.pass_cost(batch) == none.pass_cost(batch)
    assert one.kinds == none.kinds


# Spread experts


def test_experts_of_one_group_are_split():
    decoder, batch = load_decoder("mixtral-8x7b"), Batch.decode(8, 100)
    one, none = ForwardCost(decoder, GPU, tp=4, experts=ExpertPlacement(1)), ForwardCost(decoder, GPU, tp=4)
    assert one.pass_cost(batch) == none.pass_cost(batch)


def test_two_all_to_alls_in_every_layer_of_experts():
    taken = COSTS["experts"].pass_cost(Batch.decode(64, 100))
    exchanges = [o for o in taken.operators if o.name.endswith("all_to_all")]
    assert sum(o.repeat for o in exchanges) == 2 * 32
    e = COSTS["experts"].efficiency.all_reduce
    for o in exchanges:
        assert o.total_s == pytest.approx(all_to_all_s(o.message_bytes, 8, COSTS["experts"].link, e))
    far = next(o for o in COSTS["wide"].pass_cost(Batch.decode(64, 100)).operators if o.name == "combine_all_to_all")
    network = load_link("infiniband-ndr-400")
    assert far.total_s == pytest.approx(all_to_all_s(far.message_bytes, 32, network, e))


@settings(max_examples=15)
@given(st.integers(1, 256), st.floats(1.0, 8.0))
def test_a_busier_gpu_is_never_faster(tokens, skew):
    decoder, points = load_decoder("mixtral-8x7b"), np.array([float(tokens)])
    even, busy = (ForwardCost(decoder, GPU, tp=8, experts=ExpertPlacement(8, s)).linear(points)[0] for s in (1.0, skew))
    assert busy >= even * (1 - 1e-12)


def test_popular_experts_are_read_once_for_many_tokens():
    decoder, points = load_decoder("qwen3-30b-a3b"), np.array([8.0])
    uniform, zipf = (ForwardCost(decoder, GPU, experts=ExpertPlacement(exponent=e)).linear(points)[0] for e in (0, 1.5))
    assert zipf < uniform
