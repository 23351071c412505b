"""Result files of serving benchmarks: small ones in the real formats, written here by hand, and damaged ones."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.calibration.server_record import Statistic
from simulator.calibration.server_results import read_server_results
from simulator.errors import InputError
from simulator.serving.lengths import Uniform

# Four requests sent at 0, 1, 2 and 3 s of a clock that started at 100 s; the third failed. TTFT 0.1, 0.2, 0.3 s; gaps of
# 10, 20 and 30 ms; 3, 3 and 2 tokens: E2E 0.12, 0.24, 0.33 s, TPOT 10, 20, 30 ms.
VLLM = {
    "date": "20260722-060114", "endpoint_type": "openai", "backend": "openai", "label": None,
    "model_id": "meta-llama/Llama-3.1-8B-Instruct", "tokenizer_id": "x", "num_prompts": 4, "request_rate": 1.0,
    "burstiness": 1.0, "max_concurrency": None, "duration": 4.0, "completed": 3, "failed": 1,
    "total_input_tokens": 60, "total_output_tokens": 8, "request_throughput": 0.75, "request_goodput": None,
    "output_throughput": 2.0, "total_token_throughput": 17.0, "max_output_tokens_per_s": 3.0,
    "max_concurrent_requests": 1, "rtfx": 0.0,
    "mean_ttft_ms": 200.0, "median_ttft_ms": 200.0, "std_ttft_ms": 81.64965809277261, "p99_ttft_ms": 298.0,
    "mean_tpot_ms": 20.0, "median_tpot_ms": 20.0, "std_tpot_ms": 8.16, "p99_tpot_ms": 29.8,
    "mean_itl_ms": 18.0, "median_itl_ms": 20.0, "std_itl_ms": 7.48, "p99_itl_ms": 29.6, "p99.9_itl_ms": 29.96,
}  # fmt: skip
DETAILS = {
    "input_lens": [10, 20, 25, 30], "output_lens": [3, 3, 0, 2], "ttfts": [0.1, 0.2, 0.0, 0.3],
    "itls": [[0.01, 0.01], [0.02, 0.02], [], [0.03]], "start_times": [100.0, 101.0, 102.0, 103.0],
    "generated_texts": ["a", "b", "", "c"], "errors": ["", "", "Bad Gateway", ""],
}  # fmt: skip
SGLANG = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": math.inf, "max_concurrency": 2,
    "sharegpt_output_len": None, "random_input_len": 100, "random_output_len": 40, "random_range_ratio": 0.5,
    "server_info": {"model_path": "meta-llama/Llama-3.1-8B", "tp_size": 1}, "duration": 2.0, "completed": 4,
    "total_input_tokens": 300, "total_output_tokens": 120, "total_output_tokens_retokenized": 119,
    "request_throughput": 2.0, "input_throughput": 150.0, "output_throughput": 60.0, "total_throughput": 210.0,
    "mean_e2e_latency_ms": 900.0, "median_e2e_latency_ms": 890.0, "std_e2e_latency_ms": 50.0, "p90_e2e_latency_ms": 980.0,
    "p99_e2e_latency_ms": 990.0, "mean_ttft_ms": 50.0, "median_ttft_ms": 49.0, "p99_ttft_ms": 60.0,
    "mean_tpot_ms": 29.0, "median_tpot_ms": 29.0, "p99_tpot_ms": 31.0, "mean_itl_ms": 29.0, "median_itl_ms": 28.0,
    "p95_itl_ms": 35.0, "p99_itl_ms": 40.0, "max_itl_ms": 41.0, "concurrency": 1.8, "accept_length": 2.5,
}  # fmt: skip


def spread(mean, low, high, count=3):
    """A distribution as GuideLLM states it, with its ends for all percentiles."""
    names = ("p001", "p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p999")
    percentiles = {name: (low if i < 5 else mean if i == 5 else high) for i, name in enumerate(names)}
    return {
        "successful": {"mean": mean, "median": mean, "mode": low, "variance": 1.0, "std_dev": 1.0, "min": low, "max": high,
                       "count": count, "total_sum": mean * count, "percentiles": percentiles, "pdf": None},
        "errored": None, "incomplete": None,
    }  # fmt: skip


METRICS = {
    "requests_per_second": spread(0.75, 0.1, 2.0), "request_concurrency": spread(0.2, 0.1, 1.0),
    "request_latency": spread(0.23, 0.12, 0.33), "time_to_first_token_ms": spread(200.0, 100.0, 300.0),
    "time_per_output_token_ms": spread(50.0, 40.0, 60.0), "inter_token_latency_ms": spread(18.0, 10.0, 30.0),
    "prompt_token_count": spread(20, 10, 30), "output_token_count": spread(3, 2, 3),
    "output_tokens_per_second": spread(2.0, 0.5, 4.0), "tokens_per_second": spread(17.0, 1.0, 30.0),
}  # fmt: skip
TOTALS = {"successful": 3, "incomplete": 2, "errored": 1, "total": 6}
GUIDELLM_OLD = {
    "benchmarks": [
        {
            "type_": "generative_benchmark", "run_id": "r", "start_time": 1000.0, "end_time": 1004.0, "duration": 4.0,
            "args": {"strategy": {"type_": "poisson", "rate": 1.5, "initial_burst": True, "max_concurrency": None},
                     "warmup_number": None, "warmup_duration": None, "cooldown_number": None, "cooldown_duration": None},
            "worker": {"backend_type": "openai_http", "backend_model": "org/old"},
            "metrics": METRICS, "request_totals": TOTALS,
            "requests": {
                "successful": [
                    {"type_": "generative_text_response", "prompt_tokens": n, "output_tokens": m, "start_time": 1000.0 + at,
                     "end_time": 1000.0 + at + e2e, "request_latency": e2e, "time_to_first_token_ms": 1e3 * ttft}
                    for n, m, at, ttft, e2e in [(30, 2, 3.0, 0.3, 0.33), (10, 3, 0.5, 0.1, 0.12), (20, 3, 1.0, 0.2, 0.24)]
                ],
                "incomplete": [], "errored": [],
            },
        }
    ]
}  # fmt: skip
GUIDELLM_NEW = {
    "metadata": {"version": 1, "guidellm_version": "0.6.0"},
    "args": {"profile": "sweep", "backend_kwargs": {"model": "org/args"}},
    "benchmarks": [
        {
            "type_": "generative_benchmark", "duration": 4.0,
            "config": {"strategy": {"type_": "concurrent", "worker_count": 10, "max_concurrency": 32, "streams": 32},
                       "backend": {"model": "org/new"}, "warmup": {"percent": 0.1, "value": None, "mode": "prefer_duration"}},
            "metrics": {**METRICS, "request_totals": TOTALS},
            "requests": {"successful": [
                {"type_": "generative_request_stats", "prompt_tokens": 10, "output_tokens": 3, "request_start_time": 1000.5,
                 "request_latency": 0.12, "time_to_first_token_ms": 100.0}]},
        },
        {"config": {"strategy": {"type_": "synchronous"}}, "metrics": {**METRICS, "request_totals": TOTALS}},
        {"config": {"strategy": {"type_": "constant", "rate": 4.0}}, "metrics": {**METRICS, "request_totals": TOTALS}},
        {"config": {"strategy": {"type_": "throughput"}}, "metrics": {**METRICS, "request_totals": TOTALS}},
        {"config": {"strategy": {"type_": "poisson", "rate": 9.0}},
         "metrics": {"request_totals": {**TOTALS, "successful": 0}}},
    ],
}  # fmt: skip
CSV = """arrival_ms,prompt_tokens,output_tokens,ttft_s,e2e_ms,error
2000,30,2,0.3,330,
0,10,3,0.1,120,
1000,20,3,0.2,240,
1500,20,3,0.2,240,timed out
"""


@pytest.fixture
def read(tmp_path):
    def written(*documents):
        path = tmp_path / "result.json"
        path.write_text("\n".join(d if isinstance(d, str) else json.dumps(d) for d in documents))
        return read_server_results(path)

    return written


@pytest.fixture
def sentence(read):
    def said(*documents):
        with pytest.raises(InputError) as caught:
            read(*documents)
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        return text

    return said


def test_vllm_in_detail(read):
    (result,) = read({**VLLM, **DETAILS})
    assert (result.tool, result.model, result.backend) == ("vLLM bench serve", VLLM["model_id"], "openai")
    assert (result.rate_per_s, result.burstiness, result.max_concurrency, result.duration_s) == (1.0, 1.0, None, 4.0)
    assert (result.completed, result.dropped) == (3, {"failed": 1})
    requests = result.requests
    assert requests.prompt_tokens.tolist() == [10, 20, 30]
    assert requests.sent_s.tolist() == [0.0, 1.0, 3.0]
    np.testing.assert_allclose(requests.ttft_s, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(requests.e2e_s, [0.12, 0.24, 0.33])
    np.testing.assert_allclose(requests.tpot_s, [0.01, 0.02, 0.03])
    assert result.rates == {"requests_per_s": 0.75, "output_tokens_per_s": 2.0, "total_tokens_per_s": 17.0}


def test_what_a_file_states_is_what_its_requests_give(read):
    # The file's figures above are worked out by hand; here ours follow from its lists by the same definitions.
    (result,) = read({**VLLM, **DETAILS})
    for statistic in result.statistics:
        if statistic.metric in ("ttft", "tpot"):
            ours = statistic.of(getattr(result.requests, f"{statistic.metric}_s"))
            assert ours == pytest.approx(statistic.value_s, rel=1e-3), statistic.label


def test_vllm_summary_alone_gives_every_request_the_mean_lengths(read):
    (result,) = read(VLLM)
    assert result.requests is None
    assert (result.lengths.prompt.tokens, result.lengths.output.tokens) == (20, 3)
    assert any("mean lengths, 20 and 3 tokens" in note for note in result.notes)
    assert result.statistic("itl", "percentile", 99.9).value_s == pytest.approx(0.02996)


def test_latencies_are_taken_where_a_newer_client_writes_them(read):
    (result,) = read({**VLLM, **DETAILS, "latencies": [0.13, 0.25, 0.0, 0.34], "queue_times": [0, 0, 0, 0]})
    np.testing.assert_allclose(result.requests.e2e_s, [0.13, 0.25, 0.34])


def test_requests_without_tokens_are_dropped_though_the_tool_counts_them(read):
    silent = {**DETAILS, "errors": ["", "", "", ""], "ttfts": [0.1, 0.2, 0.9, 0.3]}
    result = read({**VLLM, **silent, "mean_ttft_ms": 375.0})[0]
    assert (result.completed, result.dropped) == (3, {"no output tokens": 1})


def test_an_endpoint_that_does_not_stream_tells_only_e2e(read):
    whole = {name: 0.0 for name in VLLM if name.endswith("_ms")}
    lists = {**DETAILS, "ttfts": [0.0] * 4, "itls": [[]] * 4, "latencies": [0.12, 0.24, 0.0, 0.33]}
    (result,) = read({**VLLM, **lists, **whole, "mean_e2el_ms": 230.0})
    assert [(s.metric, s.kind) for s in result.statistics] == [("e2e", "mean")]
    assert result.requests.ttft_s is None
    np.testing.assert_allclose(result.requests.e2e_s, [0.12, 0.24, 0.33])


def test_sglang_line_by_line(read):
    first, second = read(SGLANG, {**SGLANG, "request_rate": 3.0})
    assert (first.tool, first.model) == ("SGLang bench_serving", "meta-llama/Llama-3.1-8B")
    assert (first.rate_per_s, second.rate_per_s, first.max_concurrency) == (math.inf, 3.0, 2)
    assert first.lengths.prompt == Uniform(kind="uniform", low=50, high=100)
    assert first.lengths.output == Uniform(kind="uniform", low=20, high=40)
    assert first.tokens_per_round == 2.5
    assert first.rates["mean_in_flight"] == 1.8
    assert first.statistic("e2e", "percentile", 90.0).value_s == pytest.approx(0.98)
    assert "run 2" in second.source


def test_sglang_in_detail_has_no_start_times(read):
    counts = {"completed": 3, "total_input_tokens": 60, "total_output_tokens": 8, "duration": 4.0}
    rates = {"request_throughput": 0.75, "input_throughput": 15.0, "output_throughput": 2.0, "total_throughput": 17.0}
    details = {name: values for name, values in DETAILS.items() if name != "start_times"}
    (result,) = read(
        {**SGLANG, **counts, **rates, **details, "mean_ttft_ms": 200.0, "median_ttft_ms": 200.0, "p99_ttft_ms": 298}
    )
    assert result.requests.sent_s is None
    assert any("when each request was sent" in note for note in result.notes)


def test_guidellm_before_0_4(read):
    (result,) = read(GUIDELLM_OLD)
    assert (result.tool, result.model, result.backend) == ("GuideLLM", "org/old", "openai_http")
    assert (result.rate_per_s, result.burstiness, result.completed) == (1.5, 1.0, 3)
    assert result.dropped == {"unfinished when the run ended": 2, "failed": 1}
    assert result.requests.sent_s.tolist() == [0.0, 0.5, 2.5]
    assert result.requests.prompt_tokens.tolist() == [10, 20, 30]
    np.testing.assert_allclose(result.requests.tpot_s, [0.01, 0.02, 0.03])
    tpot = result.statistic("tpot", "percentile", 99.0)
    assert (tpot.value_s, tpot.by_token, tpot.stepped) == (0.03, True, True)
    assert not any(s.name.startswith("time_per_output") for s in result.statistics)


def test_guidellm_sweep_since_0_4(read):
    concurrent, synchronous, constant, throughput = read(GUIDELLM_NEW)
    assert (concurrent.rate_per_s, concurrent.max_concurrency, concurrent.model) == (math.inf, 32, "org/new")
    assert any("a sample" in note for note in concurrent.notes)
    assert any("warm-up" in note for note in concurrent.notes)
    assert concurrent.requests.sent_s is None
    assert (synchronous.rate_per_s, synchronous.max_concurrency, synchronous.model) == (math.inf, 1, "org/args")
    assert (constant.rate_per_s, constant.burstiness) == (4.0, math.inf)
    assert (throughput.rate_per_s, throughput.max_concurrency) == (math.inf, None)
    u = np.array([0.0, 0.5, 1.0])
    assert constant.lengths.prompt.quantile(u).tolist() == pytest.approx([10.0, 20.0, 30.0])


def test_csv_of_requests(read):
    (result,) = read(CSV)
    assert (result.completed, result.dropped) == (3, {"failed": 1})
    assert result.requests.sent_s.tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(result.requests.tpot_s, [0.01, 0.02, 0.03])
    assert result.statistic("ttft").value_s == pytest.approx(0.2)
    assert result.statistic("e2e", "percentile", 50.0).value_s == pytest.approx(0.24)
    assert result.duration_s == pytest.approx(2.33)
    assert result.rates == {"requests_per_s": pytest.approx(3 / 2.33), "output_tokens_per_s": pytest.approx(8 / 2.33)}


def test_csv_tpot_stands_for_e2e(read):
    (result,) = read("arrival_s,prompt_tokens,output_tokens,ttft_s,tpot_ms\n0,10,5,1,20\n")
    assert result.requests.e2e_s.tolist() == pytest.approx([1.08])


def test_csv_rows_are_used_or_counted(read):
    rows = [
        "0,10,5,1,2",
        "0,10,5,x,2",
        "0,10,0,1,2",
        "0,0,5,1,2",
        "0,1.5,5,1,2",
        "0,10,5,-1,2",
        "0,10,5,2,1",
        "0,10,5",
        ",1,1,1,1",
    ]
    (result,) = read("arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s\n" + "\n".join(rows))
    assert result.completed == 1
    assert result.completed + sum(result.dropped.values()) == len(rows)


def test_statistics_by_token_and_stepped():
    # 1 s counts once and 3 s three times: mean 2.5, variance (2.25 + 3·0.25)/4 = 0.75; a quarter lies at or below 1 s.
    values, weights = np.array([3.0, 1.0]), np.array([3.0, 1.0])

    def of(kind, percentile=None):
        return Statistic("tpot", kind, 0.0, "x", percentile, by_token=True, stepped=True).of(values, weights)

    assert (of("mean"), of("sd"), of("min"), of("max")) == (2.5, pytest.approx(0.75**0.5), 1.0, 3.0)
    assert (of("percentile", 25.0), of("percentile", 26.0), of("percentile", 100.0)) == (1.0, 3.0, 3.0)
    assert Statistic("ttft", "percentile", 0.0, "x", 50.0).of(values) == 2.0
    assert math.isnan(Statistic("ttft", "mean", 0.0, "x").of(np.empty(0)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"completed": 5}, "completed=5 must be at most num_prompts=4"),
        ({"completed": 0}, "completed=0 must be at least 1"),
        ({"completed": 2, "request_throughput": 0.5}, "completed=2 must be the 3 requests"),
        ({"completed": True}, "completed=True must be a finite number"),
        ({"completed": 3.5}, "completed=3.5 must be a whole number"),
        ({"failed": 9}, "failed=9 must be at most num_prompts - completed = 1"),
        ({"duration": -1.0}, "duration=-1.0 must be a finite number above 0"),
        ({"duration": None}, "duration='(absent)' must be given"),
        ({"duration": 8.0}, "request_throughput=0.75 must be what was counted over duration=8 s, 0.375"),
        ({"output_throughput": 3.0}, "output_throughput=3.0 must be what was counted"),
        ({"total_output_tokens": None}, "embedding models decode nothing"),
        ({"request_rate": 0}, "request_rate=0 must be a finite number above 0"),
        ({"request_rate": "fast"}, "request_rate='fast' must be a finite number"),
        ({"burstiness": -1}, "burstiness=-1 must be a finite number above 0"),
        ({"mean_ttft_ms": math.nan}, "mean_ttft_ms=nan must be a finite number of at least 0"),
        ({"p99_tpot_ms": -1.0}, "p99_tpot_ms=-1.0 must be a finite number of at least 0"),
        ({"p99_ttft_ms": 100.0}, "p99_ttft_ms='0.1 s' must be at least median_ttft_ms, 0.2 s"),
        ({"mean_ttft_ms": 250.0}, "mean_ttft_ms='0.25 s' must be the mean over its requests, 0.2 s"),
        ({"ttfts": [0.1, 0.2, 0.3]}, "ttfts='3 values' must have as many values as input_lens, 4"),
        ({"ttfts": 3}, "ttfts='int' must be a list"),
        ({"ttfts": [0.1, -0.2, 0, 0.3]}, "ttfts[1]=-0.2 must be a finite number of at least 0"),
        ({"ttfts": [0.1, "x", 0, 0.3]}, "ttfts[1]='x' must be a finite number"),
        ({"itls": [[0.1], 3, [], []]}, "itls[1]='int' must be a list of seconds"),
        ({"itls": [[math.nan], [], [], []]}, "itls[0][0]=nan must be a finite number"),
        ({"input_lens": [1.5, 1, 1, 1]}, "input_lens[0]=1.5 must be a number of tokens"),
        ({"latencies": [0.01, 1, 1, 1]}, "latencies[0]='0.01' must be at least its TTFT, 0.1 s"),
        ({"start_times": [10**400, 1, 1, 1]}, "must be a finite number"),
    ],
)  # fmt: skip
def test_contradictions_and_damage_are_named_by_field(sentence, changed, said):
    assert said in sentence({**VLLM, **DETAILS, **changed})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "content='(empty)' must be a result of vllm bench serve"),
        ("{}", "content='(no fields)' must be a result of vllm bench serve"),
        ('{"a": 1, "b": 2}', "content='a, b' must be a result of vllm bench serve, SGLang bench_serving or GuideLLM"),
        ("[1]", "content='list' must be a result of"),
        (json.dumps(VLLM)[:-40], "is the file cut short?"),
        (json.dumps(SGLANG) + "\n" + json.dumps(SGLANG)[:50], "content='line 2' must be valid JSON"),
        ('{"completed": ' + "1" * 5000 + "}", "ordinary numbers"),
        ("[" * 100_000, "depth"),
        ("hello\nworld\n", "must hold ttft or e2e"),
        ("arrival_s,prompt_tokens,output_tokens,tftt_ms\n", "did you mean ttft_ms?"),
        ("arrival_s,prompt_tokens,output_tokens,ttft_ms\n", "0 usable of 0 rows"),
        ("prompt_tokens,output_tokens,ttft_ms\n1,1,1\n", "hold one for the arrival"),
        ('{"benchmarks": []}', "must hold one that answered a request"),
        ('{"benchmarks": [3]}', "must hold one that answered a request"),
    ],
)  # fmt: skip
def test_what_is_no_result_is_refused_in_one_sentence(sentence, text, said):
    assert said in sentence(text)


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "big.json"
    path.write_text(json.dumps(VLLM))
    monkeypatch.setattr("simulator.calibration.server_results.MOST_BYTES", 100)
    with pytest.raises(InputError, match="must be at most 100 bytes"):
        read_server_results(path)
    with pytest.raises(InputError, match="must be an existing file"):
        read_server_results(tmp_path / "absent.json")


DOCUMENTS = [{**VLLM, **DETAILS}, SGLANG, GUIDELLM_OLD, GUIDELLM_NEW]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(10**400), st.just([]), st.just({}),
    st.lists(st.floats(), max_size=4), st.just([[]] * 4), st.just({"successful": [{}]}),
)  # fmt: skip


def places(document, path=()):
    """Every place in a JSON value."""
    yield path
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


@given(st.data())
def test_any_value_anywhere_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    document = deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(document))))
        value = deepcopy(data.draw(VALUES))
        if not path:
            document = value
            break
        at = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    said, results = "one line", ()
    try:
        results = read_server_results(path)
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert all(result.completed >= 1 for result in results)


@given(st.text(alphabet='{}[]",:0123456789.eE-+ \nabtNI\x00é', max_size=60))
def test_any_text_is_read_or_refused_in_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_server_results(path)
    assert len(str(caught.value).splitlines()) == 1
