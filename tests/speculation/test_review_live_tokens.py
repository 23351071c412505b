"""Tokens per round as a batch meets them: requests with bad luck stay longer, so more of its rounds are theirs."""

import numpy as np
import pytest

from simulator.deployment import deploy
from simulator.speculation.acceptance import Acceptance, chain_tokens
from simulator.speculation.round import round_cost
from tests.serving.rig import run, tables, traffic


def test_two_kinds_of_requests_by_hand():
    # At an ICC near 1 a request is all luck or none: 60 % take 6 tokens per round, 40 % one. An answer of n tokens takes
    # n·(0.6/6 + 0.4) = n/2 rounds on average, hence 2 tokens per round, where the mean over requests is 4.
    law = Acceptance((0.6,), request_icc=0.999)
    assert law.expected_tokens(5) == pytest.approx(4.0, rel=5e-3)
    assert law.live_tokens(5) == pytest.approx(2.0, rel=5e-3)


@pytest.mark.parametrize("law", [Acceptance((0.8, 0.7)), Acceptance((0.8,), match_probability=0.3)])
def test_where_all_are_alike_both_means_are_one(law):
    assert law.live_tokens(3) == pytest.approx(law.expected_tokens(3), rel=1e-12)
    assert law.live_tokens(0) == 1.0


@pytest.mark.parametrize("icc", [0.1, 0.16])
def test_the_serving_loop_meets_the_mean_over_rounds(icc):
    n, gamma = 2000, 4
    law = Acceptance((0.8,), icc)
    rates, _ = law.per_request(3, n, gamma)
    _, (replica,) = run(
        traffic([0.0] * n, [1] * n, [600] * n), gamma=gamma, rates=rates, draft=tables(0.1), max_sequences=1,
        total_blocks=10_000,
    )  # fmt: skip
    served = 1 + replica.accepted_tokens / replica.sequence_rounds
    inverse = 1 / chain_tokens(rates)
    half_width = 3.3 * inverse.std() / n**0.5 * law.live_tokens(gamma) ** 2
    # A round in 180 is cut short at an answer's end, and yields half its tokens.
    assert served == pytest.approx(law.live_tokens(gamma), abs=half_width + served / 360)
    assert law.expected_tokens(gamma) - served > half_width


def test_a_round_is_priced_at_the_mean_over_rounds():
    served = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    law = Acceptance((0.8,), request_icc=0.16)
    cost = round_cost(
        served.target, served.engine, sequences=8, context_tokens=512, gamma=4, acceptance=law, draft=served.draft
    )
    tau = chain_tokens(law.at_quantile((np.arange(2000) + 0.5) / 2000, 4))
    assert cost.tokens_per_sequence == pytest.approx(1 / np.mean(1 / tau))
