"""Engine profiles: host time by hand, settings changed one by one, every refusal a sentence."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.deployment import EngineChoice
from simulator.engine import Engine, EngineSettings, load_engine
from simulator.errors import InputError, UnknownName
from simulator.records import validate


@pytest.fixture
def engine() -> Engine:
    return dataclasses.replace(
        load_engine("ideal"),
        host_step_s=1.0,
        host_per_sequence_s=0.01,
        host_draft_pass_s=0.1,
        host_speculative_round_s=0.5,
        host_ngram_per_sequence_s=0.002,
        host_hidden_step_s=0.0,
    )


def test_host_time_by_hand(engine):
    assert engine.host_s(10) == pytest.approx(1 + 10 * 0.01)
    assert engine.host_s(10, 4, speculating=True) == pytest.approx(1 + 0.1 + 0.5 + 4 * 0.1)
    assert engine.host_s(10, 0, speculating=True, ngram=True) == pytest.approx(1 + 0.1 + 0.5 + 10 * 0.002)
    # Draft passes cost nothing in a step that does not speculate.
    assert engine.host_s(10, 4) == engine.host_s(10)


def overlapping(engine: Engine, overlap: bool) -> Engine:
    settings = engine.settings.model_copy(update={"overlap": overlap})
    return dataclasses.replace(engine, host_hidden_step_s=3.0, host_hidden_per_sequence_s=0.1, settings=settings)


def test_what_overlap_hides_is_waited_for_only_where_it_outlasts_the_gpu(engine):
    # 10 sequences: exposed 1 + 10·0.01 s, hidden 3 + 10·0.1 = 4 s.
    ahead, behind = overlapping(engine, True), overlapping(engine, False)
    assert ahead.hidden_s(10) == pytest.approx(4.0)
    assert ahead.host_s(10, gpu_s=5.0) == pytest.approx(1.1)
    assert ahead.host_s(10) == pytest.approx(1.1)
    assert ahead.host_s(10, gpu_s=1.5) == pytest.approx(1.1 + 2.5)
    for gpu_s in (0.0, 1.5, 5.0):
        assert behind.host_s(10, gpu_s=gpu_s) == pytest.approx(1.1 + 4.0)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.integers(1, 300))
def test_overlap_saves_what_is_shorter(exposed_s, hidden_s, gpu_s, sequences):
    base = dataclasses.replace(load_engine("ideal"), host_step_s=exposed_s)
    ahead, behind = (
        dataclasses.replace(overlapping(base, overlap), host_hidden_step_s=hidden_s) for overlap in (True, False)
    )
    saved = behind.host_s(sequences, gpu_s=gpu_s) - ahead.host_s(sequences, gpu_s=gpu_s)
    assert saved == pytest.approx(min(gpu_s, hidden_s + 0.1 * sequences), abs=1e-9)


def test_launches_run_ahead_of_the_gpu(engine):
    sizes = {"graph_capture_sizes": (1, 8), "graphs": "decode"}
    eager = dataclasses.replace(
        engine, host_eager_step_s=1.0, host_eager_layer_s=0.5, settings=engine.settings.model_copy(update=sizes)
    )
    assert eager.eager_s(4) == pytest.approx(3.0)
    assert eager.launch_gap_s(9, 1, 4, gpu_s=0.5) == pytest.approx(2.5)
    assert eager.launch_gap_s(9, 1, 4, gpu_s=3.5) == 0.0
    assert eager.launch_gap_s(8, 1, 4, gpu_s=0.5) == 0.0
    assert eager.launch_gap_s(4, 3, 4, gpu_s=0.5) == pytest.approx(2.5)  # 12 tokens are beyond the largest graph


def test_graphs_of_sequences_hold_every_token_of_them():
    by_sequence = EngineSettings(graph_capture_sizes=(1, 4), graph_sizes_of="sequences")
    by_token = EngineSettings(graph_capture_sizes=(1, 4))
    assert (by_sequence.captured_tokens(3), by_token.captured_tokens(3)) == ((3, 12), (1, 4))
    assert by_sequence.captured(12, per_sequence=3)
    assert not by_sequence.captured(13, per_sequence=3)
    assert not by_token.captured(12, per_sequence=3)


def test_which_steps_a_graph_covers():
    of_every_size, decode, none = (EngineSettings(graphs=graphs) for graphs in ("all", "decode", "none"))
    assert of_every_size.captured(10**6, prompts=True)
    assert decode.captured(10**6)
    assert not decode.captured(1, prompts=True)
    assert not none.captured(1)


def test_ideal_engine_takes_no_time():
    ideal = load_engine("ideal")
    assert ideal.host_s(1000, 8, speculating=True, ngram=True) == 0.0
    assert (ideal.reserved_bytes, ideal.settings.memory_utilization) == (0.0, 1.0)


@pytest.mark.parametrize("name", catalog.names("engine"))
def test_every_bundled_engine_loads_with_a_source_for_each_figure(name):
    engine = load_engine(name)
    assert engine.name == name
    assert all(p.source.title and p.source.date for p in engine.provenance.values())
    assert EngineChoice(name=name).load() == engine


def test_settings_with_units():
    choice = validate(
        EngineChoice, {"queue_timeout_s": "10 s", "preemption": "swap", "swap_space_bytes": "4 GB"}, "engine"
    )
    settings = choice.load().settings
    assert (settings.queue_timeout_s, settings.swap_space_bytes) == (10.0, 4e9)
    assert settings.graph_capture_sizes == load_engine("vllm").settings.graph_capture_sizes


def test_a_list_of_sizes_replaces_the_profiles():
    assert EngineChoice(graph_capture_sizes=(1, 2)).load().settings.graph_capture_sizes == (1, 2)
    assert EngineChoice(graph_capture_sizes=()).load().settings.captured(10**6)


def test_recompute_needs_no_swap_space(tmp_path):
    data = yaml.safe_load(catalog.locate("engine", "ideal").read_text())
    data["settings"] |= {"preemption": "swap", "swap_space_bytes": "1 GiB"}
    path = tmp_path / "swapping.yaml"
    path.write_text(yaml.safe_dump(data))
    assert load_engine(str(path)).settings.swap_space_bytes == 2**30
    assert EngineChoice(name=str(path), preemption="recompute").load().settings.swap_space_bytes == 0.0


def test_settings_of_a_profile_are_checked_as_well(tmp_path):
    path = profile(tmp_path)
    path.write_text(path.read_text().replace("memory_utilization: 1.0", "memory_utilization: 1.0\n  block_tokens: 0"))
    with pytest.raises(InputError, match=r"mine.yaml: block_tokens=0 must be between 1 and 1000000"):
        load_engine(str(path))


def test_settings_are_changed_one_by_one():
    engine = EngineChoice(name="vllm", max_sequences=7, memory_utilization=0.5).load()
    assert (engine.settings.max_sequences, engine.settings.memory_utilization) == (7, 0.5)
    assert engine.settings.block_tokens == load_engine("vllm").settings.block_tokens


def test_the_reference_decoder_serves_prompts_one_by_one_and_first():
    # As `reference_decoder` does; its own tests and `tests/serving/test_prefill_first.py` hold the two to the same rules.
    settings = load_engine("reference").settings
    assert (settings.prefill, settings.prompts_per_pass, settings.draft) == ("first", 1, "before")
    assert (settings.prefill_chunk_tokens, settings.block_tokens) == (512, 1)
    assert load_engine("vllm").settings.prefill == "mixed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_tokens": 0}, "engine: block_tokens=0 must be between 1 and 1000000"),
        ({"max_sequences": -1}, "max_sequences=-1 must be between"),
        ({"max_batched_tokens": 10**7}, "max_batched_tokens=10000000 must be between"),
        ({"watermark": 1.0}, "watermark=1.0 must be at least 0 and below 1"),
        ({"watermark": -0.1}, "watermark=-0.1 must be"),
        ({"prefill": "frist"}, "prefill='frist' must be"),
        ({"draft": "never"}, "draft='never' must be"),
        ({"prompts_per_pass": -1}, "prompts_per_pass=-1 must be"),
        ({"prefill_chunk_tokens": -1}, "prefill_chunk_tokens=-1 must be"),
        ({"order": "lifo"}, "order='lifo' must be"),
        ({"verify": "both"}, "verify='both' must be"),
        ({"graphs": "some"}, "graphs='some' must be"),
        ({"utilization_of": "rest"}, "utilization_of='rest' must be"),
        ({"memory_utilization": 1.5}, "memory_utilization=1.5 must be above 0 and at most 1"),
        ({"max_waiting": -1}, "max_waiting=-1 must be between 0 and 1000000"),
        ({"queue_timeout_s": 0}, "queue_timeout_s=0.0 must be above 0 s; leave it out for no time-out"),
        ({"queue_timeout_s": "3 GB"}, "queue_timeout_s='3 GB' must be a number with a unit such as '1 s'"),
        ({"swap_space_bytes": "4 s"}, "swap_space_bytes='4 s' must be a number with a unit such as '1 B'"),
        ({"preemption": "swap"}, "swap_space_bytes=0 must be above 0 where preemption is swap"),
        ({"preemption": "swap", "swap_space_bytes": -1}, "swap_space_bytes=-1.0 must be at least 0 bytes"),
        ({"swap_space_bytes": "1 GB"}, "swap_space_bytes=1000000000.0 must be 0 where preemption is recompute"),
        ({"graph_capture_sizes": [1, 4, 4]}, "must rise from each to the next"),
        ({"graph_capture_sizes": [8, 4]}, "must rise from each to the next"),
        ({"graph_capture_sizes": [0, 4]}, "must be token counts between 1 and 1000000"),
        ({"name": "vlm"}, "did you mean vllm?"),
    ],
)
def test_impossible_settings(changes, said):
    with pytest.raises(InputError) as caught:
        validate(EngineChoice, changes, "engine").load()
    assert said in str(caught.value)


def profile(folder: Path, **figures) -> Path:
    """The ideal engine's file with some figures changed, left out (...) or added."""
    data = yaml.safe_load(catalog.locate("engine", "ideal").read_text())
    merged = {**data["figures"], **{k: v and {"value": v, "source": "definition"} for k, v in figures.items()}}
    data["figures"] = {k: v for k, v in merged.items() if v}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_own_profile_by_path(tmp_path):
    assert load_engine(str(profile(tmp_path, host_step="2 ms"))).host_s(1) == pytest.approx(2e-3)


