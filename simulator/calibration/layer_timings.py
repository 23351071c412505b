"""Per-layer timings in LLMServingSim's folder layout → plain numpy columns → the calibration of one GPU.

    LAYERS/meta.yaml          model, engine and device; one tensor-parallel degree, bf16
    LAYERS/dense.csv          layer, tokens, time_us: matmuls and elementwise kernels
    LAYERS/per_sequence.csv   layer, sequences, time_us: LM head and sampler
    LAYERS/attention.csv      prefill_chunk, kv_prefill, n_decode, kv_decode, time_us: one attention kernel of a batch of
                              one prompt chunk (0: none) on its cached keys and `n_decode` sequences of `kv_decode` keys

What the files do not say, read off the timings: they are times of kernels without launch gaps, inside a forward pass of
one layer. So weights and KV come from HBM (its other weights went through L2 in between), while activations were written
just before and are found in L2: elementwise kernels reach up to three times the bandwidth of HBM until L2 is full.

The forms are those of the kernel tables (`calibration.fit`), and so is the solver. Errors are held out by whole layers,
or by whole batch sizes, chunks and context lengths, of which the worse mean is written down.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator import catalog
from simulator.architecture import Decoder, load_decoder
from simulator.calibration import fit
from simulator.calibration.kernel_tables import Columns, Keep, Table, positive
from simulator.calibration.solver import Bounds, FloatArray, HeldOut, Problem, Values, held_out, solve
from simulator.cost.efficiency import (
    AttentionEfficiency,
    CalibrationFile,
    Efficiency,
    ElementwiseEfficiency,
    MatmulEfficiency,
    Parameter,
    Rows,
    load_efficiency,
)
from simulator.cost.roofline import attention_rates, attention_time, elementwise_time, matmul_time
from simulator.errors import InputError
from simulator.hardware import Gpu
from simulator.operators import Operator, edge_operators, head_operators, layer_operators
from simulator.quantization import Quantization, resolve
from simulator.records import read_mapping

FILES = ("dense.csv", "per_sequence.csv", "attention.csv", "meta.yaml")
SOURCE = "casys-kaist/LLMServingSim@5daddb21 layer timings, MIT"

LAYERS = {
    "embedding": "embedding", "layernorm": "input_norm", "qkv_proj": "qkv_proj", "rotary_emb": "rotary",
    "o_proj": "o_proj", "gate_up_proj": "gate_up_proj", "act_fn": "activation", "down_proj": "down_proj",
    "final_layernorm": "final_norm", "lm_head": "lm_head", "sampler": "sampler",
}  # fmt: skip
"""The files' names of layers → ours (`operators`)."""

PEAK_HEADROOM = 1.1
"""Boards boost past the clock that their datasheet's peak is stated at: 166 of 165 TFLOP/s are reached on an RTX 4090."""

# Beyond the datasheet's peak for the same reason; every parameter that these rows cannot show is left out.
MATMUL: Bounds = {
    **{name: bounds for name, bounds in fit.MATMUL.items() if name != "l2_speedup"}, "compute": (0.9, 0.3, PEAK_HEADROOM),
}  # fmt: skip
PREFILL: Bounds = {
    **{name: bounds for name, bounds in fit.PREFILL.items() if name != "l2_speedup"},
    "compute": (0.6, 0.1, PEAK_HEADROOM), "bandwidth": (0.85, 0.3, 1.0),
}  # fmt: skip
DECODE: Bounds = {
    **{name: bounds for name, bounds in fit.DECODE.items() if name != "l2_speedup"}, "bandwidth": (0.85, 0.3, 1.0),
}  # fmt: skip
ELEMENTWISE: Bounds = {"t0_s": (2e-6, 1e-7, 1e-5), "bandwidth": (0.8, 0.3, 1.0), "l2_speedup": (2.0, 1.0, 10.0)}


HELD_OUT_BY = {
    "matmul": ("layer",), "decode_attention": ("sequences", "keys"), "prefill_attention": ("new_tokens", "cached"),
    "elementwise": ("layer",),
}  # fmt: skip
"""By kind of operator: the columns of which every value is predicted by a fit on all others."""


