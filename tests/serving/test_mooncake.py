"""Mooncake's published trace through the prefix cache, against a replay of its raw block ids that knows nothing of ours.

3,993 requests, 61 M prompt tokens in blocks of 512 named by `hash_ids`, an id standing for its block and all before it. What a
request finds: blocks from its first on, up to the first that is not there; never its last token, so at most
⌊(prompt − 1)/512⌋ of them; and never the partial block at a prompt's end, which is also the beginning of the answer.

    blocks of 512     found, one after the other     at the trace's own rate
    122,698 (all)     65.04 % of prompt tokens       the same, request by request
     24,000           60.91 %                        −0.2 % of that,  7 requests differ, 17 run in the mean
      5,000           28.38 %                        −1.0 %,         23 requests differ, 23 run
      1,000            8.55 %                        −6.5 %,         82 requests differ, 29 run

One after the other our cache finds the same in every request. At the trace's rate requests that run keep their blocks and give
them back at their ends, not in the order they came in; on an engine a hundred times faster, where a tenth of them still overlap,
no request differs any more. Blocks of 16 find 65.12 %, up to 464 tokens more in each.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine import EngineSettings
from simulator.serving import state
from simulator.serving.pool import Pool
from simulator.serving.traffic import generate, parse_traffic
from simulator.serving.workload import workload_of
from tests.serving.plain import rig

TRACE = "traces/mooncake/synthetic_trace.jsonl"
BLOCK = 512
MOST_TOKENS = 1 << 18
"""More than the longest prompt, 191,378 tokens: a prompt alone is computed in one step."""


@pytest.fixture(scope="module")
def rows(memwall_data):
    """(prompt tokens, output tokens, ids) of each request, in order."""
    lines = (memwall_data / TRACE).read_text().splitlines()
    read = [json.loads(line) for line in lines]
    return [(row["input_length"], row["output_length"], row["hash_ids"]) for row in read]


@pytest.fixture(scope="module")
def traffic(memwall_data):
    """The same through the trace reader."""
    return generate(parse_traffic({"kind": "trace", "path": str(memwall_data / TRACE)}, "test"), 0)


def served(traffic, blocks, *, block_tokens=BLOCK, apart=False, step_s=0.02, token_s=1e-5):
    """Request records after a replica with so many blocks; `apart`: each request arrives when the one before is long gone."""
    settings = EngineSettings(block_tokens=block_tokens)
    work = workload_of(traffic, settings, 0.0, MOST_TOKENS)
    if apart:
        work.requests["arrival_s"] = work.requests["ready_s"] = 1e3 * np.arange(len(traffic))
    model = rig.step_model(
        len(traffic), target=tables(step_s, token_s), max_sequences=512, max_batched_tokens=MOST_TOKENS,
        prefill_chunk_tokens=MOST_TOKENS, block_tokens=block_tokens, total_blocks=blocks, shares=1,
    )  # fmt: skip
    pool = Pool(rig.model.Fleet([model], np.zeros(1, dtype=np.int64)), work)
    pool.serve()
    assert (work.requests["status"] == state.FINISHED).all()
    return work.requests


def tables(step_s, token_s):
    """A pass takes `step_s` and `token_s` per token."""
    tokens = np.arange(MOST_TOKENS + 1, dtype=float)
    seconds = np.where(tokens > 0, step_s + token_s * tokens, 0.0)
    plane = np.stack([seconds, 0 * tokens, tokens])
    return replace(
        rig.tables(), linear=np.stack([plane, plane]), head=0 * plane, extra_host_s=np.zeros((2, MOST_TOKENS + 1))
    )


def one_after_the_other(rows, blocks):
    """Tokens found by each request where the one before has gone: an LRU list of free blocks, oldest first.

    A request takes what it finds out of the list and what it lacks from its old end, and then puts all of its blocks at the
    young end, its last one first.
    """
    free = OrderedDict((("empty", number), None) for number in range(blocks))
    found_tokens = []
    for number, (prompt, output, ids) in enumerate(rows):
        found = []
        for content in ids[: (prompt - 1) // BLOCK]:
            if content not in free:
                break
            found.append(content)
            del free[content]
        held = list(found)

        def take(until, number=number, held=held):
            while len(held) < until:
                free.popitem(last=False)
                held.append((number, len(held)))  # nobody else will ever ask for this

        take(-(-prompt // BLOCK))
        for place in range(len(found), prompt // BLOCK):
            if ids[place] not in free:  # one block of a content is enough
                held[place] = ids[place]
        take(-(-(prompt + output - 1) // BLOCK))  # the last token of an answer is not computed
        for content in reversed(held):
            free[content] = None
        found_tokens.append(len(found) * BLOCK)
    return found_tokens


def everything_found(rows, block):
    """Tokens found by each request where nothing is ever lost, in blocks of `block` tokens that divide 512.

    In smaller blocks the partial block at a prompt's end has full ones inside it: its id means the same tokens only in
    prompts that end at the same place.
    """
    seen, found_tokens = set(), []
    for prompt, _, ids in rows:
        ends = [(content, min((place + 1) * BLOCK, prompt)) for place, content in enumerate(ids)]
        common = 0
        for content, end in ends:
            if (content, end) not in seen:
                break
            common = end
        seen.update(ends)
        found_tokens.append(min(common // block, (prompt - 1) // block) * block)
    return found_tokens


def blocks_for_all(rows, block):
    """Blocks that hold every request of the trace side by side."""
    return sum(-(-(prompt + output) // block) for prompt, output, _ in rows)


def share(found_tokens, rows):
    return sum(found_tokens) / sum(prompt for prompt, _, _ in rows)


def test_a_cache_that_holds_everything(rows, traffic):
    """Also at the trace's own rate, with requests running beside each other: who is admitted finds what was admitted before."""
    expected = everything_found(rows, BLOCK)
    assert share(expected, rows) == pytest.approx(0.6504, abs=5e-5)
    blocks = blocks_for_all(rows, BLOCK)
    assert one_after_the_other(rows, blocks) == expected
    assert served(traffic, blocks)["cached_tokens"].tolist() == expected


