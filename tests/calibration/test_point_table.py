"""CSV of a user's own measurements: rows become lines that the measuring suite could have written, or are counted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.calibration.point_table import read_points
from simulator.errors import InputError
from simulator.reference_decoder import measurements
from simulator.reference_decoder.schema import header_fault, line_fault

MATMUL = "kind,tokens,outputs,inputs,dtype,median_us\n"


@pytest.fixture
def table(tmp_path):
    def written(text, **options):
        path = tmp_path / "points.csv"
        path.write_text(text)
        return read_points(path, **{"device": "Card", **options})

    return written


@pytest.fixture
def sentence(table):
    def said(text, **options):
        with pytest.raises(InputError) as caught:
            table(text, **options)
        return str(caught.value)

    return said


def test_matmul_by_hand(table):
    # M 2, N 3, K 5 in two bytes: 2·2·3·5 = 60 FLOP; 2·(2·5 + 3·5 + 2·3) = 62 bytes.
    points = table(MATMUL + "matmul,2,3,5,bf16,25\n")
    assert points.lines == [
        {"kind": "matmul", "tokens": 2, "outputs": 3, "inputs": 5, "dtype": "bf16", "flop": 60, "moved_bytes": 62,
         "median_s": 25e-6, "min_s": 25e-6, "q1_s": 25e-6, "q3_s": 25e-6, "max_s": 25e-6, "n": 1}
    ]  # fmt: skip
    assert points.header["device"] == "Card"
    assert (points.rows_read, points.dropped, points.unused) == (1, {}, ())


def test_attention_by_hand(table):
    # 2 sequences, 3 queries, 10 cached, 4 heads on 2, head_dim 8, fp16: a query sees 10 + 2 slots on average, so
    # 4·2·4·8·3·12 = 9216 FLOP; K and V of 13 slots: 2·2·2·2·8·13 = 1664 bytes.
    (line,) = table(
        "kind,sequences,query_tokens,context_tokens,heads,kv_heads,head_dim,dtype,median_ms\nattention,2,3,10,4,2,8,fp16,1\n"
    ).lines
    assert (line["flop"], line["moved_bytes"], line["median_s"]) == (9216, 1664, 1e-3)


def test_order_of_columns_case_and_units_do_not_matter(table):
    wide = "Q3_ms, MIN_S ,dtype,inputs,outputs,tokens,kind,Median_ms,max_us,q1_ns,n,moved_bytes\n"
    (line,) = table(wide + "3, 0.001 ,bf16,5,3,2,matmul,2,4000,1500000,7,99\n").lines
    assert [line[f"{name}_s"] for name in ("min", "q1", "median", "q3", "max")] == [0.001, 0.0015, 0.002, 0.003, 0.004]
    assert (line["n"], line["moved_bytes"]) == (7, 99)


def test_a_step_of_a_bundled_model_brings_its_shape(table):
    text = "kind,model,batch,tokens,context_tokens,graphs,median_ms\nstep,llama-3.1-8b,4,1,512,true,8.1\n"
    points = table(text)
    (line,) = points.lines
    assert line["parameters"] == pytest.approx(8.03e9, rel=1e-3)
    assert line["live_tokens"] == 513
    assert points.header["shape_of_llama-3.1-8b"]["layers"] == 32
    assert header_fault(points.header) is None


def test_lines_read_back_as_a_measurement_file(table, tmp_path):
    points = table(MATMUL + "matmul,2,3,5,bf16,25\nmatmul,4,3,5,bf16,26\n", device_kind="cpu")
    path = tmp_path / "points.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (points.header, *points.lines)))
    header, lines = measurements.read(path)[:2]
    assert (header, lines) == (points.header, points.lines)


def test_every_row_is_used_or_counted(table):
    rows = [
        "matmul,2,3,5,bf16,25", "matmul,2,3,5,bf16,26", "matmul,0,3,5,bf16,25", "matmul,2,3,5,int8,25", "mat,2,3,5,bf16,25",
        "matmul,2,3,5", "matmul,8,3,5,bf16,-1", "matmul,8,3,5,bf16,nan", "matmul,8,3,5,bf16,", "matmul,,3,5,bf16,25",
        ",2,3,5,bf16,1", "serving,2,3,5,bf16,1",
    ]  # fmt: skip
    points = table(MATMUL + "\n".join(rows))
    assert len(points.lines) == 1
    assert points.rows_read == len(rows) == len(points.lines) + sum(points.dropped.values())
    assert points.dropped["measured before in this file"] == 1
    assert points.dropped["median must be a finite number above 0"] == 2
    assert points.dropped["matmul: tokens is missing; it must be a whole number of at least 1"] == 1
    assert points.dropped["broken row"] == 1


def test_rounds_and_drafts(table):
    text = (
        "kind,model,drafter,draft_model,gamma,alpha,batch,context_tokens,graphs,tokens_per_round,median_ms\n"
        "round,llama-8b,small,llama-1b,4,0.7,8,1024,true,2.5,20\n"
        "round,llama-8b,plain,,0,0,8,1024,true,,9\n"
        "round,llama-8b,small,llama-1b,2,0.7,8,1024,true,,20\n"
        "draft,llama-1b,,,4,,8,1024,true,,3\n"
    )
    points = table(text)
    assert [line["kind"] for line in points.lines] == ["round", "round", "draft"]
    assert [line["accepted"] for line in points.lines[:2]] == [1.5, 0.0]
    assert points.lines[1]["draft_model"] is None
    assert list(points.dropped) == ["round: tokens_per_round is missing; it must be a finite number above 0"]
    assert {"shape_of_llama-8b", "shape_of_llama-1b"} <= points.header.keys()


def test_the_device_is_a_column_or_given(table, sentence):
    mixed = "device,kind,tokens,outputs,inputs,dtype,median_us\nA,matmul,2,3,5,bf16,25\nB,matmul,2,3,5,bf16,50\n"
    assert table(mixed, device="B").lines[0]["median_s"] == 50e-6
    assert table(mixed, device="B").dropped == {"of another device": 1}
    assert "device='A, B' must be one device" in sentence(mixed, device=None)
    assert "did you mean B?" in sentence(mixed, device="b")
    assert "device='(absent)' must be given" in sentence(MATMUL + "matmul,2,3,5,bf16,25\n", device=None)


def test_misspelt_columns_are_named(table, sentence):
    assert "did you mean outputs?" in sentence("kind,tokens,outputts,inputs,dtype,median_us\nmatmul,2,3,5,bf16,25\n")
    assert "did you mean median_us?" in sentence("kind,tokens,outputs,inputs,dtype,medain_us\nmatmul,2,3,5,bf16,25\n")
    assert table("note,kind,tokens,outputs,inputs,dtype,median_us\nx,matmul,2,3,5,bf16,1\n").unused == ("note",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "content='(empty)' must hold a header"),
        ("kind,tokens\n", "must include median_s"),
        ("tokens,median_s\n", "must include kind"),
        ("kind,kind,median_s\n", "columns='kind' must appear once"),
        ("kind,median_s,median_ms\n", "must give each time once"),
        (MATMUL, "content='0 usable of 0 rows' must hold at least one"),
        (MATMUL + 'matmul,"2,3,5,bf16,25\n', "must be valid CSV"),
        (MATMUL + "step,2,3,5,bf16,25\n", "step: model is missing"),
    ],
)
def test_one_sentence_each(sentence, text, said):
    assert said in sentence(text)


def test_large_and_binary_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "points.csv"
    path.write_bytes(b"\xff\xfe\x00kind")
    with pytest.raises(InputError, match="UTF-8"):
        read_points(path, device="Card")
    path.write_text(MATMUL)
    monkeypatch.setattr("simulator.calibration.csv_table.MOST_BYTES", 10)
    with pytest.raises(InputError, match="at most 10 bytes"):
        read_points(path, device="Card")


cells = st.sampled_from(
    ["matmul", "attention", "step", "copy", "1", "2.5", "-3", "0", "nan", "1e999", "bf16", "cold", "true", "", "llama-8b",
     "no-model", "../x", "\x00", "é", '"', "9" * 400]
)  # fmt: skip
names = st.sampled_from(
    ["kind", "tokens", "outputs", "inputs", "dtype", "median_us", "median_s", "n", "device", "model", "batch", "graphs",
     "context_tokens", "size_bytes", "cache", "what", "tokns", "x", ""]
)  # fmt: skip


@given(st.lists(names, max_size=9), st.lists(st.lists(cells, max_size=10), max_size=5))
def test_whatever_stands_in_it_is_read_or_refused_in_one_sentence(tmp_path_factory, header, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("\n".join(",".join(row) for row in [header, *rows]))
    said, points = "one line", None
    try:
        points = read_points(path, device="Card")
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    if points is not None:
        assert points.rows_read == len(points.lines) + sum(points.dropped.values())
        assert all(line_fault(line) is None for line in points.lines)
