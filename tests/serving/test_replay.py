"""Recorded rounds repeated in the step loop: every count comes back in its place, whoever else is in the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import state
from tests.serving import rig
from tests.serving.rig import recording, tables, traffic
from tests.serving.test_replica import knobs, workloads


def counts(requests):
    return [requests[name].tolist() for name in ("rounds", "drafted_tokens", "accepted_tokens")]


def test_rounds_come_back_in_order(run):
    # The prompt's token, then 2 + 1, 0 + 1 and 3 + 1 tokens: an answer of 9. Prompt and drafts 1.75 s, two rounds 1.75 s,
    # the last one drafts nothing more.
    requests, _ = run(traffic([0.0], [4], [9]), gamma=3, recorded=recording([[2, 0, 3]], 3), draft=tables(0.25))
    assert counts(requests) == [[3], [9], [5]]
    assert requests[0].finish_s == 1.75 + 2 * 1.75 + 1.0


def test_fewer_drafts_keep_what_their_first_ones_kept_and_the_recording_starts_again(run):
    # γ = 2: 2 + 1, 0 + 1, 2 + 1 tokens, then the first round again, of which the answer needs one token.
    requests, _ = run(traffic([0.0], [4], [9]), gamma=2, recorded=recording([[2, 0, 3]], 3), draft=tables(0.25))
    assert counts(requests) == [[4], [8], [2 + 0 + 2 + 1]]


def test_requests_take_turns_with_the_recorded_ones(run):
    # Recorded: all of 3 and none. Answers of 9: 1 + 4 + 4, or 1 + 8 × 1.
    requests, _ = run(traffic([0.0] * 4, [4] * 4, [9] * 4), gamma=3, recorded=recording([[3, 3], [0]], 3))
    assert counts(requests) == [[2, 8, 2, 8], [6, 24, 6, 24], [6, 0, 6, 0]]


def test_a_round_in_which_nothing_was_proposed_verifies_one_token(run):
    # 1 + (1 + 1) + 1 + (2 + 1) tokens; the middle round drafts nothing.
    recorded = recording([[1, 0, 2]], 4, drafted=[[4, 0, 4]])
    requests, (replica,) = run(traffic([0.0], [4], [7]), gamma=4, recorded=recorded)
    assert counts(requests) == [[2], [8], [3]]
    assert replica.steps == 4


def test_a_preempted_request_goes_on_where_it_was(run):
    # As in test_replica: 3 blocks of 4, both prompts fill one, B gives way to A. A: 1 + 2 tokens. B's recomputed prompt
    # yields its first token again as its second, then its first round comes (it has had none): 1 + 1 tokens.
    recorded = recording([[1, 1], [1, 0]], 1)
    requests, _ = run(traffic([0.0, 0.0], [4, 4], [3, 4]), gamma=1, recorded=recorded, total_blocks=3)
    assert requests["preemptions"].tolist() == [0, 1]
    assert counts(requests) == [[1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("draft_first", [0, 1])
@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_constant_recording_is_forced_acceptance(run, kept, draft_first):
    work = traffic(np.arange(30) * 0.7, [5] * 30, [11] * 30)
    rates = [1.0] * kept + [0.0] * (4 - kept)
    same = {"gamma": 4, "draft": tables(0.1, 0.01), "draft_first": draft_first, "prefill_first": draft_first}
    forced, (one,) = run(work, rates=rates, **same)
    replay, (other,) = run(work, recorded=recording([[kept] * 3, [kept]], 4), **same)
    assert forced.tobytes() == replay.tobytes()
    assert one.series.tobytes() == other.series.tobytes()


recordings = st.integers(1, 5).flatmap(
    lambda gamma: st.lists(
        st.lists(st.tuples(st.sampled_from([0, gamma]), st.integers(0, gamma)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ).map(
        lambda rows: recording(
            [[min(d, a) for d, a in row] for row in rows], gamma, [[d for d, _ in row] for row in rows]
        )
    )
)


@settings(max_examples=40)
@given(workloads, knobs, recordings, st.booleans())
def test_conservation(workload, chosen, recorded, model):
    chosen = {**chosen, "gamma": max(1, min(chosen["gamma"], recorded.gamma))}
    requests, (replica,) = rig.run(
        traffic(*workload), recorded=recorded, draft=tables(0.1) if model else None, **chosen
    )
    assert (requests["status"] == state.FINISHED).all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    assert (requests["accepted_tokens"] <= requests["drafted_tokens"]).all()
    assert replica.drafted_tokens == requests["drafted_tokens"].sum()
    assert replica.accepted_tokens == requests["accepted_tokens"].sum()
    assert replica.used_blocks == replica.running == replica.stacked == 0


@settings(max_examples=30)
@given(workloads, recordings, st.integers(1, 5), st.integers(0, 1), st.integers(0, 1))
def test_the_fate_of_a_request_is_its_own(workload, recorded, rows, prefill_first, draft_first):
    # As many rounds as the recording says, by hand, whatever the batch.
    requests, _ = rig.run(
        traffic(*workload), gamma=recorded.gamma, recorded=recorded, draft=tables(0.1), max_sequences=rows,
        prefill_first=prefill_first, draft_first=draft_first,
    )  # fmt: skip
    for index, request in enumerate(requests):
        r = index % len(recorded.accepted)
        tokens, i, drafted, kept = 1, 0, 0, 0
        while tokens < request.output_tokens:
            d, a = (
                recorded.drafted[r][i % len(recorded.drafted[r])],
                recorded.accepted[r][i % len(recorded.accepted[r])],
            )
            used = min(a, request.output_tokens - tokens)
            tokens, i, drafted, kept = min(tokens + a + 1, request.output_tokens), i + 1, drafted + d, kept + used
        assert (request.drafted_tokens, request.accepted_tokens) == (drafted, kept)


@settings(max_examples=40)
@given(workloads, knobs, recordings)
def test_the_compiled_loop_equals_its_specification(workload, chosen, recorded):
    chosen = {**chosen, "gamma": max(1, min(chosen["gamma"], recorded.gamma))}
    fast, (one,) = rig.run(traffic(*workload), recorded=recorded, draft=tables(0.1, 0.01), **chosen)
    slow, (other,) = rig.run(traffic(*workload), loop="plain", recorded=recorded, draft=tables(0.1, 0.01), **chosen)
    assert fast.tobytes() == slow.tobytes()
    assert one.gaps.tobytes() == other.gaps.tobytes()
    for name in ("steps", "sequence_rounds", "drafted_tokens", "accepted_tokens", "most_blocks", "busy_s", "draft_s"):
        assert getattr(one, name) == getattr(other, name), name