@dataclass(frozen=True)
class LayerTimings:
    """One folder, read: a table per kind of operator, and what it was taken on."""

    decoder: Decoder
    origin: str
    matmul: Table
    """Columns of `fit.matmul_problem`, and ``layer`` [index into `LAYERS`]."""
    elementwise: Table
    """Columns layer, bytes, latency_s."""
    decode_attention: Table
    prefill_attention: Table
    """Columns of `fit.attention_problem`."""
    mixed_attention: Table
    """Columns chunk, cached, sequences, keys, latency_s: a prompt's chunk and decoding sequences in one kernel."""


def is_layer_folder(folder: Path) -> bool:
    """Whether `folder` holds layer timings (kernel tables have no CSV files)."""
    return (folder / "dense.csv").is_file() or (folder / "attention.csv").is_file()


def read(folder: Path, gpu: Gpu) -> LayerTimings:
    """All tables of `folder`. Raises InputError when a file or column is missing or no row of a kind is usable."""
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError("layers", str(folder), f"hold {name}")
    decoder, origin = _conditions(folder / "meta.yaml")
    matmul, elementwise = _dense(folder, decoder, gpu, origin)
    raw, read_rows, damaged = _columns(
        folder / "attention.csv", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    )
    tables = {
        kind: _attention(kind, raw, read_rows, damaged, decoder, gpu, origin) for kind in ("decode", "prefill", "mixed")
    }
    return LayerTimings(decoder, origin, matmul, elementwise, *(tables[k] for k in ("decode", "prefill", "mixed")))


def matmul_problem(table: Table, gpu: Gpu, l2_speedup: float) -> Problem:
    """Matmuls, held out by matrix. `l2_speedup` is not to be seen where nothing is hot; the family's is carried along."""

    def predict(values: Values, c: Columns) -> FloatArray:
        weights, activations = 2.0 * c["n"] * c["k"], 2.0 * c["m"] * (c["n"] + c["k"])
        e = MatmulEfficiency(**values)
        return np.asarray(matmul_time(c["m"], c["n"], c["k"], weights, activations, "bf16", gpu, e).total_s)

    fixed = fit.MATMUL_SET | {"l2_speedup": l2_speedup}
    return Problem(table.columns, table.columns["layer"], MATMUL, fixed, predict)


def elementwise_problem(table: Table, gpu: Gpu) -> Problem:
    """Norms, rotary, activation and embedding, held out by layer."""

    def predict(values: Values, c: Columns) -> FloatArray:
        return np.asarray(elementwise_time(c["bytes"], 1.0, gpu, ElementwiseEfficiency(**values)).total_s)

    return Problem(table.columns, table.columns["layer"], ELEMENTWISE, {}, predict)


def attention_problem(table: Table, gpu: Gpu, phase: str, compute: float = 0.6) -> Problem:
    """Attention as for the kernel tables, but with nothing in L2 and one kernel for mixed batches."""
    problem = fit.attention_problem(table.columns, gpu, phase, compute=compute)
    bounds = {n: b for n, b in (DECODE if phase == "decode" else PREFILL).items() if n in problem.bounds}
    one_kernel = {"takes_decode": 1.0} if phase == "prefill" else {}
    return replace(problem, bounds=bounds, fixed=problem.fixed | {"l2_speedup": 1.0} | one_kernel)


def mixed_seconds(table: Table, gpu: Gpu, decoder: Decoder, prefill: AttentionEfficiency) -> FloatArray:
    """Predicted times [rows] of batches that prefill and decode, priced by the prefill kernel alone; no row of theirs is
    fitted."""
    a = decoder.attention
    rates = attention_rates(gpu, prefill, dtype="bf16", kv_heads=a.kv_heads, heads=a.heads, head_dim=a.head_dim)
    kv_bytes = 2.0 * 2.0 * a.kv_heads * a.head_dim
    c = table.columns
    predicted_s = np.empty(len(c["latency_s"]))
    for i, (chunk, cached, n, keys) in enumerate(zip(c["chunk"], c["cached"], c["sequences"], c["keys"], strict=True)):
        pairs = chunk * (cached + 0.5 * (chunk + 1.0))
        prompt = attention_time(1.0, chunk, (cached + chunk) * kv_bytes, pairs * rates.flop_per_pair, rates)
        decode = attention_time(n, n, n * keys * kv_bytes, n * keys * rates.flop_per_pair, rates)
        predicted_s[i] = prompt[0] + decode[0] - rates.t0_s
    return predicted_s


