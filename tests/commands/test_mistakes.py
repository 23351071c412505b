"""Every mistake in one sentence, and nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simulator.cli import main
from tests.commands.lines import DECODE, SCENARIO, SPECULATE, run

FILES = ["--json", "out.json"]
MISTAKES = [
    (["decod"], "did you mean decode?"),
    (["--verson"], "did you mean --version?"),
    ([*DECODE, "--bach", "3"], "did you mean --batch?"),
    ([*DECODE, "extra"], "unknown argument 'extra'"),
    (["decode", "--gpu", "h100"], "decode needs --model"),
    (["decode", "--modle", "x"], "did you mean --model?"),
    ([*DECODE, "--batch"], "expected one argument"),
    ([*DECODE, *FILES, "--gpu", "h101"], "did you mean h100?"),
    ([*DECODE, *FILES, "--model", "llama-3.1-80b"], "did you mean llama-3.1-"),
    ([*DECODE, *FILES, "--model", "./nowhere/config.json"], "must be an existing file"),
    ([*DECODE, *FILES, "--engine", "vlm"], "did you mean vllm?"),
    ([*DECODE, *FILES, "--link", "nvlink-9"], "did you mean nvlink-"),
    ([*DECODE, *FILES, "--tp", "5"], "tp=5 must divide"),
    ([*DECODE, *FILES, "--tp", "16"], "tp=16 must be at most"),
    ([*DECODE, *FILES, "--tp", "0"], "tp='0'"),
    ([*DECODE, *FILES, "--model", "llama-3.1-70b"], "--tp 2 or --gpu"),
    ([*DECODE, *FILES, "--batch", "1000000"], "more than the"),
    *[([*DECODE, *FILES, "--batch", text], f"batch='{text}'") for text in ("-3", "0", "nan", "inf", "-inf", "1e30", "abc", "1.5", "")],
    *[([*DECODE, *FILES, "--context", text], f"context='{text}'") for text in ("-3", "0", "nan", "1e30", "abc")],
    ([*DECODE, *FILES, "--context", "131072"], "context=131072"),
    ([*DECODE, *FILES, "--weights", "fp9"], "weights='fp9'"),
    ([*DECODE, *FILES, "--kv", "bf17"], "kv='bf17'"),
    *[([*DECODE, *FILES, "--desk", text], "desk") for text in ("-1GB", "0", "nan", "ten", "5 s", "1")],
    ([*DECODE, *FILES, "--overlap", "wiep"], "did you mean wipe?"),
    ([*DECODE, "--json", "missing/out.json"], "folder that exists"),
    ([*DECODE, "--timeline", "."], "not a folder"),
    ([*DECODE, "--json", "out.json", "--html", "out.json"], "another file"),
    ([*SPECULATE, *FILES], "acceptance='(absent)'"),
    ([*SPECULATE, *FILES, "--acceptance", "1.5"], "acceptance='1.5'"),
    ([*SPECULATE, *FILES, "--acceptance", "marginal:0.5,0.6"], "not rise with depth"),
    ([*SPECULATE, *FILES, "--acceptance", "0.8", "--request-icc", "1"], "request_icc"),
    ([*SPECULATE, *FILES, "--acceptance", "0.8", "--match-probability", "2"], "match-probability='2'"),
    *[([*SPECULATE, *FILES, "--acceptance", "0.8", "--gamma", text], "gamma=") for text in ("0", "-3", "nan", "65", "1..99", "abc")],
    *[([*SPECULATE, *FILES, "--acceptance", "0.8", "--batch", text], "batch=") for text in ("0", "-3", "1e30", "99999999", "abc")],
    ([*SPECULATE, *FILES, "--acceptance", "0.8", "--draft", "qwen3-0.6b"], "vocabulary"),
    ([*SPECULATE, *FILES, "--acceptance", "0.8", "--draft", "llama-3.2-2b"], "did you mean llama-3.2-1b?"),
    (["simulate", "chat-70b-h20", *FILES], "did you mean chat-70b-h200?"),
    (["simulate", "nowhere.yaml", *FILES], "must be an existing file"),
    (["simulate", "s.yaml", *FILES, "--rows", "r.xlsx"], "end in .parquet or .csv"),
    (["simulate", "s.yaml", "--rows", "missing/r.csv"], "folder that exists"),
    (["simulate", "s.yaml", *FILES, "--requests", "0"], "requests='0'"),
    (["simulate", "s.yaml", *FILES, "--rate", "nan"], "rate='nan'"),
    (["simulate", "s.yaml", *FILES, "--rate", "-2"], "rate='-2'"),
    (["simulate", "s.yaml", *FILES, "--rate", "1e300"], "rate_per_s"),
    (["simulate", "s.yaml", *FILES, "--users", "4"], "must be left out for poisson traffic"),
    (["simulate", "s.yaml", *FILES, "--seed", "-1"], "seed='-1'"),
    (["simulate", "s.yaml", *FILES, "--gamma", "0"], "gamma='0'"),
    (["simulate", "stock-8b-h100", *FILES, "--gamma", "2"], "without speculation"),
    (["simulate", "s.yaml", *FILES, "--set", "engine.max_sequence=3"], "did you mean max_sequences?"),
    (["simulate", "s.yaml", *FILES, "--set", "modle=3"], "did you mean model?"),
    (["simulate", "s.yaml", *FILES, "--set", "seed"], "look like"),
    (["simulate", "s.yaml", *FILES, "--set", ".=3"], "look like"),
    (["simulate", "s.yaml", *FILES, "--set", "seed=[1"], "YAML"),
    (["simulate", "s.yaml", *FILES, "--set", "seed=null"], "must be a whole number"),
    (["simulate", "s.yaml", *FILES, "--set", "model.x=1"], "single value"),
    (["simulate", "s.yaml", *FILES, "--set", "tp=3"], "tp=3 must divide"),
    (["simulate", "s.yaml", *FILES, "--set", "model=llama-3.1-405b", "--set", "speculation=null"], "more than the"),
    (["simulate", "s.yaml", *FILES, "--set", "speculation.draft=qwen3-0.6b"], "vocabulary"),
    (["list", "gpuz"], "did you mean gpus?"),
    (["list"], "required"),
    (["show", "gpu", "h20"], "did you mean h200?"),
    (["show", "model", "a\nb"], "must be a known model"),
    (["show", "scenario", "s\0.yaml"], "scenario="),
]  # fmt: skip


def assert_refused(code: int, err: str, folder: Path, before: list[str], sentence: str) -> None:
    assert code == 2
    assert err.startswith("memwall: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert sentence in err
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("argv", "sentence"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(
    argv: list[str], sentence: str, scenario: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(argv)
    out, err = capsys.readouterr()
    assert out == ""
    assert_refused(code, err, folder, ["s.yaml"], sentence)


BAD_SCENARIOS = {
    "a list": (b"- 1\n- 2\n", "mapping"),
    "binary": (b"\xff\xfe\x00\x01", "UTF-8"),
    "empty": (b"", "mapping"),
    "broken": (b"model: [\n", "valid YAML"),
    "twice": (b"model: a\nmodel: b\n", "twice"),
    "unknown key": (SCENARIO.replace("gpu:", "gpus:").encode(), "did you mean gpu?"),
    "nested unknown key": (SCENARIO.replace("requests:", "request:").encode(), "did you mean requests?"),
    "unknown gpu": (SCENARIO.replace("h100-sxm", "h100-smx").encode(), "did you mean h100-sxm?"),
    "negative rate": (SCENARIO.replace("rate_per_s: 5", "rate_per_s: -5").encode(), "rate_per_s"),
    "nan": (SCENARIO.replace("rate_per_s: 5", "rate_per_s: .nan").encode(), "rate_per_s"),
    "zero tokens": (SCENARIO.replace("prompt: 100", "prompt: 0").encode(), "prompt"),
    "other vocabulary": (SCENARIO.replace("llama-3.2-1b", "qwen3-0.6b").encode(), "vocabulary"),
    "longer than the context": (SCENARIO.replace("prompt: 100", "prompt: 200000").encode(), "max_context_tokens"),
    "tp": (SCENARIO.replace("gpu:", "tp: 3\ngpu:").encode(), "tp=3"),
}


@pytest.mark.parametrize("name", BAD_SCENARIOS)
def test_a_bad_scenario_is_one_sentence(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, sentence = BAD_SCENARIOS[name]
    (folder / "bad.yaml").write_bytes(content)
    code = run("simulate", "bad.yaml", "--rows", "r.csv", "--json", "r.json")
    err = capsys.readouterr().err
    assert_refused(code, err, folder, ["bad.yaml"], sentence)
    if name.endswith("unknown key"):
        assert "bad.yaml: " in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "at least one row"), ("arrival_s,prompt_tokens,output_tokens\n", "usable"), ("a,b\n1,2\n", "t.csv")],
    ids=["empty", "header only", "other columns"],
)
def test_an_empty_trace_is_one_sentence(
    content: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.csv").write_text(content)
    (folder / "bad.yaml").write_text("{model: llama-3.1-8b, gpu: h100-sxm, traffic: {kind: trace, path: t.csv}}")
    code = run("simulate", "bad.yaml", "--rows", "r.csv")
    err = capsys.readouterr().err
    assert_refused(code, err, folder, ["bad.yaml", "t.csv"], "")
    assert sentence in err


def test_a_scenario_that_is_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").mkdir()
    code = run("simulate", "s.yaml")
    assert_refused(code, capsys.readouterr().err, folder, ["s.yaml"], "existing file")


def test_places_for_the_files_are_checked_before_the_work(
    scenario: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worked(*_: object) -> None:
        raise AssertionError("worked before it looked")

    monkeypatch.setattr("simulator.serving.simulation.simulate", worked)
    assert run("simulate", scenario, "--html", "missing/r.html") == 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("simulator.decoding.decode", broken)
    with pytest.raises(ZeroDivisionError):
        main(DECODE)


def test_ctrl_c_before_anything_is_simulated_is_one_line_and_leaves_no_file(
    scenario: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.serving.simulation.simulate", interrupted)
    assert run("simulate", scenario, "--json", "r.json") == 130
    assert capsys.readouterr() == ("", "memwall: interrupted\n")
    assert os.listdir(folder) == ["s.yaml"]
