"""One arm against the mean of several random draws: other problems and other draws are both allowed for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special


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
    """Return our accuracy minus the mean over draws, macro over strata, with Student's t interval and two-sided p.

    With d_i = ours_i - mean_k draws_ki on problem i, S strata of n_s problems and a_k the accuracy of draw k,

        var = sum_s var(d in s) / n_s / S^2 + var(a_1 .. a_K) / K,

    so that both other problems and other draws are allowed for (Welch-Satterthwaite degrees of freedom). One draw is
    a fixed arm: its second term is 0. The first is Agresti and Min's (2005): half a problem is added to each cell of a
    stratum's paired table, so that agreement on every problem is no certainty.

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
    freedom = (over_problems + over_draws) ** 2 / (
        over_problems**2 / max(n_problems - size, 1) + (over_draws**2 / (n_draws - 1) if n_draws > 1 else 0.0)
    )
    error = math.sqrt(over_problems + over_draws)
    mean = difference / size
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    return TestedDifference(mean, max(mean - half, -1.0), min(mean + half, 1.0), p)
