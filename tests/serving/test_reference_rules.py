"""The reference decoder's own batcher, on a clock that is set by hand, serves as the step loop says it does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import load_engine
from tests.serving import rig
from tests.serving.rig import recording, tables, traffic

pytest.importorskip("torch")

from simulator.reference_decoder.batcher import Request, serve
from simulator.reference_decoder.speculative import Round, Row

EIGHTH = 1 / 8  # times are sums of eighths of a second, so that they are exact


class Stopwatch:
    """Decoding that computes nothing and takes 1 s per pass and 1/8 s per token; the drafter a quarter of each."""

    def __init__(self, batch, gamma, recorded, chunk_tokens):
        self.batch, self.gamma, self.recorded, self.chunk_tokens = batch, gamma, recorded, chunk_tokens
        self.rows, self.now = [], 0.0

    def take(self, passes, tokens, share=1.0):
        self.now += share * (passes + tokens * EIGHTH)

    def admit(self, prompts, output_tokens, first_request):
        (prompt,) = prompts
        passes = -(-len(prompt) // self.chunk_tokens)
        self.take(passes, len(prompt))
        if self.gamma:
            self.take(passes, len(prompt), 0.25)
        self.rows.append(Row(first_request, list(prompt), len(prompt), output_tokens))
        self.rows[-1].extend([7], None)

    def step(self):
        n, emitted = len(self.rows), []
        if self.gamma:
            self.take(1, 2 * n, 0.25)
            self.take(self.gamma - 1, (self.gamma - 1) * n, 0.25)
        self.take(1, n * (self.gamma + 1))
        for row in self.rows:
            counts = self.recorded.accepted[row.request % len(self.recorded.accepted)] if self.gamma else (0,)
            kept = min(self.gamma, counts[len(row.accepted) % len(counts)])
            row.accepted.append(kept)
            emitted.append(row.extend([7] * (kept + 1), None))
        return Round([r.request for r in self.rows], [self.gamma] * n, [r.accepted[-1] for r in self.rows], emitted)

    def retire(self):
        gone = [row for row in self.rows if row.done]
        self.rows = [row for row in self.rows if not row.done]
        return gone

    def sleep(self, seconds):
        self.now += seconds


work = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12)
counts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=80)
@given(work, counts, st.integers(0, 4), st.integers(1, 4), st.integers(3, 40))
def test_the_batcher_and_the_step_loop_agree_on_every_time(rows, accepted, gamma, batch, chunk_tokens):
    eighths, prompts, outputs = zip(*sorted(rows), strict=True)
    arrivals = np.array(eighths) * EIGHTH
    recorded = recording(accepted, 4)
    watch = Stopwatch(batch, gamma, recorded, chunk_tokens)
    requests = [Request(float(a), [1] * p, n) for a, p, n in zip(arrivals, prompts, outputs, strict=True)]
    real = serve(watch, requests, now_s=lambda: watch.now, sleep=watch.sleep).served

    engine = load_engine("reference").settings
    simulated, _ = rig.run(
        traffic(arrivals, prompts, outputs), target=tables(1.0, EIGHTH), gamma=gamma,
        draft=tables(0.25, EIGHTH / 4) if gamma else None, recorded=recorded if gamma else None, max_sequences=batch,
        max_batched_tokens=engine.max_batched_tokens // 2, block_tokens=engine.block_tokens,
        prefill_first=int(engine.prefill == "first"), prompts_per_pass=engine.prompts_per_pass,
        prefill_chunk_tokens=chunk_tokens, draft_first=int(engine.draft == "before"),
    )  # fmt: skip
    assert simulated["first_token_s"].tolist() == [r.first_token_s for r in real]
    assert simulated["finish_s"].tolist() == [r.finished_s for r in real]
    if gamma:
        assert simulated["rounds"].tolist() == [len(r.row.accepted) for r in real]
