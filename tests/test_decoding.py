"""A decode step taken apart: shares that add up, the desk and its what-ifs, the timeline."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import units
from simulator.cost.forward import Batch
from simulator.cost.streaming import stream
from simulator.decoding import DecodeResult, decode, what_if_sentence
from simulator.deployment import deploy
from simulator.errors import DoesNotFit, InputError
from simulator.hardware import load_gpu, what_if

MODELS = {name: deploy(name, "h100") for name in ("llama-3.2-1b", "llama-3.1-8b", "deepseek-v2-lite", "gpt-oss-20b")}
LLAMA = MODELS["llama-3.1-8b"]
steps = st.builds(
    lambda name, batch, context, new: decode(MODELS[name], batch=batch, context_tokens=context, new_tokens=new),
    st.sampled_from(list(MODELS)), st.integers(1, 64), st.integers(1, 2000), st.integers(1, 8),
)  # fmt: skip


@pytest.fixture
def step() -> DecodeResult:
    return decode(LLAMA, batch=8, context_tokens=1000)


@settings(max_examples=30)
@given(steps)
def test_causes_and_operators_add_up_to_the_step(step):
    assert sum(step.by_cause.values()) == pytest.approx(step.step_s, rel=1e-12)
    assert sum(seconds for _, seconds in step.by_operator) == pytest.approx(step.pass_cost.seconds, rel=1e-12)
    assert step.host_s == step.by_cause["host"]
    assert step.by_cause[step.binding] == max(step.by_cause.values())
    assert 0 < step.bandwidth_share <= 1
    assert 0 < step.flop_share <= step.sm_busy_share <= 1
    assert step.tokens_per_s == step.batch / step.step_s


def test_operators_come_longest_first(step):
    seconds = [s for _, s in step.by_operator]
    assert seconds == sorted(seconds, reverse=True)
    assert len({o.name for o, _ in step.by_operator}) == len(seconds)


def test_article_one_sequence_waits_for_its_weights():
    # 16 GB of weights pass 132 x 228 KiB of desk hundreds of times per token, and the SMs have next to nothing to do.
    step = decode(LLAMA, batch=1, context_tokens=100)
    assert step.binding == "weights"
    assert step.desk_loads == pytest.approx(2 * 7.5e9 / (132 * 228 * 1024), rel=0.01)
    assert step.sm_arithmetic_share == pytest.approx(2 * 7.5e9 / 989.4e12 / step.step_s, rel=0.02)
    assert step.sm_arithmetic_share < 0.01
    assert "so the SMs mostly wait" in step.verdict
    assert "reading the weights from HBM takes" in step.verdict


# The timeline


@pytest.mark.parametrize("name", MODELS)
def test_the_streamed_timeline_takes_as_long_as_the_pass(name):
    step = decode(MODELS[name], batch=4, context_tokens=500)
    assert step.timeline().seconds == pytest.approx(step.pass_cost.seconds, rel=1e-9)


@settings(max_examples=10)
@given(steps)
def test_a_wiped_desk_is_slowest_and_a_prefetched_one_fastest(step):
    wipe, streamed, ahead = (step.timeline(overlap).seconds for overlap in ("wipe", "stream", "prefetch"))
    assert wipe >= streamed * (1 - 1e-9)
    assert streamed >= ahead * (1 - 1e-9)


def test_a_wiped_desk_adds_loads_and_arithmetic(step):
    stages = step.pass_cost.stages()
    assert step.timeline("wipe").seconds == pytest.approx(sum(s.gap_s + s.load_s + s.compute_s for s in stages))


def loaded(step: DecodeResult, desk_bytes: float | None = None) -> float:
    return sum(stage.bytes_ for stage in step.timeline(desk_bytes=desk_bytes).stages)


def test_a_desk_as_large_as_the_weights_loads_none(step):
    everything = loaded(step)
    weights = step.pass_cost.total("weight_bytes")
    rest = everything - weights
    desk = LLAMA.gpu.desk_bytes
    assert loaded(step, desk + weights) == pytest.approx(rest, rel=1e-3)
    assert loaded(step, desk + weights / 2) == pytest.approx(rest + weights / 2, rel=1e-3)
    assert loaded(step, desk) == everything
    assert step.timeline(desk_bytes=desk + weights).seconds < 0.5 * step.timeline().seconds
    assert all(s.load_s == 0.0 for s in step.timeline(desk_bytes=desk + weights).stages if s.bytes_ == 0)


def test_a_desk_for_a_sixth_of_all_experts_keeps_a_sixth_of_those_awake():
    step = decode(MODELS["gpt-oss-20b"], batch=1, context_tokens=100)
    target = step.deployment.target
    stored = step.budget.weight_bytes - 2 * target.decoder.embedding_parameters
    awake = step.pass_cost.total("weight_bytes")
    assert awake < stored / 3
    kept = loaded(step) - loaded(step, LLAMA.gpu.desk_bytes + stored / 6)
    assert kept == pytest.approx(awake / 6, rel=1e-3)


def test_a_larger_desk_is_never_slower(step):
    seconds = [step.timeline(desk_bytes=b).seconds for b in (3e7, 1e8, 1e9, 1e10, 1e11)]
    assert seconds == sorted(seconds, reverse=True)


@settings(max_examples=30)
@given(steps, st.sampled_from(["stream", "wipe", "prefetch"]), st.floats(6.5, 11.5), st.floats(1.0, 100.0))
def test_no_larger_desk_is_slower(step, overlap, magnitude, times):
    small = 10**magnitude
    seconds = [step.timeline(overlap, desk).seconds for desk in (small, small * times)]
    assert seconds[1] <= seconds[0] * (1 + 1e-9)


@pytest.mark.parametrize("detail", ["tile", "operator", "layer"])
@pytest.mark.parametrize("parts", [(1, 31), (0, 1, 16), (5,)])
def test_spans_of_some_layers_are_some_of_the_spans(step, detail, parts):
    timeline = step.timeline()
    assert timeline.layers == 32
    cuts = [0, *(p + 1 for p in parts), 32] if parts[-1] != 31 else [0, *(p + 1 for p in parts)]
    pieces = [timeline.spans(detail, range(a, b)) for a, b in itertools.pairwise(cuts)]
    assert [span for piece in pieces for span in piece] == timeline.spans(detail)


@pytest.mark.parametrize("detail", ["tile", "operator", "layer"])
@pytest.mark.parametrize("overlap", ["stream", "wipe", "prefetch"])
def test_spans_cover_the_pass_and_account_for_every_tile(step, detail, overlap):
    timeline = step.timeline(overlap)
    spans = timeline.spans(detail)
    assert min(s.start_s for s in spans) >= 0.0
    assert max(s.end_s for s in spans) == pytest.approx(timeline.seconds)
    for track, share in zip(("HBM load", "SM compute"), timeline.busy, strict=True):
        busy_s = sum(s.busy_s for s in spans if s.track == track)
        assert busy_s == pytest.approx(share * timeline.seconds)
        ordered = sorted((s for s in spans if s.track == track), key=lambda s: s.start_s)
        if detail != "layer":
            assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(ordered))
    assert sum(s.bytes_ for s in spans) == sum(t.bytes_ for t in timeline.tiles)
    if detail == "layer":
        assert {f"layer {i}" for i in range(1, 33)} <= {s.name for s in spans}


def test_the_timeline_is_the_pipeline_s(step):
    timeline = step.timeline("prefetch", desk_bytes=1e6)
    assert timeline.tiles == tuple(stream(timeline.stages, 1e6, "prefetch"))


# What if


def deployed(factor: float, name: str = "llama-3.1-8b", **changes):
    return deploy(name, what_if(dataclasses.replace(load_gpu("h100"), **changes), hbm_bandwidth_factor=factor))


MEMORY = ("weights", "kv_cache", "activations")


@pytest.mark.parametrize(("batch", "name"), [(1, "llama-3.1-8b"), (64, "llama-3.1-8b"), (8, "gpt-oss-20b")])
def test_endless_bandwidth_leaves_arithmetic_launches_and_the_host(batch, name):
    today = decode(deployed(1.0, name), batch=batch, context_tokens=500)
    endless = decode(deployed(1000.0, name, hbm_latency_s=1e-12), batch=batch, context_tokens=500)
    assert sum(today.by_cause[cause] for cause in MEMORY) > 0.4 * today.step_s
    assert sum(endless.by_cause[cause] for cause in MEMORY) < 0.02 * endless.step_s
    assert endless.host_s == today.host_s
    # What is left are the kernels' own times, with operands at hand.
    left_s = sum(o.repeat * (o.overhead_s + o.compute_s) for o in endless.pass_cost.operators if not o.message_bytes)
    assert endless.pass_cost.seconds == pytest.approx(left_s, rel=0.02)
    assert endless.step_s < 0.6 * today.step_s


@settings(max_examples=20)
@given(st.floats(0.01, 100.0), st.floats(1.0, 10.0), st.integers(1, 64))
def test_bandwidth_never_hurts_and_never_helps_beyond_its_factor(factor, more, batch):
    slow, fast = (
        decode(deployed(f), batch=batch, context_tokens=500).pass_cost.seconds for f in (factor, factor * more)
    )
    assert fast <= slow * (1 + 1e-9)
    assert slow <= more * fast * (1 + 1e-9)


def test_more_bandwidth_than_the_desk_covers_is_of_no_use():
    gpu = load_gpu("h100")
    enough = gpu.desk_bytes / gpu.hbm_latency_s / gpu.hbm_bytes_per_s  # Little's law
    fifth, twice, most = (decode(deployed(f)).pass_cost.seconds for f in (0.2 * enough, 2 * enough, 1000.0))
    assert fifth > twice * 1.1
    assert twice == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize("desk_bytes", [1e6, 1e8, 1e10, 1e11])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-20b"])
def test_more_bandwidth_is_no_slower_with_any_desk(name, desk_bytes):
    seconds = [
        decode(deployed(f, name), batch=32).timeline(desk_bytes=desk_bytes).seconds
        for f in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    ]
    # Kernels are cut as suits today's desk, which with a small one costs up to 2 %.
    assert all(fast <= slow * 1.02 for slow, fast in itertools.pairwise(seconds))


def test_a_larger_desk_lets_loads_run_that_todays_cannot_cover():
    step = decode(deployed(500.0))
    assert step.needed_desk_bytes > step.deployment.gpu.desk_bytes
    assert step.timeline(desk_bytes=step.needed_desk_bytes).seconds < step.timeline().seconds


def test_the_desk_keeps_what_is_beyond_todays(step):
    physical, weights = LLAMA.gpu.desk_bytes, step.pass_cost.total("weight_bytes")
    assert [step.weights_kept(desk) for desk in (0.0, physical)] == [0.0, 0.0]
    assert step.weights_kept(physical + weights / 4) == pytest.approx(0.25, rel=0.01)
    assert step.weights_kept(1e12) == 1.0


def test_what_if_says_both_times_and_why(step):
    then_s = step.timeline(desk_bytes=1e10).seconds
    said = what_if_sentence(step, step, step.timeline(desk_bytes=1e10))
    assert said == (
        f"With a desk of 10 GB (today 30.8 MB) the pass would take {units.show(then_s, 's')} instead of "
        f"{units.show(step.pass_cost.seconds, 's')}: {(1e10 - 30.8e6) / 15.0e9:.0%} of the weights would never leave the desk."
    )
    faster = decode(deployed(2.0), batch=8, context_tokens=1000)
    said = what_if_sentence(step, faster, faster.timeline())
    assert said.startswith("With 2 × the HBM bandwidth (6.7 TB/s) the pass would take ")
    assert f"{units.show(faster.pass_cost.seconds, 's')} instead of {units.show(step.pass_cost.seconds, 's')}." in said
    both = what_if_sentence(step, faster, faster.timeline(desk_bytes=1e12))
    assert "bandwidth (6.7 TB/s) and a desk of 1 TB (today 30.8 MB) the pass" in both
    assert both.endswith("all weights would stay on the desk.")


def test_what_if_says_why_a_small_desk_slows_the_pass(step):
    said = what_if_sentence(step, step, step.timeline(desk_bytes=1e5))
    assert f"takes {step.needed_desk_bytes / 1e3:.0f} kB under way (Little's law), more than the desk holds." in said
    assert "take as long as it does" in what_if_sentence(step, step, step.timeline(desk_bytes=1e7))


def test_what_if_says_nothing_where_nothing_differs(step):
    assert what_if_sentence(step, step, step.timeline()) == ""


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"batch": 2_000_000}, "batch=2000000 must be at most 1000000"),
        ({"context_tokens": 0}, "context=0 must be at least 1"),
        ({"new_tokens": 0}, "new_tokens=0 must be at least 1"),
        ({"context_tokens": 131_072}, "leave room for the new token in the model's context of 131072"),
    ],
)
def test_impossible_steps(kwargs, said):
    with pytest.raises(InputError) as caught:
        decode(LLAMA, **kwargs)
    assert said in str(caught.value)


def test_a_batch_that_does_not_fit():
    with pytest.raises(DoesNotFit, match="KV cache for 4096 x 2001 tokens"):
        decode(LLAMA, batch=4096, context_tokens=2000)


def test_impossible_detail(step):
    with pytest.raises(InputError, match="detail='word' must be tile, operator or layer"):
        step.timeline().spans("word")


def test_host_time_is_the_engine_s():
    slow = dataclasses.replace(
        LLAMA, engine=dataclasses.replace(LLAMA.engine, host_step_s=1.0, host_per_sequence_s=0.0)
    )
    assert decode(slow, batch=2).step_s == pytest.approx(1.0 + decode(LLAMA, batch=2).pass_cost.seconds)
    assert decode(slow).binding == "host"


def test_a_desk_too_small_for_hbms_latency_slows_the_loads(step):
    # Little's law: no more than the desk's bytes are under way per latency, and the pass moves all of its bytes so.
    gpu, desk = LLAMA.gpu, 100e3
    at_least = step.pass_cost.total("bytes_") / (desk / gpu.hbm_latency_s)
    assert at_least > 2 * step.pass_cost.seconds
    assert step.timeline(desk_bytes=desk).seconds == pytest.approx(at_least, rel=0.2)
    assert step.timeline(desk_bytes=gpu.desk_bytes / 2).seconds == pytest.approx(step.timeline().seconds)


def test_a_desk_of_a_few_bytes_is_refused_at_once(step):
    with pytest.raises(InputError, match="desk='2 B' must be at least"):
        step.timeline(desk_bytes=2)


# A pipeline


def test_a_pipeline_takes_its_micro_batches_at_once():
    # The largest of two parts passes both stages while the other one is a stage behind: two parts' tokens in its time.
    pipeline = deploy("llama-3.1-8b", "h100", pp=2)
    step, part = decode(pipeline, batch=7, context_tokens=1000), pipeline.target.pass_cost(Batch.decode(4, 1000))
    assert (step.micro_batches, step.pass_cost.seconds) == (2, part.seconds)
    assert step.tokens_per_s == 7 / step.step_s
    # Both GPUs work all the time, each on half of the layers for each part.
    assert step.bytes_per_s == pytest.approx(2 * part.total("bytes_") / 2 / step.step_s)


def test_one_sequence_leaves_all_stages_but_one_idle():
    alone, pipeline = decode(LLAMA, batch=1), decode(deploy("llama-3.1-8b", "h100", pp=4), batch=1)
    assert pipeline.micro_batches == 1
    assert pipeline.pass_cost.total("flop") == pytest.approx(alone.pass_cost.total("flop"))
    assert pipeline.flop_per_s * pipeline.step_s == pytest.approx(alone.flop_per_s * alone.step_s / 4)
    assert pipeline.desk_loads == pytest.approx(alone.desk_loads / 4)
