"""Rules of drafting, one by one: what is read and drafted in which pass, who lags, which shape is next. Engine rules, "Shapes" to
"Drafting"."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from simulator.randomness import uniform
from simulator.serving.plain.replica import Replica
from simulator.serving.plain.sequence import Sequence
from simulator.speculation.policies import BY_ORACLE, BY_PAST, always, by_table, off_above
from simulator.speculation.shape import MAX_GAMMA, PLAIN, DraftShape, chain
from simulator.speculation.stretches import STRETCH_BEGINS, STRETCH_STATE
from tests.serving.plain import rig
from tests.serving.plain.rig import tables, workload

OFF_FOR_TWO = off_above(chain(2), 1)
TOGETHER = workload([0.0, 0.0], [4, 5], [9, 3])


class Bench:
    """A replica that is stepped by hand, and whose drafter writes down its passes."""

    def __init__(self, work, **settings):
        settings = {"draft": tables(0.25), "rates": [1.0], "plan": always(chain(2)), **settings}
        self.replica = Replica(0, rig.step_model(len(work.requests), **settings))
        self.sequences = [Sequence(i, i, row, work.source, work.end_tokens) for i, row in enumerate(work.requests)]
        for sequence in self.sequences:
            self.replica.submit(sequence)
        self.passes: list[tuple[int, int, int]] = []
        self.taken_in: list[int] = []
        timer = self.replica.drafter.timer
        linear_s, intake_s = timer.linear_s, timer.intake_s

        def watched(sequences, tokens, rows, **more):
            self.passes.append((sequences, tokens, rows))
            return linear_s(sequences, tokens, rows, **more)

        def watched_intake(intake, tokens, spent):
            self.taken_in.append(tokens)
            return intake_s(intake, tokens, spent)

        timer.linear_s, timer.intake_s = watched, watched_intake

    def step(self):
        """One step; returns (sequences, tokens, rows of logits) of each of the drafter's passes in it."""
        self.passes = []
        self.replica.boundary()
        return self.passes

    def of(self, name):
        """A field of every sequence."""
        return [getattr(sequence, name) for sequence in self.sequences]


# Who lags


def test_a_drafter_that_is_off_lags_by_what_it_did_not_read():
    bench = Bench(TOGETHER, plan=OFF_FOR_TWO)
    assert (bench.step(), bench.of("lag_tokens")) == ([], [4, 5])
    assert (bench.step(), bench.of("lag_tokens")) == ([], [5, 6])
    # The second has its last token; for the first 5 and the new one are read, and 2 drafted.
    assert (bench.step(), bench.sequences[0].lag_tokens) == ([(1, 6, 1), (1, 1, 1)], 0)


def test_every_chunk_of_a_prompt_counts():
    bench = Bench(workload([0.0, 0.0], [8, 1], [5, 9]), plan=OFF_FOR_TWO, prefill_chunk_tokens=3)
    lags = []
    while bench.sequences[0].generated_tokens == 0:
        bench.step()
        lags.append(bench.sequences[0].lag_tokens)
    # The second alone goes on, and the drafter is on for it, until the first has a token too.
    assert lags == [0, 0, 8 - 6]
    assert bench.sequences[1].lag_tokens == 3


def test_who_keeps_up_never_lags():
    bench = Bench(TOGETHER, plan=OFF_FOR_TWO, draft_keeps_up=1)
    assert (bench.step(), bench.of("lag_tokens")) == ([(2, 9, 0)], [0, 0])
    assert (bench.step(), bench.of("lag_tokens")) == ([(2, 2, 0)], [0, 0])
    assert (bench.step(), bench.sequences[0].lag_tokens) == ([(1, 1, 1), (1, 1, 1)], 0)


def test_who_has_no_cache_never_lags():
    bench = Bench(TOGETHER, plan=OFF_FOR_TWO, draft_reads=0)
    for _ in range(2):
        assert (bench.step(), bench.of("lag_tokens")) == ([], [0, 0])
    assert (bench.step(), bench.sequences[0].lag_tokens) == ([(1, 1, 1), (1, 1, 1)], 0)


