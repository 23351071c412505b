"""Logs that somebody sent: fitted as the file's own reader and rung fit them, and refused in one sentence whatever they hold."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import MemwallError
from simulator.speculation.acceptance_text import fields_of_text
from simulator.speculation.ladder.upload import MOST_BYTES, uploaded_log

COUNTERS = b"""\
vllm:spec_decode_num_drafts_total 100
vllm:spec_decode_num_draft_tokens_total 200
vllm:spec_decode_num_accepted_tokens_total 120
vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 80
vllm:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 40
"""


def refused(name, content):
    with pytest.raises(MemwallError) as caught:
        uploaded_log(name, content)
    said = str(caught.value)
    assert "\n" not in said
    assert "memwall-logs" not in said
    return said


def test_counters_by_hand():
    found = uploaded_log("metrics.txt", COUNTERS)
    assert found.config.conditional == (0.8, 0.5)
    assert fields_of_text(found.rates) == {"conditional": (0.8, 0.5)}
    assert found.sentence == "metrics.txt: counts of 100 rounds of up to 2 drafts"


def test_rounds_by_hand():
    # Two requests of γ = 2. The last round of a request is cut off at its end, so that it refuses nothing.
    lines = [{"tokens_per_step": [3, 1, 2, 3]}, {"tokens_per_step": [2, 1, 3, 3]}]
    found = uploaded_log("a/b/mine.jsonl", "\n".join(map(json.dumps, lines)).encode())
    assert found.sentence == "mine.jsonl: 8 rounds of 2 requests with up to 2 drafts"
    # First drafts: kept in 6 of 8 rounds; second: in 4 of the 6 that kept the first.
    assert found.config.conditional == pytest.approx((6 / 8, 4 / 6), abs=1e-5)
    assert "mine.jsonl" in found.config.source


def test_a_csv_with_rounds_that_found_nothing_to_draft():
    rows = "request,accepted,drafted\n" + "1,2,2\n1,0,0\n" * 50
    found = uploaded_log("log.csv", rows.encode())
    assert found.config.match_probability == 0.5


def test_it_is_fitted_once():
    assert uploaded_log("metrics.txt", COUNTERS) is uploaded_log("metrics.txt", bytes(COUNTERS))
    assert uploaded_log("other.txt", COUNTERS).name == "other.txt"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a,b\n1,2\n", "acceptance"),
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"tokens_per_step": [0]}', "at least 1"),
        (b'{"tokens_per_step": "many"}', "list"),
        (b'{"tokens_per_step": [1e400]}', "count"),
        (b'{"tokens_per_step": [1000]}', "at most"),
    ],
)
def test_what_is_no_log(content, word):
    said = refused("mine.jsonl", content)
    assert word in said


def test_too_large():
    assert "50 MiB" in refused("mine.jsonl", bytes(MOST_BYTES + 1))


def test_names_do_not_lead_elsewhere():
    found = uploaded_log("../../etc/pass\x1b[31mwd", COUNTERS)
    assert "/" not in found.name
    assert found.name.isprintable()


def one_sentence_or_a_fit(content):
    try:
        uploaded_log("x.jsonl", content)
    except MemwallError as error:
        return "\n" not in str(error)
    return True


@given(st.binary(max_size=300))
def test_any_bytes(content):
    assert one_sentence_or_a_fit(content)


@given(st.randoms(use_true_random=False))
def test_a_damaged_log(luck: random.Random):
    whole = bytearray(COUNTERS)
    for _ in range(5):
        whole[luck.randrange(len(whole))] = luck.randrange(256)
    assert one_sentence_or_a_fit(bytes(whole))
