"""Kernel timings in AIConfigurator's folder layout → plain numpy columns, every dropped row counted with its reason.

    KERNELS/<system>/<operator>/<engine>/<version>/<table>_perf.parquet        e.g. h100_sxm/gemm/vllm/0.24.0/...

What the tables do not say, read off their collectors (ai-dynamo/aiconfigurator, collector/vllm): ``latency`` is in ms;
matmuls replay one CUDA graph of six kernels with six different weights and one input, so weights compete six-fold for
L2; attention replays a graph of one call over one KV cache; ``message_size`` counts elements; a "generation" row reads
isl + step keys; "context" rows have no cached keys (step 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulator.errors import InputError, UnknownName
from simulator.hardware import BYTES_PER_VALUE, Gpu

SOURCE = "ai-dynamo/aiconfigurator@095f58a5 tables, Apache-2.0"
MATMUL_WEIGHT_COPIES = 6
"""Different weights that one timed matmul graph streams (bf16 and per-tensor fp8)."""
PREFILL_FROM_TOKENS = 17
"""Runs of at most 16 new tokens per sequence are priced as decode."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """Rows kept, as columns [rows]; ``read`` = rows kept + rows in ``dropped``."""

    columns: Columns
    read: int
    dropped: Mapping[str, int]
    origin: str
    """Device, library and version, as the table states them."""

    @property
    def used(self) -> int:
        """Rows kept."""
        return self.read - sum(self.dropped.values())


def system_folder(kernels: Path, gpu_name: str) -> Path:
    """The folder of the system that `gpu_name` names: ``h100-sxm`` → ``h100_sxm``, ``a100-sxm-80gb`` → ``a100_sxm``."""
    if not kernels.is_dir():
        raise InputError("kernels", str(kernels), "be a folder of kernel tables")
    wanted = gpu_name.lower().replace("-", "_")
    known = sorted(p.name for p in kernels.iterdir() if p.is_dir())
    for name in sorted(known, key=len, reverse=True):
        if wanted.startswith(name):
            return kernels / name
    raise UnknownName("gpu", gpu_name, known, where=str(kernels), kind="system with kernel tables")


def read_matmul(system: Path, gpu: Gpu, dtype: Literal["bf16", "fp8"] = "bf16") -> Table:
    """Columns m, n, k [values], latency_s; one dtype, cuBLAS bf16 or CUTLASS per-tensor fp8."""
    raw, read, origin = _read(system, "gemm", "gemm_perf")
    keep = Keep(read)
    keep.only("other number format", raw["gemm_dtype"] == {"bf16": "bfloat16", "fp8": "fp8"}[dtype])
    keep.only("no positive latency", positive(raw["latency_s"]))
    flop = 2.0 * raw["m"] * raw["n"] * raw["k"]
    # Bytes are not bounded by HBM: a repeated kernel finds small weights in L2, which the fit models.
    keep.only("faster than the datasheet's peak FLOP/s", flop <= gpu.peak_flop_per_s(dtype) * raw["latency_s"])
    return keep.table(raw, ("m", "n", "k", "latency_s"), origin)


def read_attention(system: Path, gpu: Gpu, phase: Literal["decode", "prefill"], kv_dtype: str = "bf16") -> Table:
    """Columns sequences, new_tokens, keys (per sequence), heads, kv_heads, head_dim, latency_s; no sliding window."""
    name = "generation_attention_perf" if phase == "decode" else "context_attention_perf"
    raw, read, origin = _read(system, "attention", name)
    raw["sequences"], raw["heads"], raw["kv_heads"] = raw["batch_size"], raw["num_heads"], raw["num_key_value_heads"]
    raw["new_tokens"], raw["keys"] = raw["isl"], raw["isl"] + raw["step"]
    keep = Keep(read)
    keep.only("other KV format", raw["kv_cache_dtype"] == {"bf16": "bfloat16", "fp8": "fp8"}[kv_dtype])
    keep.only("sliding window", raw["window_size"] == 0 if "window_size" in raw else np.ones(read, bool))
    keep.only("head_dim above 256 (another kernel)", raw["head_dim"] <= 256)
    if phase == "prefill":
        keep.only("at most 16 new tokens (priced as decode)", raw["new_tokens"] >= PREFILL_FROM_TOKENS)
    keep.only("no positive latency", positive(raw["latency_s"]))
    pairs = raw["new_tokens"] * (raw["keys"] - raw["new_tokens"] + (raw["new_tokens"] + 1) / 2)
    flop = 4.0 * raw["sequences"] * raw["heads"] * raw["head_dim"] * pairs
    keep.only("faster than the datasheet's peak FLOP/s", flop <= gpu.peak_flop_per_s("bf16") * raw["latency_s"])
    return keep.table(raw, ("sequences", "new_tokens", "keys", "heads", "kv_heads", "head_dim", "latency_s"), origin)


def read_all_reduce(system: Path) -> Table:
    """Columns message_bytes, gpus, latency_s: vLLM's all-reduce replayed from a CUDA graph, bf16."""
    raw, read, origin = _read(system, "comm", "custom_allreduce_perf")
    keep = Keep(read)
    keep.only("launched without a CUDA graph", raw["backend"] == "vllm_graph")
    keep.only("no positive latency", positive(raw["latency_s"]))
    raw["message_bytes"] = raw["message_size"] * BYTES_PER_VALUE["bf16"]  # the column counts elements
    raw["gpus"] = raw["num_gpus"]
    return keep.table(raw, ("message_bytes", "gpus", "latency_s"), origin)


