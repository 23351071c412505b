"""One measured device: everything in a measurement file explained at once by one set of efficiencies.

Kernels timed alone say what a matmul or attention costs; whole steps say what they cost inside a pass, and all that no
kernel timing isolates (norms, rotary, activation, copies, host). So both are fitted together: bounded least squares on log
residuals, each kind of measurement with its own weight, with a wide prior on every parameter so that none runs away where a
short file leaves it open. Rounds and serving runs are never fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.calibration import fit
from simulator.calibration.comparison import Progress
from simulator.calibration.kernel_tables import Columns
from simulator.calibration.measured import Measurements, PassRows
from simulator.calibration.passes import Kernels, Terms, attention_rows
from simulator.calibration.solver import Bounds, FloatArray, Values
from simulator.cost.efficiency import AttentionEfficiency, ElementwiseEfficiency, MatmulEfficiency, load_efficiency
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.cost.roofline import attention_rates, matmul_time
from simulator.errors import InputError
from simulator.hardware import Gpu

WEIGHTS = {"matmul": 1.0, "attention": 1.0, "step": 3.0, "draft": 1.0}
"""Of each kind of measurement, however many there are: steps are what a simulation is made of."""
NOISE = 0.1
"""Log error of one row that the form cannot help, to be weighed against the priors; between those of kernels and of steps."""
PRIOR_LOG_SD = {"matmul": 0.3, "decode_attention": 1.0, "prefill_attention": 1.0, "elementwise": 1.5}
"""How far a GPU's parameters may lie from its family's, as a standard deviation of their logarithms. Matmuls are the same
library's; attention and elementwise kernels are other ones than those the family was fitted on."""
CPU_PRIOR_LOG_SD = 1.5
"""The same for a processor, whose starting values are guesses: a factor of four and a half."""
LEAST_ROWS = 12
"""Fewest kernels and steps that a fit is made from."""
OUTLIER = 0.1
"""Log residual from which a point counts less and less (soft l1): a shared machine slows down without telling."""

