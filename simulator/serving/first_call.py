"""The step loop compiled before anybody waits for it: whoever shows progress or measures speed does it apart."""

from __future__ import annotations

import numpy as np

from simulator.cost.roofline import AttentionRates
from simulator.cost.tables import AttentionKind, FastTables
from simulator.serving import state
from simulator.serving.compiled import interrupted_afterwards
from simulator.serving.model import Fleet, StepModel, Workload, plan_tables
from simulator.serving.pool import Pool
from simulator.speculation.policies import always
from simulator.speculation.shape import PLAIN


def compile_step_loop() -> None:
    """Compiles the step loop, or reads it from the cache: a quarter of a minute once, a fraction of one afterwards.

    The first simulation would do it anyway. Nothing is served here: a replica without requests has nothing to do.
    """
    linear, head, extra_host_s = np.ones((2, 3, 2)), np.ones((3, 2)), np.zeros((2, 2))
    rates = AttentionRates(*[1.0] * len(AttentionRates._fields))
    kinds = (AttentionKind(*[1.0] * len(AttentionKind._fields)),)
    tables = FastTables(linear, head, extra_host_s, kinds, rates, rates)
    config = state.records(state.CONFIG, 1)
    config[0].max_sequences = config[0].block_tokens = config[0].total_blocks = 1
    model = StepModel(
        config, tables, tables, plan_tables(always(PLAIN), [0, 0]), np.ones((1, 1, 1)), np.zeros(1, dtype=np.int64)
    )
    workload = Workload(state.records(state.REQUEST, 1), np.zeros(0, dtype=np.int64))
    with interrupted_afterwards():
        Pool(Fleet([model], np.zeros(1, dtype=np.int64)), workload).serve(0.0)
