"""Which prompts of a recorded run begin alike: a table beside the record, for runs whose record holds no tokens.

``RUN/prefixes.csv``: request_id, begins_like, tokens; the prompt of the first begins with so many tokens of the second's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.csv_table import number, read_csv
from simulator.errors import InputError
from simulator.serving.prefixes import Chains, SharedPrefixes

IntArray = NDArray[np.int64]

_COLUMNS = ("request_id", "begins_like", "tokens")


def read_shared_prompts(path: Path, names: Sequence[str], prompt_tokens: IntArray, block_tokens: int) -> SharedPrefixes:
    """The prompts of the requests `names`, in order of arrival, in blocks of `block_tokens`; only full blocks are ever found.

    Raises InputError naming line and field.
    """
    table = read_csv(path)
    for column in _COLUMNS:
        if column not in table.columns:
            raise InputError("columns", ", ".join(table.columns), f"include {column}", where=table.where)
    if table.broken:
        raise InputError("columns", f"{table.broken} rows", "be as wide as the header", where=table.where)
    place = {name: index for index, name in enumerate(names)}
    like: dict[int, tuple[int, int]] = {}
    for line, row in enumerate(table.rows, start=2):
        later, earlier, tokens = _row(row, place, prompt_tokens, f"{table.where}, row {line}")
        if later in like:
            raise InputError("request_id", row["request_id"], "appear once", where=f"{table.where}, row {line}")
        like[later] = earlier, tokens
    most = int(prompt_tokens.max()) // block_tokens + 1
    chains = Chains(block_tokens)
    owners: list[IntArray] = []
    for index, tokens in enumerate(prompt_tokens.tolist()):
        # Whose text each block is: a prompt's own, but for the blocks at its beginning that are those of an earlier one.
        owner = np.full(tokens // block_tokens, index, dtype=np.int64)
        if index in like:
            earlier, common = like[index]
            owner[: common // block_tokens] = owners[earlier][: common // block_tokens]
        owners.append(owner)
        chains.add((owner * most + np.arange(len(owner))).tolist(), tokens)
    return chains.finished().common()


def _row(row: dict[str, str], place: dict[str, int], prompt_tokens: IntArray, where: str) -> tuple[int, int, int]:
    """(request, the earlier one it begins like, tokens they have in common)."""
    for column in ("request_id", "begins_like"):
        if row[column] not in place:
            raise InputError(column, row[column] or "(empty)", "be a request of the run", where=where)
    later, earlier = place[row["request_id"]], place[row["begins_like"]]
    if earlier >= later:
        raise InputError("begins_like", row["begins_like"], f"arrive before {row['request_id']}", where=where)
    tokens = number(row["tokens"])
    most = int(min(prompt_tokens[later], prompt_tokens[earlier]))
    if tokens is None or tokens != int(tokens) or not 1 <= tokens <= most:
        raise InputError("tokens", row["tokens"] or "(empty)", f"be a whole number from 1 to {most}", where=where)
    return later, earlier, int(tokens)
