"""Engine profiles: host time by hand, settings changed one by one, every refusal a sentence."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from simulator import catalog
from simulator.deployment import EngineChoice
from simulator.engine import Engine, load_engine
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
    )


def test_host_time_by_hand(engine):
    assert engine.host_s(10) == pytest.approx(1 + 10 * 0.01)
    assert engine.host_s(10, 4, speculating=True) == pytest.approx(1 + 0.1 + 0.5 + 4 * 0.1)
    assert engine.host_s(10, 0, speculating=True, ngram=True) == pytest.approx(1 + 0.1 + 0.5 + 10 * 0.002)
    # Draft passes cost nothing in a step that does not speculate.
    assert engine.host_s(10, 4) == engine.host_s(10)


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
