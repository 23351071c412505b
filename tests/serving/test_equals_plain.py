"""The compiled loop against its specification in plain Python: the same events, records and counters, to the last bit."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cost.roofline import AttentionRates
from simulator.cost.tables import AttentionKind
from simulator.serving import plain
from simulator.serving.model import ROUTERS
from simulator.serving.pool import Pool
from simulator.speculation.policies import BY_ORACLE, BY_PAST, always, by_table, off_above
from simulator.speculation.shape import PLAIN, DraftShape, chain
from tests.serving.plain import rig
from tests.serving.rig import fresh

EXAMPLES = int(os.environ.get("MEMWALL_EXAMPLES", "1000"))
COUNTERS = (
    "steps", "emitted_tokens", "prefill_tokens", "cached_tokens", "drafted_tokens", "accepted_tokens", "sequence_rounds",
    "preemptions", "swaps", "left", "submitted", "most_blocks", "most_running", "most_waiting", "busy_s", "draft_s",
    "host_s", "swap_s", "clock_s", "hbm_bytes", "flop", "wasted_flop",
)  # fmt: skip
RATES = AttentionRates(
    t0_s=1e-3, copy_s=1e-4, bytes_per_s=1e6, query_bytes=8.0, flop_per_s=1e7, flop_per_pair=64.0, wave_s=1e-3, sm_count=4.0,
    heads_of_blocks=2.0, rows_per_token=2.0, query_tile=8.0, kv_step_s=1e-5, split_s=1e-5, combine_s=1e-6, splits=1.0,
    power=2.5, takes_decode=0.0, sequence_s=1e-5,
)  # fmt: skip


@st.composite
def targets(draw):
    """Tables with attention that costs something, one kind of layer or two, maybe a pipeline."""
    window = draw(st.sampled_from([None, None, 8.0]))
    kinds = [AttentionKind(2.0, np.inf, 16.0, 64.0, 64.0)]
    if window:
        kinds.append(AttentionKind(1.0, window, 16.0, 64.0, 64.0))
    rates = RATES._replace(takes_decode=draw(st.sampled_from([0.0, 1.0])))
    return rig.tables(
        1.0, 0.01, prompt_s=0.125, kinds=tuple(kinds), decode_rates=RATES, prefill_rates=rates,
        pipeline=draw(st.sampled_from([1, 1, 1, 2, 3])),
    )  # fmt: skip


@st.composite
def shapes(draw, *, passes):
    """A chain or a tree, drafted in passes or looked up."""
    depth = draw(st.sampled_from([1, 2, 4]))
    if draw(st.booleans()):
        return chain(depth, depth if passes else 0)
    nodes = depth + draw(st.sampled_from([0, 1, 3, 16]))
    each = draw(st.lists(st.sampled_from([1, 2, 17]), min_size=depth - 1, max_size=depth - 1))
    return DraftShape(nodes, depth, (1, *each) if passes else ())


@st.composite
def plans(draw, *, passes):
    """Which round is next, by batch and context, by each sequence's past, or by its future."""
    kind = draw(st.sampled_from(["always", "always", "off-above", "table", "past", "oracle"]))
    if kind in ("past", "oracle"):
        depth = draw(st.sampled_from([1, 2, 4]))
        mode = BY_PAST if kind == "past" else BY_ORACLE
        rows = draw(st.sampled_from([[[1]], [[1], [0]], [[0], [1]]]))
        return by_table([PLAIN, chain(depth, depth if passes else 0)], [1, 3][: len(rows)], [0], rows, mode)
    if kind == "always":
        return always(draw(shapes(passes=passes)))
    if kind == "off-above":
        return off_above(draw(shapes(passes=passes)), draw(st.integers(1, 4)))
    found = [PLAIN, *draw(st.lists(shapes(passes=passes), min_size=1, max_size=3))]
    batches, contexts = (
        draw(st.sampled_from([[1], [1, 2], [1, 3, 4]])),
        draw(st.sampled_from([[0], [0, 11], [0, 9, 15]])),
    )
    choice = [[draw(st.integers(0, len(found) - 1)) for _ in contexts] for _ in batches]
    return by_table(found, batches, contexts, choice)


