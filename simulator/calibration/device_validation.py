"""A measured device validated: kernels, steps, rounds and serving runs of its own file, against what memwall predicts.

Steps are predicted by fits that did not see their batch size, or their model; rounds and serving runs by the fit on all
kernels, steps and drafts, in which they had no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import units
from simulator.calibration import device_fit
from simulator.calibration.comparison import Comparison, Quantity, Roof, Validation
from simulator.calibration.device_profile import DeviceProfile, conditions
from simulator.calibration.measured import PassRows
from simulator.calibration.serving_runs import serving_quantities
from simulator.uncertainty import interval_factor

LABELS = {
    "step": ("model", "batch", "tokens", "context_tokens", "layers"),
    "draft": ("model", "gamma", "batch", "context_tokens"),
    "round": ("model", "drafter", "gamma", "batch", "alpha"),
}
HELD_OUT = {"batch": "whole steps, batch size unseen", "model": "whole steps, model unseen"}
PLAIN = "plain"
NOT_FITTED = "not fitted on"


def validate_device(profile: DeviceProfile) -> Validation:
    """Everything that the profile's own measurements say about it."""
    return Validation(
        title=f"Predicted against measured: {profile.gpu.title}",
        subject=profile.label,
        conditions=_conditions(profile),
        comparisons=[*_steps(profile), *_rounds(profile), *_kernels(profile)],
        quantities=[*_read_share(profile), *_speedups(profile), *_serving(profile)],
        roof=_roof(profile),
        notes=_notes(profile),
    )


def _steps(profile: DeviceProfile) -> list[Comparison]:
    found = []
    data, log_sd = profile.data, profile.spread.get("step")
    for by, name in HELD_OUT.items() if profile.given is None and len(data.steps) else ():
        predicted = profile.held_out[by].step_s
        known = np.isfinite(predicted)
        if known.any():
            rows = data.steps.where(known)
            found.append(
                Comparison(
                    name,
                    rows.measured_s,
                    predicted[known],
                    f"held out by {by}",
                    _labels(rows, "step"),
                    _other_groups(profile, by)[known],
                )
            )
    kernels, host_s = profile.fit.kernels, profile.fit.host_step_s
    for name, kind, rows in (
        ("whole steps, all", "step", data.steps), ("draft passes", "draft", data.drafts),
    ):  # fmt: skip
        if len(rows):
            predicted = device_fit.pass_s(data, f"{kind}s", kernels, host_s)
            found.append(Comparison(name, rows.measured_s, predicted, profile.basis, _labels(rows, kind), log_sd))
    return found


def _other_groups(profile: DeviceProfile, by: str) -> NDArray[np.float64]:
    """The spread that the other groups of the same kind claim for each step [rows]: an interval may not be checked on the
    very points that made it."""
    predicted, label = profile.held_out[by].step_s, profile.data.steps.label(by)
    logs = np.log(predicted / profile.data.steps.measured_s)
    spread = np.full(len(logs), np.nan)
    for group in set(label):
        others = (label != group) & np.isfinite(logs)
        spread[label == group] = np.sqrt(np.mean(logs[others] ** 2)) if others.any() else np.nan
    return spread


def _rounds(profile: DeviceProfile) -> list[Comparison]:
    rows = profile.rounds
    if not len(rows):
        return []
    predicted, log_sd = profile.round_s(rows), profile.spread.get("step")
    every = Comparison("rounds", rows.measured_s, predicted, NOT_FITTED, _labels(rows, "round"), log_sd)
    drafter = rows.label("drafter")
    names = {PLAIN: "rounds without drafts", "small": "rounds, small drafter", "early_exit": "rounds, early exit",
             "tree": "rounds, token tree"}  # fmt: skip
    return [every.where(drafter == kind, name) for kind, name in names.items() if (drafter == kind).any()]


