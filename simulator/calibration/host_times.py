"""Host times of a serving engine from step times: what a step took beyond the passes that the calibration predicts.

    measured − passes = h ± v + s·B + [γ > 0]·(r + d·γ)

with h the host time of a step, s per sequence, r per speculative round and d per draft pass, none below 0. Sources differ in
the engine's version; v is half the difference between two of them, and h their mean. What the rows cannot tell apart goes
to a step before a round, and to a round before what grows with sequences or passes; v is as small as the rows allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from simulator.engine import Engine

_COLUMNS = ("host_step", "host_speculative_round", "host_per_sequence", "host_draft_pass")
# What ties are decided by, ms²; the rows themselves are known to some 0.01 ms.
_RIDGE = (1e-5, 2e-5, 1e-3, 1e-3, 1e-3, 1e-3)


@dataclass(frozen=True)
class HostRow:
    """One measured step."""

    beyond_s: float
    """Measured time less the predicted passes of target and drafter."""
    sequences: int
    gamma: int
    version: str
    """Whose measurement, of which version of the engine."""


@dataclass(frozen=True)
class HostTimes:
    """As in `engine.Engine`."""

    host_step_s: float
    host_speculative_round_s: float
    host_per_sequence_s: float
    host_draft_pass_s: float
    ambiguous: tuple[str, ...]
    """Figures that the rows cannot tell apart."""

    def seconds(self, sequences: int, gamma: int) -> float:
        """h + s·B + [γ > 0]·(r + d·γ), the part of a step or round that is the host's, s."""
        round_s = self.host_speculative_round_s + self.host_draft_pass_s * gamma if gamma else 0.0
        return self.host_step_s + self.host_per_sequence_s * sequences + round_s

    def of(self, engine: Engine) -> Engine:
        """`engine` with these host times."""
        return replace(
            engine,
            host_step_s=self.host_step_s,
            host_speculative_round_s=self.host_speculative_round_s,
            host_per_sequence_s=self.host_per_sequence_s,
            host_draft_pass_s=self.host_draft_pass_s,
            host_reduced_vocabulary_s=0.0,  # whatever the drafter's vocabulary, it is in what a pass was seen to take
        )


def fit_host_times(rows: Sequence[HostRow]) -> HostTimes:
    """Least squares over `rows`, of at most two versions."""
    versions = sorted({row.version for row in rows})
    if len(versions) > 2:
        raise ValueError(f"{len(versions)} versions; one difference is fitted, not several")
    side = [0.0] * len(rows) if len(versions) < 2 else [1.0 if r.version == versions[0] else -1.0 for r in rows]
    figures = np.array([[1.0, float(r.gamma > 0), r.sequences, r.gamma] for r in rows])
    design = np.column_stack([figures, side, np.negative(side)])
    ridge = np.diag(_RIDGE)
    beyond_ms = np.array([1e3 * row.beyond_s for row in rows])
    solution, _ = nnls(np.vstack([design, ridge]), np.concatenate([beyond_ms, np.zeros(len(ridge))]))
    known = design[:, :5]
    rank = np.linalg.matrix_rank(known)
    ambiguous = tuple(
        name for i, name in enumerate(_COLUMNS) if np.linalg.matrix_rank(np.delete(known, i, axis=1)) == rank
    )
    h, r, s, d = (float(x) * 1e-3 for x in solution[:4])
    return HostTimes(h, r, s, d, ambiguous)
