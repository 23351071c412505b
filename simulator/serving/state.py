"""The arrays a replica lives in: one record per request, one per running sequence, and the replica's own.

Structured arrays, so that the step loop is readable, compiles as it stands, and its request records are the result rows.
What the fields mean in time is said in docs/engine-rules.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUEST = np.dtype(
    [
        # What is asked.
        ("arrival_s", "f8"),
        ("ready_s", "f8"),  # when it reaches its replica: the arrival, or a hand-over, or a retry
        ("cancel_s", "f8"),  # when its user gives up, infinity for never
        ("prompt_tokens", "i4"),
        ("output_tokens", "i4"),
        ("rank", "i4"),  # smaller goes first
        ("class_of", "i4"),
        ("number", "i8"),  # among all requests, also where only a part of them is here; its luck hangs on it
        ("session", "i8"),  # whose tokens follow the shared pieces of its prompt
        ("first_piece", "i8"),  # of the shared pieces that begin its prompt
        ("pieces", "i4"),
        ("measured", "i4"),  # 1 outside warm-up
        # How it went.
        ("scheduled_s", "f8"),  # first time any of its tokens was in a batch
        ("first_token_s", "f8"),
        ("finish_s", "f8"),  # end of its last step, or when it was refused, dropped or cancelled
        ("last_token_s", "f8"),
        ("longest_gap_s", "f8"),  # longest wait between two chunks of output
        ("generated_tokens", "i4"),
        ("carried_tokens", "i4"),  # tokens of KV that come with it from a prefill replica
        ("chunks", "i4"),  # times it emitted tokens after the first one
        ("decode_rounds", "i4"),  # steps past its prompt, with drafts or without
        ("rounds", "i4"),  # verifications that checked at least one draft
        ("drafted_tokens", "i4"),
        ("accepted_tokens", "i4"),  # drafted tokens that reached the user
        ("cached_tokens", "i4"),  # of the prompt, found in the cache when it was first admitted
        ("preemptions", "i4"),
        ("recomputed_tokens", "i4"),
        ("retries", "i4"),  # times its replica failed under it
        ("replica", "i4"),
        ("status", "i4"),
    ],
    align=True,
)

WAITING, RUNNING, FINISHED, REJECTED, REFUSED, TIMED_OUT, CANCELLED, ABANDONED, HANDED_OVER = range(9)
STATUS = ("waiting", "running", "finished", "rejected", "refused", "timed out", "cancelled", "abandoned", "handed over")
"""By number. At the end of a whole simulation nobody waits, runs or is handed over."""

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("order", "i8"),  # number of submission
        ("rank", "i8"),
        ("computed_tokens", "i8"),  # tokens whose KV is valid
        ("goal_tokens", "i8"),  # prompt, and after a preemption what had been generated, to be computed before decoding
        ("blocks", "i8"),
        ("step_tokens", "i8"),  # tokens in the present step
        ("emitted_tokens", "i8"),
        ("generated_tokens", "i8"),  # of its answer
        ("left_tokens", "i8"),  # of its answer
        ("held", "i8"),  # 1 when it has just finished, 2 when it keeps its place for the present schedule
        ("row", "i8"),  # of the table of its blocks
        ("keyed", "i8"),  # leading blocks that have been entered in the cache or found there
        ("luck", "u8"),  # state of the counter-based generator after (seed, request)
        ("shape", "i8"),  # of its next round, or of the one that runs
        ("depth", "i8"),  # drafts that the present round can accept at most
        ("own_gamma", "i8"),  # drafts that its own past suggests
        ("lag_tokens", "i8"),  # tokens with KV that its drafter has not read
        ("looked_at", "i8"),  # output positions before this one are known to lie in `stretch` or an earlier one
        ("stretch", "i8"),  # state of the stretch of text it is in
        # Fields of its request while it runs; written back when it stops running.
        ("last_token_s", "f8"),
        ("longest_gap_s", "f8"),
        ("chunks", "i8"),
        ("decode_rounds", "i8"),
        ("rounds", "i8"),
        ("drafted_tokens", "i8"),
        ("accepted_tokens", "i8"),
        ("measured", "i8"),
    ],
    align=True,
)
"""One running sequence; a replica's are kept in the order (rank, order)."""

PREEMPTED = np.dtype(
    [
        ("request", "i8"),
        ("order", "i8"),
        ("rank", "i8"),
        ("swapped_tokens", "i8"),  # tokens of KV in the swap space, 0 when they are to be recomputed
        ("full_blocks", "i8"),  # whole blocks of valid KV it held, and may find again
        ("freed_blocks", "i8"),  # the replica's count when its first block had joined the queue of free ones
        ("lag_tokens", "i8"),  # of what is swapped, tokens that its drafter has not read
    ],
    align=True,
)