def _speedups(profile: DeviceProfile) -> list[Quantity]:
    """Speed-up of each speculative round over the plain one of the same batch: tokens per round as measured."""
    rows = profile.rounds
    if not len(rows):
        return []
    predicted = profile.round_s(rows)
    keys = [tuple(line[name] for name in ("model", "batch", "context_tokens", "graphs")) for line in rows.lines]
    plain = {key: i for i, key in enumerate(keys) if rows.lines[i]["drafter"] == PLAIN}
    found = []
    for i, (key, line) in enumerate(zip(keys, rows.lines, strict=True)):
        base = plain.get(key)
        if line["drafter"] == PLAIN or base is None:
            continue
        tokens = line["tokens_per_round"]
        found.append(
            Quantity(
                f"speed-up, {line['model']} with {line['draft_model'] or line['drafter']}"
                f"{' tree' if line['drafter'] == 'tree' else ''}, γ {line['gamma']}, batch {line['batch']}",
                "×",
                tokens * rows.measured_s[base] / rows.measured_s[i],
                tokens * predicted[base] / predicted[i],
                NOT_FITTED,
                note=f"{tokens:.2f} tokens per round (forced)",
            )
        )
    return found


def _serving(profile: DeviceProfile) -> list[Quantity]:
    lines = [line for line in profile.measured.of_kind("serving") if line["graphs"] == profile.measured.graphs]
    if not lines:
        return []
    return serving_quantities(lines, profile.measured.models, profile.gpu, profile.efficiency, profile.engine)


def _kernels(profile: DeviceProfile) -> list[Comparison]:
    data, kernels = profile.data, profile.fit.kernels
    errors = profile.spread
    found = []
    matmul = data.matmul
    if len(matmul["latency_s"]):
        labels = {
            "tokens": matmul["m"].astype(int),
            "outputs": matmul["n"].astype(int),
            "inputs": matmul["k"].astype(int),
        }
        predicted = device_fit.matmul_s(data, kernels)
        found.append(
            Comparison("matmul", matmul["latency_s"], predicted, profile.basis, labels, errors.get("matmul"))
        )  # fmt: skip
    attention = data.attention
    if len(attention["latency_s"]):
        labels = {"sequences": attention["sequences"].astype(int), "tokens": attention["new_tokens"].astype(int),
                  "keys": attention["keys"].astype(int)}  # fmt: skip
        predicted = device_fit.attention_s(data, kernels)
        every = Comparison(
            "attention", attention["latency_s"], predicted, profile.basis, labels, errors.get("decode_attention")
        )
        found.append(every)
    return found


def _read_share(profile: DeviceProfile) -> list[Quantity]:
    """How much of the read bandwidth measured in the same run a decode step of batch 1 reaches, weights and KV counted."""
    reads = [
        line["moved_bytes"] / line["median_s"] for line in profile.measured.of_kind("read") if line["cache"] == "cold"
    ]
    steps = profile.data.steps
    found = []
    for model in dict.fromkeys(steps.label("model")):
        chosen = (steps.label("model") == model) & (steps.label("batch") == 1) & (steps.label("tokens") == 1)
        chosen &= np.array([line.get("layers") is None for line in steps.lines], bool)
        if not reads or not chosen.any():
            continue
        context = min(line["context_tokens"] for line, keep in zip(steps.lines, chosen, strict=True) if keep)
        i = int(np.flatnonzero(chosen & (steps.label("context_tokens") == context))[0])
        decoder = profile.measured.models[model]
        width = 4.0 if decoder.dtype == "fp32" else 2.0
        moved = width * (decoder.parameters - (0 if decoder.tied_head else decoder.embedding_parameters))
        moved += width * context * decoder.kv_values_per_token
        predicted = float(device_fit.pass_s(profile.data, "steps", profile.fit.kernels, profile.fit.host_step_s)[i])
        found.append(
            Quantity(
                f"share of read bandwidth, {model}, batch 1",
                "×",
                moved / steps.measured_s[i] / max(reads),
                moved / predicted / max(reads),
                profile.basis,
                note=f"of {units.show(max(reads), 'bytes_per_s')}, the fastest cold read of this run",
            )
        )
    return found


