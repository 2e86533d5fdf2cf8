"""Intervals of one proportion, of paired proportions, and of paired means.

The headline of a comparison is difference = (n10 - n01) / n with Newcombe's method-10 interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy import special


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference of two paired quantities with its interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean with its interval."""

    mean: float
    low: float
    high: float


def normal_quantile(level: float) -> float:
    assert 0 < level < 1, f"level={level} is not in (0, 1)"
    return float(special.ndtri((1 + level) / 2))


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of the proportion correct/n; (0, 1) when n is 0 (Wilson 1927)."""
    assert 0 <= correct <= n, f"correct={correct} is not in [0, n={n}]"
    if n == 0:
        return Interval(0.0, 1.0)
    z = normal_quantile(level)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return Interval(max(low, 0.0), min(high, 1.0))


def lm_eval_stderr(correct: int, n: int) -> float:
    """Return lm-eval's standard error of a mean of 0/1 scores, sd with n-1 over sqrt(n); NaN when n < 2."""
    assert 0 <= correct <= n, f"correct={correct} is not in [0, n={n}]"
    if n < 2:
        return math.nan
    share = correct / n
    return math.sqrt(share * (1 - share) / (n - 1))


def newcombe_paired(n11: int, n10: int, n01: int, n00: int, level: float = 0.95) -> PairedDifference:
    """Return p1 - p2 = (n10 - n01)/n with Newcombe's method-10 interval for paired proportions.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10 (not statsmodels' "newcomb", which is for
    independent samples). Wilson bounds of the two margins are combined with the continuity-corrected phi.
    """
    n = n11 + n10 + n01 + n00
    assert n > 0 <= min(n11, n10, n01, n00), f"not a 2x2 table: {n11}, {n10}, {n01}, {n00}"
    k1, k2 = n11 + n10, n11 + n01
    p1, p2 = k1 / n, k2 / n
    first, second = wilson(k1, n, level), wilson(k2, n, level)
    association = n11 * n00 - n10 * n01
    margins = k1 * (n - k1) * k2 * (n - k2)
    if margins == 0 or 0 <= association <= n / 2:
        phi = 0.0
    else:
        phi = (association if association < 0 else association - n / 2) / math.sqrt(margins)
    below1, above1 = p1 - first.low, first.high - p1
    below2, above2 = p2 - second.low, second.high - p2
    down = math.sqrt(max(0.0, below1**2 - 2 * phi * below1 * above2 + above2**2))
    up = math.sqrt(max(0.0, above1**2 - 2 * phi * above1 * below2 + below2**2))
    difference = (n10 - n01) / n
    return PairedDifference(difference, max(-1.0, difference - down), min(1.0, difference + up))


def paired_mean_interval(differences: Sequence[float] | Real[np.ndarray, " n"], *, level: float = 0.95) -> MeanInterval:
    """Return the mean of paired differences with Student's t interval; NaN bounds when n < 2."""
    values = np.asarray(differences, dtype=np.float64)
    assert values.ndim == 1 <= len(values), f"expected a list of differences, got shape {values.shape}"
    mean = float(values.mean())
    if len(values) < 2:
        return MeanInterval(mean, math.nan, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return MeanInterval(mean, mean - half, mean + half)


def percentile_interval(draws: Sequence[float] | Float[np.ndarray, " draws"], *, level: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap draws, undefined (NaN) draws left out; NaN bounds without any."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