RECORDED = np.dtype([("drafted", "i8"), ("accepted", "i8")], align=True)
"""One recorded round; see `speculation.recording`."""

CONFIG = np.dtype(
    [
        ("seed", "i8"),
        ("max_sequences", "i8"),
        ("max_batched_tokens", "i8"),
        ("max_waiting", "i8"),  # requests never started that may wait; 0: any number
        ("queue_timeout_s", "f8"),  # infinity: none
        ("ranked", "i8"),  # 0 where all ranks are equal
        ("block_tokens", "i8"),
        ("total_blocks", "i8"),
        ("watermark_blocks", "i8"),
        ("window_tokens", "i8"),  # beyond it a token keeps less KV (hybrid_kv); 0: no such window
        ("windowed_share", "f8"),  # share of a token's KV given back beyond the window
        ("prefix_caching", "i8"),  # 1 when blocks that nobody has overwritten are found again
        ("shares", "i8"),  # 1 when requests may find each other's blocks, so that every block has a name
        ("swap_blocks", "i8"),  # room for preempted sequences in host memory; 0: recompute
        ("swap_s_per_token", "f8"),  # one way
        ("prefill_first", "i8"),  # 1 when prompts run in passes of their own, before anybody decodes
        ("prompts_per_pass", "i8"),  # prompts in one pass at most
        ("prefill_chunk_tokens", "i8"),  # of one prompt in one pass at most
        ("prefill_only", "i8"),  # 1 for a replica that hands requests over when their prompt is computed
        ("policy", "i8"),  # one of BY_TABLE, BY_PAST, BY_ORACLE of `speculation.policies`
        ("drafter", "i8"),  # one of NO_DRAFTER, MODEL_DRAFTER, NGRAM_DRAFTER
        ("draft_reads", "i8"),  # 1 when the drafter has a KV cache of its own, which every token must enter
        (
            "draft_keeps_up",
            "i8",
        ),  # 1 when it reads on while nothing is drafted (after a step only), 0 when it reads later
        # Verifying trees: attention with a mask, and keys and values that are moved to where a chain would have them.
        ("tree_attention", "f8"),  # time of masked attention beyond that of causal attention, over it
        ("tree_step_s", "f8"),  # in every step
        ("tree_mask_s", "f8"),  # for each pair of tokens of a tree
        ("tree_move_s", "f8"),  # for each accepted draft
        ("draft_share", "f8"),  # of the drafter's time that is waited for; below 1 where it has GPUs of its own
        ("draft_first", "i8"),  # 1 when a round makes its own drafts, 0 when the step before did
        ("draft_padded", "i8"),  # 1 when after a round the drafter reads 1 + depth tokens of all, whatever was accepted
        ("graphs_of_sequences", "i8"),  # 1 when captured graphs count the sequences of a pass, 0 when its tokens
        ("padded", "i8"),  # 1 when all that decode are charged the widest round as soon as one has drafts
        ("overlap", "i8"),  # 1 when host work runs beside the step before
        ("replays", "i8"),  # 1 when rounds go as recorded, not by draw
        ("match_probability", "f8"),
        ("host_step_s", "f8"),
        ("host_per_sequence_s", "f8"),
        ("host_hidden_step_s", "f8"),  # host time that overlapped scheduling hides behind the GPU's
        ("host_hidden_per_sequence_s", "f8"),
        ("host_speculative_round_s", "f8"),
        ("host_draft_pass_s", "f8"),
        ("host_ngram_per_sequence_s", "f8"),
    ],
    align=True,
)

NO_DRAFTER, MODEL_DRAFTER, NGRAM_DRAFTER = 0, 1, 2

