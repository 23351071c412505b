"""What somebody sends is fitted as the command line fits it, or refused in one sentence that names the file as it was sent."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from simulator import catalog
from simulator.calibration import upload
from simulator.calibration.sources import Options, profile_from
from simulator.calibration.upload import fit_upload, profile_name_of, upload_kind, validate_upload
from simulator.errors import InputError, MemwallError
from simulator.hardware import load_gpu
from simulator.scenario import load_scenario
from tests.calibration import synthetic

BUNDLED = catalog.root() / "hardware_profiles" / "measurements"


@pytest.fixture
def paper(tmp_path):
    """A small measurement file of the paper device."""
    return synthetic.write(tmp_path / "paper.jsonl")


def zipped(files):
    """A ZIP of {name: bytes}."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return made.getvalue()


def refusal(name, content, **options):
    """The sentence with which a file is refused; nothing else may come out, and no folder of ours be in it."""
    with pytest.raises(MemwallError) as raised:
        fit_upload(name, content, **options)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert tempfile.gettempdir() not in sentence
    return sentence


def test_the_bundled_file_makes_the_profile_that_the_command_line_makes(tmp_path):
    path = BUNDLED / "epyc-9004-1-thread.jsonl"
    steps = []
    found = fit_upload("My Machine.jsonl", path.read_bytes(), lambda *told: steps.append(told))
    text, validations = profile_from(path, "my-machine", Options())
    ours, theirs = (yaml.safe_load(t) for t in (found.profile_yaml, text))
    assert ours["calibration"]["matmul"] == theirs["calibration"]["matmul"]
    assert ours["engine"]["figures"] == theirs["engine"]["figures"]
    assert [c.name for c in found.validations[0].comparisons] == [c.name for c in validations[0].comparisons]
    for a, b in zip(found.validations[0].comparisons, validations[0].comparisons, strict=True):
        np.testing.assert_array_equal(a.predicted_s, b.predicted_s)
    (tmp_path / "my-machine.yaml").write_text(found.profile_yaml)
    assert load_gpu(str(tmp_path / "my-machine.yaml")).title == "AMD EPYC, 1 thread"
    assert steps
    assert all(0 <= done < of for _, done, of in steps)
    assert tempfile.gettempdir() not in found.profile_yaml + repr(found.validations)


def test_a_table_of_timings_needs_a_device_and_makes_its_profile(paper):
    lines = [json.loads(line) for line in paper.read_text().splitlines()]
    rows = [f"{x['tokens']},{x['outputs']},{x['inputs']},{1e6 * x['median_s']}" for x in lines if x["kind"] == "matmul"]
    table = "kind,tokens,outputs,inputs,median_us,dtype\n" + "".join(f"matmul,{row},bf16\n" for row in rows)
    found = fit_upload("mine.csv", table.encode(), gpu="My Board")
    assert found.kind == "points"
    assert yaml.safe_load(found.profile_yaml)["gpu"]["title"] == "My Board"
    assert "device" in refusal("mine.csv", table.encode())
    broken = table.replace(f"{rows[0]}", "1,4096,4096,nan", 1)
    fewer = fit_upload("mine.csv", broken.encode(), gpu="My Board")
    assert len(fewer.validations[0].comparisons[0]) == len(found.validations[0].comparisons[0]) - 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "not be empty"),
        ("a.jsonl", b"hello\n" * 9, "memwall measure"),
        ("a.jsonl", bytes(range(256)) * 9, "memwall measure"),
        ("a.jsonl", b'{"kind": "header"', "header"),
        ("a.csv", b"\xff\xfe\x00\x01", "UTF-8"),
        ("a.csv", b"a,b\n1,2\n", "memwall measure"),
        ("a.csv", b"kind,median_us\nmatmul,nan\n", "device"),
        ("a.json", b"[" * 100_000, "memwall measure"),
        ("a.exe", b"MZ", "end in"),
        ("", b"x", "end in"),
        ("a.zip", b"PK\x03\x04 and no more", "ZIP"),
        ("a.zip", b"nothing packed", "ZIP"),
        ("a.zip", zipped({"readme.txt": b"x"}), "hold a folder"),
        ("a.zip", zipped({"../../x.csv": b"x"}), "plain name"),
        ("a.zip", zipped({"/etc/x.csv": b"x"}), "plain name"),
        ("a.zip", zipped({"k/s/o/e/1/gemm_perf.parquet": b"PAR1 no"}), "Parquet"),
        ("a.zip", zipped({f"{i}.csv": b"x" for i in range(99)}), "at most 64"),
    ],
)
def test_what_is_no_measurement_is_refused_in_one_sentence(name, content, says):
    assert says in refusal(name, content)
    assert says in refusal(name, content, salvage=True)