def family_prior(gpu: Gpu) -> Efficiency:
    """The parameters that `gpu` would have without its own timings."""
    # Under a name that no calibration lists, `gpu` gets its family's prior rather than its own earlier fit.
    return load_efficiency(replace(gpu, name="(unmeasured)"))


def layer_problems(timings: LayerTimings, gpu: Gpu, prior: Efficiency, seed: int = 0) -> dict[str, Problem]:
    """What `read` read, as problems by kind of operator; decode's share of peak is prefill's."""
    prefill = attention_problem(timings.prefill_attention, gpu, "prefill")
    compute = fit.rounded(solve(prefill, seed).values["compute"])
    return {
        "matmul": matmul_problem(timings.matmul, gpu, prior.matmul.l2_speedup),
        "decode_attention": attention_problem(timings.decode_attention, gpu, "decode", compute=compute),
        "prefill_attention": prefill,
        "elementwise": elementwise_problem(timings.elementwise, gpu),
    }


def leave_one_out(problem: Problem, by: str, seed: int = 0) -> HeldOut:
    """Every row predicted by a fit that saw no other row of its value in the column `by`."""
    group = problem.columns[by]
    return held_out(replace(problem, group=group), len(np.unique(group)), seed)


def calibrate(folder: Path, gpu: Gpu, *, date: str, seed: int = 0) -> CalibrationFile:
    """The calibration of `gpu` from `folder`; collectives, which one GPU cannot show, are its family's.

    Raises InputError when the folder is damaged or was taken on another device.
    """
    timings = read(folder, gpu)
    prior = family_prior(gpu)
    problems = layer_problems(timings, gpu, prior, seed)
    unseen = {
        (kind, by): leave_one_out(problems[kind], by, seed) for kind, columns in HELD_OUT_BY.items() for by in columns
    }
    small = timings.matmul.columns["m"] <= fit.SMALL_TOKENS
    errors = {
        kind: max(float(unseen[kind, by].errors.mean()) for by in columns) for kind, columns in HELD_OUT_BY.items()
    }
    spread = {kind: max(unseen[kind, by].spread() for by in columns) for kind, columns in HELD_OUT_BY.items()}
    errors["matmul_small"] = float(unseen["matmul", "layer"].errors[small].mean())
    spread["matmul_small"] = unseen["matmul", "layer"].spread(small)
    prefill = AttentionEfficiency(**solve(problems["prefill_attention"], seed).values)
    mixed_s = mixed_seconds(timings.mixed_attention, gpu, timings.decoder, prefill)
    mixed = np.abs(mixed_s / timings.mixed_attention.columns["latency_s"] - 1.0)
    tables = {kind: getattr(timings, kind) for kind in problems}
    return CalibrationFile(
        name=gpu.name,
        kind="fitted",
        gpus=(gpu.name,),
        # Not the GPU's own family: a board's boost clock and halved tensor rate should not become another's prior.
        family=f"{gpu.family}, {gpu.name} only",
        source=SOURCE,
        date=date,
        note=_note(timings, prior, mixed),
        **{kind: fit.parameters(problem, seed) for kind, problem in problems.items()},
        all_reduce={name: Parameter(value=value) for name, value in prior.all_reduce._asdict().items()},
        rows={kind: Rows(used=t.used, dropped=dict(t.dropped)) for kind, t in tables.items()},
        typical_error={kind: fit.rounded(error, 3) for kind, error in errors.items()}
        | {kind: prior.typical_error[kind] for kind in ("all_reduce", "exchange")},
        spread={kind: fit.rounded(value, 3) for kind, value in spread.items()},
    )


