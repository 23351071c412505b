"""Counter-based uniform numbers: a pure function of a tuple of integers, so luck belongs to a question, not to an order.

Whether position p of request r is accepted at draft depth j is ``uniform(seed, r, p, j)``. Two policies, two GPUs or two
batch orders therefore see the same luck, results do not depend on the order of events or the number of workers, and
any draft length can be replayed counterfactually.

The generator is a chain of splitmix64 finalisers, one per word of the tuple. For fixed other words each step is a
bijection of the word, so counters that differ in one place never collide.

`mix` and `uniform` are each written so that one source serves plain Python and ``numba.njit`` alike: every value is a
non-negative Python int below 2⁶⁴ uncompiled (the masks do the wrapping) and an unsigned 64-bit register compiled (the
masks vanish). That is why the chain stands in both of them (a compiled function cannot call an uncompiled one), why
words are cast by ``int(np.uint64(...))``, and why no numba is imported here.

Reference: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (splitmix64).
"""

from __future__ import annotations

from typing import SupportsInt

import numpy as np
import numpy.typing as npt

# The second word of the tuple is a token position when the serving loop asks. Other uses take streams above any position,
# so that no arrival time shares its luck with an acceptance.
STREAM_INTERARRIVAL = (1 << 40) + 1
STREAM_PROMPT_TOKENS = (1 << 40) + 2
STREAM_OUTPUT_TOKENS = (1 << 40) + 3
STREAM_THINK_TIME = (1 << 40) + 4
# (1 << 40) + 5 is the request effect of simulator.speculation.acceptance.
STREAM_CLASS = (1 << 40) + 16
STREAM_TURNS = (1 << 40) + 17
STREAM_PREFIX_GROUP = (1 << 40) + 18
STREAM_PREFIX_TOKENS = (1 << 40) + 19
STREAM_CLIENT = (1 << 40) + 20
STREAM_RESAMPLED_ROW = (1 << 40) + 21

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio, odd
_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB


def mix(seed: SupportsInt, a: SupportsInt, b: SupportsInt, c: SupportsInt) -> int:
    """64 well-mixed bits of the tuple, an unsigned integer below 2⁶⁴.

    Words are taken modulo 2⁶⁴, so negative ones are allowed. May be given to ``numba.njit`` as it stands.
    """
    state = int(np.uint64(0))
    for word in (
        int(np.uint64(int(seed) & _MASK)),
        int(np.uint64(int(a) & _MASK)),
        int(np.uint64(int(b) & _MASK)),
        int(np.uint64(int(c) & _MASK)),
    ):
        z = ((state ^ word) + _GAMMA) & _MASK
        z = ((z ^ (z >> 30)) * _MUL_1) & _MASK
        z = ((z ^ (z >> 27)) * _MUL_2) & _MASK
        state = z ^ (z >> 31)
    return state


def uniform(seed: SupportsInt, a: SupportsInt, b: SupportsInt, c: SupportsInt) -> float:
    """A number in [0, 1): the upper 53 bits of ``mix(seed, a, b, c)`` times 2⁻⁵³.

    May be given to ``numba.njit`` as it stands.
    """
    state = int(np.uint64(0))
    for word in (
        int(np.uint64(int(seed) & _MASK)),
        int(np.uint64(int(a) & _MASK)),
        int(np.uint64(int(b) & _MASK)),
        int(np.uint64(int(c) & _MASK)),
    ):
        z = ((state ^ word) + _GAMMA) & _MASK
        z = ((z ^ (z >> 30)) * _MUL_1) & _MASK
        z = ((z ^ (z >> 27)) * _MUL_2) & _MASK
        state = z ^ (z >> 31)
    return (state >> 11) * 2.0**-53


def uniform_array(seed: SupportsInt, a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`uniform` of every tuple (seed, a[i], b[i], c[i]), bit for bit; a, b and c are integers or arrays that broadcast."""
    shape = np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c))
    state = _finalised(_unsigned(int(seed) & _MASK))
    for words in (a, b, c):
        state = _finalised(state ^ _unsigned(words))
    numbers: npt.NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(shape)


def _unsigned(words: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    # At least one dimension: arrays wrap silently, NumPy scalars warn of overflow.
    array = np.atleast_1d(np.asarray(words))
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"counters must be integers, not {array.dtype}")
    return array.astype(np.uint64)


def _finalised(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MUL_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MUL_2)
    return z ^ (z >> np.uint64(31))
