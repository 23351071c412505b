import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.serving.traces import FORMATS, read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path):
    def write(content, **options):
        path = tmp_path / "trace.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_trace(path, **options)

    return write


# Literal rows


def test_azure_2023_keeps_all_seven_digits(trace):
    table = trace(AZURE + "2023-11-16 23:59:59.9999999,374,44\r\n2023-11-17 00:00:00.0000001,396,109\n")
    assert table.format == "azure"
    assert table.arrival_s.tolist() == [0.0, 2e-7]
    assert table.prompt_tokens.tolist() == [374, 396]
    assert table.output_tokens.tolist() == [44, 109]


def test_azure_2024_mixes_fractions_and_whole_seconds(trace):
    table = trace(
        AZURE
        + "2024-05-10 00:00:00.009930+00:00,1,2\n"
        + "2024-05-12 00:00:00+00:00,3,4\n"
        + "2024-05-12 02:00:01.5+02:00,5,6\n"
        + "2024-05-12T00:00:02Z,7,8\n"
        + "2024-05-11 19:00:03-05:00,9,10\n"
    )
    assert table.arrival_s.tolist() == [0.0, 172799.99007, 172801.49007, 172801.99007, 172802.99007]
    assert table.dropped == {}


def test_mooncake_times_are_milliseconds(trace):
    lines = [{"timestamp": t, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]} for t in (10, 27492)]
    table = trace("\n".join(map(json.dumps, lines)))
    assert table.format == "mooncake"
    assert table.arrival_s.tolist() == [0.0, 27.482]


def test_burstgpt_columns_move(trace):
    first = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,472,18,490,API log\n"
    moved = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens\n5.0,x,1.2,GPT-4,472,18\n"
    for text in (first, moved):
        table = trace(text)
        assert (table.format, table.prompt_tokens[0], table.output_tokens[0]) == ("burstgpt", 472, 18)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("arrival,prompt_tokens,output_tokens", 1.5),
        ("arrival_s,input_tokens,completion_tokens", 1.5),
        ("\ufefftime,num_prefill_tokens,num_decode_tokens", 1.5),
        (" Timestamp , Input_Length ,OUTPUT_LENGTH", 1.5),
        ("timestamp_ms,prompt_len,output_len", 0.0015),
    ],
)
def test_plain_csv_by_name(trace, header, seconds):
    table = trace(f"{header}\n1,10,20\n2.5,30,40\n")
    assert table.format == "csv"
    assert table.arrival_s.tolist() == [0.0, seconds]
    assert table.output_tokens.tolist() == [20, 40]


def test_plain_jsonl_in_any_order(trace):
    table = trace(
        '{"output_tokens": 2, "arrival_s": 7, "prompt_tokens": 1}\n{"prompt_tokens":3,"arrival_s":7.25,"output_tokens":"4"}'
    )
    assert (table.format, table.arrival_s.tolist(), table.output_tokens.tolist()) == ("jsonl", [0.0, 0.25], [2, 4])


def test_columns_by_the_users_names(trace):
    table = trace(
        "start_ms,in,out,timestamp\n0,5,6,9\n500,7,8,9\n",
        columns={"arrival": "start_ms", "prompt": "in", "output": "out"},
    )
    assert table.arrival_s.tolist() == [0.0, 0.5]
    assert table.prompt_tokens.tolist() == [5, 7]


def test_a_mooncake_file_may_be_called_jsonl_in_seconds(trace):
    text = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 2, "input_length": 1, "output_length": 1}'
    assert trace(text).arrival_s[1] == 0.002
    assert trace(text, format="jsonl").arrival_s[1] == 2.0


