"""Engines' own speculative configurations, and one number of acceptance, on the command line."""

import json
from pathlib import Path

import pytest

from simulator.commands import arguments
from simulator.errors import InputError
from simulator.scenario import load_scenario
from tests.commands.lines import SPECULATE, run

VLLM = {
    "model": "meta-llama/Llama-3.2-1B-Instruct",
    "num_speculative_tokens": 3,
    "revision": "main",
    "enforce_eager": True,
}
LLAMA = ["speculate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--batch", "1,64"]


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_speculate_reads_vllms_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("spec.json").write_text(json.dumps(VLLM))
    assert run(*LLAMA, "--speculative-config", "@spec.json", "--acceptance", "0.7") == 0
    from_file = words(capsys)
    assert run(*LLAMA, "--speculative-config", json.dumps(VLLM), "--acceptance", "0.7") == 0
    assert words(capsys) == from_file
    assert "Llama-3.2-1B, independent draft model" in from_file
    assert "enforce_eager" in from_file
    assert "Without effect on speed: revision=main" in from_file


def test_formats_of_the_drafter_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens_per_s = []
    for quantization in (None, "fp8"):
        config = json.dumps({**VLLM, "quantization": quantization})
        assert (
            run(*LLAMA, "--speculative-config", config, "--acceptance", "0.7", "--gamma", "3", "--json", "s.json") == 0
        )
        tokens_per_s.append(json.loads(Path("s.json").read_text())["cells"][0]["speedup"])
    assert tokens_per_s[1] > tokens_per_s[0]


@pytest.mark.parametrize(
    "options",
    [
        ["--sglang-flags", "--speculative-algorithm=NGRAM"],
        ["--sglang-flags", "--speculative-algorithm NGRAM --speculative-num-draft-tokens 5"],
        ["--trtllm-config", '{"decoding_type": "NGram", "max_draft_len": 4}'],
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}'],
    ],
)
def test_other_engines(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*LLAMA, *options, "--acceptance", "0.6", "--match-probability", "0.5") == 0
    assert "look-up" in words(capsys)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--speculative-config", '{"methdo": "eagle"}'], "did you mean method?"),
        (["--speculative-config", "@nowhere.json"], "must be readable"),
        (["--speculative-config", "{}", "--sglang-flags", "--x"], "be left out with speculative-config"),
        (["--trtllm-config", '{"decoding_type": "Egle"}'], "did you mean Eagle?"),
        ([], "speculate needs --draft"),
    ],
)
def test_mistakes_in_one_sentence(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*LLAMA, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def test_simulate_takes_vllms_configuration(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps({**VLLM, "num_speculative_tokens": 2})
    one_number = "speculation.acceptance={length: 2.2, at_gamma: 3}"
    assert run("simulate", scenario, "--speculative-config", config, "--set", one_number) == 0
    text = words(capsys)
    assert "(γ = 2)" in text
    assert "at γ = 2 it leaves" in text
    assert "enforce_eager" in text


def test_simulate_keeps_the_acceptance_of_the_same_drafter_only(
    scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("simulate", scenario, "--speculative-config", json.dumps(VLLM)) == 0
    capsys.readouterr()
    assert run("simulate", scenario, "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}') == 2
    assert "acceptance='(absent)' must be given" in capsys.readouterr().err


def test_one_number_shows_its_doubt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(*SPECULATE, "--acceptance", "length:2.5@3", "--gamma", "1..6", "--batch", "1,64", "--json", "s.json") == 0
    )
    assert "acceptance length 2.5 at γ = 3" in words(capsys)
    document = json.loads(Path("s.json").read_text())
    at_three = [cell for cell in document["cells"] if cell["gamma"] == 3]
    assert all(cell["tokens_per_round"] == pytest.approx(2.5) for cell in at_three)
    for entry in document["acceptance_doubt"]:
        assert entry["least"] <= entry["speedup"] <= entry["most"]
        assert len(entry["best_gammas"]) == 3
        if entry["gamma"] == 3:
            assert entry["least"] == pytest.approx(entry["most"])
    assert run(*SPECULATE, "--acceptance", "0.7", "--gamma", "3", "--batch", "1", "--json", "t.json") == 0
    assert "acceptance_doubt" not in json.loads(Path("t.json").read_text())


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("length:2.9@4", {"length": 2.9, "at_gamma": 4}),
        ("rate:0.63@3", {"rate": 0.63, "at_gamma": 3}),
        ("alpha:0.85@1", {"alpha": 0.85, "at_gamma": 1}),
    ],
)
def test_one_number_with_its_gamma(text: str, fields: dict[str, object]) -> None:
    assert arguments.acceptance(text) == fields


@pytest.mark.parametrize("text", ["length:2.9", "length:@4", "rate:x@3", "rate:0.5@x", "length:2@3@4", "lenght:2@3"])
def test_one_number_without_its_gamma_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="acceptance="):
        arguments.acceptance(text)


