import json
import math
from collections import OrderedDict

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.randomness import STREAM_RESAMPLED_ROW, uniform
from simulator.serving.trace_labels import conversations
from simulator.serving.traces import read_trace
from simulator.serving.traffic import Trace, generate, generate_chunks, with_load

SEED = 20250206
Z = 3.29  # 99.9 % two-sided


def csv(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return str(tmp_path / "t.csv")


def jsonl(tmp_path, *rows):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(tmp_path / "t.jsonl")


def trace(path, **fields):
    return Trace(kind="trace", path=path, **fields)


PLAIN = "arrival,prompt_tokens,output_tokens\n0,10,1\n2,20,2\nx,1,1\n6,30,3\n"


# Literal, by hand


def test_a_repeated_trace_by_hand(tmp_path):
    # Span 6 s and a mean gap of 3 s: it begins again after 9 s.
    requests = generate(trace(csv(tmp_path, PLAIN), repeat=2), SEED)
    assert requests.arrival_s.tolist() == [0, 2, 6, 9, 11, 15]
    assert requests.prompt_tokens.tolist() == [10, 20, 30] * 2
    assert requests.row.tolist() == [0, 1, 3] * 2
    assert (requests.rows_read, dict(requests.dropped)) == (7, {"unreadable time": 1})
    assert requests.source == "6 requests, 3 of 4 rows of t.csv (CSV), played 2 times"


def test_as_many_as_asked_for(tmp_path):
    path = csv(tmp_path, PLAIN)
    assert generate(trace(path, requests=4, time_scale=0.5), SEED).arrival_s.tolist() == [0, 1, 3, 4.5]
    # At 2 /s the gaps are half a second on average, between the playings too.
    assert generate(trace(path, requests=6, rate_per_s=2), SEED).arrival_s.tolist() == pytest.approx(
        [0, 1 / 3, 1, 1.5, 1.5 + 1 / 3, 2.5]
    )
    assert len(generate(trace(path, requests=2), SEED)) == 2


def test_resampled_rows_by_hand(tmp_path):
    requests = generate(trace(csv(tmp_path, PLAIN), resample=True, rate_per_s=5, requests=50), SEED)
    for i in range(50):
        row = int(3 * uniform(SEED, i, STREAM_RESAMPLED_ROW, 0))
        assert requests.prompt_tokens[i] == (10, 20, 30)[row]
        assert requests.output_tokens[i] == (1, 2, 3)[row]
        assert requests.row[i] == (0, 1, 3)[row]
    assert requests.source == "50 requests drawn from 3 of 4 rows of t.csv (CSV), arriving at 5 /s"


def test_labels_by_hand(tmp_path):
    path = csv(
        tmp_path,
        "arrival,prompt_tokens,output_tokens,Session ID,class,priority\n"
        "0,10,5,a,chat,1\n1,10,5,b,code,0\n2,20,5,a,chat,1\n3,12,5,b,code,0\n4,9,5,,chat,2\n5,99,5,a,chat,no\n",
    )
    classes = [{"name": "chat", "slo": {"ttft_s": 1}, "patience_s": 9}]
    requests = generate(trace(path, classes=classes), SEED)
    assert requests.session.tolist() == [0, 1, 0, 3, 4]  # b's second prompt cannot hold its first with the answer
    assert requests.class_of.tolist() == [0, 1, 0, 1, 2]
    assert [(c.name, c.priority, c.patience_s) for c in requests.classes] == [
        ("chat, priority 1", 1, 9),
        ("code", 0, None),
        ("chat, priority 2", 2, 9),
    ]
    assert dict(requests.dropped) == {"unreadable priority": 1}
    assert requests.follows is None
    assert requests.source.endswith("; 1 turns that do not contain the ones before begin a session of their own")


def test_growing_conversations_by_hand():
    session = np.array([7, -1, 7, 7, -1, 3])
    prompt, output = np.array([10, 5, 20, 22, 50, 1]), np.array([5, 5, 5, 5, 5, 5])
    first, broken = conversations(session, prompt, output)
    assert first.tolist() == [0, 1, 0, 3, 4, 5]
    assert broken == 1
    assert conversations(np.array([-1, -1]), prompt[:2], output[:2])[0] is None


def test_block_ids_become_prefixes(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [4, 5]},
        {"timestamp": 500, "input_length": 1030, "output_length": 5, "hash_ids": [4, 6, 7]},
        {"timestamp": 900, "input_length": 600, "output_length": 5},
    ]
    shared = generate(trace(jsonl(tmp_path, *rows)), SEED).shared
    assert shared.first_piece.tolist() == [0, 2, 5, 5]
    assert shared.end_tokens.tolist() == [512, 1000, 512, 1024, 1030]
    assert shared.source.tolist() == [0, 1, 0, 2, 3]
    # Each playing is other people's.
    twice = generate(trace(jsonl(tmp_path, *rows), repeat=2), SEED).shared
    assert twice.source.tolist() == [0, 1, 0, 2, 3, 4, 5, 4, 6, 7]
    # Drawn twice, a row's own blocks are not shared: only the first one, which two rows have.
    drawn = generate(trace(jsonl(tmp_path, *rows), resample=True, rate_per_s=1, requests=40), SEED)
    assert set(drawn.shared.source) == {0}
    np.testing.assert_array_equal(np.diff(drawn.shared.first_piece), drawn.row < 2)


