"""What a replica carries: the largest rate that meets the level, against theory, limits, and what moves when a limit is lifted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from simulator import load_scenario, simulate
from simulator.deployment import Deployment, EngineChoice, deploy
from simulator.hardware import load_gpu
from simulator.planning.bench import Bench, most_tokens
from simulator.planning.capacity import LEAST_BUSY, MOST_BUSY, Capacity, Level, least_objective, saturated_by
from simulator.planning.capacity import capacity as capacity_of
from simulator.planning.steady_state import curve, open_loop
from simulator.planning.step_prices import PLAIN_DECODING, DeploymentTables, Drafting
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import Acceptance

WORK = Work.of_lengths(512, 256)
LAW = Acceptance((0.7,))


def bench(engine: str | EngineChoice = "vllm", gpu: object = "h100", model: str = "llama-3.1-8b") -> Bench:
    return Bench(deploy(model, gpu, engine=engine))  # type: ignore[arg-type]


PLAIN = bench()
DRAFTED = Bench(deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b"))
ROUNDS = Drafting("γ = 3", DRAFTED.deployment.drafter.shape(3), LAW)  # type: ignore[union-attr]
CASES = [(PLAIN, PLAIN_DECODING), (DRAFTED, ROUNDS)]


def meets(found: Capacity, rate: float) -> bool:
    return bool(found.level.met(open_loop(found.curve, np.array([rate]), found.level.slo))[0])


@pytest.mark.parametrize(("of", "drafting"), CASES)
@pytest.mark.parametrize(
    "level",
    [Level(Slo(tpot_s=0.012)), Level(Slo(ttft_s=0.3)), Level(Slo(ttft_s=0.06, tpot_s=0.012), 0.9), Level(Slo(ttft_s=0.5, tpot_s=0.02), 0.99)],
)  # fmt: skip
def test_capacity_is_the_largest_rate_that_meets_the_level(of: Bench, drafting: Drafting, level: Level) -> None:
    found = of.capacity(drafting, WORK, level)
    assert found.enough
    assert meets(found, found.rate_per_s)
    top = float(found.curve.requests_per_s[-1])
    beyond = np.linspace(found.rate_per_s * 1.002, 1.2 * top, 400)
    if found.rate_per_s < 0.999 * MOST_BUSY * top:
        assert not level.met(open_loop(found.curve, beyond, level.slo)).any()


def test_one_place_is_the_queue_with_one_server() -> None:
    # Answers as if exponential, one at a time: P(wait > t) = ρ·exp(−μ(1 − ρ)t), of M/M/1.
    of = bench(EngineChoice(max_sequences=1))
    work = replace(WORK, output_cv=1.0)
    for share, limit_s in ((0.9, 2.0), (0.95, 5.0), (0.5, 3.0)):
        found = of.capacity(PLAIN_DECODING, work, Level(Slo(ttft_s=limit_s), share))
        serve = float(found.curve.requests_per_s[0])
        room_s = limit_s - float(found.curve.first_s[0])

        def missed(rho: float, serve: float = serve, room_s: float = room_s, share: float = share) -> float:
            return rho * math.exp(-serve * (1.0 - rho) * room_s) - (1.0 - share)

        expected = float(brentq(missed, 1e-6, 1.0 - 1e-9)) * serve
        assert found.rate_per_s == pytest.approx(min(expected, MOST_BUSY * serve), rel=2e-3)


def test_without_objectives_a_full_batch_is_the_limit() -> None:
    found = PLAIN.capacity(PLAIN_DECODING, WORK, Level(Slo()))
    assert found.rate_per_s == pytest.approx(MOST_BUSY * float(found.curve.requests_per_s[-1]))


def test_what_fails_unloaded_carries_nothing() -> None:
    curve_ = PLAIN.curve(PLAIN_DECODING, WORK)
    found = PLAIN.capacity(PLAIN_DECODING, WORK, Level(Slo(tpot_s=0.99 * float(curve_.tpot_s[0]))))
    assert not found.enough
    assert float(found.unloaded.tpot_s[0]) == pytest.approx(float(curve_.tpot_s[0]), rel=0.01)
    assert float(found.unloaded.requests_per_s[0]) == pytest.approx(LEAST_BUSY * float(curve_.requests_per_s[-1]))


seconds = st.floats(0.001, 3.0)
shares = st.floats(0.5, 0.99)


@settings(max_examples=40)
@given(
    ttft_s=seconds, tpot_s=st.floats(0.002, 0.1), share=shares, looser=st.floats(1.0, 3.0), case=st.sampled_from([0, 1])
)
def test_looser_levels_never_carry_less(ttft_s: float, tpot_s: float, share: float, looser: float, case: int) -> None:
    of, drafting = CASES[case]

    def carried(level: Level) -> float:
        return of.capacity(drafting, WORK, level).rate_per_s

    start = carried(Level(Slo(ttft_s=ttft_s, tpot_s=tpot_s), share))
    for level in (
        Level(Slo(ttft_s=ttft_s * looser, tpot_s=tpot_s), share),
        Level(Slo(ttft_s=ttft_s, tpot_s=tpot_s * looser), share),
        Level(Slo(ttft_s=ttft_s, tpot_s=tpot_s), share / looser),
        Level(Slo(ttft_s=ttft_s), share),
        Level(Slo(tpot_s=tpot_s), share),
    ):
        assert carried(level) >= start * (1.0 - 2e-3)


# --- what binds: lifting it carries more, lifting another does not ----------------------------------------------------------
def test_tpot_binds() -> None:
    tight, free = (PLAIN.capacity(PLAIN_DECODING, WORK, Level(Slo(ttft_s=1.0, tpot_s=t))) for t in (0.01, 0.02))
    assert tight.limit == "tpot"
    assert free.rate_per_s > 1.05 * tight.rate_per_s
    later = PLAIN.capacity(PLAIN_DECODING, WORK, Level(Slo(ttft_s=5.0, tpot_s=0.01)))
    assert later.rate_per_s == pytest.approx(tight.rate_per_s, rel=2e-3)


def test_ttft_binds_where_prompts_are_read_too_slowly() -> None:
    long = Work.of_lengths(6000, 64)
    found = PLAIN.capacity(PLAIN_DECODING, long, Level(Slo(ttft_s=0.35, tpot_s=1.0)))
    assert found.enough
    assert found.limit == "ttft"
    assert PLAIN.capacity(PLAIN_DECODING, long, Level(Slo(ttft_s=0.7, tpot_s=1.0))).rate_per_s > 1.05 * found.rate_per_s


def test_the_batch_limit_binds() -> None:
    level = Level(Slo(ttft_s=1.0, tpot_s=1.0))
    few, many = (bench(EngineChoice(max_sequences=n)).capacity(PLAIN_DECODING, WORK, level) for n in (16, 32))
    assert few.limit == "sequences"
    assert many.rate_per_s > 1.3 * few.rate_per_s


def test_kv_room_binds() -> None:
    level = Level(Slo(ttft_s=1.0, tpot_s=1.0))
    gpu = load_gpu("h100")
    small, large = (
        bench(gpu=replace(gpu, hbm_bytes=size)).capacity(PLAIN_DECODING, WORK, level) for size in (24e9, 28e9)
    )
    assert small.limit == "kv"
    assert large.curve.most > small.curve.most
    assert large.rate_per_s > 1.05 * small.rate_per_s


def test_the_token_budget_binds() -> None:
    level = Level(Slo(ttft_s=3.0, tpot_s=1.0))
    work = Work.of_lengths(16, 256)
    engine = EngineChoice(max_batched_tokens=32)
    found = bench(engine).capacity(PLAIN_DECODING, work, level)
    assert found.curve.most == 31
    assert found.limit == "tokens"


def test_a_saturated_gpu_serves_no_more_in_a_larger_batch() -> None:
    level = Level(Slo(ttft_s=60.0, tpot_s=10.0))
    work = Work.of_lengths(3000, 64)
    found, larger = (bench(EngineChoice(max_sequences=n)).capacity(PLAIN_DECODING, work, level) for n in (64, 128))
    assert found.limit == "saturation"
    assert larger.rate_per_s < 1.1 * found.rate_per_s
    assert saturated_by(found.deployment, found.curve) == "compute"


@pytest.mark.parametrize("objective", ["tpot_s", "ttft_s"])
@pytest.mark.parametrize(("of", "drafting"), CASES)
def test_least_objectives_are_the_tightest_met(of: Bench, drafting: Drafting, objective: str) -> None:
    level = Level(Slo(ttft_s=1.0, tpot_s=0.05))
    found = of.curve(drafting, WORK)
    least = least_objective(found, level, objective)  # type: ignore[arg-type]
    assert least is not None

    def enough(value: float) -> bool:
        slo = level.slo.model_copy(update={objective: value})
        return of.capacity(drafting, WORK, Level(slo, level.share)).enough

    assert enough(least * 1.001)
    assert not enough(least * 0.99)


def test_least_objectives_need_the_other_to_be_met() -> None:
    found = PLAIN.curve(PLAIN_DECODING, WORK)
    assert least_objective(found, Level(Slo(ttft_s=1e-5, tpot_s=0.05)), "tpot_s") is None


# --- sampled tables -----------------------------------------------------------------------------------------------------
def exact(deployment: Deployment, drafting: Drafting, work: Work, level: Level) -> Capacity:
    tables = DeploymentTables(deployment, most_tokens(deployment, drafting, work))
    return capacity_of(deployment, curve(tables, drafting, work), level)


@pytest.mark.parametrize(("of", "drafting"), CASES)
@pytest.mark.parametrize("work", [WORK, Work.of_lengths(3000, 100)])
@pytest.mark.parametrize("level", [Level(Slo(ttft_s=1.0, tpot_s=0.015)), Level(Slo(ttft_s=2.0, tpot_s=1.0))])
def test_sampled_tables_carry_within_a_percent_of_exact_ones(
    of: Bench, drafting: Drafting, work: Work, level: Level
) -> None:
    found = of.capacity(drafting, work, level)
    assert found.rate_per_s == pytest.approx(exact(of.deployment, drafting, work, level).rate_per_s, rel=0.01)


def test_tables_hold_the_largest_pass() -> None:
    # Whoever asks beyond a table is answered with its end: short of the token budget a larger one changes nothing.
    for of, drafting in CASES:
        for work in (WORK, Work.of_lengths(1000, 300), Work.of_lengths(8, 8)):
            most = most_tokens(of.deployment, drafting, work)
            small, large = (curve(DeploymentTables(of.deployment, n), drafting, work) for n in (most, 3 * most))
            assert np.array_equal(small.stay_s, large.stay_s)


# --- simulation ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("level", "limit"),
    [(Level(Slo(ttft_s=1.0, tpot_s=0.02)), "tpot"), (Level(Slo(ttft_s=0.5, tpot_s=0.05)), "sequences")],
)
def test_a_simulated_replica_carries_about_as_much(level: Level, limit: str) -> None:
    found = PLAIN.capacity(PLAIN_DECODING, WORK, level)
    assert found.limit == limit

    def good_share(rate_per_s: float) -> float:
        traffic = {"kind": "poisson", "rate_per_s": rate_per_s, "requests": 2000, "lengths": WORK.lengths}
        slo = level.slo.model_dump(exclude_none=True)
        scenario = {"model": "llama-3.1-8b", "gpu": "h100", "seed": 3, "traffic": traffic, "slo": slo}
        return simulate(load_scenario(scenario)).main.summary.good_share

    assert good_share(0.9 * found.rate_per_s) >= level.share
    assert good_share(1.15 * found.rate_per_s) < level.share
