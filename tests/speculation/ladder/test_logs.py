"""Logs of every layout, read by hand; impossible counts refused in one sentence that names line, value and rule."""

import json

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.records import validate
from simulator.speculation.acceptance import AcceptanceConfig, RecordedAcceptance
from simulator.speculation.ladder.counters import PositionCounts
from simulator.speculation.ladder.logs import read_log
from simulator.speculation.recording import Recording

PROMETHEUS = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7567e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 300.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 80.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 50.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 20.0
vllm:num_requests_running{engine="0"} 3
"""


def file_of(tmp_path, text, name="log.jsonl"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else "\n".join(map(json.dumps, text)) + "\n")
    return path


def said(path, gamma=None) -> str:
    with pytest.raises(InputError) as caught:
        read_log(path, gamma)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Steps by request


def test_spec_bench(tmp_path):
    lines = [
        {"question_id": 81, "decoding_steps": [2, 1], "new_tokens": [5, 1], "tokens_per_step": [3, 2, 1]},
        {"question_id": 82, "tokens_per_step": [1, 4]},
        {"question_id": 83, "tokens_per_step": []},
    ]
    found = read_log(file_of(tmp_path, lines))
    assert isinstance(found, Recording)
    assert (found.accepted, found.drafted) == (((2, 1, 0), (0, 3)), ((3, 3, 3), (3, 3)))
    assert (found.gamma, found.without_rounds) == (3, 1)
    assert read_log(file_of(tmp_path, lines), gamma=5).gamma == 5


def test_spec_bench_s_own_answers(tmp_path):
    line = {"question_id": 1, "choices": [{"index": 0, "turns": ["a"], "accept_lengths": [2, 1, 3]}]}
    assert read_log(file_of(tmp_path, [line])).accepted == ((1, 0, 2),)


def test_the_reference_decoder_s_measurements(tmp_path):
    line = {"kind": "acceptance", "gamma": 4, "accepted_by_request": [[4, 1], [2]]}
    assert read_log(file_of(tmp_path, [{"kind": "header"}, line])).accepted == ((4, 1), (2,))
    assert "hold one recording to fit, not 2" in said(file_of(tmp_path, [line, line]))


def test_vllm_s_responses_in_detail(tmp_path):
    detail = {"num_spec_steps": 3, "per_step_accepted": [1, 0, 2], "per_step_drafted": [3, 0, 3]}
    found = read_log(file_of(tmp_path, [{"id": "x", "metrics": {"speculative_decoding": detail}}] * 2))
    assert found.accepted == ((1, 0, 2),) * 2
    assert found.drafted == ((3, 0, 3),) * 2
    assert found.match_probability == pytest.approx(2 / 3)


def test_csv_in_any_order(tmp_path):
    text = "Request,step,tokens,drafted\nb,1,2,4\na,2,1,4\na,1,5,4\n"
    found = read_log(file_of(tmp_path, text, "log.csv"))
    assert (found.accepted, found.drafted, found.gamma) == (((1,), (4, 0)), ((4,), (4, 4)), 4)
    found = read_log(file_of(tmp_path, "request,accepted\n1,2\n1,0\n2,1\n", "log.csv"))
    assert (found.accepted, found.gamma) == (((2, 0), (1,)), 2)


# Counts by position


def test_vllm_s_counters(tmp_path):
    found = read_log(file_of(tmp_path, PROMETHEUS, "metrics.txt"))
    assert isinstance(found, PositionCounts)
    assert found.marginal == pytest.approx([0.8, 0.5, 0.2])
    assert found.conditional == pytest.approx([0.8, 5 / 8, 2 / 5])
    twice = PROMETHEUS + PROMETHEUS.replace('engine="0"', 'engine="1"')
    assert read_log(file_of(tmp_path, twice, "metrics.txt")).rounds == 200


@pytest.mark.parametrize("listed", [[80, 50, 20], {"0": 80, "1": 50, "2": 20}])
def test_counters_as_json(tmp_path, listed):
    document = {"vllm:spec_decode_num_drafts": 100, "vllm:spec_decode_num_accepted_tokens_per_pos": listed}
    assert read_log(file_of(tmp_path, json.dumps(document, indent=1))).marginal == pytest.approx([0.8, 0.5, 0.2])
    bare = {"num_drafts": 100, "num_accepted_tokens_per_pos": listed, "num_accepted_tokens": 150}
    assert read_log(file_of(tmp_path, [bare])).rounds == 100


@pytest.mark.parametrize(
    "line",
    [
        {"metrics": {"speculative_decoding": {"acceptance_histogram": {"0": 20, "1": 30, "3": 50}}}},
        {"meta_info": {"spec_accept_histogram": [20, 30, 0, 50]}},
    ],
)
def test_histograms_of_drafts_kept(tmp_path, line):
    found = read_log(file_of(tmp_path, [line, line]))
    assert found.rounds == 200
    assert found.marginal == pytest.approx([0.8, 0.5, 0.5])


# Impossible counts


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ({"tokens_per_step": [2, 0]}, "tokens_per_step[1]=0 must be a count of at least 1: a step yields the target's own"),
        ({"tokens_per_step": [2, -1]}, "tokens_per_step[1]=-1 must be a count of at least 1"),
        ({"tokens_per_step": [2, 1.5]}, "tokens_per_step[1]=1.5 must be a count"),
        ({"tokens_per_step": [True]}, "tokens_per_step[0]=True must be a count"),
        ({"tokens_per_step": 7}, "must be a list of counts"),
        ({"tokens_per_step": [2, 1], "decoding_steps": [3]}, "decoding_steps=3 must be the 2 steps of tokens_per_step"),
        ({"tokens_per_step": [2, 1], "new_tokens": 4}, "new_tokens=4 must be the 3 tokens of tokens_per_step"),
        ({"metrics": {"speculative_decoding": {"per_step_accepted": [3], "per_step_drafted": [2]}}}, "accepted[0]=3 must be at most the 2 drafted"),
        ({"metrics": {"speculative_decoding": {"per_step_accepted": [3], "per_step_drafted": [4, 4]}}}, "have as many steps as the 1"),
    ],
)  # fmt: skip
def test_impossible_steps(tmp_path, line, rule):
    path = file_of(tmp_path, [{"tokens_per_step": [1]}, line])
    text = said(path)
    assert rule in text
    assert f"{path}: line 2" in text or "entry 2" in text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("request,tokens,drafted\na,5,3\n", "line 2: tokens=5 must be at most the 3 drafted and the target's own"),
        ("request,accepted,drafted\na,1,3\na,4,3\n", "line 3: accepted=4 must be at most the 3 drafted"),
        ("request,tokens\na,0\n", "line 2: tokens=0 must be at least 1"),
        ("request,tokens\na,x\n", "line 2: tokens='x' must be a count"),
        ("request,tokens\na,1e99\n", "line 2: tokens='1e99' must be a count"),
        ("request,step,tokens\na,1,2\na,1,3\n", "step=1 must stand once per request"),
        ("request,what\na,1\n", "must tell of acceptance"),
        ("request,tokens\n", "must have at least one request with a step"),
        ("", "must tell of acceptance"),
    ],
)
def test_impossible_csv(tmp_path, text, rule):
    assert rule in said(file_of(tmp_path, text, "log.csv"))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"1"} 50.0', '"1"} 90.0', "num_accepted_tokens_per_pos[1]='90' must be 0 to the 80 of the position before"),
        ('"0"} 80.0', '"0"} 180.0', "num_accepted_tokens_per_pos[0]='180' must be 0 to the 100 rounds"),
        ("accepted_tokens_total{engine=\"0\",model_name=\"m\"} 150.0", "accepted_tokens_total{engine=\"0\",model_name=\"m\"} 151.0", "num_accepted_tokens='151' must be the 150 of all positions together"),
        ("} 300.0", "} 30.0", "num_draft_tokens='30' must be at least the 150 accepted"),
        ("} 100.0", "} 0.0", "num_drafts='0' must be above 0"),
        ("} 100.0", "} -1", "line 3: num_drafts='-1' must be a count"),
        ("} 100.0", "} NaN", "line 3: num_drafts='NaN' must be a count"),
        ('position="1"', 'position="7"', "num_accepted_tokens_per_pos='0, 2, 7' must have a count for every position"),
        (',position="1"', "", "position='(absent)' must be a label"),
        ('vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0\n', "", "num_drafts='(absent)' must be given"),
    ],
)  # fmt: skip
def test_impossible_counters(tmp_path, old, new, rule):
    assert old in PROMETHEUS
    assert rule in said(file_of(tmp_path, PROMETHEUS.replace(old, new), "metrics.txt"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"a": 1}\n', "must tell of acceptance"),
        ('{"tokens_per_step": [1]}\n{"tokens_per', "line 2: content='(damaged)' must be JSON"),
        ("[1, 2]", "entry 1: content='int' must be a JSON object"),
        ('{"meta_info": {"spec_accept_histogram": [5]}}', "have 2 to"),
    ],
)
def test_files_that_tell_nothing(tmp_path, text, rule):
    assert rule in said(file_of(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    assert "must be a readable file" in said(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{")
    assert "no UTF-8 text" in said(tmp_path / "bytes")
    path = file_of(tmp_path, [{"tokens_per_step": [5]}])
    assert "accepted[0]=4 must be at most the 3 drafted" in said(path, gamma=3)
    assert "gamma=0 must be 1 to" in said(path, gamma=0)
    assert "gamma=2 must be at least the 3 positions" in said(file_of(tmp_path, PROMETHEUS, "m.txt"), gamma=2)


def test_histograms_of_impossible_length(tmp_path):
    histogram = {"meta_info": {"spec_accept_histogram": {"0": 3, str(10**12): 1}}}
    assert "must have 2 to 1001 entries" in said(file_of(tmp_path, [histogram]))


def test_misspelt_fields_are_named(tmp_path):
    assert "did you mean tokens_per_step (for tokens_per_steps)?" in said(
        file_of(tmp_path, [{"tokens_per_steps": [1, 2]}])
    )
    assert "did you mean request (for requst)?" in said(file_of(tmp_path, "requst,tokens\n1,2\n", "log.csv"))
    assert "tokens='(absent)' must be a count" in said(file_of(tmp_path, "request,tokens\n1\n", "log.csv"))


# A log replays


def test_logs_of_steps_replay(tmp_path):
    lines = [{"tokens_per_step": [5, 2, 1]}, {"tokens_per_step": [3, 4]}]
    config = validate(AcceptanceConfig, {"replay": str(file_of(tmp_path, lines))}, "here")
    law = config.law()
    assert isinstance(law, RecordedAcceptance)
    assert law.live_tokens(4) == pytest.approx(15 / 5)
    text = "request,tokens\na,5\na,2\na,1\nb,3\nb,4\n"
    again = validate(AcceptanceConfig, {"replay": str(file_of(tmp_path, text, "log.csv"))}, "here").law()
    assert np.array_equal(again.recording.rounds, law.recording.rounds)


def test_counts_do_not_replay(tmp_path):
    path = file_of(tmp_path, [{"meta_info": {"spec_accept_histogram": [20, 30]}}])
    with pytest.raises(InputError, match="must be a file with recorded rounds"):
        validate(AcceptanceConfig, {"replay": str(path)}, "here").law()