@pytest.mark.parametrize("blocks", [400, 1_000, 5_000, 24_000])
def test_what_is_overwritten_first(rows, traffic, blocks):
    expected = one_after_the_other(rows, blocks)
    assert sum(expected) < sum(everything_found(rows, BLOCK))
    assert served(traffic, blocks, apart=True)["cached_tokens"].tolist() == expected


@pytest.mark.parametrize(("blocks", "running"), [(5_000, (20, 25)), (24_000, (14, 20))])
def test_at_the_traces_own_rate(rows, traffic, blocks, running):
    """Who runs keeps its blocks, so a little less is found than one after the other; how little depends on how many run."""
    expected = one_after_the_other(rows, blocks)
    requests = served(traffic, blocks)
    inside_s = (requests["finish_s"] - requests["scheduled_s"]).sum()
    assert running[0] < inside_s / requests["finish_s"].max() < running[1]
    assert 0.985 < requests["cached_tokens"].sum() / sum(expected) < 1
    assert np.count_nonzero(requests["cached_tokens"] != expected) <= 25


@pytest.mark.parametrize("blocks", [1_000, 5_000, 24_000])
def test_on_a_faster_engine_order_is_all_that_matters(rows, traffic, blocks):
    """At the trace's own rate, on an engine a hundred times as fast: a tenth of the requests still meet another."""
    requests = served(traffic, blocks, step_s=2e-4, token_s=1e-7)
    meets = requests["arrival_s"][1:] < np.maximum.accumulate(requests["finish_s"])[:-1]
    assert 400 < np.count_nonzero(meets) < 500
    assert requests["cached_tokens"].tolist() == one_after_the_other(rows, blocks)


def test_smaller_blocks(rows, traffic):
    """Where nothing is lost, blocks of 512 find what blocks of 16 find, rounded down: ⌊min(common, prompt − 1)/16⌋·16 is less
    than one large block more."""
    expected = everything_found(rows, 16)
    assert share(expected, rows) == pytest.approx(0.6512, abs=5e-5)
    assert [tokens // BLOCK * BLOCK for tokens in expected] == everything_found(rows, BLOCK)
    assert served(traffic, blocks_for_all(rows, 16), block_tokens=16)["cached_tokens"].tolist() == expected
