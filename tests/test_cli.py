"""The command line: every command, every mistake in one sentence, and nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator import InputError, UnknownName, __version__, catalog
from simulator.cli import COMMANDS, main, parser
from simulator.commands import arguments, simulate
from simulator.errors import MemwallError
from simulator.serving.cluster import compile_step_loop

DECODE = ["decode", "--model", "llama-3.2-1b", "--gpu", "h100-sxm"]
SPECULATE = ["speculate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--draft", "llama-3.2-1b"]
SCENARIO = """
name: small
model: llama-3.1-8b
gpu: h100-sxm
speculation: {draft: llama-3.2-1b, gamma: 3, acceptance: 0.7}
traffic: {kind: poisson, rate_per_s: 5, requests: 20, lengths: {prompt: 100, output: 12}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scenario(folder: Path) -> str:
    (folder / "s.yaml").write_text(SCENARIO)
    return "s.yaml"


def run(*argv: str) -> int:
    return main(list(argv))


# --- commands -------------------------------------------------------------------------------------------------------
def test_bare_memwall_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    for name in ("decode", "speculate", "simulate", "list", "show"):
        assert f"\n  {name}" in out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"memwall {__version__}\n"
    for name in parser()[1]:
        assert run(name, "--help") == 0
        assert f"usage: memwall {name}" in capsys.readouterr().out


def test_every_command_says_what_to_run_and_what_it_needs() -> None:
    _, commands = parser()
    assert len(commands) == len(COMMANDS)
    for command in commands.values():
        assert callable(command.get_default("run"))
        assert isinstance(command.get_default("needs"), tuple)


def test_decode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--timeline", "t.json", "--json", "d.json", "--html", "d.html"]
    assert run(*DECODE, "--batch", "4", "--context", "500", "--weights", "fp8", "--kv", "fp8", *files) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in (
        "ms per step",
        "tokens/s",
        "SMs idle",
        "of the datasheet's peak",
        "gate_up_proj",
        "KV cache",
        "calibrated",
    ):
        assert word in out
    document = json.loads((folder / "d.json").read_text())
    assert (document["batch"], document["context_tokens"]) == (4, 500)
    assert document["deployment"]["formats"]["weights"] == "fp8"
    assert json.loads((folder / "t.json").read_text())["traceEvents"]
    assert (folder / "d.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert out.rstrip().endswith("Wrote t.json, d.html, d.json.")


def test_a_larger_desk_is_quicker(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*DECODE, "--desk", "100 GB") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "desk of 100 GB" in text
    assert "instead of" in text


def test_speculate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--gamma", "1..3", "--batch", "1,2,4,…,16", "--acceptance", "0.8,0.7", "--request-icc", "0.1"]
    assert run(*SPECULATE, *grid, "--csv", "s.csv", "--json", "s.json", "--html", "s.html") == 0
    out = capsys.readouterr().out
    for word in ("speed-up", "best γ", "pays up to batch", "0.8, 0.7 by depth", "intraclass correlation 0.1"):
        assert word in out
    with open(folder / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = json.loads((folder / "s.json").read_text())["cells"]
    assert [(r["gamma"], r["batch"]) for r in rows] == [(str(g), str(b)) for g in (1, 2, 3) for b in (1, 2, 4, 8, 16)]
    assert [float(r["speedup"]) for r in rows] == [c["speedup"] for c in cells]
    assert (folder / "s.html").stat().st_size > 1000


def test_speculate_takes_the_drafters_own_acceptance(capsys: pytest.CaptureFixture[str]) -> None:
    own = next(n for n in catalog.names("drafter") if n == "eagle-llama-3.1-8b")
    assert (
        run("speculate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--draft", own, "--gamma", "2", "--batch", "1")
        == 0
    )
    assert "by depth" in capsys.readouterr().out


def test_simulate(scenario: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", scenario, "--rows", "r.parquet", "--json", "r.json", "--html", "r.html") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in (
        "speculation",
        "off",
        "ratio",
        "TTFT mean",
        "p99",
        "goodput",
        "20 read = 20 used",
        "seed",
        "Simulated 40 requests",
    ):
        assert word in out
    assert sorted(os.listdir(folder)) == ["r.html", "r.json", "r.parquet", "s.yaml"]


def test_simulate_twice_writes_the_same_bytes(scenario: str, folder: Path) -> None:
    for name in ("a", "b"):
        assert run("simulate", scenario, "--rows", f"{name}.csv", "--json", f"{name}.json") == 0
        assert run("simulate", scenario, "--rows", f"{name}.parquet") == 0
    for suffix in ("csv", "json", "parquet"):
        assert (folder / f"a.{suffix}").read_bytes() == (folder / f"b.{suffix}").read_bytes()


def test_another_seed_is_another_file(scenario: str, folder: Path) -> None:
    for seed in ("0", "1"):
        assert run("simulate", scenario, "--seed", seed, "--rows", f"{seed}.csv") == 0
    assert (folder / "0.csv").read_bytes() != (folder / "1.csv").read_bytes()


def test_simulate_without_a_scenario_runs_the_bundled_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.DEFAULT_SCENARIO in catalog.names("scenario")
    assert run("simulate", "--requests", "5") == 0
    assert "5 requests" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gpus", "links", "engines", "models", "drafters", "traffic", "scenarios"])
def test_list_names_all_and_show_shows_each(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("list", kind) == 0
    listed = capsys.readouterr().out
    singular = kind if kind == "traffic" else kind.removesuffix("s")
    names = catalog.names(singular)
    assert names
    for name in names:
        assert name in listed
        assert run("show", singular, name) == 0
        assert capsys.readouterr().out.strip()


def test_show_gpu_gives_every_figure_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator import load_gpu

    monkeypatch.setenv("COLUMNS", "250")
    assert run("show", "gpu", "h200") == 0
    out = capsys.readouterr().out
    for name, provenance in load_gpu("h200").provenance.items():
        line = next(line for line in out.splitlines() if line.startswith(name.replace("_", " ") + "  "))
        assert provenance.source.kind in line
        assert provenance.source.date in line
        assert provenance.source.title in out


# --- changes to a scenario ------------------------------------------------------------------------------------------
def changed(*argv: str) -> object:
    return simulate.changed_scenario(parser()[0].parse_args(["simulate", *argv]))


def test_options_change_the_scenario(scenario: str) -> None:
    s = changed(scenario, "--requests", "7", "--rate", "30 /min", "--seed", "9", "--gamma", "2", "--replicas", "3")
    assert (s.traffic.requests, s.traffic.rate_per_s, s.seed, s.speculation.gamma, s.replicas) == (7, 0.5, 9, 2, 3)  # type: ignore[attr-defined]


def test_set_reaches_any_field(scenario: str) -> None:
    sets = [
        "engine.max_sequences=64",
        "traffic.lengths.output=3",
        "slo.ttft_s=500 ms",
        "speculation.acceptance=[0.9, 0.8]",
    ]
    s = changed(scenario, *[word for text in sets for word in ("--set", text)])
    assert s.engine.max_sequences == 64  # type: ignore[attr-defined]
    assert s.slo.ttft_s == 0.5  # type: ignore[attr-defined]
    assert s.speculation.acceptance.conditional == (0.9, 0.8)  # type: ignore[attr-defined]
    assert changed(scenario, "--set", "speculation=null").speculation is None  # type: ignore[attr-defined]


def test_set_below_a_name_expands_what_it_names(folder: Path) -> None:
    (folder / "s.yaml").write_text("{model: llama-3.1-8b, gpu: h100-sxm, engine: ideal, traffic: stock}")
    s = changed("s.yaml", "--set", "engine.max_sequences=8", "--set", "traffic.requests=11")
    assert (s.engine.name, s.engine.max_sequences, s.traffic.requests) == ("ideal", 8, 11)  # type: ignore[attr-defined]


def test_a_trace_is_found_from_the_scenarios_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,10,5\n")
    (tmp_path / "s.yaml").write_text("{model: llama-3.1-8b, gpu: h100-sxm, traffic: {kind: trace, path: t.csv}}")
    monkeypatch.chdir("/")
    assert run("simulate", str(tmp_path / "s.yaml"), "--set", "seed=4") == 0


# --- numbers and grids ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5", [5]),
        ("4,1,2", [1, 2, 4]),
        ("1..8", list(range(1, 9))),
        ("1,2,4,…,64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,2,4,...,64", [1, 2, 4, 8, 16, 32, 64]),
        ("1, 2, 4 .. 64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,2,4…64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,3,9..81", [1, 3, 9, 27, 81]),
        ("2,4,6,…,12", [2, 4, 6, 8, 10, 12]),
        ("1..4,8..10", [1, 2, 3, 4, 8, 9, 10]),
        ("1,1,2", [1, 2]),
    ],
)
def test_grids(text: str, values: list[int]) -> None:
    assert arguments.grid("batch")(text) == tuple(values)


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,,2", "x", "1..", "..8", "8..1", "1..2..", "1,2,4..100", "-3", "nan", "inf", "1e30", "1.5", "0",
     "9" * 400, "1..10000", "1,…,…,8", "٣", "1;2", "99999999999"],
)  # fmt: skip
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="batch="):
        arguments.grid("batch")(text)


