"""Measurement files: whole lines, resumed without repeating, damage refused by line or cut off at the end."""

import json

import pytest

from simulator.reference_decoder.measurements import SCHEMA, MeasurementError, MeasurementFile, key_of, read

HEADER = {"device": "d", "device_kind": "cpu", "torch": "2", "date": "now", "clocks": None}
POINT = {"kind": "copy", "size_bytes": 8, "cache": "cold"}
TIMES = {"median_s": 1.0, "min_s": 1.0, "q1_s": 1.0, "q3_s": 1.0, "max_s": 1.0, "n": 3}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.jsonl"
    with MeasurementFile(path, HEADER, resume=False) as file:
        file.append(POINT | {"moved_bytes": 16} | TIMES)
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
        (2, "{damaged", "line 2 must be JSON"),
        (2, "[1]", "line 2 must be a measurement"),
        (1, json.dumps(POINT), "line 1 must be the header"),
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