def test_every_reason_by_hand(trace):
    rows = [
        ("5,10,20", None),
        ("noon,10,20", "unreadable time"),
        ("nan,10,20", "unreadable time"),
        ("1e300,10,20", "unreadable time"),
        ("2024-05-10 00:00:00,10,20", "unreadable time"),
        ("6,ten,20", "unreadable number"),
        ("6,10.5,20", "unreadable number"),
        ("6,1_0,20", "unreadable number"),
        (",10,20", "missing column value"),
        ("6,10,", "missing column value"),
        ("6,0,20", "zero prompt tokens"),
        ("6,0,0", "zero output tokens"),
        ("6,-1,20", "negative tokens"),
        ("4.999,10,20", "time going backwards"),
        ("6,10", "broken row"),
        ("6,10,20,30", "broken row"),
        ("6,100000001,20", "absurd token count"),
        ("6,1e999,20", "absurd token count"),
        ("5,11.0,+21", None),
        ('"6","12","22"', None),
    ]
    table = trace("arrival,prompt_tokens,output_tokens\n" + "\n\n".join(text for text, _ in rows) + "\n \n")
    expected = [reason for _, reason in rows if reason]
    assert table.dropped == {reason: expected.count(reason) for reason in set(expected)}
    assert table.rows_read == len(rows)
    assert table.row.tolist() == [i for i, (_, reason) in enumerate(rows) if reason is None]
    assert table.prompt_tokens.tolist() == [10, 11, 12]


def test_broken_json_is_counted(trace):
    good = '{"arrival": 1, "prompt_tokens": 2, "output_tokens": 3}'
    bad = ["{", "[1, 2]", "null", '{"arrival": 1, "prompt_tokens": 2', "[" * 100_000]
    half = ['{"arrival": 1, "prompt_tokens": 2}', '{"arrival": 1, "prompt_tokens": null, "output_tokens": 3}']
    wrong = [
        '{"arrival": 1, "prompt_tokens": true, "output_tokens": 3}',
        '{"arrival": [], "prompt_tokens": 1, "output_tokens": 3}',
    ]
    huge = ['{"arrival": 1' + "0" * 400 + ', "prompt_tokens": 1, "output_tokens": 3}']
    table = trace("\n".join([good, *bad, *half, *wrong, *huge, good]))
    assert table.dropped == {
        "broken row": 5,
        "missing column value": 2,
        "unreadable number": 1,
        "unreadable time": 2,
    }
    assert table.row.tolist() == [0, 11]


def test_an_open_quote_costs_the_lines_it_swallows(trace):
    table = trace('arrival,prompt_tokens,output_tokens\n1,2,3\n"2,2,3\n3,2,3\n4,2,3\n')
    assert (len(table.row), table.rows_read, table.dropped) == (1, 4, {"broken row": 3})


def test_an_endless_line_is_one_broken_row(trace):
    good = '{"arrival": 1, "prompt_tokens": 2, "output_tokens": 3}\n'
    table = trace(good + '{"text": "' + "x" * (9 * 2**20) + '"}\n' + good)
    assert (table.rows_read, table.dropped) == (3, {"broken row": 1})


def test_limit_counts_usable_rows_and_stops_reading(trace):
    table = trace(AZURE + "noon,1,1\n2023-11-16 18:00:00,1,1\n2023-11-16 18:00:01,2,2\nnever read\n", limit=2)
    assert (table.prompt_tokens.tolist(), table.rows_read, table.row.tolist()) == ([1, 2], 3, [1, 2])


# Errors, one sentence each


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must hold at least one row"),
        (b" \n\n", "must hold at least one row"),
        (AZURE, "must hold at least one usable row"),
        (AZURE + "noon,1,1\n", r"0 usable of 1 rows \(unreadable time: 1\)"),
        (b"\xff\xfea\x00,\x00", "must be UTF-8 text"),
        (AZURE.encode() + b"2023-11-16 18:00:00,1,1\n\xff", "must be UTF-8 text"),
        (
            "when,prompt_tokens,output_tokens\n",
            "columns='when, prompt_tokens, output_tokens' must hold one for the arrival",
        ),
        ("time,promt_toks,output_tokens\n", "must hold one for the prompt.* did you mean promt_toks"),
        ("time,time,prompt_tokens,output_tokens\n1,1,1,1\n", "columns='time' must appear once"),
        ("{}\n", "must hold one for the arrival"),
    ],
)
def test_unusable_files(trace, content, sentence):
    with pytest.raises(InputError, match=sentence):
        trace(content)


def test_a_wrong_column_name_gets_a_suggestion(trace):
    with pytest.raises(InputError, match=r"columns\.prompt='promt'.*did you mean Prompt"):
        trace("time,Prompt,output\n1,1,1\n", columns={"prompt": "promt"})


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(InputError, match="must be an existing file"):
            read_trace(path)
    with pytest.raises(InputError, match="did you mean azure"):
        read_trace(tmp_path, format="azur")