@st.composite
def models(draw, n):
    """Settings of a step model for `n` requests."""
    speculates, passes = draw(st.booleans()), draw(st.booleans())
    plan = draw(plans(passes=passes)) if speculates else always(PLAIN)
    gamma = plan.most_nodes
    chosen = {
        "target": draw(targets()), "plan": plan, "seed": draw(st.integers(0, 3)),
        "max_sequences": draw(st.integers(1, 6)), "max_batched_tokens": draw(st.integers(max(5, gamma + 1), 40)),
        "block_tokens": draw(st.sampled_from([1, 2, 4, 8])), "ranked": draw(st.integers(0, 1)),
        "prefix_caching": draw(st.integers(0, 1)), "prefill_first": draw(st.integers(0, 1)),
        "prompts_per_pass": draw(st.integers(1, 4)), "prefill_chunk_tokens": draw(st.integers(1, 40)),
        "overlap": draw(st.integers(0, 1)), "host_step_s": 0.25, "host_per_sequence_s": 0.0625,
        "host_hidden_step_s": draw(st.sampled_from([0.0, 0.5, 3.0])), "max_waiting": draw(st.sampled_from([0, 0, 1, 3])),
        "queue_timeout_s": draw(st.sampled_from([np.inf, np.inf, 4.0, 9.5])),
    }  # fmt: skip
    # Room for the longest request alone and little more, so that blocks run out.
    chosen["total_blocks"] = -(-(46 + gamma) // chosen["block_tokens"]) + draw(st.integers(0, 8))
    chosen["watermark_blocks"] = draw(st.integers(0, 2))
    if draw(st.booleans()):
        chosen |= {"swap_blocks": draw(st.integers(0, 20)), "swap_s_per_token": 0.03125}
    if gamma:
        chosen |= draw(
            st.sampled_from(
                [{}, {"tree_attention": 0.75, "tree_step_s": 0.125, "tree_mask_s": 1e-3, "tree_move_s": 1e-2}]
            )
        )
        columns = np.cumsum([0, *(shape.depth for shape in plan.shapes[:-1])]).tolist()
        chosen["columns"] = draw(st.sampled_from([None, columns]))
        depths = max(1, columns[-1] + plan.shapes[-1].depth)
        rates = draw(st.lists(st.floats(0, 1), min_size=depths, max_size=depths))
        chosen |= {
            "rates": rates,
            "draft_first": draw(st.integers(0, 1)),
            "padded": draw(st.integers(0, 1)),
            "draft_padded": draw(st.integers(0, 1)),
        }
        chosen |= {"host_draft_pass_s": 0.125, "host_speculative_round_s": 0.375, "host_ngram_per_sequence_s": 0.03125}
        if passes:
            whole = rig.tables(0.25, 0.001, decode_rates=RATES, prefill_rates=RATES)
            at_once = draw(st.sampled_from([7, rig.MOST_TOKENS]))  # more is read in pieces
            largest = np.array([[draw(st.sampled_from([2, 6, rig.MOST_TOKENS]))], [0]])  # tokens that have a graph
            tokens = np.arange(rig.MOST_TOKENS + 1)
            launches_s = np.where(tokens > largest, np.maximum(0.0, 0.5 - 0.03 * tokens), 0.0)
            chosen["draft"] = replace(
                whole,
                linear=np.ascontiguousarray(whole.linear[:, :, : at_once + 1]),
                extra_host_s=draw(st.sampled_from([0.0, 1.0])) * launches_s[:, : at_once + 1],
            )
            chosen["graphs_of_sequences"] = draw(st.integers(0, 1))
            chosen["intake"] = draw(st.sampled_from([None, [0.03 * tokens for tokens in range(10)]]))
            chosen |= {
                "draft_reads": draw(st.sampled_from([1, 1, 0])),
                "draft_keeps_up": draw(st.integers(0, 1)),
                "draft_share": draw(st.sampled_from([1.0, 1.0, 0.5])),
            }
        if draw(st.booleans()):
            chosen |= {
                "states": [(0.25, 0.5, True), (0.5, 1.0, True), (0.25, 2.0, draw(st.booleans()))],
                "renewal": draw(st.lists(st.sampled_from([0.05, 0.3, 1.0]), min_size=3, max_size=3)),
            }
        chosen["match_probability"] = draw(st.sampled_from([1.0, 1.0, 0.6]))
    if draw(st.integers(0, 5)) == 0:
        chosen |= {"window_tokens": 6, "windowed_share": 0.5, "prefix_caching": 0}
    return chosen


@st.composite
def workloads(draw, *, feedback):
    """A handful of requests, maybe with prefixes, sessions, patience, priorities or a closed loop."""
    n = draw(st.integers(1, 12))
    arrival_s = sorted(draw(st.lists(st.sampled_from([k * 0.75 for k in range(20)]), min_size=n, max_size=n)))
    prompt = draw(st.lists(st.integers(1, 26), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 18), min_size=n, max_size=n))
    more = {"rank": draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))}
    if draw(st.booleans()):
        more["patience_s"] = draw(st.lists(st.sampled_from([np.inf, 2.0, 5.5, 20.0]), min_size=n, max_size=n))
    if draw(st.booleans()):
        more["pieces"] = [
            [] if p < 4 or not draw(st.booleans()) else [(draw(st.integers(0, 1)), draw(st.integers(2, p)))]
            for p in prompt
        ]
        more["session"] = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["open", "sessions", "users"])) if feedback else "open"
    if kind == "sessions":
        follows = [draw(st.integers(-1, i - 1)) if i and draw(st.booleans()) else -1 for i in range(n)]
        follows = [f if f >= 0 and f not in follows[:i] else -1 for i, f in enumerate(follows)]
        more |= {"follows": follows, "think_s": draw(st.sampled_from([0.0, 0.5, 3.0]))}
    if kind == "users":
        users = draw(st.integers(1, n))
        arrival_s = [0.0] * users + [np.nan] * (n - users)
        more |= {"users": users, "think_s": draw(st.sampled_from([0.0, 0.5, 3.0]))}
    return rig.workload(arrival_s, prompt, output, **more)


