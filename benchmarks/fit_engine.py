"""Host times of an engine: published step times minus the passes that the calibration predicts.

    python benchmarks/fit_engine.py [published/measurements.csv]

Prints the residues behind ``hardware_profiles/engines/vllm.yaml`` and, with the measurements given, the error on the rows
that were not used.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from simulator.deployment import deploy
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.round import RoundCost, round_cost

CONTEXT_TOKENS = 400  # MT-bench prompts and answers are a few hundred tokens; the sources do not say
USED = {"vllm20780-v", "vllm20780-e1-2", "vllm20780-e1-7", "vllm-dsd-1-0", "vllm-dsd-32-0"}


def step(engine: str, gamma: int, batch: int, accept_length: float) -> RoundCost:
    """One round of Llama-3.1-8B with its EAGLE-1 head on an H100."""
    served = deploy("llama-3.1-8b", "h100-sxm", engine=engine, draft="eagle-llama-3.1-8b")
    law = AcceptanceConfig(alpha=min(1.0, (accept_length - 1) / gamma)).law() if gamma else None
    return round_cost(
        served.target, served.engine, sequences=batch, context_tokens=CONTEXT_TOKENS, gamma=gamma, acceptance=law,
        draft=served.draft,
    )  # fmt: skip


def main(path: Path) -> None:
    """One line per published vLLM row."""
    print(f"{'row':16} {'γ':>2} {'batch':>5} {'measured ms':>11} {'bare ms':>8} {'vllm ms':>8} {'error':>7}")
    errors = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["id"].startswith("vllm"):
                continue
            gamma, batch, length = int(row["gamma_or_tree"] or 0), int(row["batch"]), float(row["accept_len"])
            measured_s = float(row["value"]) / 1e3 * (length if row["metric"] == "TPOT ms" else 1.0)
            bare_s, full_s = (step(engine, gamma, batch, length).seconds for engine in ("ideal", "vllm"))
            error = full_s / measured_s - 1
            used = row["id"] in USED
            if not used:
                errors.append(abs(error))
            print(
                f"{row['id']:16} {gamma:2d} {batch:5d} {measured_s * 1e3:11.2f} {bare_s * 1e3:8.2f} {full_s * 1e3:8.2f} "
                f"{error:+7.1%}{'  used in the fit' if used else ''}"
            )
    print(
        f"{len(errors)} rows not used in the fit: mean absolute error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/published/measurements.csv"))
