"""The command: a whole toy run on a CPU, resumed, interrupted, refused."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from simulator.reference_decoder import measure, probes
from simulator.reference_decoder.measurements import key_of, read
from simulator.reference_decoder.points import SHARES, TOY
from simulator.reference_decoder.schema import KINDS

ROOT = Path(__file__).resolve().parents[2]


def toy(path, *more, budget="60s"):
    return measure.main(["--device", "cpu", "--toy", "--budget", budget, "--out", str(path), *more])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # Long budgets, so that every point is measured; short limits, so that none takes long.
    monkeypatch.setattr(measure, "POINTS_PER_BUDGET", 1e6)


def test_a_toy_run_measures_every_point_of_every_kind(tmp_path, capsys):
    path = tmp_path / "toy.jsonl"
    assert toy(path) == measure.OK
    header, lines, _ = read(path)
    assert {line["kind"] for line in lines} == set(SHARES)
    assert {key_of(line) for line in lines} == {key_of(p) for points in TOY.plan().values() for p in points}
    assert len(lines) == len({key_of(line) for line in lines})
    for line in lines:
        assert "skipped" not in line
        if KINDS[line["kind"]].timed:
            assert line["n"] >= 1
            assert 0.0 < line["min_s"] <= line["q1_s"] <= line["median_s"] <= line["q3_s"] <= line["max_s"]
    assert (header["device_kind"], header["dtype"], header["threads"]) == ("cpu", "fp32", 1)
    assert header["torch"] == torch.__version__
    assert header["memory_bytes"] is None or header["memory_bytes"] > 2**29
    assert header["shape_of_toy"]["hidden"] == 64
    assert "points measured" in capsys.readouterr().err


def test_derived_quantities_of_lines_by_hand(tmp_path):
    path = tmp_path / "toy.jsonl"
    toy(path, "--kinds", "copy,read,matmul,attention,round,serving")
    lines = read(path)[1]

    def first(kind, **fields):
        return next(p for p in lines if p["kind"] == kind and fields.items() <= p.items())

    assert first("copy", size_bytes=2**14)["moved_bytes"] == 2**15
    assert first("read", size_bytes=2**14)["moved_bytes"] == 2**14
    matmul = first("matmul", tokens=16, outputs=128, inputs=64)
    assert (matmul["flop"], matmul["moved_bytes"]) == (2 * 16 * 128 * 64, 4 * (16 * 64 + 128 * 64 + 16 * 128))
    attention = first("attention", sequences=4, query_tokens=4, context_tokens=16)
    assert attention["moved_bytes"] == 2 * 4 * 4 * 2 * 20 * 16
    # Query i of four sees 16 + i keys, so 74 pairs; 4 FLOP for each pair, head and value.
    assert attention["flop"] == 4 * 4 * 4 * 16 * 74
    assert first("round", drafter="plain")["tokens_per_round"] == 1.0
    assert 1.0 <= first("round", drafter="small", gamma=2)["tokens_per_round"] <= 3.0
    serving = first("serving", drafter="small")
    count = serving["requests"]
    assert len(serving["arrival_s"]) == len(serving["first_token_s"]) == len(serving["finished_s"]) == count
    assert sum(serving["round_tokens"]) + count == sum(serving["output_lengths"])
    assert serving["tokens_per_s"] == pytest.approx(sum(serving["output_lengths"]) / serving["duration_s"])


def test_acceptance_and_divergence_of_a_pair_that_is_trained_once(tmp_path, monkeypatch, capsys):
    trainings = []
    real = probes.train_pair
    monkeypatch.setattr(probes, "train_pair", lambda name, **options: trainings.append(name) or real(name, **options))
    path = tmp_path / "toy.jsonl"
    assert toy(path, "--kinds", "acceptance,divergence") == measure.OK
    assert trainings == ["toy"]
    lines = read(path)[1]
    assert len(lines) == 11
    for line in lines:
        if line["kind"] == "divergence":
            assert line["diverged"] == 0  # the toy suite is in fp32
            continue
        rounds = [a for request in line["accepted_by_request"] for a in request]
        assert line["tokens_per_round"] == pytest.approx(1.0 + sum(rounds) / len(rounds))
        assert line["target_bits_per_byte"] < 8.0
        if line["text"] != "held_out":
            # The prefill gives one byte, the rounds the rest; the last one may run over the end.
            for request in line["accepted_by_request"]:
                emitted = 1 + sum(a + 1 for a in request)
                assert line["output_tokens"] <= emitted <= line["output_tokens"] + line["gamma"]
    said = capsys.readouterr().err
    assert "bits per byte" in said
    assert "tokens per round" in said


def test_a_pair_that_would_take_too_long_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "TRAINING_SHARE", 1e-6)
    path = tmp_path / "toy.jsonl"
    assert toy(path, "--kinds", "copy,acceptance,divergence") == measure.OK
    # The random model needs no training; what was left out is not marked as done, for a run with more time.
    assert {line["kind"] for line in read(path)[1]} == {"copy", "divergence"}
    assert "acceptance is left out: training would take about" in capsys.readouterr().err


def test_resuming_measures_only_what_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "toy.jsonl"
    assert toy(path, "--kinds", "copy,read") == measure.OK
    before = path.read_bytes()
    path.write_bytes(before[:-10])  # as a killed run leaves it
    measured = []
    real = probes.Probe.measure
    monkeypatch.setattr(probes.Probe, "measure", lambda self, point: measured.append(point) or real(self, point))
    assert toy(path, "--kinds", "copy,read,launch", "--resume") == measure.OK
    assert [point["kind"] for point in measured if point["kind"] != "launch"] == [
        json.loads(before.splitlines()[-1])["kind"]
    ]
    keys = [key_of(line) for line in read(path)[1]]
    assert len(keys) == len(set(keys))
    measured.clear()
    assert toy(path, "--kinds", "copy,read,launch", "--resume") == measure.OK
    assert measured == []


def test_a_budget_that_is_used_up_ends_the_run(tmp_path, capsys):
    assert toy(tmp_path / "a.jsonl", budget="0.001s") == measure.OK
    assert "time is up after" in capsys.readouterr().err
    read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("no kernel for this shape\nC++ stack"), "failed: no kernel for this shape"),
        (probes.TooLarge("needs 9.0 GB"), "needs 9.0 GB"),
    ],
)
def test_a_point_that_fails_is_skipped_with_its_reason(tmp_path, monkeypatch, error, said):
    def fail(self, point):
        raise error

    monkeypatch.setattr(probes.Probe, "measure", fail)
    assert toy(tmp_path / "a.jsonl", "--kinds", "copy") == measure.OK
    lines = read(tmp_path / "a.jsonl")[1]
    assert lines
    assert {line["skipped"] for line in lines} == {said}


def test_a_point_that_needs_more_memory_than_there_is_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "free_memory_bytes", lambda device: 1000)
    assert toy(tmp_path / "a.jsonl", "--kinds", "matmul,step") == measure.OK
    assert all("GB of memory" in line["skipped"] for line in read(tmp_path / "a.jsonl")[1])


def test_an_interruption_leaves_a_valid_file(tmp_path, monkeypatch, capsys):
    real, calls = probes.Probe.measure, []

    def interrupted(self, point):
        calls.append(point)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, point)

    monkeypatch.setattr(probes.Probe, "measure", interrupted)
    assert toy(tmp_path / "a.jsonl") == measure.INTERRUPTED
    assert len(read(tmp_path / "a.jsonl")[1]) == 3
    assert "--resume continues" in capsys.readouterr().err


def test_no_gpu_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.main(["--device", "cuda", "--out", str(tmp_path / "a.jsonl")]) == measure.USER_ERROR
    said = capsys.readouterr().err.strip()
    assert "--device cpu" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--kinds", "steps"], "kinds='steps' must be one of copy"), (["--threads", "0"], "threads=0 must be at least 1")],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, arguments, said):
    assert toy(tmp_path / "a.jsonl", *arguments) == measure.USER_ERROR
    assert said in capsys.readouterr().err


def test_an_existing_file_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("something\n")
    assert toy(tmp_path / "a.jsonl") == measure.USER_ERROR
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("8m", 480.0), ("90s", 90.0), ("0.5h", 1800.0), ("300", 300.0)])
def test_budgets(text, seconds):
    assert measure.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "-3", "8 minutes", "1e3"])
def test_budgets_that_are_none(tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        toy(tmp_path / "a.jsonl", budget=text)


def test_it_runs_where_there_is_only_torch_and_numpy():
    """On a bare machine: everything else of the project's dependencies is made impossible to import."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "simpy", "numba", "scipy", "yaml", "plotly", "pyarrow", "rich"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import simulator.reference_decoder, importlib, pkgutil
for module in pkgutil.iter_modules(simulator.reference_decoder.__path__, "simulator.reference_decoder."):
    importlib.import_module(module.name)
ours = {name for name in sys.modules if name.startswith("simulator") and "reference_decoder" not in name}
print(sorted(ours))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "['simulator']"), done.stderr


def test_the_number_format_is_that_of_kernels_too(tmp_path):
    path = tmp_path / "toy.jsonl"
    assert toy(path, "--dtype", "bf16", "--kinds", "matmul,attention") == measure.OK
    header, lines, _ = read(path)
    assert header["dtype"] == "bf16"
    assert {line["dtype"] for line in lines} == {"bf16"}


def test_a_pass_whose_graph_failed_is_no_measurement_of_a_graph(monkeypatch):
    class Probe:
        def measure(self, point):
            warnings.warn("no CUDA graph for (1, 1), running eagerly: why", stacklevel=1)
            return {"median_s": 1.0}

    assert measure._measured(Probe(), {"kind": "step"}) == {"skipped": "no CUDA graph for (1, 1), running eagerly: why"}