@st.composite
def scenarios(draw):
    """A workload and a fleet for it."""
    work = draw(workloads(feedback=True))
    n = len(work.requests)
    chosen = draw(models(n))
    shares = bool(work.requests["pieces"].any()) or len(np.unique(work.requests["session"])) < n
    chosen["shares"] = int(chosen["prefix_caching"] == 1 and (shares or draw(st.booleans())))
    if not chosen["ranked"]:
        work.requests["rank"] = 0
    fleet = rig.fleet(n, replicas=draw(st.integers(1, 3)), router=draw(st.sampled_from(ROUTERS)), **chosen)
    return fleet, work


def served(fleet, work, cuts=(), most_steps=1 << 60):
    """The compiled version's (request records, pool) on a copy of `work`."""
    work = fresh(work)
    pool = Pool(fleet, work, events=2_000)
    for cut in sorted(cuts):
        pool.serve(cut)
    while not pool.serve(most_steps=most_steps):
        pass
    return work.requests, pool


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(scenarios())
def test_events_records_and_counters_are_those_of_the_specification(scenario):
    fleet, work = scenario
    fast, pool = served(fleet, work)
    slow = plain.simulate(fleet, replace(work, requests=work.requests.copy()))
    for r, other in enumerate(slow.replicas):
        events = [tuple(e) for e in pool.arrays.records.events[r, : pool.replicas[r].events].tolist()]
        assert events == [tuple(event) for event in other.events]
        for name in COUNTERS:
            owner = other.counters if hasattr(other.counters, name) else other
            assert pool.replicas[r][name] == getattr(owner, name), name
    for name in fast.dtype.names:
        np.testing.assert_array_equal(fast[name], slow.requests[name], err_msg=name)


@settings(max_examples=EXAMPLES // 5, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(scenarios(), st.lists(st.floats(0, 40), max_size=6), st.integers(1, 7))
def test_how_time_is_cut_into_calls_does_not_matter(scenario, cuts, most_steps):
    fleet, work = scenario
    whole, one = served(fleet, work)
    pieces, other = served(fleet, work, cuts, most_steps)
    assert whole.tobytes() == pieces.tobytes()
    assert one.arrays.records.gaps.tobytes() == other.arrays.records.gaps.tobytes()
    assert one.arrays.records.series.tobytes() == other.arrays.records.series.tobytes()
    assert one.arrays.records.events.tobytes() == other.arrays.records.events.tobytes()
    for name in COUNTERS:
        assert (one.replicas[name] == other.replicas[name]).all(), name