def test_profiles_of_before_have_no_hidden_and_no_launch_time_and_say_so(tmp_path):
    path = profile(
        tmp_path, host_hidden_step=None, host_hidden_per_sequence=None, host_eager_step=None, host_eager_layer=None
    )
    engine = load_engine(str(path))
    assert (engine.hidden_s(8), engine.eager_s(32)) == (0.0, 0.0)
    assert engine.provenance["host_eager_step"].source.title == "Not in the profile: taken to be 0"
    assert engine.provenance["host_step"].source.title.startswith("By definition")


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"host_step": None}, "figures.host_step='(absent)' must be given"),
        ({"host_step": "-1 ms"}, "figures.host_step='-1 ms' must be at least 0"),
        ({"host_step": "3 GB"}, "figures.host_step='3 GB' must be a number with a unit such as '1 s'"),
        ({"host_stop": "1 ms"}, "figures='host_stop' must be a known figure"),
    ],
)
def test_figures_that_make_no_sense(tmp_path, figures, said):
    path = profile(tmp_path, **figures)
    with pytest.raises(InputError) as caught:
        load_engine(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_figure_without_its_source(tmp_path):
    path = profile(tmp_path)
    path.write_text(path.read_text().replace("source: definition", "source: hearsay", 1))
    with pytest.raises(UnknownName, match="must be a known source of this file"):
        load_engine(str(path))
