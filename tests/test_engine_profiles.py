"""The bundled engine profiles: figures with sources, settings as the engines' own documents have them, and what follows for a
step where somebody measured one."""

import json
import re

import pytest
import yaml

from simulator import catalog
from simulator.cost.forward import Batch
from simulator.decoding import decode
from simulator.deployment import deploy
from simulator.engine import EngineFile, load_engine
from simulator.engine_choice import EngineChoice
from simulator.memory import budget
from simulator.records import read_record

NAMES = catalog.names("engine")
PUBLISHED = ("vllm", "sglang", "tensorrt-llm", "gpt-fast", "hf-eager")
GRAPHED = ("vllm", "sglang", "tensorrt-llm")


def test_the_engines_people_ask_for_are_there():
    assert {*PUBLISHED, "ideal", "reference"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_in_the_file_with_source_date_and_kind(name):
    file = read_record(EngineFile, catalog.locate("engine", name))
    engine = load_engine(name)
    assert set(file.figures) == set(engine.provenance)  # nothing is left to "not in the profile"
    for figure in file.figures.values():
        source = file.sources[figure.source]
        assert re.fullmatch(r"\d{4}(-\d\d){0,2}", source.date)
        assert source.kind in ("datasheet", "measured", "fitted", "estimate")
        assert source.url or source.kind == "estimate" or name in ("ideal", "reference")


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_source_is_idle(name):
    # Of figures by their key, of settings by the comment beside them or above.
    text = catalog.locate("engine", name).read_text()
    figures = {figure["source"] for figure in yaml.safe_load(text)["figures"].values()}
    settings = text.split("\nsettings:")[1]
    for key in read_record(EngineFile, catalog.locate("engine", name)).sources:
        assert key in figures or re.search(rf"#.*\b{re.escape(key)}\b", settings) or key == "ratio", key


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_says_what_it_is(name):
    settings = load_engine(name).settings
    sizes = settings.graph_capture_sizes
    assert list(sizes) == sorted(set(sizes))
    assert bool(sizes) == (name in GRAPHED)
    assert settings.swap_space_bytes == 0.0


def test_vllm_captures_what_a_real_run_captured(memwall_data):
    folder = memwall_data / "engine-runs/rtx4090-llama-3.1-8b-vllm-0.19.0"
    resolved = json.loads((folder / "meta.json").read_text())["resolved_config"]
    settings = load_engine("vllm").settings
    assert list(settings.graph_capture_sizes) == resolved["compilation_config"]["cudagraph_capture_sizes"]
    assert settings.overlap == resolved["scheduler_config"]["async_scheduling"]
    assert settings.order == resolved["scheduler_config"]["policy"]
    assert settings.block_tokens == resolved["cache_config"]["block_size"]
    assert settings.prefix_caching == resolved["cache_config"]["enable_prefix_caching"]


def test_sglang_captures_what_its_rule_says():
    # server_args.py: [1, 2, 4, 8, 12], then by 8 up to 256 (80 GB and TP below 4).
    assert load_engine("sglang").settings.graph_capture_sizes == (1, 2, 4, 8, 12, *range(16, 257, 8))


def test_tensorrt_llm_captures_what_its_rule_says():
    # llm_args.py with padding: [1, 2, 4], then 16 multiples of 8.
    assert load_engine("tensorrt-llm").settings.graph_capture_sizes == (1, 2, 4, *range(8, 129, 8))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("vllm", {"block_tokens": 16, "prefill": "mixed", "draft": "after", "graphs": "all", "overlap": True}),
        ("sglang", {"block_tokens": 1, "max_batched_tokens": 8192, "prefill": "first", "draft": "before",
                    "graphs": "decode", "overlap": True, "utilization_of": "static", "graph_sizes_of": "sequences"}),
        ("tensorrt-llm", {"block_tokens": 32, "max_sequences": 2048, "max_batched_tokens": 8192, "prefill": "mixed",
                          "memory_utilization": 0.9, "utilization_of": "free", "overlap": True, "draft": "after"}),
        ("gpt-fast", {"max_sequences": 1, "prefix_caching": False, "graphs": "decode", "draft": "before"}),
        ("hf-eager", {"prefix_caching": False, "graphs": "none", "overlap": False}),
        ("ideal", {"graphs": "all", "overlap": False, "memory_utilization": 1.0}),
        ("reference", {"prefill": "first", "prompts_per_pass": 1, "draft": "before", "block_tokens": 1}),
    ],
)  # fmt: skip
def test_settings_are_the_engines_own_defaults(name, facts):
    settings = load_engine(name).settings.model_dump()
    assert {key: settings[key] for key in facts} == facts


# --- steps that somebody measured ---------------------------------------------------------------------------------------
def step_s(name: str, batch: int, context_tokens: int, tp: int = 1, overlap: bool | None = None) -> float:
    d = deploy("llama-3.1-8b", "h100", tp=tp, engine=EngineChoice(name=name, overlap=overlap))
    gpu_s = d.target.seconds(Batch.decode(batch, context_tokens))
    return gpu_s + d.engine.host_s(batch, gpu_s=gpu_s)


