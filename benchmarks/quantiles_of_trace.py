"""Prompt and output lengths of a trace as figures: quantiles and rank correlation, ready for ``workloads/traffic``.

    python benchmarks/quantiles_of_trace.py TRACE.csv

prints the YAML of a `lengths` record, headed by how far its mean lies from the trace's. Only these figures travel with
the project; the trace stays with whoever published it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.serving.lengths import Lengths, Quantiles
from simulator.serving.traces import find_columns

PROBABILITIES = (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8,
                 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)  # fmt: skip


def read_lengths(path: Path) -> npt.NDArray[np.int64]:
    """[n, 2] prompt and output tokens of the rows whose lengths are both positive; arrivals are not needed here."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows)
        found = find_columns(header, {}, str(path), ("prompt", "output"))
        at = [header.index(found["prompt"]), header.index(found["output"])]
        pairs = np.array([[int(row[i]) for i in at] for row in rows if row], dtype=np.int64)
    return pairs[(pairs > 0).all(axis=1)]


def rank_correlation(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> float:
    """Spearman's rank correlation, ties at their mean rank, no unit."""
    return float(np.corrcoef(_mean_ranks(x), _mean_ranks(y))[0, 1])


def _mean_ranks(values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: npt.NDArray[np.float64] = (last - (count - 1) / 2)[group]
    return ranks


def table(values: npt.NDArray[np.int64]) -> Quantiles:
    """The quantiles as whole tokens that occur in the trace (inverse of the empirical distribution)."""
    quantiles = np.quantile(values, PROBABILITIES, method="inverted_cdf")
    return Quantiles(kind="quantiles", probabilities=PROBABILITIES, values=tuple(float(v) for v in quantiles))


def main() -> None:
    """Print the YAML."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trace", type=Path, help="CSV with a prompt and an output column")
    pairs = read_lengths(parser.parse_args().trace)
    prompt, output = pairs[:, 0], pairs[:, 1]
    lengths = Lengths(
        prompt=table(prompt), output=table(output), rank_correlation=round(rank_correlation(prompt, output), 3)
    )
    evenly = (np.arange(100_000) + 0.5) / 100_000
    print(f"# {len(pairs)} rows. Mean tokens, trace and table:")
    for name, real, drawn in (("prompt", prompt, lengths.prompt), ("output", output, lengths.output)):
        print(f"#   {name} {real.mean():.1f} and {drawn.quantile(evenly).mean():.1f}")
    print("lengths:")
    for name, values in (("prompt", lengths.prompt), ("output", lengths.output)):
        assert isinstance(values, Quantiles)
        print(f"  {name}:\n    kind: quantiles")
        print(f"    probabilities: [{', '.join(f'{p:g}' for p in values.probabilities)}]")
        print(f"    values: [{', '.join(f'{v:g}' for v in values.values)}]")
    print(f"  rank_correlation: {lengths.rank_correlation:g}")


if __name__ == "__main__":
    main()