def test_sessions_of_burstgpt(tmp_path):
    path = csv(
        tmp_path,
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,31,2,ChatGPT,10,5,15,Conversation log\n9,32,2,ChatGPT,10,5,15,API log\n30,31,2,ChatGPT,40,5,45,Conversation log\n",
    )
    requests = generate(trace(path), SEED)
    assert "BurstGPT" in requests.source
    assert requests.session.tolist() == [0, 1, 0]
    assert generate(trace(path, repeat=2), SEED).session.tolist() == [0, 1, 0, 3, 4, 3]
    assert generate(trace(path, resample=True, rate_per_s=1), SEED).session is None


def test_bailian_rows_count_seconds_and_blocks_of_sixteen(tmp_path):
    row = {
        "chat_id": 1,
        "parent_chat_id": -1,
        "timestamp": 0.5,
        "input_length": 20,
        "output_length": 3,
        "hash_ids": [1, 2],
    }
    requests = generate(trace(jsonl(tmp_path, row, {**row, "chat_id": 2, "timestamp": 61.5})), SEED)
    assert requests.arrival_s.tolist() == [0, 61]
    assert requests.shared.end_tokens.tolist() == [16, 20, 16, 20]
    assert "Bailian" in requests.source
    other = generate(trace(jsonl(tmp_path, row), block_tokens=10), SEED)
    assert other.shared.end_tokens.tolist() == [10, 20]


# Theory, with a confidence interval


