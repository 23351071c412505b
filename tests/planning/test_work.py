"""What requests ask for on average: the context of `of_context` is the one that its lengths hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.planning.work import Work, answer_range
from simulator.scenario import load_scenario
from simulator.serving.traffic import generate


@given(st.integers(2, 2000), st.integers(1, 20_000))
def test_sequences_hold_the_context_asked_for(output, more):
    lengths = np.arange(*answer_range(output), dtype=float)
    context = int((lengths**2).sum() / (2 * lengths.sum())) + 1 + more
    work = Work.of_context(context, output)
    held = (lengths * (work.prompt_tokens + lengths / 2)).sum() / lengths.sum()
    assert work.context_tokens == pytest.approx(held)
    assert abs(work.context_tokens - context) <= 0.5
    assert work.output_tokens == pytest.approx(output)


def test_answers_that_hold_more_than_the_context_are_refused():
    with pytest.raises(InputError, match="context=100 must be at least 140 for answers of 256 tokens"):
        Work.of_context(100, 256)


def test_work_of_generated_requests_is_that_of_their_lengths():
    work = Work.of_context(1024, 200)
    traffic = {"kind": "poisson", "rate_per_s": 1, "requests": 20_000, "lengths": work.lengths}
    scenario = load_scenario({"model": "llama-3.1-8b", "gpu": "h100", "traffic": traffic})
    found = Work.of_requests(generate(scenario.traffic, 0))
    assert found.prompt_tokens == work.prompt_tokens
    assert found.output_tokens == pytest.approx(work.output_tokens, rel=0.01)
    assert found.context_tokens == pytest.approx(work.context_tokens, rel=0.005)
    assert found.output_cv == pytest.approx(work.output_cv, rel=0.02)
