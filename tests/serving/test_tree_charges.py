"""What the loop charges for trees is what `speculation.tree_cost` does."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.scenario import load_scenario
from simulator.serving.simulation import variants_of
from simulator.serving.step_model import Fates, step_model
from simulator.speculation.tree_cost import tree_moves_s

NODES, KEPT, BATCH = 14, 2.5, 512


@pytest.mark.parametrize("pp", [1, 2])
def test_masks_and_moves_of_every_stage_side_by_side(pp):
    scenario = load_scenario({
        "model": "llama-3.1-70b", "gpu": "h200-sxm", "tp": 4, "pp": pp, "traffic": "chat",
        "speculation": {"draft": "eagle3-llama-3.1-70b", "tree": {"branching": [2, 2, 2]}, "acceptance": {"alpha": 0.7}},
    })  # fmt: skip
    served = scenario.deployment()
    drafts = variants_of(scenario, served)[0].drafts
    fates = Fates(np.ones((1, 1, 4)), np.zeros(1, dtype=np.int64))
    row = step_model(served, served.fit(), drafts=drafts, fates=fates, seed=0, shares=False).config[0]
    charged = row.tree_step_s + row.tree_mask_s * BATCH * (NODES + 1) ** 2 + row.tree_move_s * BATCH * KEPT
    expected = float(tree_moves_s(served.target, NODES, BATCH / pp, KEPT))
    assert charged == pytest.approx(expected, rel=0.02)  # in closed form a little is found in L2
