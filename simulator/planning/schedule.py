"""The best γ by batch and context as a schedule: for memwall's own policies, for vLLM, and for SGLang.

vLLM: ``num_speculative_tokens_per_batch_size`` of ``--speculative-config``, ranges [first, last, K] of requests in the batch,
since pull request 32374 (docs/features/speculative_decoding/dynamic_speculative_decoding.md; tested there with EAGLE, EAGLE-3
and DFlash; ignored with data parallelism). SGLang: ``--speculative-adaptive-config``, a file with one entry per range of batch
sizes, named by its first (docs/advanced_features/adaptive_speculative_decoding.md; EAGLE and EAGLE-3 with top-k 1 only; a
single entry in ``candidate_steps`` fixes the number of steps; 0 steps need a version later than 0.5.13). Both look at the
batch only, so contexts are averaged.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from simulator.errors import InputError
from simulator.operators import FloatArray
from simulator.planning.load_map import LEAST_GAIN, LoadMap
from simulator.speculation.engine_config import vllm_config
from simulator.speculation.engine_flags import sglang_flags

SWITCHING = 1.01
"""Another γ must be so many times as fast as the one in use to be switched to: tile edges make neighbours take turns."""

_SMOOTH = 1.15
"""Gains are averaged over batches from so many times smaller to so many times larger."""


@dataclass(frozen=True)
class Schedule:
    """γ by requests in the batch and by the mean tokens each holds; rows and columns hold up to the next."""

    draft: str
    """Drafter."""
    kind: str
    """Its kind."""
    batches: tuple[int, ...]
    """The first is 1."""
    contexts: tuple[int, ...]
    """The first is 0."""
    gamma: tuple[tuple[int, ...], ...]
    """[batches][contexts]; 0: plain decoding."""
    flat: tuple[tuple[int, int], ...]
    """(first batch, γ) with contexts averaged."""
    most_sequences: int
    """Of the engine's batch."""
    acceptance: dict[str, Any] | None = None
    """Acceptance as a scenario has it; None where it is the drafter's own."""

    @property
    def most(self) -> int:
        """The largest γ anywhere; 0 where speculation never pays."""
        return max([*(g for row in self.gamma for g in row), *(g for _, g in self.flat)])

    @property
    def policy(self) -> dict[str, Any]:
        """``speculation.policy`` of a scenario."""
        return {
            "table": {
                "batches": list(self.batches), "contexts": list(self.contexts), "gamma": [list(row) for row in self.gamma],
            }
        }  # fmt: skip

    def yaml(self) -> str:
        """``speculation`` of a scenario, to be pasted into its file."""
        self._some()
        speculation = {"draft": self.draft, "gamma": self.most, "policy": self.policy}
        if self.acceptance is not None:
            speculation["acceptance"] = self.acceptance
        data = {"speculation": speculation}
        return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None))

    def vllm(self) -> dict[str, Any]:
        """vLLM's ``--speculative-config``. Raises InputError where vLLM has no such drafter."""
        self._some()
        table = {"batches": [b for b, _ in self.flat], "gamma": [g for _, g in self.flat]}
        most = max(g for _, g in self.flat)
        if most == 0:
            raise InputError("schedule", "γ = 0", "be above 0 somewhere")
        given = {"draft": self.draft, "gamma": most, "policy": {"table": table}}
        return vllm_config(given, most_sequences=self.most_sequences)

    def vllm_argument(self) -> str:
        """The same as words of ``vllm serve``."""
        return f"--speculative-config {shlex.quote(json.dumps(self.vllm()))}"

    def sglang(self) -> tuple[list[str], dict[str, Any] | None]:
        """SGLang's flags, and what the file of ``--speculative-adaptive-config`` must hold; None where it has one γ for all
        batches, the best one of the smallest. Raises InputError where SGLang has no such drafter."""
        self._some()
        gammas = [g for _, g in self.flat]
        first = next((g for g in gammas if g), 0)
        if first == 0:
            raise InputError("schedule", "γ = 0", "be above 0 somewhere")
        flags = sglang_flags({"draft": self.draft, "gamma": first})
        if self.kind not in ("eagle", "eagle3") or len(self.flat) == 1:
            return flags, None
        slots = {str(batch): {"candidate_steps": [g]} for batch, g in self.flat}
        return [*flags, "--speculative-adaptive", "--speculative-adaptive-config", "adaptive_spec.json"], slots

    def _some(self) -> None:
        if self.most == 0:
            raise InputError(
                "schedule", "γ = 0 everywhere", "pay at some batch; it pays at none, so leave speculation out"
            )