@pytest.mark.parametrize(("batch", "measured_s"), [(1, 7.37e-3), (128, 11.84e-3)])
def test_sglangs_synchronous_benchmark_is_met(batch, measured_s):
    """Issue 1008, the rows that were fitted: three figures for two rows and the next test's difference."""
    assert step_s("sglang", batch, 132, overlap=False) == pytest.approx(measured_s, rel=0.01)


def test_sglang_with_and_without_overlap():
    """PR 5608: 16 sequences of 4,400 tokens on TP 4. Their difference was fitted, their level was not."""
    measured = {True: 16 / 3458.31, False: 16 / 3053.86}
    predicted = {overlap: step_s("sglang", 16, 4400, 4, overlap) for overlap in measured}
    assert predicted[False] - predicted[True] == pytest.approx(measured[False] - measured[True], rel=0.02)
    for overlap, seconds in measured.items():
        assert predicted[overlap] == pytest.approx(seconds, rel=0.07)


def test_tensorrt_llms_host_at_both_ends():
    """Issue 13957 less some 0.4 ms for prompts, and PR 10273: a host that is the bottleneck."""
    engine = load_engine("tensorrt-llm")
    for sequences, measured_s in ((64, 64 / 13806 - 0.4e-3), (1536, 45.11e-3)):
        assert engine.host_s(sequences, gpu_s=0.0) == pytest.approx(measured_s, rel=0.02)


def test_eager_generation_is_bound_by_launches_whatever_the_gpu():
    """25.5 tokens/s of Llama-2-7B (blog of gpt-fast); a faster GPU does not help, a large prompt hides the launches."""
    seconds = {}
    for gpu in ("a100-80gb", "h200"):
        d = deploy("llama-2-7b", gpu, engine="hf-eager")
        result = decode(d, batch=1, context_tokens=100)
        seconds[gpu] = result.step_s
        assert d.engine.launch_gap_s(1, 1, 32, gpu_s=1.0) == 0.0
    assert seconds["a100-80gb"] == pytest.approx(1 / 25.5, rel=0.03)
    assert seconds["h200"] == pytest.approx(seconds["a100-80gb"], rel=0.01)


def test_tables_wait_for_launches_only_as_long_as_they_outlast_the_pass():
    d = deploy("llama-2-7b", "a100-80gb", engine="hf-eager")
    tables = d.target_tables(4096, 16)
    launches_s = d.engine.eager_s(32)
    # Without prompts the LM head is among the kernels that run meanwhile.
    assert tables.extra_host_s[0, 1] == pytest.approx(launches_s - tables.linear[0, 0, 1] - tables.head[0, 1])
    assert tables.extra_host_s[1, 1] == pytest.approx(launches_s - tables.linear[1, 0, 1])
    assert tables.extra_host_s[1, 4096] == 0.0  # 4,096 tokens of a prompt take longer than their launches
    graphed = deploy("llama-2-7b", "a100-80gb", engine="gpt-fast").target_tables(64, 64)
    assert not graphed.extra_host_s[0].any()
    assert graphed.extra_host_s[1, 1:].all()


def test_graphs_of_sequences_serve_their_drafts_too():
    d = deploy("llama-3.1-8b", "h100", engine="sglang")
    alone, speculating = d.target_tables(1300, 1300), d.target_tables(1300, 1300, per_sequence=5)
    assert alone.extra_host_s[0, 257] > 0.0
    assert not speculating.extra_host_s[0, : 5 * 256 + 1].any()
    assert speculating.linear[0, 0, 41] == speculating.linear[0, 0, 60]  # both run as 12 sequences of 5 tokens


# --- whose memory the share is ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.5, 0.835, 0.9])
def test_three_ways_to_count_the_share(share):
    def found(of):
        d = deploy("llama-3.1-8b", "h100", engine=EngineChoice(memory_utilization=share, utilization_of=of))
        return budget(d.target, d.engine), d.engine.reserved_bytes

    (every, reserved), (static, _), (free, _) = (found(of) for of in ("all", "static", "free"))
    hbm, weights, activations = every.hbm_bytes, every.weight_bytes, every.activation_bytes
    assert every.kv_bytes == pytest.approx(share * hbm - weights - activations - reserved)
    assert static.kv_bytes == pytest.approx(share * hbm - weights)
    assert free.kv_bytes == pytest.approx(share * (hbm - weights - activations - reserved))


def test_no_share_reaches_beyond_the_hbm():
    d = deploy("llama-3.1-8b", "h100", engine=EngineChoice(memory_utilization=1.0, utilization_of="static"))
    b = budget(d.target, d.engine)
    assert b.kv_bytes == pytest.approx(b.hbm_bytes - b.weight_bytes - b.activation_bytes - d.engine.reserved_bytes)
