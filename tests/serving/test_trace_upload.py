"""Traces that somebody sends: every format, counted rows, harmless names, and one sentence whatever the bytes."""

from __future__ import annotations

import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import load_scenario, simulate
from simulator.errors import InputError, MemwallError
from simulator.figures.page import scenario_yaml
from simulator.serving import trace_upload
from simulator.serving.trace_upload import plain_name, uploaded_trace

AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"".join(
    b"2023-11-16 18:17:%02d.9799600,%d,%d\n" % (i, 400 + i, 5 + i) for i in range(40)
)
MOONCAKE = b"".join(
    json.dumps({"timestamp": 90 * i, "input_length": 1200, "output_length": 4, "hash_ids": [0, 1, 9 + i]}).encode()
    + b"\n"
    for i in range(30)
)
BAILIAN = b"".join(
    json.dumps({"timestamp": i, "input_length": 40, "output_length": 4, "hash_ids": [1, 2, 3 + i], "chat_id": i,
                "parent_chat_id": -1}).encode() + b"\n"
    for i in range(30)
)  # fmt: skip
BURST = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + b"".join(
    b"%d,ChatGPT,472,%d,490,Conversation log\n" % (i, i % 3) for i in range(30)
)
CSV = b"arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,0,5\n2,10,x\n3,20,5\n2.5,10,5\nbroken\n4,10,5\n"
LINES = b'{"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 3}\n{"arrival_s": 1, "prompt_tokens": 11, "output_tokens": 4}\n'


@pytest.mark.parametrize(
    ("name", "content", "format", "rows", "dropped"),
    [
        ("azure.csv", AZURE, "azure", 40, {}),
        ("mooncake.jsonl", MOONCAKE, "mooncake", 30, {}),
        ("bailian.jsonl", BAILIAN, "bailian", 30, {}),
        ("burst.csv", BURST, "burstgpt", 20, {"zero output tokens": 10}),
        ("mine.csv", CSV, "csv", 3, {"broken row": 1, "time going backwards": 1, "unreadable number": 1, "zero prompt tokens": 1}),
        ("mine.json", LINES, "jsonl", 2, {}),
        ("bom.csv", b"\xef\xbb\xbf" + CSV, "csv", 3, None),
    ],
)  # fmt: skip
def test_every_format_is_read_and_every_row_accounted_for(name, content, format, rows, dropped):
    found = uploaded_trace(name, content)
    assert (found.format, found.rows, found.name) == (format, rows, name)
    assert found.rows_read == found.rows + sum(found.dropped.values())
    if dropped is not None:
        assert found.dropped == dropped
    assert found.sentence.startswith(f"{name} (")
    assert all(f"{n:,} dropped ({reason})" in found.sentence for reason, n in found.dropped.items())


def test_a_scenario_replays_it_and_its_yaml_works_beside_the_senders_own_copy(tmp_path):
    found = uploaded_trace("my trace é.csv", AZURE)
    scenario = found.replaying(load_scenario("chat-8b-h100-eagle"), rate_per_s=5.0, limit=30)
    one = simulate(scenario)
    assert len(one.traffic) == 30
    text = scenario_yaml(scenario)
    assert "path: my trace é.csv" in text
    assert str(found.folder) not in text
    (tmp_path / "my trace é.csv").write_bytes(AZURE)
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    other = simulate(load_scenario(tmp_path / "s.yaml"))
    for a, b in zip(one.runs, other.runs, strict=True):
        assert np.asarray(a.requests).tobytes() == np.asarray(b.requests).tobytes()
        assert a.summary == b.summary
    assert one.traffic.source == other.traffic.source
    assert "/" not in one.traffic.source.replace("/s", "")  # a rate, and no folder


def test_the_same_file_is_read_once_and_lies_where_only_we_may_look(monkeypatch):
    first = uploaded_trace("once.csv", CSV)
    assert stat.S_IMODE(os.stat(first.folder.parent).st_mode) == 0o700
    monkeypatch.setattr(trace_upload, "read_trace", None)
    assert uploaded_trace("once.csv", CSV) is first
    assert (first.folder / "once.csv").read_bytes() == CSV