# name: (start, lowest, highest), as in `fit`. A vector unit has no tiles, waves or splits: what a GPU needs a dozen
# parameters for, a processor's libraries do in four or five.
CPU_BOUNDS: dict[str, Bounds] = {
    "matmul": {
        "t0_s": (1e-5, 1e-7, 1e-3), "bandwidth": (0.4, 0.02, 1.1), "compute": (0.9, 0.1, 1.1), "power": (1.2, 1.0, 12.0),
        "l2_speedup": (1.5, 1.0, 10.0),
    },
    "attention": {
        "t0_s": (1e-5, 1e-7, 1e-3), "bandwidth": (0.2, 0.01, 1.1), "compute": (0.3, 0.01, 1.1),
        "sequence_s": (1e-6, 1e-9, 1e-3), "wave_s": (1e-7, 1e-10, 1e-4), "power": (1.2, 1.0, 12.0),
    },
    "elementwise": {"t0_s": (2e-5, 1e-7, 1e-3), "bandwidth": (0.3, 0.01, 1.1), "l2_speedup": (2.0, 1.0, 10.0)},
    "host": {"step_s": (3e-4, 1e-6, 1e-2)},
}  # fmt: skip
CPU_SET: dict[str, Values] = {
    "matmul": {"tile_half": 0.0, "k_extra": 0.0, "k_step_s": 0.0, "split_s": 0.0, "row_tile": 1.0},
    "attention": {
        "narrow_head": 0.0, "wide_head": 0.0, "kv_step_s": 0.0, "split_s": 0.0, "combine_s": 0.0, "copy_s": 0.0,
        "query_tile": 1.0, "packs_group": 1.0, "split_from_group": fit.NEVER, "l2_speedup": 1.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which parameters a device has: those that are fitted, with start and bounds, and those that are set, by section."""

    bounds: Mapping[str, Bounds]
    fixed: Mapping[str, Values]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(section, parameter) of every fitted one, in order."""
        return [(section, name) for section, bounds in self.bounds.items() for name in bounds]

    def values(self, logs: FloatArray) -> dict[str, Values]:
        """All parameters by section from the logarithms of the fitted ones."""
        values: dict[str, Values] = {section: dict(fixed) for section, fixed in self.fixed.items()}
        for (section, name), log in zip(self.names, logs, strict=True):
            values.setdefault(section, {})[name] = float(np.exp(log))
        return values

    @staticmethod
    def of(gpu: Gpu) -> Layout:
        """For a CPU or a GPU; a GPU's parameters start at its family's."""
        if gpu.family == "cpu":
            return Layout(CPU_BOUNDS, CPU_SET)
        prior = load_efficiency(replace(gpu, name="(unmeasured)", profile=None))
        bounds: dict[str, Bounds] = {}
        fixed: dict[str, Values] = {}
        sections: dict[str, tuple[Bounds, Values, Any]] = {
            "matmul": (fit.MATMUL, fit.MATMUL_SET, prior.matmul),
            "decode_attention": (fit.DECODE, fit.attention_set(gpu, "decode"), prior.decode_attention),
            "prefill_attention": (fit.PREFILL, fit.attention_set(gpu, "prefill"), prior.prefill_attention),
            "elementwise": (
                {"t0_s": (2e-6, 2e-7, 1e-4), "bandwidth": (0.8, 0.1, 1.0), "l2_speedup": (2.0, 1.0, 10.0)}, {},
                prior.elementwise,
            ),
        }  # fmt: skip
        for section, (given, set_, start) in sections.items():
            # Buffers take turns, so nothing is found in L2 that a step would not find there.
            free = {
                name: b for name, b in given.items() if section in ("matmul", "elementwise") or name != "l2_speedup"
            }
            bounds[section] = {
                name: (float(np.clip(getattr(start, name), low * 1.01, high / 1.01)), low, high)
                for name, (_, low, high) in free.items()
            }
            fixed[section] = {n: v for n, v in start._asdict().items() if n not in free} | set_
            if "l2_speedup" not in free:
                fixed[section]["l2_speedup"] = 1.0
        fixed["decode_attention"]["compute"] = prior.decode_attention.compute
        return Layout(bounds, fixed)


@dataclass(frozen=True)
class Data:
    """What is fitted, apart into kinds; any of them may be empty."""

    gpu: Gpu
    dtype: str
    matmul: Columns
    attention: Columns
    steps: PassRows
    drafts: PassRows
    step_terms: Terms | None
    draft_terms: Terms | None
    on_host_clock: bool
    """Whether steps were timed by the host, so that its share is in them."""
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Measured lines that are not fitted, by kind and reason."""

    @staticmethod
    def of(measured: Measurements, gpu: Gpu) -> Data:
        """Everything in a file that is fitted."""
        steps, drafts = measured.passes("step"), measured.passes("draft")
        return Data(
            gpu, str(measured.header["dtype"]), measured.kernels("matmul"), measured.kernels("attention"), steps, drafts,
            terms_of(steps, measured, gpu), terms_of(drafts, measured, gpu), measured.header["device_kind"] == "cpu",
            measured.dropped,
        )  # fmt: skip

    def require_enough(self, where: str) -> None:
        """Raises InputError unless there are as many rows as a fit needs to mean anything."""
        kernels = len(self.matmul["latency_s"]) + len(self.attention["latency_s"])
        if len(self.steps) + kernels < LEAST_ROWS:
            rule = f"hold at least {LEAST_ROWS} times of steps, matmuls or attention"
            raise InputError("measurements", f"{len(self.steps)} steps and {kernels} kernels", rule, where=where)

    def without(self, measured: Measurements, by: str, group: Any) -> Data:
        """All but one ``batch`` size, but one ``model`` with every kernel that has its shapes, or but one ``matrix`` (n, k)."""
        matmul, attention, steps, drafts = self.matmul, self.attention, self.steps, self.drafts
        if by == "matrix":
            matmul = _chosen(matmul, (matmul["n"] != group[0]) | (matmul["k"] != group[1]))
        if by in ("batch", "model"):
            steps = steps.where(steps.label(by) != group)
            drafts = drafts.where(drafts.label(by) != group)
        if by == "batch":
            attention = _chosen(attention, attention["sequences"] != group)
        if by == "model":
            a = measured.models[group]
            shape = {"heads": a.attention.heads, "kv_heads": a.attention.kv_heads, "head_dim": a.attention.head_dim,
                     "hidden": a.hidden_size, "width": a.layer_kinds[0].mlp.width, "vocab": a.vocab_size}  # fmt: skip
            rows = (shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"]
            matrices = {
                (rows, shape["hidden"]), (shape["hidden"], shape["heads"] * shape["head_dim"]),
                (2 * shape["width"], shape["hidden"]), (shape["hidden"], shape["width"]), (shape["vocab"], shape["hidden"]),
            }  # fmt: skip
            kept = [pair not in matrices for pair in zip(matmul["n"], matmul["k"], strict=True)]
            matmul = _chosen(matmul, np.array(kept, bool))
            own = (attention["heads"] == shape["heads"]) & (attention["kv_heads"] == shape["kv_heads"])
            attention = _chosen(attention, ~(own & (attention["head_dim"] == shape["head_dim"])))
        return replace(
            self, matmul=matmul, attention=attention, steps=steps, drafts=drafts,
            step_terms=terms_of(steps, measured, self.gpu), draft_terms=terms_of(drafts, measured, self.gpu),
        )  # fmt: skip


@dataclass(frozen=True)
class DeviceFit:
    """Outcome of `solve`."""

    layout: Layout
    logs: FloatArray
    """Logarithms of the fitted parameters, in the order of `layout.names`."""
    covariance: FloatArray
    """Of `logs`: s²·(JᵀJ)⁻¹ over all rows and priors; rows of one shape are not independent, so take it as a lower bound."""
    success: bool
    message: str
    values: Mapping[str, Values] = field(default_factory=dict)

    @property
    def kernels(self) -> Kernels:
        """The efficiencies."""
        return kernels_of(self.values)

    @property
    def host_step_s(self) -> float:
        """Host time of one pass, where it was timed with it."""
        return self.values.get("host", {}).get("step_s", 0.0)


def kernels_of(values: Mapping[str, Values]) -> Kernels:
    """Efficiencies from parameters by section; where ``attention`` is one section, it serves decoding and prefill."""
    decode = values.get("decode_attention", values.get("attention", {}))
    prefill = values.get("prefill_attention", values.get("attention", {}))
    return Kernels(
        MatmulEfficiency(**values["matmul"]), AttentionEfficiency(**({"compute": 0.6} | decode)),
        AttentionEfficiency(**prefill), ElementwiseEfficiency(**values["elementwise"]),
    )  # fmt: skip


def solve(data: Data) -> DeviceFit:
    """The efficiencies that explain `data` best. Takes a second or two."""
    layout = Layout.of(data.gpu)
    if not data.on_host_clock:
        layout = replace(layout, bounds={s: b for s, b in layout.bounds.items() if s != "host"})
    start, low, high = (
        np.log([layout.bounds[section][name][i] for section, name in layout.names]) for i in range(3)
    )  # fmt: skip
    kinds = _kinds(data)
    rows, weights = sum(len(measured_s) for _, measured_s, _ in kinds), sum(WEIGHTS[name] for name, _, _ in kinds)
    cpu = data.gpu.family == "cpu"
    prior_sd = np.array([CPU_PRIOR_LOG_SD if cpu else PRIOR_LOG_SD[section] for section, _ in layout.names])

    def residuals(logs: FloatArray) -> FloatArray:
        values = layout.values(logs)
        kernels, host_s = kernels_of(values), values.get("host", {}).get("step_s", 0.0)
        parts = []
        for name, measured_s, predict in kinds:
            error = np.log(predict(kernels, host_s) / measured_s)
            # All rows together count as many as they are, each kind by its weight.
            parts.append(_soften(error) / NOISE * np.sqrt(rows * WEIGHTS[name] / (weights * len(error))))
        return np.concatenate([*parts, (logs - start) / prior_sd])

    # Steps of the derivative are relative to the variable: moved to 1 and above, none of them vanishes.
    shift = 1.0 - low
    bounds = (low + shift, high + shift)
    result = least_squares(lambda y: residuals(y - shift), start + shift, bounds=bounds, diff_step=1e-4, max_nfev=60)
    logs = result.x - shift
    covariance = np.linalg.pinv(result.jac.T @ result.jac) * float(np.mean(result.fun**2))
    return DeviceFit(layout, logs, covariance, bool(result.success), str(result.message), layout.values(logs))


Predict = Callable[[Kernels, float], FloatArray]


def _kinds(data: Data) -> list[tuple[str, FloatArray, Predict]]:
    found: list[tuple[str, FloatArray, Predict]] = []
    if len(data.matmul["latency_s"]):
        found.append(("matmul", data.matmul["latency_s"], lambda kernels, _: matmul_s(data, kernels)))
    if len(data.attention["latency_s"]):
        found.append(("attention", data.attention["latency_s"], lambda kernels, _: attention_s(data, kernels)))
    if data.step_terms is not None:
        found.append(("step", data.steps.measured_s, lambda kernels, host: pass_s(data, "steps", kernels, host)))
    if data.draft_terms is not None:
        found.append(("draft", data.drafts.measured_s, lambda kernels, host: pass_s(data, "drafts", kernels, host)))
    return found


def matmul_s(data: Data, kernels: Kernels) -> FloatArray:
    """Predicted times of the matmuls [rows]: weights cold, as buffers take turns."""
    c, width = data.matmul, 4.0 if data.dtype == "fp32" else 2.0
    activations = width * c["m"] * (c["n"] + c["k"])
    dtype = "fp32" if data.dtype == "fp32" else "bf16"
    weights = width * c["n"] * c["k"]
    time = matmul_time(c["m"], c["n"], c["k"], weights, activations, dtype, data.gpu, kernels.matmul)
    return np.asarray(time.total_s)


def attention_s(data: Data, kernels: Kernels) -> FloatArray:
    """Predicted times of the attention kernels [rows]."""
    c, width = data.attention, 4.0 if data.dtype == "fp32" else 2.0
    seconds = np.empty(len(c["latency_s"]))
    prefill = c["new_tokens"] > DECODE_QUERY_LIMIT
    shape = c["heads"] * 1e6 + c["kv_heads"] * 1e3 + c["head_dim"]
    for key in np.unique(shape):
        for late, e in ((False, kernels.decode_attention), (True, kernels.prefill_attention)):
            i = np.flatnonzero((shape == key) & (prefill == late))
            if not len(i):
                continue
            heads, kv_heads, head_dim = (float(c[n][i[0]]) for n in ("heads", "kv_heads", "head_dim"))
            dtype = "fp32" if data.dtype == "fp32" else "bf16"
            rates = attention_rates(data.gpu, e, dtype=dtype, kv_heads=kv_heads, heads=heads, head_dim=int(head_dim))
            s, q, keys = c["sequences"][i], c["new_tokens"][i], c["keys"][i]
            kv_bytes = s * kv_heads * keys * head_dim * 2 * width
            flop = rates.flop_per_pair * s * q * (keys - q + (q + 1) / 2)
            seconds[i] = attention_rows()(s, s * q, kv_bytes, flop, rates)
    return seconds


def pass_s(data: Data, which: str, kernels: Kernels, host_s: float) -> FloatArray:
    """Predicted times of steps or drafts [rows]."""
    rows: PassRows = getattr(data, which)
    terms: Terms = getattr(data, which.removesuffix("s") + "_terms")
    return row_seconds(rows, terms, kernels, data.gpu, host_s)


def row_seconds(rows: PassRows, terms: Terms, kernels: Kernels, gpu: Gpu, host_s: float = 0.0) -> FloatArray:
    """Sums of passes, each with `host_s` of the host's [rows]."""
    each_s = terms.seconds(kernels, gpu) + host_s
    return np.asarray(np.bincount(rows.row, rows.times * each_s, len(rows)), float)


def terms_of(rows: PassRows, measured: Measurements, gpu: Gpu) -> Terms | None:
    """The rows' passes taken apart; None where there are none."""
    return Terms.of(rows.passes, measured.models, gpu) if len(rows) else None


def _soften(error: FloatArray) -> Any:
    # soft l1 as a change of the residual: quadratic up to OUTLIER, linear beyond.
    scaled = (error / OUTLIER) ** 2
    return np.sign(error) * OUTLIER * np.sqrt(2.0 * (np.sqrt(1.0 + scaled) - 1.0))


def _chosen(columns: Columns, mask: NDArray[np.bool_]) -> Columns:
    return {name: column[mask] for name, column in columns.items()}


@dataclass(frozen=True)
class HeldOut:
    """What fits predict of the groups they did not see."""

    by: str
    groups: Sequence[Any]
    step_s: FloatArray
    """Predicted steps [rows]; NaN where no group could be spared."""
    log_errors: Mapping[str, FloatArray]
    """ln(predicted/measured) by kind: steps, and the kernels of held-out models or batches."""


def held_out(measured: Measurements, data: Data, by: str, progress: Progress | None = None) -> HeldOut:
    """Every step predicted by a fit that saw nothing of its batch size (``batch``), or of its model (``model``) and of the
    kernels that have its shapes. A file with one group only has nothing to hold out. By ``matrix``, for files of kernels
    alone, every matmul is predicted without its matrix."""
    groups = _matrices(data) if by == "matrix" else sorted(set(data.steps.label(by)))
    predicted = np.full(len(data.steps), np.nan)
    logs: dict[str, list[FloatArray]] = {}
    several = groups if len(groups) > 1 else []
    for done, group in enumerate(several):
        if progress is not None:
            progress(f"fits that have not seen one {by}", done, len(several))
        seen = data.without(measured, by, group)
        if by != "matrix" and not len(seen.steps):
            continue
        found = solve(seen)
        unseen = data.steps.label(by) == group if by != "matrix" else np.zeros(len(data.steps), bool)
        chosen = data.steps.where(unseen)
        terms = terms_of(chosen, measured, data.gpu)
        if terms is not None:
            predicted[unseen] = row_seconds(chosen, terms, found.kernels, data.gpu, found.host_step_s)
            logs.setdefault("step", []).append(np.log(predicted[unseen] / chosen.measured_s))
        for kind, log in _kernel_errors(data, seen, found.kernels).items():
            logs.setdefault(kind, []).append(log)
    return HeldOut(by, groups, predicted, {kind: np.concatenate(parts) for kind, parts in logs.items()})


def _matrices(data: Data) -> list[tuple[float, float]]:
    return sorted(set(zip(data.matmul["n"].tolist(), data.matmul["k"].tolist(), strict=True)))


def _kernel_errors(data: Data, seen: Data, kernels: Kernels) -> dict[str, FloatArray]:
    """ln(predicted/measured) of the kernel rows that `seen` lacks."""
    errors = {}
    for name, predict in (("matmul", matmul_s), ("attention", attention_s)):
        every: Columns = getattr(data, name)
        left: Columns = getattr(seen, name)
        names = [column for column in every if column != "latency_s"]
        kept = (
            {tuple(row) for row in np.column_stack([left[n] for n in names]).tolist()}
            if len(left["latency_s"])
            else set()
        )
        rows = np.column_stack([every[n] for n in names]).tolist() if len(every["latency_s"]) else []
        unseen = np.array([tuple(row) not in kept for row in rows], bool)
        if not unseen.any():
            continue
        log = np.log(predict(data, kernels)[unseen] / every["latency_s"][unseen])
        if name == "matmul":
            errors["matmul"] = log
        else:
            prefill = every["new_tokens"][unseen] > DECODE_QUERY_LIMIT
            errors |= {"decode_attention": log[~prefill], "prefill_attention": log[prefill]}
    return errors