def test_the_engine_whose_configuration_it_is_serves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--sglang-flags", "--speculative-algorithm NGRAM --speculative-num-draft-tokens 5", "--acceptance", "0.6"]
    assert run(*LLAMA, *flags) == 0
    out = words(capsys)
    assert "engine: SGLang" in out
    assert "what schedules" not in out
    assert run(*LLAMA, *flags, "--engine", "vllm") == 0
    out = words(capsys)
    assert "engine: vLLM" in out
    assert "It is sglang's; what schedules and takes the host's time is vllm." in out
    served = {"sglang": "--speculative-algorithm NGRAM --speculative-num-draft-tokens 5", "acceptance": 0.6}
    base = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "traffic": "chat", "speculation": served}
    assert load_scenario(base).engine.name == "sglang"
    assert load_scenario(base | {"engine": {"max_sequences": 8}}).engine.name == "sglang"
    assert load_scenario(base | {"engine": "vllm"}).engine.name == "vllm"


def test_one_drafter_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 4}'
    assert run(*LLAMA, "--speculative-config", config, "--draft", "suffix", "--acceptance", "0.6") == 2
    assert "draft='suffix' must be left out where an engine's configuration names" in capsys.readouterr().err


def test_look_ups_of_an_engine_are_the_scenarios_own(capsys: pytest.CaptureFixture[str]) -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 4}'
    assert (
        run("simulate", "code-edits-ngram", "--requests", "50", "--no-intervals", "--speculative-config", config) == 0
    )
    assert "conditional acceptance 0.81, 0.914" in words(capsys)


def test_pages_say_what_the_command_line_says_beside_the_tables(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--speculative-algorithm NGRAM --speculative-num-draft-tokens 5"
    rates = ["--acceptance", "length:2.5@4", "--engine", "vllm", "--gamma", "1..3"]
    assert run(*LLAMA, "--sglang-flags", flags, *rates, "--html", "p.html") == 0
    page = Path("p.html").read_text()
    for said in (
        "as far as one number at γ = 4 leaves acceptance open",
        "what schedules and takes the host&#x27;s time is vllm",
    ):
        assert said in page
    scenario = {
        "model": "llama-3.1-8b", "gpu": "h100-sxm", "engine": "vllm",
        "speculation": {"draft": "eagle-llama-3.1-8b", "tree": {"nodes": 8, "depth": 3, "kind": "dynamic"},
                        "acceptance": {"length": 2.5, "at_gamma": 4}},
        "traffic": {"kind": "poisson", "rate_per_s": 5, "requests": 20, "lengths": {"prompt": 100, "output": 12}},
    }  # fmt: skip
    Path("s.yaml").write_text(json.dumps(scenario))
    assert run("simulate", "s.yaml", "--no-intervals", "--html", "s.html") == 0
    out = words(capsys)
    assert "8 nodes of depth 3, always; trees are made anew each round" in out
    assert "trees are made anew each round" in Path("s.html").read_text()
    assert '<section aria-label="Notes">' in Path("s.html").read_text()