def test_what_nobody_used_for_longest_goes_and_comes_back(monkeypatch):
    monkeypatch.setattr(trace_upload, "KEPT", 2)
    first, *others = (uploaded_trace(f"{i}.csv", CSV) for i in range(3))
    assert not first.folder.exists()
    assert all(one.folder.exists() for one in others)
    assert uploaded_trace("0.csv", CSV) == first
    assert first.folder.exists()


def test_threads_that_send_the_same_file_get_the_same():
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: uploaded_trace("threads.csv", AZURE), range(32)))
    assert len({one.folder for one in found}) == 1
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("trace.csv", "trace.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a b.csv", "a b.csv"),
        ("~root.csv", "root.csv"),
        ("~/.ssh/x.csv", "x.csv"),
        (".hidden.csv", "hidden.csv"),
        ("..", "trace.csv"),
        ("", "trace.csv"),
        ("a\0b\n\x1b[31m.csv", "ab[31m.csv"),
        ("x" * 500 + ".jsonl", "x" * 94 + ".jsonl"),
        ("\u202egnp.csv", "gnp.csv"),
    ],
)
def test_names_are_harmless(name, plain):
    assert plain_name(name) == plain
    assert uploaded_trace(name, CSV).folder.parent == uploaded_trace("a.csv", CSV).folder.parent


@given(st.text(max_size=300))
def test_any_name_is_a_file_of_its_folder(name):
    plain = plain_name(name)
    assert plain not in ("", ".", "..")
    assert not re.search(r"[/\\\0]", plain)
    assert len(plain.encode()) <= 200
    assert uploaded_trace(name, CSV).rows == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not be empty"),
        (b"\xff\xfe\x00", "be UTF-8 text"),
        (b"a,b,c\n1,2,3\n", "hold one for the arrival"),
        (b"arrival_s,prompt_tokens,output_tokens\n", "hold at least one usable row"),
        (b"PK\x03\x04" + bytes(200), "be UTF-8 text"),
        (b"[" * 100_000, "must"),
        (b'{"a":' * 50_000, "must"),
        (b"arrival_s,prompt_tokens,output_tokens,class\n" + b"1,1,1," + b"c" * 500, "at most 60 characters"),
        (b"arrival_s,prompt_tokens,output_tokens,class\n" + b"".join(b"%d,1,1,c%d\n" % (i, i) for i in range(2000)),
         "different classes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_without_our_folder(content, said):
    with pytest.raises(MemwallError) as caught:
        uploaded_trace("bad.csv", content)
    sentence = str(caught.value)
    assert said in sentence
    assert "bad.csv" in sentence
    assert "memwall-" not in sentence
    assert "\n" not in sentence


def test_a_file_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(trace_upload, "MOST_BYTES", 2**20)
    with pytest.raises(InputError, match=r"big.csv: trace='2 MiB' must have at most 1 MiB"):
        uploaded_trace("big.csv", CSV + b"\n" * 2**21)


def test_what_a_simulation_says_later_names_the_file_alone():
    found = uploaded_trace("at-once.csv", b"arrival_s,prompt_tokens,output_tokens\n0,10,5\n0,10,5\n")
    scenario = found.replaying(load_scenario("chat-8b-h100-eagle"), rate_per_s=2.0)
    with pytest.raises(InputError, match=r"^at-once.csv: rate_per_s=2.0 must be left out where"), found.named():
        simulate(scenario)
    with pytest.raises(InputError, match=r"^at-once.csv: .* must have either time_scale or rate_per_s"):
        found.replaying(scenario, rate_per_s=2.0, time_scale=3.0)


@settings(max_examples=60)
@given(st.one_of(
    st.binary(max_size=400),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")),
    st.tuples(st.sampled_from([AZURE, MOONCAKE, BAILIAN, BURST, CSV, LINES]), st.integers(0, 400), st.binary(max_size=6))
    .map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]),
))  # fmt: skip
def test_whatever_the_bytes_only_our_errors_come_out(content):
    said = ""
    try:
        found = uploaded_trace("any.csv", content)
    except MemwallError as error:
        said = str(error)
    else:
        assert found.rows > 0
        assert found.rows_read == found.rows + sum(found.dropped.values())
    assert "memwall-" not in said


def test_a_reader_that_breaks_is_no_traceback(monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(trace_upload, "read_trace", broken)
    with pytest.raises(InputError, match="must be a trace that can be read to its end"):
        uploaded_trace("breaks.csv", CSV + b"9,9,9\n")
    assert "broke its reader" in caplog.text
