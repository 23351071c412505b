"""How many tokens a prompt has and how many its answer: distributions, drawn by their quantile function.

A length is ``quantile(u)`` of one uniform number, so request i has the same lengths however many requests there are.
Prompt and output may be tied by a Gaussian copula, which keeps both marginals as they are.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from simulator.records import Record

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ABSURD_TOKENS = 10**8
"""Ten times the longest context anyone serves: a larger count is a mistake (a time or a byte count in the wrong column)."""

_Tokens = Annotated[int, Field(ge=1, le=ABSURD_TOKENS)]
# Where a quantile function has infinite ends, u = 0 and u = 1 are moved inside by the least step of a 53-bit uniform.
_LEAST_U = 2.0**-53
_P95_Z = 1.6448536269514722  # 95th percentile of the standard normal


class Constant(Record):
    """Every length the same."""

    kind: Literal["constant"]
    """Tag of this distribution."""
    tokens: _Tokens
    """The length, tokens."""

    def quantile(self, u: FloatArray) -> FloatArray:
        """Length at probability `u`, tokens, not yet rounded."""
        return np.full(u.shape, float(self.tokens))


class Uniform(Record):
    """Every whole number from `low` to `high` equally likely, both ends included."""

    kind: Literal["uniform"]
    """Tag of this distribution."""
    low: _Tokens
    """Shortest length, tokens."""
    high: _Tokens
    """Longest length, tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"have high={self.high} not below low={self.low}")
        return self

    def quantile(self, u: FloatArray) -> FloatArray:
        """Length at probability `u`, tokens."""
        return np.minimum(np.floor(self.low + u * (self.high - self.low + 1)), self.high)


class Lognormal(Record):
    """The logarithm is normal; shape by `sigma` or by the 95th percentile, ends cut at `min` and `max`.

    Convenient when only two figures are known. Real traces fit it badly (they are multimodal): prefer `Quantiles`.
    """

    kind: Literal["lognormal"]
    """Tag of this distribution."""
    median: float = Field(ge=1, le=ABSURD_TOKENS)
    """Median length before cutting, tokens."""
    sigma: float | None = Field(default=None, ge=0, le=10)
    """Standard deviation of the natural logarithm, no unit; give this or `p95`."""
    p95: float | None = Field(default=None, ge=1, le=ABSURD_TOKENS)
    """95th percentile before cutting, tokens; sigma = ln(p95 / median) / 1.645."""
    min: _Tokens = 1
    """Shorter draws become this length, tokens; 1 because an empty prompt or answer is no request."""
    max: _Tokens = ABSURD_TOKENS
    """Longer draws become this length, tokens; by default no cut that matters."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.sigma is None) == (self.p95 is None):
            raise ValueError("have either sigma or p95, not both and not neither")
        if self.p95 is not None and self.p95 < self.median:
            raise ValueError(f"have p95={self.p95:g} not below median={self.median:g}")
        if self.max < self.min:
            raise ValueError(f"have max={self.max} not below min={self.min}")
        return self

    def quantile(self, u: FloatArray) -> FloatArray:
        """Length at probability `u`, tokens, not yet rounded: median · exp(sigma · Φ⁻¹(u)), cut to [min, max]."""
        from scipy.special import ndtri

        sigma = self.sigma if self.p95 is None else math.log(self.p95 / self.median) / _P95_Z
        z = ndtri(np.clip(u, _LEAST_U, 1 - _LEAST_U))
        cut: FloatArray = np.clip(self.median * np.exp(sigma * z), self.min, self.max)
        return cut


class Geometric(Record):
    """Every further token as likely as the one before: the exponential distribution among whole numbers."""

    kind: Literal["geometric"]
    """Tag of this distribution."""
    mean: float = Field(ge=1, le=ABSURD_TOKENS)
    """Mean before cutting, tokens; the probability of one more is 1 - 1/mean."""
    max: _Tokens = ABSURD_TOKENS
    """Longer draws become this length, tokens; by default no cut that matters."""

    def quantile(self, u: FloatArray) -> FloatArray:
        """Length at probability `u`, tokens: 1 + ⌊ln(1-u) / ln(1-1/mean)⌋, cut to [1, max]."""
        if self.mean == 1:
            return np.ones(u.shape)
        longer = np.log1p(-np.minimum(u, 1 - _LEAST_U)) / math.log1p(-1 / self.mean)
        cut: FloatArray = np.minimum(1 + np.floor(longer), self.max)
        return cut


class Quantiles(Record):
    """A table of quantiles, linear in the logarithm of the length between them: how traces are stated as figures."""

    kind: Literal["quantiles"]
    """Tag of this distribution."""
    probabilities: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=2)
    """Rising from 0 to 1, no unit."""
    values: tuple[Annotated[float, Field(ge=1, le=ABSURD_TOKENS)], ...] = Field(min_length=2)
    """Length at each of the probabilities, tokens; the first is the shortest, the last the longest possible."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        p, v = self.probabilities, self.values
        if len(p) != len(v):
            raise ValueError(f"have as many values as probabilities, not {len(v)} and {len(p)}")
        if p[0] != 0 or p[-1] != 1 or any(b <= a for a, b in pairwise(p)):
            raise ValueError("have probabilities rising from 0 to 1")
        if any(b < a for a, b in pairwise(v)):
            raise ValueError("have values that do not fall")
        return self

    def quantile(self, u: FloatArray) -> FloatArray:
        """Length at probability `u`, tokens, not yet rounded."""
        return np.exp(np.interp(u, self.probabilities, np.log(self.values)))


def _short_form(value: Any) -> Any:
    # `prompt: 512` is what people write first.
    if isinstance(value, int) and not isinstance(value, bool):
        return {"kind": "constant", "tokens": value}
    return value


Distribution = Annotated[
    Annotated[Constant | Uniform | Lognormal | Geometric | Quantiles, Field(discriminator="kind")],
    BeforeValidator(_short_form),
]
"""A tagged distribution of lengths; a bare whole number stands for a constant."""


class Lengths(Record):
    """Prompt and output lengths of a request."""

    prompt: Distribution
    """Prompt tokens."""
    output: Distribution
    """Output tokens, the first one included."""
    rank_correlation: float = Field(default=0.0, ge=-1, le=1)
    """Spearman's rank correlation between the two, no unit; 0 is independence."""
    source: str = ""
    """Where the figures were read, for people."""

    def draw(self, u_prompt: FloatArray, u_output: FloatArray) -> tuple[IntArray, IntArray]:
        """Prompt and output tokens of n requests from two arrays of n uniform numbers in [0, 1); both at least 1.

        Gaussian copula: z_o' = r·z_p + √(1-r²)·z_o with z = Φ⁻¹(u) and Pearson's r = 2·sin(π·ρ/6) of the Spearman ρ
        asked for. Reference: W. H. Kruskal, "Ordinal measures of association", JASA 53 (1958).
        """
        if self.rank_correlation != 0:
            from scipy.special import ndtr, ndtri

            r = max(-1.0, min(1.0, 2 * math.sin(math.pi * self.rank_correlation / 6)))
            z_prompt = ndtri(np.clip(u_prompt, _LEAST_U, 1 - _LEAST_U))
            z_output = ndtri(np.clip(u_output, _LEAST_U, 1 - _LEAST_U))
            u_output = ndtr(r * z_prompt + math.sqrt(1 - r * r) * z_output)
        return whole(self.prompt.quantile(u_prompt)), whole(self.output.quantile(u_output))


def whole(tokens: FloatArray) -> IntArray:
    """Rounded to the nearest whole number, at least 1."""
    return np.maximum(np.rint(tokens), 1).astype(np.int64)
