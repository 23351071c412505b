"""Every command, and the options that change what it does."""

from __future__ import annotations

import csv
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from simulator import InputError, __version__, catalog
from simulator.cli import COMMANDS, main, parser
from simulator.commands import arguments, simulate
from simulator.serving import cluster, intervals, simulation
from tests.commands.lines import DECODE, SPECULATE, run


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


def test_ctrl_c_while_simulating_leaves_what_there_is(
    scenario: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices of steps: whatever was simulated by then is written, and says so."""
    monkeypatch.setattr(simulation, "run_cluster", partial(cluster.run_cluster, slice_steps=40))
    told: list[object] = []

    def press_once(*_: object) -> None:
        told.append(_)
        if len(told) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(simulate.ProgressBar, "tell", press_once)
    assert run("simulate", scenario, "--rows", "r.csv", "--json", "r.json", "--html", "r.html") == 130
    out, err = capsys.readouterr()
    assert err == "memwall: interrupted\n"
    assert "Speculation interrupted at t = " in out
    assert "of 20 requests; plain decoding not simulated" in " ".join(out.split())
    document = json.loads((folder / "r.json").read_text())
    assert document["complete"] is False
    counts = document["runs"][0]["summary"]["requests"]
    assert sum(counts.values()) == 20
    rows = (folder / "r.csv").read_text().splitlines()
    assert len(rows) == 21
    assert sum(",unfinished," in row for row in rows) == counts["unfinished"] > 0
    assert "interrupted at t = " in (folder / "r.html").read_text()


def test_ctrl_c_afterwards_loses_only_what_takes_further_simulations(
    scenario: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "log_sds", press_ctrl_c)
    assert run("simulate", scenario, "--json", "r.json") == 130
    out, err = capsys.readouterr()
    assert err == "memwall: interrupted\n"
    assert "Interrupted: prediction intervals left out; the simulation itself is complete." in " ".join(out.split())
    document = json.loads((folder / "r.json").read_text())
    assert (document["complete"], document["intervals"]) == (True, None)
    assert run("simulate", scenario, "--replications", "3") == 130
    assert "replications" not in capsys.readouterr().out.split("Interrupted")[1]  # they had been done by then


def press_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def test_replications_are_reported(scenario: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", scenario, "--replications", "3", "--no-intervals", "--json", "r.json") == 0
    assert "Over 3 replications" in capsys.readouterr().out
    document = json.loads((folder / "r.json").read_text())
    assert document["replications"]["n"] == 3
    first = document["runs"][0]["summary"]["tpot_s"]["mean"]
    mean = document["replications"]["of"]["speculation.tpot_s.mean"]
    assert abs(mean["mean"] - first) < 20 * mean["half_width"]  # the run itself is one of the three
    assert run("simulate", scenario, "--replications", "1") == 2


def test_a_saturated_system_is_said_to_be_one(scenario: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hundred requests a second for a batch of two: complete, exit code 0, with the statement."""
    flags = ["--requests", "400", "--rate", "200", "--set", "engine.max_sequences=2", "--set", "speculation=null"]
    assert run("simulate", scenario, *flags, "--no-intervals", "--json", "r.json") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The queue only grows: " in out
    assert "Latencies describe this run's length, not a steady state." in out
    found = json.loads((folder / "r.json").read_text())["runs"][0]["summary"]["stability"]
    assert found["stable"] is False
    assert found["growth_per_s"] == pytest.approx(found["offered_per_s"] - found["served_per_s"], rel=0.2)


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


def test_show_scenario_tells_classes_apart_without_their_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "scenario", "mixed-classes") == 0
    out = capsys.readouterr().out
    assert "engine: {name: vllm, max_sequences: 32, order: priority, queue_timeout_s: 20.0}" in out
    assert out.count("- name: ") == 3
    assert "quantiles" not in out


def test_show_traffic_has_a_row_for_each_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "traffic", "mixed-classes") == 0
    out = capsys.readouterr().out
    for words in (
        ("chat", "0", "120 s", "TTFT ≤ 2 s, TPOT ≤ 100 ms"),
        ("code", "-1", "10 s"),
        ("background", "1", "–"),
    ):
        line = next(line for line in out.splitlines() if line.startswith(words[0] + " "))
        assert all(word in line for word in words)


def test_gpus_of_all_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "scenarios") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pipeline-405b"))
    assert "16 × h100-sxm" in line


# --- changes to a scenario ------------------------------------------------------------------------------------------
def changed(*argv: str) -> object:
    return simulate.changed_scenario(parser()[0].parse_args(["simulate", *argv]))


def test_options_change_the_scenario(scenario: str) -> None:
    s = changed(scenario, "--requests", "7", "--rate", "30 /min", "--seed", "9", "--gamma", "2", "--replicas", "3")
    assert (s.traffic.requests, s.traffic.rate_per_s, s.seed, s.speculation.gamma, s.replicas) == (7, 0.5, 9, 2, 3)  # type: ignore[attr-defined]


def test_gpus_of_one_copy_are_options_too(scenario: str) -> None:
    s = changed(scenario, "--tp", "2", "--pp", "3", "--ep", "6")
    assert (s.tp, s.pp, s.ep) == (2, 3, 6)  # type: ignore[attr-defined]


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
