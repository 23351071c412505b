"""The arrays a replica lives in: one record per request, one per running sequence, and the replica's own.

Structured arrays, so that the step loop is readable, compiles as it stands, and its request records are the result rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("scheduled_s", "f8"),  # first time any of its tokens was in a batch
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("last_token_s", "f8"),
        ("longest_gap_s", "f8"),  # longest wait between two chunks of output
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        ("generated_tokens", "i8"),
        ("chunks", "i8"),  # times it emitted tokens after the first one
        ("rounds", "i8"),  # verifications that checked at least one draft
        ("drafted_tokens", "i8"),
        ("accepted_tokens", "i8"),  # drafted tokens that reached the user
        ("preemptions", "i8"),
        ("recomputed_tokens", "i8"),
        ("replica", "i8"),
        ("status", "i8"),
        ("measured", "i8"),  # 1 outside warm-up
    ],
    align=True,
)

WAITING, RUNNING, FINISHED, REJECTED = 0, 1, 2, 3
STATUS = ("waiting", "running", "finished", "rejected")

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("computed_tokens", "i8"),  # tokens whose KV is valid
        ("goal_tokens", "i8"),  # prompt, and after a preemption what had been generated, to be computed before decoding
        ("blocks", "i8"),
        ("step_tokens", "i8"),  # tokens in the present step
        ("emitted_tokens", "i8"),
        ("rounds", "i8"),  # decode rounds so far, with drafts or without
    ],
    align=True,
)

PREEMPTED = np.dtype(
    [
        ("request", "i8"),
        ("full_blocks", "i8"),  # whole blocks of valid KV it held, and may find again
        ("freed_blocks", "i8"),  # the replica's count when its first block had joined the queue of free ones
        ("rounds", "i8"),  # decode rounds so far
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
        ("block_tokens", "i8"),
        ("total_blocks", "i8"),
        ("watermark_blocks", "i8"),
        ("prefix_caching", "i8"),  # 1 when a preempted request finds again what nobody has overwritten
        ("prefill_first", "i8"),  # 1 when prompts run in passes of their own, before anybody decodes
        ("prompts_per_pass", "i8"),  # prompts in one pass at most
        ("prefill_chunk_tokens", "i8"),  # of one prompt in one pass at most
        ("gamma", "i8"),
        ("drafter", "i8"),  # one of NO_DRAFTER, MODEL_DRAFTER, NGRAM_DRAFTER
        ("draft_first", "i8"),  # 1 when a round makes its own drafts, 0 when the step before did
        ("replays", "i8"),  # 1 when rounds go as recorded, not by draw
        ("match_probability", "f8"),
        ("host_step_s", "f8"),
        ("host_per_sequence_s", "f8"),
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
        ("busy_s", "f8"),
        ("draft_s", "f8"),  # part of busy_s spent in the drafter, its host time included
        ("host_s", "f8"),
        ("hbm_bytes", "f8"),  # moved by one rank
        ("flop", "f8"),  # done by one rank
        ("wasted_flop", "f8"),
        ("steps", "i8"),
        ("emitted_tokens", "i8"),
        ("prefill_tokens", "i8"),
        ("drafted_tokens", "i8"),
        ("accepted_tokens", "i8"),
        ("sequence_rounds", "i8"),
        ("preemptions", "i8"),
        ("finished", "i8"),
        ("submitted", "i8"),
        ("arrived", "i8"),  # queue[:arrived] have arrived by the clock
        ("admitted", "i8"),  # queue[:admitted] have been admitted once
        ("stacked", "i8"),  # preempted requests waiting to resume
        ("running", "i8"),
        ("used_blocks", "i8"),
        ("freed_blocks", "i8"),  # blocks that ever joined the queue of free ones, less those found again in it
        ("most_blocks", "i8"),
        ("most_running", "i8"),
        ("bucket_s", "f8"),  # width of one bucket of the time series
    ],
    align=True,
)

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


def gap_seconds() -> NDArray[np.float64]:
    """Middle (geometric) of each bin of the gap histogram, seconds [GAP_BINS]."""
    return np.asarray(GAP_SHORTEST_S * np.exp((np.arange(GAP_BINS) + 0.5) / GAP_BINS_PER_E))
