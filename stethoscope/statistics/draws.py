"""One arm against the mean of several random draws: other problems and other draws are both allowed for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special


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
    """Return our accuracy minus the mean over draws, macro over strata, with an interval and its two-sided p.

    With d_i = ours_i - mean_k draws_ki on problem i, S strata of n_s problems and a_k the accuracy of draw k,

        difference +- t' sqrt(V + W),   V = sum_s var(d in s) / n_s / S^2,   W = var(a_1 .. a_K) / K,
        t' = (V t_V + W t_W) / (V + W)   with Student's t_V at sum_s (n_s - 1) and t_W at K - 1 degrees of freedom,

    so that both other problems and other draws are allowed for. t' is Cochran and Cox' (1950, Experimental Designs,
    section 4.14): with three draws Welch and Satterthwaite's degrees of freedom cover as little as 92.7% where the
    draws differ much, these at least 95% (two draws: 94.4%). One draw is a fixed arm: W = 0. V is Agresti and Min's
    (2005): half a problem is added to each cell of a stratum's paired table, so that agreement everywhere is no
    certainty.

    Args:
        ours: right or wrong by stratum (bool [n]).
        draws: the same problems in the same order, one row a draw (bool [K, n]).
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
    share = over_draws / (over_problems + over_draws)
    mean, freedom = difference / size, max(n_problems - size, 1)

    def critical(tail: float) -> float:
        of_problems = -float(special.stdtrit(freedom, tail))
        return (
            of_problems if share == 0 else (1 - share) * of_problems - share * float(special.stdtrit(n_draws - 1, tail))
        )

    half = critical((1 - level) / 2) * error
    return TestedDifference(mean, max(mean - half, -1.0), min(mean + half, 1.0), _p_of(abs(mean) / error, critical))


def _p_of(t: float, critical: Callable[[float], float]) -> float:
    """Return the two-sided p at which the critical value of a tail is `t`."""
    if t == 0:
        return 1.0
    smallest = math.log(1e-300)
    if critical(math.exp(smallest)) < t:
        return 0.0
    bracket = (smallest, math.log(0.5))
    found = optimize.root_scalar(lambda log_tail: critical(math.exp(log_tail)) - t, bracket=bracket, xtol=1e-9)
    return 2 * math.exp(found.root)