def _roof(profile: DeviceProfile) -> Roof:
    lines = [line for line in profile.measured.of_kind("matmul", "attention") if line["moved_bytes"] > 0]
    gpu = profile.gpu
    bundled = profile.file is None

    def column(name: str) -> NDArray[Any]:
        return np.array([float(line[name]) for line in lines])

    return Roof(
        gpu.hbm_bytes_per_s, gpu.peak_flop_per_s(profile.data.dtype), "datasheet" if bundled else "measured in this run",
        column("flop"), column("moved_bytes"), column("median_s"), np.array([line["kind"] for line in lines]),
    )  # fmt: skip


def _conditions(profile: DeviceProfile) -> list[tuple[str, str]]:
    h = profile.measured.header
    shown: Sequence[tuple[str, object]] = (
        ("measured by", conditions(profile.measured)), ("date", h.get("date")), ("CUDA", h.get("cuda")), ("driver", h.get("driver")),
        ("clocks", h.get("clocks")), ("power limit", h.get("power_limit_w")), ("threads", h.get("threads")),
        ("attention", h.get("attention")), ("fused elementwise kernels", h.get("fuse")),
        ("read bandwidth taken as peak", units.show(profile.gpu.hbm_bytes_per_s, "bytes_per_s")),
        ("FLOP/s taken as peak", units.show(profile.gpu.peak_flop_per_s(profile.data.dtype), "flop_per_s")),
        ("fit", profile.fit.message),
    )  # fmt: skip
    return [(name, str(value)) for name, value in shown if value is not None]


def _notes(profile: DeviceProfile) -> list[str]:
    notes = [f"{n} points were not measured: {why}." for why, n in profile.measured.skipped.items()]
    for kind, reasons in profile.measured.dropped.items():
        notes += [f"{n} {kind} measurement{'s' if n > 1 else ''} left out: {why}." for why, n in reasons.items()]
    if profile.measured.lost:
        notes.append(profile.measured.lost)
    if profile.measured.header.get("toy"):
        notes.append("Toy shapes: they check that everything works, their speeds mean nothing.")
    notes += [
        *map(_acceptance, profile.measured.of_kind("acceptance")),
        *map(_divergence, profile.measured.of_kind("divergence")),
    ]
    if "step" in profile.spread:
        limit = interval_factor(profile.spread["step"])
        notes.append(f"A step's 90 % interval is a factor of {limit:.2f} either way.")
    else:
        notes.append("Nothing measured says how far whole steps are off; their intervals come from the kernels'.")
    eager = [
        line
        for line in profile.measured.lines
        if line.get("graphs", profile.measured.graphs) != profile.measured.graphs
    ]
    if eager:
        notes.append(f"{len(eager)} measurements without CUDA graphs are left out: not how a GPU serves.")
    return notes


def _acceptance(line: Mapping[str, Any]) -> str:
    """What a real pair accepted: not predicted, but to be replayed."""
    rates = ", ".join(
        f"{rate:.2f} ({n})"
        for rate, n in zip(line["acceptance_by_depth"], line["rounds_by_depth"], strict=True)
        if rate is not None
    )
    quartiles = " to ".join(f"{line[f'tokens_per_round_{name}']:.2f}" for name in ("q1", "q3"))
    drafter = {"small": line["draft_model"], "ngram": "n-gram look-up", "early_exit": "its own first layers"}[
        line["drafter"]
    ]
    return (
        f"Real acceptance of {line['model']} with {drafter}, {line['text'].replace('_', '-')} text: {line['tokens_per_round']:.2f} "
        f"tokens per round (middle half of {line['requests']} requests: {quartiles}); by depth, of so many rounds: {rates}; "
        f"{line['repeated_share']:.0%} of 12-grams repeated."
    )


def _divergence(line: Mapping[str, Any]) -> str:
    margins = ", ".join(f"{margin:.3g}" for margin in sorted(line["margins"]))
    return (
        f"Greedy output with γ = {line['gamma']} against plain greedy output, {line['weights']} {line['model']}: "
        f"{line['diverged']} of {line['sequences']} sequences differ"
        + (
            f", first at margins of {margins} between the two best logits (median of all: {line['median_margin']:.3g})."
            if margins
            else "."
        )
    )


def _labels(rows: PassRows, kind: str) -> dict[str, NDArray[Any]]:
    return {name: rows.label(name) for name in LABELS[kind] if any(line.get(name) is not None for line in rows.lines)}
