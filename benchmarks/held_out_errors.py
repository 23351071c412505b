"""Writes ``hardware_profiles/measurements/held-out``: what the validations of all calibrated devices found, summed up.

    python benchmarks/held_out_errors.py ../shared/data        # a folder with kernels/ and layers/rtx4090

Run it again after `memwall calibrate`: a test holds these figures against the calibrations' own. Takes about a minute.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from simulator import catalog
from simulator.calibration import kernel_tables, layer_timings
from simulator.calibration.comparison import Comparison, Validation
from simulator.calibration.error_record import ErrorFile, folder, records_of
from simulator.calibration.sources import Options, validations_of
from simulator.hardware import load_gpu
from simulator.output.validation_report import is_fitted

KERNELS = ("h100-sxm", "a100-sxm-80gb", "l40s")
PARTS = 2
"""Of what `validate_tables` finds: the kernels, and whole steps. Look-up and a dozen rows are other predictors than ours."""
OWN = "epyc-9004-1-thread"
SKIPPED = ("weights",)
"""Words in the names of comparisons that are parts of others."""


def main() -> None:
    """Validates and writes."""
    data = Path(sys.argv[1])
    for gpu in KERNELS:
        found = validations_of(data / "kernels", Options(gpu=gpu))[:PARTS]
        write(gpu, kernel_tables.SOURCE, found, "KERNELS")
    layers = validations_of(data / "layers" / "rtx4090", Options(gpu="rtx-4090"))
    write("rtx-4090", layer_timings.SOURCE, layers, "LAYERS")
    own = catalog.root() / "hardware_profiles" / "measurements" / f"{OWN}.jsonl"
    write(
        OWN, f"hardware_profiles/measurements/{own.name}, measured by memwall's authors", validations_of(own, Options())
    )


def write(gpu: str, source: str, validations: Sequence[Validation], given: str = "") -> None:
    """The file of one device."""
    gpu = load_gpu(gpu).name
    chosen: list[Comparison] = [
        c
        for v in validations
        for c in v.comparisons
        if not is_fitted(c.basis) and not any(word in c.name for word in SKIPPED)
    ]
    command = f"memwall validate {given} --gpu {gpu}" if given else "memwall validate"
    file = ErrorFile(
        gpu=gpu, source=source, date=datetime.date.today().isoformat(), command=command, records=records_of(chosen)
    )
    folder().mkdir(exist_ok=True)
    path = folder() / f"{gpu}.json"
    text = json.dumps(file.model_dump(exclude_none=True), ensure_ascii=False, indent=1)
    for inner in (r"\[[^][{}]*\]", r"\{[^{}]*\}"):  # a slot to a line
        text = re.sub(inner, lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    path.write_text(text + "\n", "utf-8")
    print(f"{path}: {len(file.records)} comparisons, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