def test_before_a_round_the_lag_comes_on_top_of_two_tokens():
    plan = by_table([PLAIN, chain(2)], [1, 2], [0], [[1], [0]])
    bench = Bench(TOGETHER, plan=plan, draft_first=1)
    assert (bench.step(), bench.of("lag_tokens")) == ([(2, 9, 0)], [0, 0])
    for lag in (1, 2):
        assert (bench.step(), bench.sequences[0].lag_tokens) == ([], lag)
    assert (bench.step(), bench.sequences[0].lag_tokens) == ([(1, 2 + 2, 1), (1, 1, 1)], 0)
    assert bench.step() == [(1, 2, 1), (1, 1, 1)]


def test_before_a_round_who_finds_nothing_lags_by_what_it_gets():
    bench = Bench(workload([0.0], [4], [9]), plan=always(chain(2)), draft_first=1, recorded=[[(0, 0), (0, 0), (2, 2)]])
    assert (bench.step(), bench.of("lag_tokens")) == ([(1, 4, 0)], [0])
    assert (bench.step(), bench.of("lag_tokens")) == ([], [1])
    assert (bench.step(), bench.of("lag_tokens")) == ([], [2])
    assert (bench.step(), bench.of("lag_tokens")) == ([(1, 4, 1), (1, 1, 1)], [0])


# What is read


def test_after_a_round_what_was_kept_is_read():
    bench = Bench(TOGETHER, rates=[[1.0, 0.0], [0.0, 0.0]])
    assert bench.step() == [(2, 9, 2), (2, 2, 2)]
    assert bench.step() == [(2, 2 + 1, 2), (2, 2, 2)]


def test_padded_drafters_read_as_if_all_had_been_kept():
    bench = Bench(TOGETHER, rates=[0.0], draft_padded=1)
    assert bench.step() == [(2, 9, 2), (2, 2, 2)]
    assert bench.step() == [(2, 3 + 3, 2), (2, 2, 2)]


def test_padding_is_to_the_round_that_was_and_not_to_the_one_to_come():
    # The first round has one draft, the next three.
    plan = by_table([PLAIN, chain(1), chain(3)], [1], [0, 6], [[1, 2]])
    bench = Bench(workload([0.0], [4], [20]), plan=plan, rates=[0.0], draft_padded=1)
    assert bench.step() == [(1, 4, 1)]
    assert bench.step() == [(1, 1 + 1, 1), (1, 1, 1), (1, 1, 1)]
    assert bench.step() == [(1, 1 + 3, 1), (1, 1, 1), (1, 1, 1)]


def test_who_has_its_last_token_is_neither_read_nor_drafted_for():
    bench = Bench(workload([0.0, 0.0], [4, 5], [9, 3]), rates=[0.0])
    bench.step()
    assert bench.step()[0] == (2, 2, 2)
    assert bench.step()[0] == (1, 1, 1)


def test_who_pauses_is_not_read_and_keeps_its_drafts():
    # A budget of 5 has room for one round of 3.
    bench = Bench(workload([0.0, 0.0], [2, 3], [9, 9]), max_batched_tokens=5)
    assert bench.step() == [(2, 5, 2), (2, 2, 2)]
    assert bench.step() == [(1, 3, 1), (1, 1, 1)]
    assert bench.of("step_tokens") == [3, 0]
    assert bench.of("shape") == [1, 1]


def test_features_are_taken_in_with_what_is_read_once_a_round():
    bench = Bench(TOGETHER, plan=always(chain(3)), intake=[0.0] * 20)
    bench.step()
    bench.step()
    assert bench.taken_in == [9, 4]  # the second is done by then


# What is drafted


def test_levels_of_a_tree_have_their_widths():
    bench = Bench(TOGETHER, plan=always(DraftShape(20, 4, (1, 3, 5, 7))))
    assert bench.step() == [(2, 9, 2), (2, 6, 6), (2, 10, 10), (2, 14, 14)]


def test_a_shape_may_have_fewer_passes_than_drafts():
    bench = Bench(TOGETHER, plan=always(chain(5, 1)), draft_reads=0)
    assert bench.step() == [(2, 2, 2)]


def test_further_passes_are_for_those_who_draft_so_deep():
    bench = Bench(workload([0.0] * 3, [4] * 3, [20] * 3), plan=always(chain(3), BY_PAST), rates=[[1.0], [0.0], [0.0]])
    bench.step()
    bench.step()  # one grows, two fall to 2
    assert bench.of("own_gamma") == [5, 2, 2]
    assert bench.step() == [(3, 4 + 1 + 1, 3), (1, 1, 1), (1, 1, 1)]
    assert bench.of("own_gamma") == [5, 1, 1]