def test_resampling_keeps_whole_rows_in_proportion(tmp_path):
    n = 30_000
    requests = generate(trace(csv(tmp_path, PLAIN), resample=True, rate_per_s=5, burstiness=0.5, requests=n), SEED)
    for tokens in (10, 20, 30):
        assert abs((requests.prompt_tokens == tokens).mean() - 1 / 3) < Z * math.sqrt(2 / 9 / n)
    np.testing.assert_array_equal(requests.output_tokens, requests.prompt_tokens // 10)
    gaps_s = np.diff(requests.arrival_s)
    assert abs(gaps_s.mean() - 0.2) < Z * 0.2 * math.sqrt(2 / n)
    assert abs(gaps_s.var() / 0.08 - 1) < Z * math.sqrt((2 + 6 / 0.5) / n)


# Conservation


@pytest.mark.parametrize(
    "fields",
    [
        {"repeat": 3},
        {"requests": 7},
        {"resample": True, "rate_per_s": 2, "requests": 40},
        {"resample": True, "rate_per_s": 1},
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_chunks_are_the_whole(tmp_path, fields, size):
    path = csv(tmp_path, PLAIN + "9,200,3\n")
    whole = generate(trace(path, **fields), SEED, max_context_tokens=200)
    chunks = list(generate_chunks(trace(path, **fields), SEED, max_context_tokens=200, size=size))
    for name in ("arrival_s", "prompt_tokens", "row"):
        assert np.concatenate([getattr(chunk, name) for chunk in chunks]).tobytes() == getattr(whole, name).tobytes()
    assert sum(chunk.rows_read for chunk in chunks) == whole.rows_read == len(whole) + sum(whole.dropped.values())
    assert sum(sum(chunk.dropped.values()) for chunk in chunks) == sum(whole.dropped.values())


def test_a_shorter_draw_is_the_beginning_of_a_longer_one(tmp_path):
    traffic = trace(csv(tmp_path, PLAIN), resample=True, rate_per_s=2, requests=200)
    few, many = generate(with_load(traffic, requests=20), SEED), generate(traffic, SEED)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "row"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:20])


def test_requests_ask_for_more_or_fewer(tmp_path):
    path = csv(tmp_path, PLAIN)
    assert with_load(trace(path, repeat=2), requests=4) == trace(path, requests=4)
    assert with_load(trace(path, requests=2), requests=4) == trace(path, requests=4)
    assert with_load(trace(path), requests=2) == trace(path, limit=2)


# Published traces


def test_mooncake_ids_stand_for_whole_prefixes(memwall_data):
    path = memwall_data / "traces/mooncake/synthetic_trace.jsonl"
    table = read_trace(path)
    assert table.notes == ()  # no id in two places, none unreadable
    ids = [json.loads(line)["hash_ids"] for line in path.read_text().splitlines()]
    assert len(table.shared.source) == sum(map(len, ids))
    assert len(set(table.shared.source)) == len({block for row in ids for block in row})
    last = table.shared.end_tokens[table.shared.first_piece[1:] - 1]
    np.testing.assert_array_equal(last, table.prompt_tokens)
    np.testing.assert_array_equal(np.diff(table.shared.first_piece), -(-table.prompt_tokens // 512))


@pytest.mark.parametrize("capacity", [1000, 10_000, 10**9])
def test_mooncake_hit_rates_agree_with_a_replay_of_its_own_ids(memwall_data, capacity):
    path = memwall_data / "traces/mooncake/synthetic_trace.jsonl"
    shared = generate(trace(str(path)), SEED).shared
    ours = [shared.source[a:b].tolist() for a, b in zip(shared.first_piece[:-1], shared.first_piece[1:], strict=True)]
    theirs = [json.loads(line)["hash_ids"] for line in path.read_text().splitlines()]
    assert lru_hits(ours, capacity) == lru_hits(theirs, capacity)


def lru_hits(prompts, capacity):
    cache, hits = OrderedDict(), []
    for ids in prompts:
        hit = 0
        while hit < len(ids) and ids[hit] in cache:
            hit += 1
        hits.append(hit)
        for block in reversed(ids):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


def test_a_million_requests_of_the_azure_trace(memwall_data):
    path = memwall_data / "traces/azure2023/AzureLLMInferenceTrace_conv.csv"
    requests = generate(trace(str(path), requests=10**6), SEED)
    once = read_trace(path)
    n, rate = len(once.row), (len(once.row) - 1) / once.arrival_s[-1]
    np.testing.assert_array_equal(requests.prompt_tokens[:n], requests.prompt_tokens[n : 2 * n])
    np.testing.assert_allclose(requests.arrival_s[n : 2 * n] - requests.arrival_s[:n], n / rate, rtol=1e-9)
    assert (np.diff(requests.arrival_s) >= 0).all()


# What goes wrong


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"repeat": 2, "requests": 3}, "either repeat or requests"),
        ({"resample": True}, "have rate_per_s where rows are resampled"),
        ({"resample": True, "rate_per_s": 1, "repeat": 2}, "requests, not repeat"),
        ({"burstiness": 0.5}, "burstiness only with resample"),
        ({"classes": [{"name": "a"}]}, "classes='a' must be left out where no column says a row's class"),
        ({"columns": {"session": "sesion"}}, "columns.session='sesion' must be a known column"),
        ({"repeat": 10**7}, "repeat=10000000 must make at most ten million requests of 3 rows"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, fields, sentence):
    from simulator.serving.traffic import parse_traffic

    with pytest.raises(InputError, match=sentence) as caught:
        generate(parse_traffic({"kind": "trace", "path": csv(tmp_path, PLAIN), **fields}, "test"), SEED)
    assert "\n" not in str(caught.value)


def test_an_unknown_class_has_a_neighbour(tmp_path):
    path = csv(tmp_path, "arrival,prompt_tokens,output_tokens,class\n0,1,1,chat\n1,1,1,code\n")
    with pytest.raises(InputError, match=r"classes.name='chatt' must be a known class .* did you mean chat"):
        generate(trace(path, classes=[{"name": "chatt"}]), SEED)
    with pytest.raises(InputError, match="classes='chat, chat' must have different names"):
        generate(trace(path, classes=[{"name": "chat"}, {"name": "chat"}]), SEED)
    assert len(generate(trace(path, classes=[{"name": "code"}], limit=1), SEED)) == 1


def test_a_column_of_names_is_no_class(tmp_path):
    rows = "".join(f"{i},1,1,user {i}\n" for i in range(1001))
    path = csv(tmp_path, "arrival,prompt_tokens,output_tokens,class\n" + rows)
    with pytest.raises(InputError, match="columns='class' must hold at most 1000 different classes"):
        generate(trace(path), SEED)


def test_what_arrives_at_one_instant_is_not_repeated(tmp_path):
    path = csv(tmp_path, "arrival,prompt_tokens,output_tokens\n1,1,1\n1,1,1\n")
    with pytest.raises(InputError, match="repeat=2 must not go beyond one playing"):
        generate(trace(path, repeat=2), SEED)
