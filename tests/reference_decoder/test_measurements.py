"""Measurement files: whole lines, resumed without repeating, damage refused by line or cut off at the end."""

import json

import pytest

from simulator.reference_decoder.measurements import SCHEMA, MeasurementError, MeasurementFile, key_of, read

HEADER = {"device": "d", "device_kind": "cpu", "dtype": "fp32", "torch": "2", "date": "now", "clocks": None}
POINT = {"kind": "copy", "size_bytes": 8, "cache": "cold"}
TIMES = {"moved_bytes": 16, "median_s": 1.0, "min_s": 1.0, "q1_s": 1.0, "q3_s": 1.0, "max_s": 1.0, "n": 3}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.jsonl"
    with MeasurementFile(path, HEADER, resume=False) as file:
        file.append(POINT | TIMES)
        file.append({**POINT, "size_bytes": 16, "skipped": "out of memory"})
    return path


def test_a_file_reads_back(path):
    header, lines, whole = read(path)
    assert header == {"kind": "header", "schema": SCHEMA, **HEADER}
    assert [line["size_bytes"] for line in lines] == [8, 16]
    assert whole == path.stat().st_size


def test_a_key_is_the_point_whatever_came_of_it():
    assert key_of(POINT | TIMES | {"moved_bytes": 1}) == key_of(POINT) == key_of(POINT | {"skipped": "why"})
    assert key_of(POINT) != key_of(POINT | {"cache": "resident"})


def test_resuming_knows_what_is_done_and_says_when(path):
    with MeasurementFile(path, HEADER | {"date": "later"}, resume=True) as file:
        assert key_of(POINT) in file.done
        assert len(file.done) >= 2
        file.append({**POINT, "size_bytes": 32} | TIMES)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        "header", "copy", "copy", "resumed", "copy",
    ]  # fmt: skip
    assert len(read(path)[1]) == 3


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_at_the_end_is_cut_off(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(read(path)[1]) == 1
    with MeasurementFile(path, HEADER, resume=True) as file:
        file.append({**POINT, "size_bytes": 32} | TIMES)
    assert [line["size_bytes"] for line in read(path)[1]] == [8, 32]


@pytest.mark.parametrize("start", [b"", b'{"kind": "hea'])
def test_a_file_without_one_whole_line_begins_anew(tmp_path, start):
    path = tmp_path / "file.jsonl"
    path.write_bytes(start)
    with MeasurementFile(path, HEADER, resume=True) as file:
        file.append(POINT | TIMES)
    assert read(path)[0]["kind"] == "header"
    assert len(read(path)[1]) == 1


def test_an_existing_file_is_not_overwritten(path):
    with pytest.raises(MeasurementError, match="exists: continue it with --resume"):
        MeasurementFile(path, HEADER, resume=False)


def test_another_device_may_not_continue_a_file(path):
    with pytest.raises(MeasurementError, match="device='d' must be this run's 'e'"):
        MeasurementFile(path, HEADER | {"device": "e"}, resume=True)


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (2, "{damaged", "line 2: must be JSON"),
        (2, "", "line 2: must be JSON"),
        (2, "[" * 100_000, "line 2: must be JSON"),
        (2, '{"kind": "copy", "n": 1, "n": 2}', "line 2: n must not stand there twice"),
        (2, "[1]", "line 2: must be a measurement with a kind"),
        (3, json.dumps(POINT | TIMES), "line 3: must be measured once"),
        (3, json.dumps(POINT | {"skipped": "why"}), "line 3: must be measured once"),
        (1, json.dumps(POINT), "line 1: must be the header"),
        (1, '{"kind": "header", "schema": 99}', "schema=99 must be 1"),
    ],
)
def test_damage_is_refused_by_line(path, line, text, said):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(MeasurementError, match=said):
        read(path)


def test_no_number_that_json_does_not_know_is_written(path):
    before = path.read_bytes()
    with MeasurementFile(path, HEADER, resume=True) as file, pytest.raises(ValueError, match="not JSON compliant"):
        file.append(POINT | {"median_s": float("nan")})
    assert path.read_bytes().startswith(before)
    read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "another"}, "line 3: mixed devices: device='another' must be 'd', as in the first header"),
        ({"device_kind": "cuda"}, "line 3: mixed devices: device_kind='cuda' must be 'cpu', as in the first header"),
        ({"torch": "3"}, "line 3: torch='3' must be '2', as in the first header"),
    ],
)
def test_a_second_header_must_be_of_the_same_device(path, change, said):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], json.dumps(json.loads(lines[0]) | change) + "\n", *lines[2:]]))
    with pytest.raises(MeasurementError, match=said):
        read(path)


def test_joined_files_of_one_device_are_one_file(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[0], *lines[2:]]))
    assert [line["size_bytes"] for line in read(path)[1]] == [8, 16]


def test_a_model_needs_its_shape_in_the_header(path):
    step = {"kind": "step", "model": "m", "batch": 1, "tokens": 1, "context_tokens": 1, "graphs": False}
    with path.open("a") as file:
        file.write(json.dumps(step | {"skipped": "why"}) + "\n")
    with pytest.raises(MeasurementError, match="line 4: model='m' must be a model whose shape_of_m is in the header"):
        read(path)


def test_what_cannot_be_opened_is_said_in_one_sentence(tmp_path):
    with pytest.raises(MeasurementError, match=r"none.jsonl: No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(MeasurementError, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(MeasurementError, match="line 1 must be the header"):
        read(tmp_path / "empty.jsonl")


def test_salvage_keeps_what_stands_before_the_damage(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[1].replace("1.0", "-1.0"), *lines[2:]]))
    header, kept, whole, lost = read(path, salvage=True)
    assert (header["device"], [line["size_bytes"] for line in kept]) == ("d", [8])
    assert whole == sum(map(len, lines[:2]))
    assert lost == f"{path}: line 3: min_s=-1.0 must be a finite number above 0; lines 3 to 4 are left out"


def test_salvage_says_nothing_where_nothing_is_lost(path):
    assert read(path, salvage=True) == (*read(path), None)
    path.write_bytes(path.read_bytes()[:-5])
    assert read(path, salvage=True) == (*read(path), f"{path}: line 3 is cut short and left out")


def test_a_damaged_header_cannot_be_salvaged(path):
    path.write_bytes(path.read_bytes().replace(b'"fp32"', b'"fp12"'))
    with pytest.raises(MeasurementError, match="line 1: dtype='fp12' must be one of fp32, bf16, fp16"):
        read(path, salvage=True)