def test_a_series_that_misses_its_end_names_the_next_number() -> None:
    with pytest.raises(InputError, match="did you mean 512"):
        arguments.grid("batch")("1,2,4..500")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0.8", {"alpha": 0.8}),
        ("0.8,0.7", {"conditional": (0.8, 0.7)}),
        ("conditional:0.8", {"conditional": (0.8,)}),
        ("marginal:0.7,0.5", {"marginal": (0.7, 0.5)}),
    ],
)
def test_acceptance(text: str, fields: dict[str, object]) -> None:
    assert arguments.acceptance(text) == fields


@pytest.mark.parametrize("text", ["", "x", "1.1", "-0.1", "nan", "0.8,", "0.8,inf", "marginal:", "logged:0.5"])
def test_what_is_no_acceptance_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="acceptance="):
        arguments.acceptance(text)


# --- mistakes -------------------------------------------------------------------------------------------------------
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
    (["simulate", "s.yaml", *FILES, "--set", "seed=null"], "must be a valid integer"),
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


def test_ctrl_c_is_one_line_and_leaves_no_file(
    scenario: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.serving.simulation.simulate", interrupted)
    assert run("simulate", scenario, "--json", "r.json") == 130
    assert capsys.readouterr() == ("", "memwall: interrupted\n")
    assert os.listdir(folder) == ["s.yaml"]


# --- as a process of its own ----------------------------------------------------------------------------------------
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def python(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *argv], capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False, **options
    )


