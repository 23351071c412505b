"""measure, calibrate and validate as a user runs them."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from tests.calibration import synthetic
from tests.commands.lines import run


@pytest.fixture
def measured(folder):
    return synthetic.write(folder / "mine.jsonl").name


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Calibrating takes seconds, so tests share one."""
    folder = tmp_path_factory.mktemp("calibrated")
    synthetic.write(folder / "mine.jsonl")
    output = str(folder / "mine.yaml")
    assert run("calibrate", str(folder / "mine.jsonl"), "-o", output, "--html", str(folder / "mine.html")) == 0
    return folder


def test_a_profile_works_wherever_a_gpu_does(calibrated, capsys):
    profile = str(calibrated / "mine.yaml")
    decode = ("decode", "--model", "llama-3.1-8b", "--engine", "reference", "--json", str(calibrated / "out.json"))
    assert run(*decode, "--gpu", profile) == 0
    assert "calibrated (mine)" in capsys.readouterr().out
    ours = json.loads((calibrated / "out.json").read_text())
    assert run(*decode, "--gpu", "h200") == 0
    prior = json.loads((calibrated / "out.json").read_text())
    # The paper device reaches 72 % of the bandwidth; its family's prior takes it for faster.
    assert ours["step_s"] > prior["step_s"]
    width = [step["step_interval_s"]["high"] / step["step_interval_s"]["low"] for step in (ours, prior)]
    assert width[0] < width[1]


def test_a_profile_has_all_three_sections_with_sources(calibrated):
    profile = yaml.safe_load((calibrated / "mine.yaml").read_text())
    assert profile["gpu"] == "h200-sxm"  # bundled: the datasheet's figures stay
    assert profile["calibration"]["gpus"] == ["h200-sxm"]
    assert "NVIDIA H200" in profile["calibration"]["source"]
    assert profile["engine"]["figures"]["host_step"]["source"] in profile["engine"]["sources"]
    assert profile["engine"]["figures"]["host_step"]["value"] == pytest.approx(
        1e-4
    )  # what the paper device's rounds add


def test_the_page_shows_what_was_held_out(calibrated):
    page = (calibrated / "mine.html").read_text()
    assert "whole steps, model unseen" in page
    assert "memwall calibrate" in page


def test_validate_writes_rows_and_statistics(calibrated, capsys):
    rows, document = str(calibrated / "rows.parquet"), str(calibrated / "v.json")
    source = str(calibrated / "mine.jsonl")
    assert run("validate", source, "--gpu", str(calibrated / "mine.yaml"), "--rows", rows, "--json", document) == 0
    assert "not fitted on" in capsys.readouterr().out
    assert set(pq.read_table(rows).column_names) >= {"name", "measured_s", "predicted_s", "error"}
    comparisons = json.loads((calibrated / "v.json").read_text())["validations"][0]["comparisons"]
    assert {"rounds, small drafter"} <= {c["name"] for c in comparisons}


def test_damage_is_refused_by_line_and_field_or_salvaged(measured, folder, capsys):
    lines = (folder / measured).read_text().splitlines()
    broken = json.loads(lines[180]) | {"median_s": -1.0}
    (folder / measured).write_text("\n".join([*lines[:180], json.dumps(broken), *lines[181:]]) + "\n")
    assert run("calibrate", measured, "-o", "mine.yaml") == 2
    error = capsys.readouterr().err
    assert "line 181" in error
    assert "median_s" in error
    assert not (folder / "mine.yaml").exists()
    assert run("calibrate", measured, "-o", "mine.yaml", "--salvage") == 0
    assert "line 181" in capsys.readouterr().out


def test_mixed_devices_are_refused(measured, folder, capsys):
    other = json.dumps(synthetic.header(device="NVIDIA L4")) + "\n"
    with (folder / measured).open("a") as file:
        file.write(other)
    assert run("calibrate", measured, "-o", "mine.yaml") == 2
    assert "mixed devices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["calibrate", "nowhere.jsonl", "-o", "p.yaml"], "must be an existing file or folder"),
        (["calibrate", "mine.jsonl"], "needs --output"),
        (["calibrate", "mine.jsonl", "-o", "no/such/p.yaml"], "folder that exists"),
        (["calibrate", ".", "-o", "p.yaml"], "folder of kernel tables"),
        (["calibrate", "bench.json", "-o", "p.yaml"], "of kind 'server'"),
        (["validate", "bench.json"], "--scenario"),
        (["validate", "mine.jsonl", "--gpu", "h20"], "did you mean h200?"),
        (["validate", "mine.jsonl", "--rows", "r.xlsx"], "end in .parquet or .csv"),
        (["measure"], "needs --out"),
        (["measure", "--out", "no/such/file.jsonl"], "folder that exists"),
    ],
)
def test_mistakes_are_one_sentence(measured, folder, capsys, argv, sentence):
    (folder / "bench.json").write_text("{}")
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (folder / "p.yaml").exists()


def test_measuring_needs_torch_and_says_so(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("measure", "--out", "mine.jsonl") == 2
    assert "pip install 'memwall[torch]'" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_named_and_the_cpu_offered(folder, capsys):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run("measure", "--device", "cuda", "--out", "mine.jsonl") == 2
    assert "--device cpu" in capsys.readouterr().err
    assert not (folder / "mine.jsonl").exists()


def test_one_command_measures_calibrates_and_validates(folder, capsys):
    pytest.importorskip("torch")
    argv = (
        "measure",
        "--toy",
        "--device",
        "cpu",
        "--budget",
        "60s",
        "--out",
        "toy.jsonl",
        "--profile",
        "toy.yaml",
        "--html",
        "t.html",
    )
    assert run(*argv) == 0
    out = capsys.readouterr().out
    assert "Toy shapes" in out
    assert "Wrote toy.yaml, t.html." in out
    assert run("decode", "--model", "pythia-70m", "--gpu", "toy.yaml", "--engine", "reference") == 0
    assert "calibrated (toy)" in capsys.readouterr().out


def test_a_dozen_timings_of_ones_own_make_a_profile(folder, capsys):
    """A CSV that says no more than what was timed and how long it took."""
    rows = [(m, n, k) for m in (1, 16, 256) for n, k in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336))]
    # As if every weight arrived at 3 TB/s, 4 µs after the launch.
    lines = [f"matmul,{m},{n},{k},bf16,{4.0 + 2 * n * k / 3e6}" for m, n, k in rows]
    (folder / "mine.csv").write_text("kind,tokens,outputs,inputs,dtype,median_us\n" + "\n".join(lines) + "\n")
    assert run("calibrate", "mine.csv", "--gpu", "NVIDIA H200", "-o", "mine.yaml") == 0
    profile = yaml.safe_load((folder / "mine.yaml").read_text())
    assert profile["gpu"] == "h200-sxm"
    assert profile["calibration"]["typical_error"]["decode_attention"] >= 0.3  # which nobody measured
    assert profile["calibration"]["typical_error"]["matmul"] < 0.3
    assert 4.8e12 * profile["calibration"]["matmul"]["bandwidth"]["value"] == pytest.approx(3e12, rel=0.15)
