"""Where one attention kernel serves a whole batch, the three views of cost still agree."""

import numba
import numpy as np
import pytest

from simulator.architecture import load_decoder
from simulator.cost.forward import Batch, ForwardCost
from simulator.cost.roofline import attention_time, one_kernel
from simulator.cost.tables import FastTables
from simulator.hardware import load_gpu
from simulator.serving import passes, pool, state

COST = ForwardCost(load_decoder("llama-3.1-8b"), load_gpu("rtx-4090"))
BATCHES = {
    "decode": ((1, 1, 1), (900, 40, 2000)),
    "verification": ((4, 4, 1), (900, 40, 2000)),
    "prefill": ((512, 64), (0, 100)),
    "mixed": ((1, 1, 400, 4), (900, 40, 100, 7)),
}


def looped_tables(tables: FastTables) -> passes.Tables:
    """`tables` as the step loop reads them."""
    rates = np.array([tuple(tables.decode_rates), tuple(tables.prefill_rates)], dtype=pool.RATES)
    return passes.Tables(
        tables.linear, tables.head, tables.extra_host_s, np.array([tuple(k) for k in tables.kinds]),
        rates.view(np.recarray), np.zeros((1, 1, 1)), np.array([tables.pipeline, 0, 0]), np.zeros((3, 1)),
    )  # fmt: skip


@numba.njit
def looped(tables, new, cached, replica):
    """Seconds of attention as the step loop adds them up; its functions can be called from compiled code alone."""
    loads, counts = np.zeros((len(tables.kinds), 4)), np.zeros(4)
    for i in range(len(new)):
        passes.add_load(tables.kinds, loads, counts, new[i], cached[i])
    return passes.attention_step(tables, loads, counts, replica)


@pytest.mark.parametrize("name", BATCHES)
def test_the_serving_loop_the_operators_and_the_sum_agree(name):
    new, cached = BATCHES[name]
    tables = looped_tables(COST.tables(600, 8))
    looped_s = looped(tables, np.array(new), np.array(cached), state.records(state.REPLICA, 1)[0])
    summed_s = COST.attention(new, cached)
    priced = COST.pass_cost(Batch(new, cached, len(new))).operators
    assert looped_s == pytest.approx(summed_s, rel=1e-9)
    assert sum(o.repeat * o.total_s for o in priced if o.name.endswith("_attention")) == pytest.approx(
        summed_s, rel=1e-9
    )


def test_only_pure_decoding_has_the_kernel_of_its_own():
    rates = COST.prefill_rates
    assert not one_kernel(3, 3, 0, rates)
    assert one_kernel(3, 4, 0, rates)
    assert one_kernel(3, 3, 1, rates)
    assert not one_kernel(3, 9, 1, rates._replace(takes_decode=0.0))


def test_one_launch_is_paid_once():
    decode, prefill, rates = ((1,) * 8, (1000,) * 8), ((512,), (0,)), COST.prefill_rates
    together = COST.attention(decode[0] + prefill[0], decode[1] + prefill[1])
    alone = attention_time(8, 8, 8 * 1001 * 4096.0, 8 * 1001 * rates.flop_per_pair, rates)[0]
    assert together == pytest.approx(COST.attention(*prefill) + 32 * (alone - rates.t0_s), rel=1e-9)


def test_absorbed_and_expanded_latents_stay_two_kernels():
    mla = ForwardCost(load_decoder("deepseek-v2-lite"), load_gpu("rtx-4090"))
    assert mla.attention((1, 256), (100, 0)) == pytest.approx(mla.attention((1,), (100,)) + mla.attention((256,), (0,)))