HEAVY = (
    "numpy",
    "pydantic",
    "scipy",
    "numba",
    "plotly",
    "pyarrow",
    "rich",
    "yaml",
    "simpy",
    "streamlit",
    "pandas",
    "torch",
)


@pytest.mark.parametrize("argv", [[], ["--help"], ["simulate", "--help"], ["--version"], ["decod"], ["decode"]])
def test_help_and_mistakes_import_nothing_heavy(argv: list[str]) -> None:
    code = (
        f"import sys; from simulator.cli import main; main({argv!r}); print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_table_needs_no_plotly_and_no_streamlit() -> None:
    code = f"import sys; from simulator.cli import main; main({DECODE!r}); print({{'plotly', 'pyarrow', 'streamlit', 'pandas'}} & set(sys.modules))"
    assert python("-c", code).stdout.splitlines()[-1] == "set()"


def test_the_module_runs_and_exits_with_the_code() -> None:
    assert python("-m", "simulator.cli", "--version").stdout == f"memwall {__version__}\n"
    done = python("-m", "simulator.cli", "decode", "--model", "nope", "--gpu", "h100")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "simulator.cli", "list", "models"],
            stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_of_a_running_process(scenario: str, folder: Path) -> None:
    compile_step_loop()  # so that the process is simulating when it is interrupted, not compiling
    running = subprocess.Popen(
        [sys.executable, "-m", "simulator.cli", "simulate", scenario, "--requests", "4000000", "--rows", "r.csv"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=folder, text=True,
    )  # fmt: skip
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "memwall: interrupted\n")
    assert os.listdir(folder) == ["s.yaml"]


def test_errors_are_memwall_errors() -> None:
    assert issubclass(UnknownName, InputError)
    assert issubclass(InputError, MemwallError)


def test_a_trace_replaces_the_scenarios_traffic_and_load(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n9,5,5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "--trace", "rows.csv"]) == 0
    assert "2 of 2 rows of rows.csv" in capsys.readouterr().out


def test_experiment_says_whether_the_claim_holds(capsys):
    assert main(["experiment", "1-memory-wall"]) == 0
    out = capsys.readouterr().out
    assert "140GB" in out
    assert out.rstrip().endswith("The claim holds.")