def test_a_file_cut_short_loses_its_last_line_only(paper):
    whole = paper.read_bytes()
    found = fit_upload("paper.jsonl", whole[:-20])
    assert any("cut short" in note for note in found.validations[0].notes) or found.profile_yaml
    assert "hold at least" in refusal("paper.jsonl", b"\n".join(whole.split(b"\n")[:4]) + b"\n")


def test_times_that_are_no_numbers_are_named_with_their_line(paper):
    first, second, *rest = paper.read_text().splitlines()
    damaged = json.dumps(json.loads(second) | {"median_s": float("nan")})
    content = "\n".join([first, damaged, *rest]).encode()
    assert "line 2: median_s=nan" in refusal("paper.jsonl", content)


def test_too_much_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(upload, "MOST_BYTES", 1000)
    assert "at most" in refusal("a.jsonl", b" " * 1001)
    monkeypatch.setattr(upload, "MOST_BYTES", 10**6)
    monkeypatch.setattr(upload, "MOST_LINES", 10)
    assert "at most 10" in refusal("a.jsonl", b"{}\n" * 11)
    monkeypatch.setattr(upload, "MOST_UNPACKED_BYTES", 1000)
    assert "unpack to" in refusal("a.zip", zipped({"a.csv": b"0" * 600, "b.csv": b"0" * 600}))


def test_a_table_whose_few_bytes_stand_for_many_rows_is_refused(monkeypatch):
    monkeypatch.setattr(upload, "MOST_TABLE_ROWS", 1000)
    made = io.BytesIO()
    pq.write_table(pa.table({"m": np.zeros(1001)}), made)
    assert "1,000 rows" in refusal("a.zip", zipped({"k/s/o/e/1/gemm_perf.parquet": made.getvalue()}))


def test_what_progress_raises_comes_through(paper):
    class Cancelled(Exception):
        pass

    def cancel(what, done, of):
        raise Cancelled

    with pytest.raises(Cancelled):
        fit_upload("paper.jsonl", paper.read_bytes(), cancel)


def test_a_reader_that_breaks_is_a_sentence_and_a_line_in_the_log(paper, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(upload, "profile_from", broken)
    assert refusal("paper.jsonl", paper.read_bytes()).startswith("file='paper.jsonl' must be")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("../../My Machine.jsonl", "my-machine"),
        ("C:\\data\\Rig_7.csv", "rig-7"),
        ("h100-sxm.jsonl", "h100-sxm-mine"),
        ("....jsonl", "mine"),
        ("über:<b>.jsonl", "ber-b"),
    ],
)
def test_a_profile_has_a_plain_name_that_no_bundled_device_has(name, profile):
    assert profile_name_of(name) == profile


def test_published_speeds_are_validated_and_not_fitted():
    content = (BUNDLED / "published" / "speeds.csv").read_bytes()
    assert upload_kind("speeds.csv", content) == "published"
    assert "validated" in refusal("speeds.csv", content)
    assert validate_upload("speeds.csv", content)[0].title == "Published speeds"


def test_a_benchmark_is_held_against_what_served_it():
    rows = "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s\n" + "".join(f"{i},100,20,0.1,1.0\n" for i in range(20))
    with pytest.raises(InputError, match="scenario") as raised:
        validate_upload("bench.csv", rows.encode())
    assert "--" not in str(raised.value)
    scenario = load_scenario("chat-8b-h100-eagle")
    (found,) = validate_upload("bench.csv", rows.encode(), scenario=scenario)
    assert found.quantities
    assert tempfile.gettempdir() not in repr(found)


def test_layer_timings_come_packed(memwall_data):
    folder = memwall_data / "layers" / "rtx4090"
    packed = zipped({f"layers/rtx4090/{p.name}": p.read_bytes() for p in sorted(folder.iterdir())})
    found = fit_upload("layers.zip", packed, gpu="rtx-4090")
    assert found.kind == "layers"
    assert yaml.safe_load(found.profile_yaml)["gpu"] == "rtx-4090"
    assert "name the GPU" in refusal("layers.zip", packed)


def test_nothing_stays_on_the_disk(paper, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    fit_upload("paper.jsonl", paper.read_bytes())
    refusal("paper.jsonl", b"{}\n")
    assert not list(Path(tmp_path / "here").iterdir())
