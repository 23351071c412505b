"""Prompts that begin alike: the table becomes chains of blocks, and what is damaged is named by row and field."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.calibration.shared_prompts import read_shared_prompts
from simulator.errors import InputError

NAMES = ["a", "b", "c", "d"]
PROMPTS = np.array([40, 60, 100, 33])
HEADER = "request_id,begins_like,tokens\n"


def read(folder, rows, header=HEADER):
    path = folder / "prefixes.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return read_shared_prompts(path, NAMES, PROMPTS, 16)


def chain(shared, index):
    """(source, end) of a prompt's pieces."""
    pieces = slice(*shared.first_piece[index : index + 2])
    return list(zip(shared.source[pieces].tolist(), shared.end_tokens[pieces].tolist(), strict=True))


def common_tokens(shared, one, other):
    alike = [ours[1] for ours, theirs in zip(chain(shared, one), chain(shared, other), strict=False) if ours == theirs]
    return max(alike, default=0)


def test_only_full_blocks_are_common(tmp_path):
    shared = read(tmp_path, ["b,a,39"])
    assert common_tokens(shared, 0, 1) == 32
    assert len(shared) == 4
    assert chain(shared, 2) == chain(shared, 3) == []


def test_what_is_common_is_so_for_all_that_begin_alike(tmp_path):
    """c begins like b, and b like a: so c and a have in common what both have with b; d shares less with a than b does."""
    shared = read(tmp_path, ["c,b,60", "b,a,40", "d,a,17"])
    assert common_tokens(shared, 1, 2) == 48
    assert common_tokens(shared, 0, 1) == common_tokens(shared, 0, 2) == 32
    assert common_tokens(shared, 0, 3) == common_tokens(shared, 1, 3) == common_tokens(shared, 2, 3) == 16


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (["b,a,16", "b,a,32"], "request_id"), (["z,a,16"], "request_id"), (["b,,16"], "begins_like"),
        (["b,b,16"], "begins_like"), (["a,b,16"], "begins_like"), (["b,a,41"], "tokens"), (["b,a,0"], "tokens"),
        (["b,a,1.5"], "tokens"), (["b,a,many"], "tokens"), (["b,a,inf"], "tokens"), (["b,a"], "columns"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, rows, field):
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows)
    assert caught.value.field == field
    assert "prefixes.csv" in caught.value.where


def test_columns_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="include tokens"):
        read(tmp_path, [], header="request_id,begins_like\n")