def _note(timings: LayerTimings, prior: Efficiency, mixed: FloatArray) -> str:
    return (
        f"{timings.origin}. Kernel times without launch gaps, taken inside a forward pass of one layer. Held out by layer "
        "(matmul, elementwise), by batch and by context (decode), by chunk and by cached context (prefill): the worse of "
        f"two means is stated. {len(mixed)} batches that prefill and decode at once were not fitted: priced as the prefill "
        f"kernel alone they miss by {mixed.mean():.1%} on average, {np.median(mixed):.1%} in the median. Of family "
        f"{prior.name}, since these rows cannot show them: all_reduce, matmul.l2_speedup. narrow_head and wide_head stand "
        "between other fits (one head_dim here); decode's share of peak is prefill's; attention's l2_speedup is 1 because "
        "nothing was hot. Parameters without a standard error are set or rest on a bound."
    )


def _conditions(path: Path) -> tuple[Decoder, str]:
    meta, where = read_mapping(path), str(path)

    def given(name: str, cls: type) -> Any:
        value = meta.get(name)
        if not isinstance(value, cls):
            raise InputError(name, value, "be given", where=where)
        return value

    model = given("model", str).rsplit("/", 1)[-1].lower()
    if given("variant", str) != "bf16":
        raise InputError("variant", meta["variant"], "be bf16", where=where)
    if given("tp_degrees", list) != [1]:
        raise InputError("tp_degrees", meta["tp_degrees"], "be [1]: other degrees are not told apart", where=where)
    decoder = load_decoder(model) if model in catalog.names("model") else None
    if decoder is None:
        raise InputError("model", meta["model"], "be one of the bundled models", where=where)
    stated = (given("engine_effective", dict).get("hf_overrides") or {}) if "engine_effective" in meta else {}
    a, mlp = decoder.attention, decoder.layer_kinds[0].mlp
    ours = {"num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "vocab_size": decoder.vocab_size,
            "intermediate_size": mlp.width}  # fmt: skip
    for name, value in ours.items():
        if stated.get(name, value) != value:
            raise InputError(f"hf_overrides.{name}", stated[name], f"equal {value} of {decoder.name}", where=where)
    taken = [str(meta.get(k, "")) for k in ("gpu", "profiled_at")]
    return decoder, f"{taken[0]}, vLLM {meta.get('vllm_version', '')}, {meta['model']} bf16, {taken[1][:10]}"


def _operators(decoder: Decoder, tokens: FloatArray) -> dict[str, Operator]:
    formats = resolve(Quantization(), decoder)
    found = layer_operators(decoder, decoder.layer_kinds[0], formats, 1, tokens)
    found += [*edge_operators(decoder, formats, tokens), *head_operators(decoder, formats, 1, tokens)]
    return {o.name: o for o in found}


def _dense(folder: Path, decoder: Decoder, gpu: Gpu, origin: str) -> tuple[Table, Table]:
    """Matmuls and elementwise kernels; each table counts what both files lost before the two kinds were told apart."""
    parts = [_columns(folder / "dense.csv", ("layer", "tokens", "time_us")),
             _columns(folder / "per_sequence.csv", ("layer", "sequences", "time_us"))]  # fmt: skip
    layer = np.concatenate([c["layer"] for c, _, _ in parts])
    m = np.concatenate([c[name] for (c, _, _), name in zip(parts, ("tokens", "sequences"), strict=True)])
    latency_s = np.concatenate([c["time_us"] for c, _, _ in parts]) * 1e-6
    read_rows = sum(read for _, read, _ in parts)
    damaged = np.concatenate([damaged for _, _, damaged in parts])
    operators = _operators(decoder, np.where(positive(m), m, 1.0))
    columns: Columns = {name: np.zeros(read_rows) for name in ("n", "k", "bytes", "flop")}
    kind = np.full(read_rows, "unknown", dtype=object)
    for name, ours in LAYERS.items():
        o = operators.get(ours)
        if o is None:
            continue
        i = layer == name
        kind[i], columns["n"][i], columns["k"][i] = o.kind, o.n, o.k
        columns["bytes"][i], columns["flop"][i] = o.activation_bytes[i], o.flop[i]
    numbers = {name: float(i) for i, name in enumerate(LAYERS)}
    columns |= {"m": m, "latency_s": latency_s, "layer": np.array([numbers.get(str(n), -1.0) for n in layer])}
    seen = _first_of_each(np.stack([columns["layer"], m]))
    tables = []
    for wanted, other in (("matmul", "elementwise"), ("elementwise", "matmul")):
        keep = Keep(read_rows, "layers")
        keep.only("incomplete or not a number", ~damaged)
        keep.only("unknown layer", kind != "unknown")
        keep.only(f"{other} kernel", kind == wanted)
        keep.only("no positive count", positive(m))
        keep.only("no positive time", positive(latency_s))
        keep.only("several kernels in one timing (sampler)", layer != "sampler")
        keep.only("measured before in this file", seen)
        bound_s = columns["flop"] / (PEAK_HEADROOM * gpu.peak_flop_per_s("bf16"))
        keep.only("faster than the datasheet's peak FLOP/s and a tenth", bound_s <= latency_s)
        names = ("layer", "m", "n", "k", "latency_s") if wanted == "matmul" else ("layer", "bytes", "latency_s")
        tables.append(keep.table(columns, names, origin))
    return tables[0], tables[1]


