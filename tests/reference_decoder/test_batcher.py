"""The continuous batcher, on a clock that only moves when asked."""

import math

import pytest

from simulator.reference_decoder.batcher import Request, Served, poisson_requests, serve
from simulator.reference_decoder.drafters import NGram, SmallModel
from simulator.reference_decoder.speculative import Decoding, Row, generate
from simulator.reference_decoder.token_tree import Tree
from tests.reference_decoder.models import PROMPTS, draft, successor, target


class Ticking:
    """Every reading advances one second; sleeping advances as far as asked."""

    def __init__(self):
        self.now_s = 0.0

    def read(self):
        self.now_s += 1.0
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


def run(decoding, requests):
    clock = Ticking()
    return serve(decoding, requests, now_s=clock.read, sleep=clock.sleep)


def test_two_requests_by_hand():
    # The clock is read to begin (0), then: admit 1 → 2; retire 3; and once more to find that nobody else may come in.
    requests = [Request(0.0, [1], 2), Request(100.0, [5], 1)]
    result = run(Decoding(successor(9), 2, 8), requests)
    first, second = result.served
    assert first.row.output == [2, 3]
    assert second.row.output == [6]
    assert (first.arrival_s, first.first_token_s) == (0.0, 2.0)
    assert second.first_token_s >= 100.0
    assert result.prefill_tokens == [1, 1]
    assert (result.round_rows, result.round_tokens, result.round_s) == ([1], [1], [1.0])


@pytest.mark.parametrize("drafter", [lambda: None, lambda: NGram(3), lambda: SmallModel(draft(), Tree.chain(2))])
def test_everyone_gets_what_they_would_get_alone(drafter):
    model = target()
    requests = [Request(7.0 * i, PROMPTS[i % 4], 3 + 2 * i) for i in range(9)]
    result = run(Decoding(model, 3, 40, drafter=drafter()), requests)
    for request, served in zip(requests, result.served, strict=True):
        assert served.row.output == generate(model, [request.prompt], request.output_tokens)[0].output
        assert request.arrival_s == served.arrival_s < served.first_token_s <= served.finished_s
    # Conservation: what rounds emitted, and one token of each prefill, is what users received.
    assert sum(result.round_tokens) + len(requests) == sum(len(s.row.output) for s in result.served)
    assert max(result.round_rows) <= 3


def test_requests_beyond_the_batch_wait():
    result = run(Decoding(successor(50), 1, 40), [Request(0.0, [1], 10), Request(0.0, [2], 10)])
    assert result.served[1].first_token_s > result.served[0].finished_s
    assert set(result.round_rows) == {1}


def test_metrics_of_a_request():
    row = Row(0, [1, 2, 3, 4, 5], prompt_tokens=1, output_tokens=4)
    served = Served(arrival_s=1.0, first_token_s=3.0, finished_s=9.0, row=row)
    assert (served.ttft_s, served.tpot_s) == (2.0, 2.0)
    assert math.isnan(Served(1.0, 3.0, 3.0, Row(0, [1, 2], 1, 1)).tpot_s)


def test_poisson_arrivals_have_the_rate_and_are_reproducible():
    requests = poisson_requests(50.0, 4000, 8, 20, 100, seed=3)
    # The time of the n-th arrival is n/rate ± √n/rate.
    assert requests[-1].arrival_s == pytest.approx(4000 / 50.0, abs=4 * math.sqrt(4000) / 50.0)
    assert {r.output_tokens for r in requests} == set(range(10, 31))
    assert all(len(r.prompt) == 8 for r in requests)
    assert requests == poisson_requests(50.0, 4000, 8, 20, 100, seed=3)
