"""What prompts have in common: which tokens at their beginning are the same in several requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.serving.lengths import IntArray


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """Prompts as chains of pieces, in compressed sparse rows.

    Prompt i begins with pieces ``first_piece[i]`` to ``first_piece[i + 1]``, the latter not included. Two prompts that
    have the same source at the same place are equal in all tokens up to that piece's end: a source stands for its whole
    prefix, like a chained block hash. What follows a prompt's last piece is its session's own.
    """

    first_piece: IntArray
    """[n + 1] rises from 0 to m."""
    source: IntArray
    """[m] whose tokens these are, at least 0."""
    end_tokens: IntArray
    """[m] tokens of the prompt up to this piece's end, rising within a prompt, at most the prompt's length."""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def take(self, index: IntArray) -> SharedPrefixes:
        """The pieces of the prompts `index`, in that order; a prompt may be taken several times."""
        begin = self.first_piece[index]
        counts = self.first_piece[index + 1] - begin
        first_piece = np.concatenate(([0], np.cumsum(counts)))
        piece = np.arange(first_piece[-1]) + np.repeat(begin - first_piece[:-1], counts)
        return SharedPrefixes(first_piece, self.source[piece], self.end_tokens[piece])
