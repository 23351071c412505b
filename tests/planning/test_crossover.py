"""Where speculation stops paying: crossings that bracket, the best γ as the argmax, every refusal a sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.deployment import Deployment, deploy
from simulator.errors import DoesNotFit, InputError
from simulator.planning.crossover import LARGEST_BATCH, SpeculateResult, speculate
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.round import round_cost
from simulator.uncertainty import intervals

PAIR = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
LOOK_UP = deploy("llama-3-70b", "h100", tp=4, draft="ngram", engine="ideal")


def grid(
    alpha: float, gammas=(1, 3, 5), batches=(1, 8, 64), deployment: Deployment = PAIR, **kwargs
) -> SpeculateResult:
    return speculate(deployment, Acceptance((alpha,)), gammas=gammas, batches=batches, **kwargs)


@pytest.mark.parametrize(("deployment", "alpha"), [(PAIR, 0.8), (PAIR, 0.9), (LOOK_UP, 0.6)])
@pytest.mark.parametrize("gamma", [2, 4])
def test_a_crossing_pays_and_its_neighbour_does_not(deployment, alpha, gamma):
    # Short contexts: at long ones attention, which drafts do not multiply, keeps speculation paying at any batch.
    last = grid(alpha, [gamma], [1, 8], deployment, context_tokens=64).crossover(gamma)
    assert last
    cells = grid(alpha, [gamma], [last, last + 1], deployment, context_tokens=64).cells
    assert cells[gamma, last].speedup > 1.0 >= cells[gamma, last + 1].speedup


def test_the_grid_does_not_move_the_crossing():
    fine, coarse = grid(0.8, [4], [1, 4, 16, 64, 256], LOOK_UP), grid(0.8, [4], [2, 1000], LOOK_UP)
    # Up to the tile edges, around which the curve crosses 1 more than once.
    assert fine.crossover(4) == pytest.approx(coarse.crossover(4), rel=0.05)
    # A grid that begins beyond the crossing still finds it.
    assert grid(0.8, [4], [4000], LOOK_UP).crossover(4) == pytest.approx(fine.crossover(4), rel=0.05)


def test_long_contexts_pay_longer():
    short, long = (grid(0.8, [4], [1, 8], context_tokens=c).crossover(4) for c in (64, 300))
    assert 0 < short < long
    assert grid(0.8, [4], [1, 8], context_tokens=8192).crossover(4) is None


def test_drafts_that_are_never_accepted_never_pay():
    result = grid(0.0)
    assert [result.crossover(g) for g in result.gammas] == [0, 0, 0]
    assert result.last_paying_batch == 0
    assert [result.best_gamma(b) for b in result.batches] == [0, 0, 0]


def test_free_drafts_that_are_always_accepted_pay_without_end():
    # γ = 1 for nothing: two tokens for at most twice the work.
    assert grid(1.0, [1], [1], LOOK_UP).crossover(1) is None
    assert grid(1.0, [1], [1], LOOK_UP).last_paying_batch is None


@settings(max_examples=8)
@given(st.sampled_from([2, 4, 8]), st.floats(0.3, 0.7), st.floats(0.0, 0.2))
def test_better_acceptance_never_crosses_earlier(gamma, alpha, more):
    worse, better = (grid(a, [gamma], [1, 64], LOOK_UP).crossover(gamma) for a in (alpha, alpha + more))
    # Tile edges make the curve waver around 1 by a few percent of the batch.
    assert better is None or (worse is not None and better >= 0.93 * worse)


def test_the_last_paying_batch_is_the_largest_crossing():
    result = grid(0.5, deployment=LOOK_UP)
    assert result.last_paying_batch == max(result.crossover(g) for g in result.gammas)


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8, 0.95])
def test_best_gamma_is_the_argmax(alpha):
    result = grid(alpha, gammas=(1, 2, 4, 8), deployment=LOOK_UP, batches=(1, 64, 256))
    for batch in result.batches:
        speedups = {g: result.cells[g, batch].speedup for g in result.gammas} | {0: 1.0}
        assert speedups[result.best_gamma(batch)] == max(speedups.values())


def test_a_cell_by_hand():
    cell = grid(0.8, [3], [8]).cells[3, 8]
    tau = 1 + 0.8 + 0.64 + 0.512
    assert cell.speedup == pytest.approx(tau * cell.plain.seconds / cell.round.seconds)
    assert cell.verify_ratio == cell.round.verify_s / cell.plain.verify_s > 1.0


def test_a_cell_says_whether_its_cache_fits():
    room = PAIR.fit(gamma=3).kv_tokens
    most = room // (1024 + 3 + 1)
    result = grid(0.8, [3], [most, most + 1])
    assert [result.cells[3, b].fits for b in result.batches] == [True, False]


def test_grids_are_sorted_and_said_once():
    result = grid(0.5, [3, 1, 3], [8, 1])
    assert (result.gammas, result.batches) == ((1, 3), (1, 8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gammas": []}, "gamma='(empty)' must name at least one value"),
        ({"batches": []}, "batch='(empty)' must name at least one value"),
        ({"gammas": [0]}, "gamma=0 must be between 1 and 64"),
        ({"gammas": [65]}, "gamma=65 must be between 1 and 64"),
        ({"batches": [0]}, "batch=0 must be between 1"),
        ({"batches": [LARGEST_BATCH + 1]}, "batch=65537 must be between 1 and 65536"),
        ({"context_tokens": 0}, "context=0 must be at least 1"),
        ({"context_tokens": 131_067}, "leave room for a round in the context of 131072"),
        ({"deployment": PAIR.plain()}, "draft='(absent)' must be given"),
    ],
)
def test_impossible_grids(changes, said):
    with pytest.raises(InputError) as caught:
        grid(0.8, **changes)
    assert said in str(caught.value)


def test_not_even_one_sequence_fits():
    with pytest.raises(DoesNotFit, match="would fit"):
        grid(0.8, deployment=deploy("llama-3-70b", "h100", draft="llama-3.1-8b"))


# Rounds are priced many at once, and searches for several γ go on together


def pays(result: SpeculateResult, gamma: int, batch: int) -> bool:
    """Whether γ beats plain decoding, one round at a time."""
    on = result.deployment
    ask = {"sequences": batch, "context_tokens": result.context_tokens}
    plain = round_cost(on.target, on.engine, **ask)
    drafted = round_cost(
        on.target, on.engine, gamma=gamma, acceptance=result.acceptance, draft=on.draft, drafter=on.drafter, **ask
    )
    return plain.tpot_s > drafted.tpot_s


def bisected(result: SpeculateResult, gamma: int) -> int | None:
    """`SpeculateResult.crossover` as its docstring has it, in single steps."""
    low = max((b for b in result.batches if pays(result, gamma, b)), default=0)
    if low == 0:
        if not pays(result, gamma, 1):
            return 0
        low = 1
    high = next((b for b in result.batches if b > low), None)
    while high is None:
        if low >= LARGEST_BATCH:
            return None
        low, high = (2 * low, None) if pays(result, gamma, 2 * low) else (low, 2 * low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(result, gamma, middle) else (low, middle)
    return low


@settings(max_examples=10)
@given(
    st.sampled_from([PAIR, LOOK_UP]),
    st.floats(0.2, 0.95),
    st.sets(st.integers(1, 6), min_size=1, max_size=3),
    st.sets(st.sampled_from([1, 2, 5, 16, 100, 300, 1000, 40_000]), min_size=1, max_size=4),
    st.sampled_from([64, 500]),
)
def test_searches_together_end_where_single_steps_do(deployment, alpha, gammas, batches, context):
    result = grid(alpha, sorted(gammas), sorted(batches), deployment, context_tokens=context)
    assert {g: result.crossover(g) for g in result.gammas} == {g: bisected(result, g) for g in result.gammas}


def test_the_interval_of_the_best_is_the_one_of_rounds_priced_one_by_one():
    result = grid(0.7, (1, 3), (1, 32))

    def speedups(deployment: Deployment) -> dict[str, float]:
        found = {}
        for batch in result.batches:
            gamma = result.shown_gamma(batch)
            one = speculate(deployment, result.acceptance, gammas=[gamma], batches=[batch])
            found[str(batch)] = one.cells[gamma, batch].speedup
        return found

    expected = intervals(PAIR, speedups)
    for batch in result.batches:
        found = result.intervals[batch]
        assert (found.low, found.high) == pytest.approx(
            (expected[str(batch)].low, expected[str(batch)].high), rel=1e-12
        )


def test_cells_with_their_work():
    result = grid(0.7, (1, 3), (1, 32, 4000))
    for gamma in (None, 1, 3):
        cells = result.at_each_batch(gamma)
        assert [cell.round.sequences for cell in cells] == list(result.batches)
        for cell in cells:
            known = result.cells[gamma or result.shown_gamma(cell.round.sequences), cell.round.sequences]
            assert (cell.round, cell.plain, cell.fits) == (known.round, known.plain, known.fits)
            assert cell.round.work.verify == pytest.approx(known.round.work.verify, rel=1e-12)
            assert cell.plain.work.plain == pytest.approx(known.plain.work.plain, rel=1e-12)
            assert cell.round.wasted_joules_per_token == pytest.approx(known.round.wasted_joules_per_token, rel=1e-12)


@pytest.mark.parametrize(("deployment", "context"), [(PAIR, 700), (LOOK_UP, 5000)])
def test_what_pays_is_counted_as_far_as_the_kv_cache_goes(deployment, context):
    result = grid(0.9, [2, 4], [1, 8], deployment, context_tokens=context)
    for gamma in result.gammas:
        room = result.room(gamma)
        ends = grid(0.9, [gamma], [room, room + 1], deployment, context_tokens=context).cells
        assert ends[gamma, room].fits
        assert not ends[gamma, room + 1].fits
        end = result.crossover(gamma)
        assert result.pays_up_to(gamma) == (room if end is None or end > room else end)
