"""Compare one arm with the mean of several random draws, with an interval over problems and draws."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

SMALLEST_TAIL = 1e-100  # below about 1e-200, scipy's quantile of Student's t is wrong or infinite


@dataclass(frozen=True, slots=True)
class TestedDifference:
    """A difference of accuracies with its interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def difference_to_draws(
    ours: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray], *, level: float = 0.95
) -> TestedDifference:
    """Return the arm's accuracy minus the mean over draws, macro over strata, with an interval and two-sided p.

    With d_i = ours_i - mean_k draws_ki on problem i, S strata of n_s problems and a_k the accuracy of draw k,

        difference +- t' sqrt(V + W),   V = sum_s var(d in s) / n_s / S^2,   W = var(a_1 .. a_K) / K,
        t' = (V t_V + W t_W) / (V + W)   with Student's t_V at sum_s (n_s - 1) and t_W at K - 1 degrees of freedom,

    so that the interval covers the sampling of problems and draws. t' is Cochran and Cox' (1950, Experimental Designs,
    section 4.14): with three draws, the Welch-Satterthwaite degrees of freedom cover as little as 92.7% if the draws
    differ strongly, whereas this interval covers at least 95% (two draws: 94.4%). A single draw is a fixed arm: W = 0.
    V is Agresti and Min's (2005): half a problem is added to each cell of a stratum's paired table, so that complete
    agreement does not give a zero variance.

    Args:
        ours: correctness by stratum (bool [n]).
        draws: correctness on the same problems in the same order, one row per draw (bool [K, n]).
    """
    assert ours, "no strata to total"
    assert ours.keys() == draws.keys(), "ours and draws need the same strata"
    n_draws = len(next(iter(draws.values())))
    by_draw = np.zeros(n_draws)
    difference = variance = 0.0
    n_problems = 0
    for stratum, right in ours.items():
        right, others = np.asarray(right, dtype=float), np.asarray(draws[stratum], dtype=float)
        n = len(right)
        assert n > 0, f"{stratum}: no problems"
        assert others.shape == (n_draws, n), f"{stratum}: not paired, {right.shape} and {others.shape}"
        weights = np.concatenate([np.ones(n), np.full(4, 0.5)])
        values = np.concatenate([right - others.mean(axis=0), [1.0, -1.0, 0.0, 0.0]])
        centre = float(np.average(values, weights=weights))
        variance += float(np.dot(weights, (values - centre) ** 2)) / (n + 1) / n
        difference += float(right.mean() - others.mean())
        by_draw += others.mean(axis=1)
        n_problems += n
    size = len(ours)
    over_problems, over_draws = variance / size**2, 0.0
    if n_draws > 1:
        over_draws = float((by_draw / size).var(ddof=1)) / n_draws
    error = math.sqrt(over_problems + over_draws)
    mean = difference / size
    critical = _CriticalValue(over_draws / error**2, max(n_problems - size, 1), n_draws - 1)
    half = critical.at((1 - level) / 2) * error
    return TestedDifference(mean, max(mean - half, -1.0), min(mean + half, 1.0), 2 * critical.tail(abs(mean) / error))


def smallest_p_to_draws(n_by_stratum: Mapping[str, int], n_draws: int) -> float:
    """Return the smallest p of `difference_to_draws` at these sizes: the arm is always right and all draws are always
    wrong."""
    return difference_to_draws(
        {stratum: np.ones(n, dtype=bool) for stratum, n in n_by_stratum.items()},
        {stratum: np.zeros((n_draws, n), dtype=bool) for stratum, n in n_by_stratum.items()},
    ).p


@dataclass(frozen=True, slots=True)
class _CriticalValue:
    """t' = (1 - share) t_V + share t_W as a function of the upper tail, and its inverse."""

    share: float
    freedom_v: int
    freedom_w: int

    def at(self, tail: float) -> float:
        """Return t' at an upper tail; both quantiles are accurate to `SMALLEST_TAIL` and not far below."""
        of_problems = -float(special.stdtrit(self.freedom_v, tail))
        if self.share == 0:
            return of_problems
        return (1 - self.share) * of_problems - self.share * float(special.stdtrit(self.freedom_w, tail))

    def tail(self, t: float) -> float:
        """Return the upper tail at which t' is `t`; one below `SMALLEST_TAIL` as that where t' mixes two quantiles.

        t' lies between its two quantiles, so that the tail lies between the tails of `t` under either distribution.
        """
        of_problems = float(special.stdtr(self.freedom_v, -t))
        if self.share == 0:
            return of_problems
        smaller, larger = sorted((of_problems, float(special.stdtr(self.freedom_w, -t))))
        smaller, larger = max(smaller, SMALLEST_TAIL), max(larger, SMALLEST_TAIL)
        if self.at(larger) >= t:  # equal within rounding
            return larger
        if self.at(smaller) <= t:
            return smaller
        found: Any = optimize.brentq(
            lambda log_tail: self.at(math.exp(log_tail)) - t, math.log(smaller), math.log(larger)
        )
        return math.exp(found)


def rank_p(as_good: int, n_sets: int) -> float:
    """Return the p of a rank among random sets of which `as_good` do at least as well: (1 + as_good) / (1 + n_sets).

    The ranked item counts as one of the draws, so that p is never 0 (Phipson & Smyth 2010).
    """
    return (1 + as_good) / (1 + n_sets)