def schedule(found: LoadMap) -> Schedule:
    """The γ that serves most by the curves of `found`, at every number of requests in the batch. Trees are
    left out, as no engine changes them with the batch. Raises InputError where there is nothing else."""
    drafter = found.deployment.drafter
    chains = [i for i, d in enumerate(found.draftings) if d.shape.is_chain]
    if drafter is None or not chains:
        raise InputError("gamma", "(none)", "be given for a schedule: engines change γ with the batch, and no trees")
    most = found.deployment.engine.settings.max_sequences
    gains = [gains_by_batch(found, j, most)[[0, *(i + 1 for i in chains)]] for j in range(len(found.works))]
    gammas = [0, *(found.draftings[i].shape.depth for i in chains)]
    chosen = [_chosen(g) for g in gains]
    flat = _chosen(np.exp(np.mean([np.log(np.maximum(g, 1e-9)) for g in gains], axis=0)))
    starts = sorted({1, *(int(b) + 1 for c in chosen for b in np.flatnonzero(np.diff(c)) + 1)})
    table = tuple(tuple(gammas[int(c[b - 1])] for c in chosen) for b in starts)
    held = [work.context_tokens for work in found.works]
    order = np.argsort(held)
    middles = [round(float(np.sqrt(held[a] * held[b]))) for a, b in pairwise(order)]
    table = tuple(tuple(row[int(j)] for j in order) for row in table)
    steps = [1, *(int(b) + 2 for b in np.flatnonzero(np.diff(flat)))]
    return Schedule(
        drafter.name, drafter.kind, tuple(starts), (0, *middles), table,
        tuple((b, gammas[int(flat[b - 1])]) for b in steps), most,
    )  # fmt: skip


def gains_by_batch(found: LoadMap, work: int, most: int) -> FloatArray:
    """Requests per second with so many in the batch, over those of plain decoding [1 + draftings, batches 1 … most], plain decoding
    first; beyond the batch that fits, as at the largest."""
    plain = found.plain[work]
    lines = [np.ones(most)]
    for line in found.curves:
        of = line[work]
        if of is None:
            lines.append(np.zeros(most))
            continue
        here = np.minimum(np.arange(most), min(of.most, plain.most) - 1)
        lines.append(of.requests_per_s[here] / plain.requests_per_s[here])
    return np.stack(lines)


def _chosen(gains: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Row in use at each batch [batches], changed only for another that is `SWITCHING` times as fast; to plain decoding where
    nothing pays."""
    found = np.zeros(gains.shape[1], dtype=np.int64)
    used = -1
    sums = np.concatenate([np.zeros((len(gains), 1)), np.cumsum(gains, axis=1)], axis=1)
    for b in range(gains.shape[1]):
        low, high = math.ceil((b + 1) / _SMOOTH), min(math.floor((b + 1) * _SMOOTH), gains.shape[1])
        column = (sums[:, high] - sums[:, low - 1]) / (high - low + 1)
        best = int(column.argmax())
        if column[best] <= LEAST_GAIN:
            best = 0
        if used < 0 or (used and column[used] <= 1.0) or column[best] > SWITCHING * column[used]:
            used = best
        found[b] = used
    return found