REPLICA = np.dtype(
    [
        ("clock_s", "f8"),
        ("step_started_s", "f8"),
        ("in_flight", "i8"),  # 1 when a step ended at `clock_s`
        ("busy_s", "f8"),
        ("draft_s", "f8"),  # part of busy_s spent in the drafter, its host time included
        ("host_s", "f8"),
        ("swap_s", "f8"),
        ("hbm_bytes", "f8"),  # moved by one rank
        ("flop", "f8"),  # done by one rank
        ("wasted_flop", "f8"),
        ("steps", "i8"),
        ("emitted_tokens", "i8"),
        ("prefill_tokens", "i8"),
        ("cached_tokens", "i8"),  # of prompts, found in the cache at a first admission
        ("drafted_tokens", "i8"),
        ("accepted_tokens", "i8"),
        ("sequence_rounds", "i8"),
        ("preemptions", "i8"),
        ("swaps", "i8"),
        ("left", "i8"),  # requests that have left, for whatever reason
        ("left_last", "i8"),  # those of them that left when the last step ended
        ("submitted", "i8"),
        # Requests of a replica form a list in order of submission (`links.after`); -1 where there is none.
        ("tail", "i8"),  # submitted last
        ("unjoined", "i8"),  # first that has not joined the line
        ("first", "i8"),  # first that may wait for the first time (first-come order)
        ("overdue", "i8"),  # first whose time-out has not been looked at
        ("fresh", "i8"),  # requests waiting that were never started here
        ("ranks", "i8"),  # root of the heap of waiting requests (ranked order)
        ("cancels", "i8"),  # root of the heap of cancellations
        ("stacked", "i8"),  # preempted requests waiting to resume
        ("running", "i8"),
        ("prompts", "i8"),  # of them, those inside their prompts
        ("held", "i8"),  # of them, those that have finished
        # While a step is put together:
        ("budget", "i8"),  # tokens it may still take
        ("step_prompts", "i8"),  # prompts in it
        ("step_preempted", "i8"),  # 1 when it took blocks away from somebody
        ("step_swap_tokens", "i8"),  # tokens of KV that cross the host link
        ("finishing", "i8"),  # 1 when a run of steps ended with somebody's last token
        ("used_blocks", "i8"),
        ("swapped_blocks", "i8"),
        ("freed_blocks", "i8"),  # blocks that ever joined the queue of free ones, less those found again in it
        ("most_blocks", "i8"),
        ("most_running", "i8"),
        ("most_waiting", "i8"),
        ("free_rows", "i8"),
        ("events", "i8"),
        ("gap_bin", "i8"),  # of the last gap counted
        ("number", "i8"),  # of this replica in its pool
        ("open", "i8"),  # 1 when the router may choose it
        ("model", "i8"),  # which of the pool's models it runs
        ("bucket_s", "f8"),  # width of one bucket of the time series
    ],
    align=True,
)

POOL = np.dtype(
    [
        ("orders", "i8"),  # requests submitted so far
        ("routed", "i8"),  # requests that a router has placed so far
        ("next", "i8"),  # place in the list of known arrivals
        ("later", "i8"),  # root of the heap of arrivals that followed from an end, -1 for none
        ("backlog", "i8"),  # place in the closed loop's list of requests not yet asked
        ("ended", "i8"),  # requests that have left a replica
        ("turn", "i8"),  # round robin: the replica that is next
        ("cursor", "i8"),  # replica that is looked at next
        ("opened_s", "f8"),  # when a replica last opened: who found none open is routed then
        ("steps", "i8"),  # steps since the last call
        ("router", "i8"),
        ("slack", "i8"),
        ("seed", "i8"),
        ("feedback", "i8"),  # 1 when ends cause arrivals
        ("stops", "i8"),  # 1 when `serve` returns once a request has left; for that feedback must be 1
    ],
    align=True,
)
"""What the replicas of one pool share."""

NODES, DEPTH, PASSES, COLUMN = range(4)
"""Columns of a plan's `shapes`: drafted tokens, those that can be accepted, passes, and where its rates begin."""

EVENT = np.dtype([("time_s", "f8"), ("kind", "i8"), ("request", "i8"), ("value", "i8")], align=True)
"""What happened to a request in a replica; kept only where it is asked for."""
ADMITTED, PREEMPTED_, EMITTED, LEFT = range(4)
"""Kinds of events. Values: tokens found computed; 1 for swap; tokens; the status with which it left."""

BUCKETS = 1024
SERIES = ("busy_s", "running_s", "waiting_s", "kv_block_s", "output_tokens", "prompt_tokens", "steps")
FIRST_BUCKET_S = 1 / 64

GAP_BINS = 4096
GAP_SHORTEST_S = 1e-5
GAP_BINS_PER_E = 200.0
"""Gaps between chunks of output are counted in bins of 0.5 % width from 10 µs to two hours."""


def records(dtype: np.dtype[Any], n: int) -> Any:
    """`n` zeroed records with attribute access, in plain Python as in compiled code."""
    return np.zeros(n, dtype=dtype).view(np.recarray)


def gap_edges_s() -> NDArray[np.float64]:
    """Lower edges of the bins of the gap histogram, seconds [GAP_BINS]; shorter gaps are in the first, longer ones in the last."""
    return np.asarray(GAP_SHORTEST_S * np.exp(np.arange(GAP_BINS) / GAP_BINS_PER_E))


def gap_seconds() -> NDArray[np.float64]:
    """Middle (geometric) of each bin of the gap histogram, seconds [GAP_BINS]."""
    return np.asarray(GAP_SHORTEST_S * np.exp((np.arange(GAP_BINS) + 0.5) / GAP_BINS_PER_E))