def _attention(
    kind: str, raw: Columns, read_rows: int, damaged: NDArray[np.bool_], decoder: Decoder, gpu: Gpu, origin: str
) -> Table:
    chunk, cached, n, kv = (raw[name] for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"))
    a = decoder.attention
    decoding, prefilling = n > 0, chunk > 0
    keep = Keep(read_rows, "layers")
    keep.only("incomplete or not a number", ~damaged)
    keep.only("no positive time", positive(raw["time_us"]))
    keep.only("neither prompt nor decoding sequences", decoding | prefilling)
    if kind == "mixed":
        keep.only("decode or prefill alone", decoding & prefilling)
    else:
        keep.only("decode and prefill in one kernel (scored, not fitted)", ~(decoding & prefilling))
        keep.only(
            "prefill kernel" if kind == "decode" else "decode kernel", decoding if kind == "decode" else prefilling
        )
    keep.only("measured before in this file", _first_of_each(np.stack([chunk, cached, n, kv])))
    latency_s = raw["time_us"] * 1e-6
    kv_bytes = 4.0 * a.kv_heads * a.head_dim * (n * kv * decoding + (cached + chunk) * prefilling)
    keep.only("faster than the datasheet's HBM bandwidth", kv_bytes <= gpu.hbm_bytes_per_s * latency_s)
    one = np.ones(read_rows)
    columns = raw | {"chunk": chunk, "cached": cached, "latency_s": latency_s, "heads": a.heads * one,
                     "kv_heads": a.kv_heads * one, "head_dim": a.head_dim * one}  # fmt: skip
    shape = ("heads", "kv_heads", "head_dim", "latency_s")
    if kind == "mixed":
        columns |= {"sequences": n, "keys": kv}
        return keep.table(columns, ("chunk", "cached", "sequences", "keys", "latency_s"), origin)
    columns |= (
        {"sequences": n, "new_tokens": one, "keys": kv} if kind == "decode"
        else {"sequences": one, "new_tokens": chunk, "keys": cached + chunk}
    )  # fmt: skip
    extra = ("cached",) if kind == "prefill" else ()
    return keep.table(columns, ("sequences", "new_tokens", "keys", *extra, *shape), origin)


def _columns(path: Path, names: Sequence[str]) -> tuple[Columns, int, NDArray[np.bool_]]:
    """(columns, rows read, which of them are damaged); the numbers of damaged rows are NaN."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("file", str(path), f"be readable as UTF-8 text ({error})") from None
    reader = csv.DictReader(io.StringIO(text))
    for name in names:
        if name not in (reader.fieldnames or ()):
            raise InputError("columns", ", ".join(reader.fieldnames or ()), f"include {name}", where=str(path))
    rows: list[Mapping[str, str | None]] = list(reader)
    columns: Columns = {}
    damaged = np.zeros(len(rows), bool)
    for name in names:
        if name == "layer":
            columns[name] = np.array([row[name] or "" for row in rows], dtype=object)
            continue
        columns[name] = np.array([_number(row[name]) for row in rows], float)
        damaged |= np.isnan(columns[name])
    return columns, len(rows), damaged


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _first_of_each(keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Which columns of `keys` [fields, rows] were not there before [rows]."""
    first = np.zeros(keys.shape[1], bool)
    first[np.unique(keys, axis=1, return_index=True)[1]] = True
    return first