# Limits


def test_one_row_is_a_trace(trace):
    table = trace(AZURE + "2023-11-16 18:00:00,1,1")
    assert (table.arrival_s.tolist(), table.rows_read) == ([0.0], 1)


@pytest.mark.parametrize("moment", ["2023-02-29 00:00:00", "2023-11-16 24:00:00", "2023-11-16 18:60:00", "2023-11-16"])
def test_impossible_moments(trace, moment):
    table = trace(AZURE + f"2023-01-01 00:00:00,1,1\n{moment},1,1\n")
    assert table.dropped == {"unreadable time": 1}


# Conservation: read = kept + dropped, whatever the file

CELL = st.one_of(
    st.sampled_from(
        ["", "0", "1", "7", "-3", "1e9", "nan", "2023-11-16 18:00:00", "2023-11-16 18:00:00.5+01:00", " ", '"', "\x00"]
    ),
    st.integers(-5, 10**9).map(str),
    st.floats().map(str),
    st.text(max_size=5),
)
JSON_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)
JSON_ROW = st.dictionaries(st.sampled_from(["arrival", "prompt_tokens", "output_tokens", "x"]), JSON_VALUE)


@settings(max_examples=150)
@given(st.lists(st.lists(CELL, min_size=2, max_size=4).map(",".join), max_size=12))
def test_no_csv_row_is_lost(tmp_path_factory, rows):
    text = "arrival,prompt_tokens,output_tokens\n1,2,3\n" + "\n".join(rows)
    table = _conserving(tmp_path_factory, text)
    if '"' not in text:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert table.rows_read == sum("," in line for line in lines[1:]) + sum(
            "," not in line and bool(line.strip()) for line in lines[1:]
        )


@settings(max_examples=150)
@given(st.lists(st.one_of(JSON_ROW.map(json.dumps), st.text(max_size=8).filter(lambda t: t.strip())), max_size=12))
def test_no_json_line_is_lost(tmp_path_factory, rows):
    text = '{"arrival": 0, "prompt_tokens": 2, "output_tokens": 3}\n' + "\n".join(rows)
    table = _conserving(tmp_path_factory, text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert table.rows_read == sum(bool(line.strip()) for line in lines)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(["auto", *FORMATS]))
def test_any_bytes_give_a_table_or_one_sentence(tmp_path_factory, content, format):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(path, format=format)
    assert "\n" not in str(caught.value)


def _conserving(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "rows"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    table = read_trace(path)
    n = len(table.row)
    assert table.rows_read == n + sum(table.dropped.values())
    assert n == len(table.arrival_s) == len(table.prompt_tokens) == len(table.output_tokens) >= 1
    assert (np.diff(table.arrival_s) >= 0).all()
    assert table.arrival_s[0] == 0
    assert np.isfinite(table.arrival_s).all()
    assert (table.prompt_tokens >= 1).all()
    assert (table.output_tokens >= 1).all()
    assert (np.diff(table.row) > 0).all()
    return table


# Real traces


@pytest.mark.parametrize(
    ("name", "kept", "dropped", "span_s"),
    [
        ("azure2023/AzureLLMInferenceTrace_conv.csv", 19_366, {}, 3501.721937),
        ("azure2023/AzureLLMInferenceTrace_code.csv", 8_819, {}, 3435.948056),
        ("mooncake/synthetic_trace.jsonl", 3_993, {}, 1022.025),
        ("burstgpt/BurstGPT_1_head400.csv", 383, {"zero output tokens": 17}, 37_269),
    ],
)
def test_published_traces(memwall_data, name, kept, dropped, span_s):
    table = read_trace(memwall_data / "traces" / name)
    assert (len(table.row), dict(table.dropped)) == (kept, dropped)
    assert name.startswith(table.format)
    assert table.rows_read == kept + sum(dropped.values())
    assert math.isclose(table.arrival_s[-1], span_s, abs_tol=1e-6)


def test_published_lengths_without_arrivals_say_so(memwall_data):
    with pytest.raises(InputError, match="must hold one for the arrival"):
        read_trace(memwall_data / "traces/arxiv/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv")