def test_the_oracle_s_passes_end_where_acceptance_does():
    bench = Bench(
        workload([0.0] * 2, [4] * 2, [20] * 2), plan=always(chain(4), BY_ORACLE), rates=[[1.0, 1.0, 0.0], [0.0] * 3]
    )
    assert bench.step() == [(2, 8, 1), (1, 1, 1)]


def test_own_gamma_has_no_bound_of_its_own_below_the_largest():
    bench = Bench(workload([0.0], [4], [9]))
    sequence = SimpleNamespace(depth=MAX_GAMMA - 1, own_gamma=0)
    bench.replica.luck.learn(sequence, MAX_GAMMA - 1)
    assert sequence.own_gamma == MAX_GAMMA
    sequence.depth = 1
    bench.replica.luck.learn(sequence, 0)
    assert sequence.own_gamma == 1


def test_a_drafter_proposes_nothing_in_some_stretches():
    bench = Bench(
        workload([0.0], [4], [9]), plan=always(chain(2, 0)), draft=None, states=[(1.0, 1.0, False)], rates=[1.0]
    )
    for _ in range(9):
        bench.step()
    assert bench.of("drafted_tokens") == [0]
    assert bench.of("decode_rounds") == [8]


# Which shape is next


def test_the_shape_to_come_is_that_of_what_will_be_known():
    # 4 of prompt and 1: 5 tokens; then 6 and 7.
    plan = by_table([PLAIN, chain(1), chain(2)], [1], [0, 6], [[1, 2]])
    bench = Bench(workload([0.0], [4], [20]), plan=plan, rates=[0.0])
    shapes = []
    for _ in range(3):
        bench.step()
        shapes.extend(bench.of("shape"))
    assert shapes == [1, 2, 2]


def test_a_shape_that_is_not_drafted_ahead_is_that_of_what_is_computed():
    plan = by_table([PLAIN, chain(1, 0), chain(2, 0)], [1], [0, 6], [[1, 2]])
    bench = Bench(workload([0.0], [4], [20]), plan=plan, draft=None, rates=[0.0])
    drafts = []
    for _ in range(5):
        bench.step()
        drafts.extend(bench.of("drafts"))
    assert drafts == [0, 1, 1, 2, 2]  # 4 and 5 computed, then 6


@pytest.mark.parametrize(("sequences", "tokens", "shape"), [([], 0, 1), ([7], 7, 1), ([4, 8], 6, 2), ([9, 9, 9], 9, 0)])
def test_shapes_by_batch_and_mean(sequences, tokens, shape):
    plan = by_table([PLAIN, chain(1, 0), chain(2, 0)], [1, 2, 3], [0, 6], [[1, 1], [0, 2], [2, 0]])
    luck = Bench(workload([0.0], [4], [9]), plan=plan, draft=None).replica.luck
    assert luck.shape_for(sequences) == shape
    assert sum(sequences) == tokens * len(sequences)


# Stretches


def test_stretches_are_drawn_by_counter_with_the_state_s_own_renewal():
    seed, renewal, shares = 5, (0.3, 0.05), (0.6, 0.4)
    states = [(shares[0], 0.0, True), (shares[1], 1.0, True)]
    bench = Bench(
        workload([0.0] * 3, [4] * 3, [60] * 3), plan=always(chain(2, 0)), draft=None, rates=[1.0], states=states,
        renewal=renewal, seed=seed,
    )  # fmt: skip
    while not all(bench.of("complete")):
        bench.step()
    for index in range(3):
        state, good = -1, []
        for position in range(60):
            if position == 0 or uniform(seed, index, position, STRETCH_BEGINS) < renewal[state]:
                state = int(uniform(seed, index, position, STRETCH_STATE) >= shares[0])
            good.append(state == 1)
        position, kept = 1, 0
        while position < 60:
            step = min(3 if good[position] else 1, 60 - position)
            kept += min(2 * good[position], 60 - position)
            position += step
        assert 0 < sum(good) < 60
        assert bench.sequences[index].accepted_tokens == kept