def read_exchange(system: Path) -> Table:
    """Columns message_bytes, gpus, latency_s: NCCL's all-gather and all-to-all, two-byte values."""
    raw, read, origin = _read(system, "comm", "nccl_perf", engine="nccl")
    keep = Keep(read)
    keep.only("other collective", np.isin(raw["op_name"], ("all_gather", "alltoall")))
    keep.only("other number format", raw["nccl_dtype"] == "half")
    keep.only("no positive latency", positive(raw["latency_s"]))
    raw["message_bytes"] = raw["message_size"] * BYTES_PER_VALUE["fp16"]  # the column counts elements
    raw["gpus"] = raw["num_gpus"]
    return keep.table(raw, ("message_bytes", "gpus", "latency_s"), origin)


class Keep:
    """A mask over the rows that counts, by reason, what each condition removed first."""

    def __init__(self, rows: int, field: str = "kernels"):
        self.field = field
        self.mask = np.ones(rows, bool)
        self.dropped: dict[str, int] = {}

    def only(self, reason: str, condition: NDArray[np.bool_]) -> None:
        removed = int(np.count_nonzero(self.mask & ~condition))
        if removed:
            self.dropped[reason] = removed
        self.mask &= condition

    def table(self, raw: Columns, columns: tuple[str, ...], origin: str) -> Table:
        if not self.mask.any():
            raise InputError(self.field, origin, f"hold usable rows (all dropped: {self.dropped})")
        kept = {name: np.asarray(raw[name], float)[self.mask] for name in columns}
        return Table(kept, len(self.mask), self.dropped, origin)


def _read(system: Path, operator: str, table: str, engine: str = "vllm") -> tuple[Columns, int, str]:
    found = sorted((system / operator).glob(f"{engine}/*/{table}.parquet"))
    if not found:
        raise InputError("kernels", str(system / operator), f"hold {engine}/<version>/{table}.parquet")
    data = pq.read_table(found[-1])
    columns: Columns = {name: data[name].to_numpy() for name in data.column_names}
    columns["latency_s"] = np.asarray(columns.pop("latency"), float) * 1e-3
    stated = [str(columns[name][0]) for name in ("device", "framework", "version")]
    return columns, data.num_rows, ", ".join(stated)


def positive(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Finite and above 0."""
    finite: NDArray[np.bool_] = np.isfinite(values) & (values > 0)
    return finite
