"""One model of cost in three views that agree, causes that add up, limits, and every kind of model priced."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.cost.forward import CAUSES, DECODE_QUERY_LIMIT, Batch, FastTables, ForwardCost
from simulator.cost.graphs import GraphCapture
from simulator.cost.roofline import attention_time
from simulator.cost.streaming import stream
from simulator.cost.tables import BYTES, FLOP, SECONDS
from simulator.errors import InputError
from simulator.hardware import Gpu, load_gpu
from simulator.operators import attention_pairs, kv_tokens_read
from simulator.quantization import Quantization

GPU = load_gpu("h100-sxm")
MOST_TOKENS = 1024
KINDS = {  # grouped heads, experts, latent attention with experts, sliding windows
    name: ForwardCost(load_decoder(name), GPU)
    for name in ("llama-3.2-1b", "mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b", "gemma-2-27b")
}
TABLES = {name: cost.tables(MOST_TOKENS, MOST_TOKENS) for name, cost in KINDS.items()}
SPLIT = ForwardCost(load_decoder("llama-3.1-8b"), GPU, tp=4)

decoding = st.tuples(st.integers(1, DECODE_QUERY_LIMIT), st.integers(0, 20_000))
prefilling = st.tuples(st.integers(DECODE_QUERY_LIMIT + 1, 200), st.integers(0, 5_000))
batches = st.lists(decoding | prefilling, min_size=1, max_size=5).map(
    lambda pairs: Batch(tuple(q for q, _ in pairs), tuple(c for _, c in pairs), len(pairs))
)


def faster(gpu: Gpu, factor: float) -> Gpu:
    """`factor` times the bandwidth, and as much shorter a latency: the desk holds what is in flight (Little's law)."""
    return dataclasses.replace(
        gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * factor, hbm_latency_s=gpu.hbm_latency_s / factor
    )


def by_tables(tables: FastTables, batch: Batch) -> float:
    """What a serving loop does: look up, and price attention from sums."""
    seconds = tables.linear[0, SECONDS, batch.tokens] + tables.head[SECONDS, batch.rows]
    pairs = list(zip(batch.new_tokens, batch.cached_tokens, strict=True))
    for kind in tables.kinds:
        for rates, per_pair, group in (
            (tables.decode_rates, kind.decode_flop_per_pair, [p for p in pairs if p[0] <= DECODE_QUERY_LIMIT]),
            (tables.prefill_rates, kind.prefill_flop_per_pair, [p for p in pairs if p[0] > DECODE_QUERY_LIMIT]),
        ):
            kv_bytes = kind.kv_bytes_per_token * sum(kv_tokens_read(q, c, kind.window_tokens) for q, c in group)
            flop = per_pair * sum(attention_pairs(q, c, kind.window_tokens) for q, c in group)
            queries = float(sum(q for q, _ in group))
            seconds += kind.layers * attention_time(float(len(group)), queries, kv_bytes, flop, rates)[0]
    return float(seconds)


# One cost in three views


@settings(max_examples=40)
@given(st.sampled_from(list(KINDS)), batches)
def test_three_views_agree(name, batch):
    cost = KINDS[name]
    assert cost.seconds(batch) == pytest.approx(cost.pass_cost(batch).seconds, rel=1e-12)
    assert by_tables(TABLES[name], batch) == pytest.approx(cost.seconds(batch), rel=1e-12)


def test_tables_asked_for_again_are_those_of_a_pass_that_was_never_asked():
    cost = ForwardCost(load_decoder("gpt-oss-20b"), GPU)
    for most, sizes in ((64, (8, 64)), (300, (16, 32)), (100, (1, 100))):
        capture = GraphCapture(sizes, "all", 1e-3)
        fresh = ForwardCost(cost.decoder, GPU).tables(most, most, capture)
        again = cost.tables(most, most, capture)
        for name in ("linear", "head", "extra_host_s"):
            assert np.array_equal(getattr(again, name), getattr(fresh, name))


@settings(max_examples=20)
@given(st.sampled_from(list(KINDS)), st.integers(1, 100), st.integers(0, 5000))
def test_tables_hold_the_bytes_and_flop_of_the_pass(name, sequences, context):
    cost, tables = KINDS[name].pass_cost(Batch.decode(sequences, context)), TABLES[name]
    moved = cost.total("weight_bytes") + cost.total("activation_bytes")
    assert tables.linear[:, BYTES, sequences] + tables.head[BYTES, sequences] == pytest.approx(moved, rel=1e-12)
    linear_flop = sum(o.flop * o.repeat for o in cost.operators if "attention" not in o.name)
    assert tables.linear[:, FLOP, sequences] + tables.head[FLOP, sequences] == pytest.approx(linear_flop, rel=1e-12)


@settings(max_examples=40)
@given(st.sampled_from([*KINDS.values(), SPLIT]), batches)
def test_causes_add_up(cost, batch):
    taken = cost.pass_cost(batch)
    causes = taken.by_cause()
    assert tuple(causes) == CAUSES
    assert sum(causes.values()) == pytest.approx(taken.seconds, rel=1e-12)
    assert min(causes.values()) >= -1e-15
    for o in taken.operators:
        assert sum(o.by_cause().values()) == pytest.approx(o.total_s, rel=1e-12)
        assert o.total_s >= max(o.memory_s, o.compute_s) + o.overhead_s - 1e-15


@settings(max_examples=15)
@given(st.sampled_from(list(KINDS)), batches)
def test_streamed_layer_by_layer_it_takes_as_long(name, batch):
    taken = KINDS[name].pass_cost(batch)
    stages = taken.stages()
    assert {s.layer for s in stages} == {-1, *range(KINDS[name].decoder.layers)}
    assert stream(stages, GPU.desk_bytes)[-1].compute_end_s == pytest.approx(taken.seconds, rel=1e-9)
    assert sum(s.bytes_ for s in stages) == pytest.approx(taken.total("bytes_"), rel=1e-6)


def test_nothing_to_do_takes_no_time():
    for cost, tables in zip(KINDS.values(), TABLES.values(), strict=True):
        assert not tables.linear[:, SECONDS, 0].any()
        assert tables.head[SECONDS, 0] == 0.0
        assert cost.seconds(Batch((), (), 0)) == 0.0


def test_logits_are_paid_by_the_row():
    cost = KINDS["llama-3.2-1b"]
    with_rows, without = cost.pass_cost(Batch((100,), (0,), 1)), cost.pass_cost(Batch((100,), (0,), 0))
    assert {o.name for o in with_rows.operators} - {o.name for o in without.operators} == {"lm_head", "sampler"}
    assert with_rows.seconds - without.seconds == pytest.approx(float(cost.head(np.ones(1))[0]), rel=1e-9)


# By hand


def test_a_decode_step_reads_weights_and_cache_once():
    taken = ForwardCost(load_decoder("llama-3.1-8b"), GPU).pass_cost(Batch.decode(16, 1000))
    matrices = 32 * (4096 * 48 * 128 + 4096 * 4096 + 3 * 4096 * 14336) + 4096 * 128_256
    assert taken.total("weight_bytes") == 2 * matrices
    assert taken.total("kv_bytes") == 16 * 1001 * 131_072
    assert taken.total("flop") == pytest.approx(16 * (2 * matrices + 32 * 4 * 32 * 128 * 1001))
    assert taken.seconds > taken.total("bytes_") / GPU.hbm_bytes_per_s


def test_an_equal_batch_is_its_sequences():
    assert Batch.decode(3, 100, 2) == Batch((2, 2, 2), (100, 100, 100), 6)
    assert Batch.prefill(50).tokens == 50


# Limits


@pytest.mark.parametrize("name", KINDS)
def test_endless_bandwidth_leaves_no_memory_time(name):
    endless = ForwardCost(load_decoder(name), faster(GPU, 1e12)).pass_cost(Batch.decode(8, 2000))
    causes = endless.by_cause()
    assert causes["weights"] + causes["kv_cache"] + causes["activations"] < 1e-9
    assert endless.seconds < KINDS[name].pass_cost(Batch.decode(8, 2000)).seconds


@settings(max_examples=20)
@given(st.sampled_from(list(KINDS)), batches, st.floats(1.0, 8.0))
def test_more_bandwidth_is_never_slower(name, batch, factor):
    quick = ForwardCost(load_decoder(name), faster(GPU, factor))
    assert quick.seconds(batch) <= KINDS[name].seconds(batch) * (1 + 1e-12)


def test_bandwidth_beyond_what_the_desk_keeps_in_flight_is_lost():
    desk_bound = dataclasses.replace(GPU, shared_memory_bytes_per_sm=GPU.shared_memory_bytes_per_sm / 100)
    twice = dataclasses.replace(desk_bound, hbm_bytes_per_s=2 * GPU.hbm_bytes_per_s)
    decoder, batch = load_decoder("llama-3.1-8b"), Batch.decode(1, 1000)
    slow = ForwardCost(decoder, desk_bound).seconds(batch)
    assert slow > 2 * ForwardCost(decoder, GPU).seconds(batch)
    assert ForwardCost(decoder, twice).seconds(batch) == slow


def test_a_step_of_one_tends_to_its_bytes_over_the_bandwidth():
    # The larger the model, the less the fixed times matter; what is left is the measured share of the bandwidth.
    cost = ForwardCost(load_decoder("llama-3-70b"), GPU)
    taken = cost.pass_cost(Batch.decode(1, 1))
    floor_s = taken.total("bytes_") / (cost.efficiency.matmul.bandwidth * GPU.hbm_bytes_per_s)
    assert floor_s < taken.seconds < 1.15 * floor_s


def test_one_gpu_communicates_nothing_and_several_do():
    batch = Batch.decode(8, 1000)
    alone = ForwardCost(SPLIT.decoder, GPU).pass_cost(batch)
    assert alone.by_cause()["communication"] == 0.0
    assert SPLIT.pass_cost(batch).by_cause()["communication"] > 0.0
    both_ends = 2  # the vocabulary is split too
    assert sum(o.repeat for o in SPLIT.pass_cost(batch).operators if o.message_bytes) == 2 * 32 + both_ends


@settings(max_examples=30)
@given(st.sampled_from([*KINDS.values(), SPLIT]), st.integers(1, 64), st.integers(0, 50_000), st.integers(1, 8))
def test_more_context_more_sequences_and_more_tokens_never_take_less(cost, sequences, context, new):
    now = cost.seconds(Batch.decode(sequences, context, new)) * (1 - 1e-12)
    assert cost.seconds(Batch.decode(sequences, context + 1000, new)) >= now
    assert cost.seconds(Batch.decode(sequences + 1, context, new)) >= now
    assert cost.seconds(Batch.decode(sequences, context, new + 1)) >= now


# Every kind of model and number format


@pytest.mark.parametrize("name", catalog.names("model"))
def test_every_bundled_model_is_priced(name):
    cost = ForwardCost(load_decoder(name), GPU)
    assert 0 < cost.seconds(Batch.decode(1, 100)) < cost.seconds(Batch.prefill(2000)) < 60


def test_a_window_caps_what_a_long_context_costs():
    capped, open_ended = ForwardCost(load_decoder("mistral-7b"), GPU), ForwardCost(load_decoder("llama-3.1-8b"), GPU)
    assert capped.attention((1,), (30_000,)) == capped.attention((1,), (5_000,))
    assert open_ended.attention((1,), (30_000,)) > open_ended.attention((1,), (5_000,))


def test_latent_attention_is_priced_for_the_work_it_does():
    # Both kernels see the keys that are there: FLOP over FLOP per pair and query, in the absorbed and the expanded form.
    cost = KINDS["deepseek-v2-lite"]
    assert cost.decode_rates.flop_per_pair == cost.shape.decode_flop_per_pair == 16 * (2 * 576 + 2 * 512)
    assert cost.prefill_rates.flop_per_pair == cost.shape.prefill_flop_per_pair == 16 * (2 * 192 + 2 * 128)


@pytest.mark.parametrize("weights", ["fp8", "int8", "int4", "mxfp4"])
def test_narrower_weights_are_read_faster(weights):
    decoder, batch = load_decoder("llama-3.1-8b"), Batch.decode(1, 100)
    assert ForwardCost(decoder, GPU, quantization=Quantization(weights=weights)).seconds(batch) < ForwardCost(
        decoder, GPU
    ).seconds(batch)


def test_a_drafter_that_fits_l2_stays_there_between_its_passes():
    batch = Batch.decode(1, 100)
    small, large = load_decoder("pythia-70m"), load_decoder("llama-3.1-8b")
    roomy = dataclasses.replace(GPU, l2_bytes=1e9)
    again, alone = (ForwardCost(small, roomy, back_to_back=b).seconds(batch) for b in (True, False))
    assert again < alone
    again, alone = (ForwardCost(large, GPU, back_to_back=b).seconds(batch) for b in (True, False))
    assert again == pytest.approx(alone, rel=1e-6)


def test_a_group_must_divide_the_model():
    with pytest.raises(InputError, match="tp=5 must divide the 32 attention heads"):
        ForwardCost(load_decoder("llama-3.1-8b"), GPU, tp=5)
