"""The smallest p value that a test can reach at its size. If it is not below .05, the test cannot be significant.

A discrete test has a smallest p: 2^(1 - m) for McNemar's test with m discordant pairs, 1 / (1 + sets) for a rank among
random sets, 2 / n! for Kendall's tau of n layers in distinct places. With a correction over a family, the smallest
corrected p value is used. A p value that could not have been small is no evidence against an effect, so such a test is
never called "not significant".
"""

from collections.abc import Sequence

from stethoscope.statistics.corrections import holm
from stethoscope.statistics.draws import rank_p
from stethoscope.statistics.paired import SIGNIFICANCE, mcnemar_exact

CANNOT_BE_SIGNIFICANT = "cannot be significant at this size"
FEWEST_RANDOM_SETS = int(1 / SIGNIFICANCE)  # smallest number with 1 / (1 + sets) below .05


def cannot_reach(smallest_p: float) -> bool:
    """Return whether a test with this smallest p can never be significant (p < .05)."""
    return smallest_p >= SIGNIFICANCE


def smallest_mcnemar_p(n_discordant: int) -> float:
    """Return McNemar's exact two-sided p if all n discordant pairs are on one side: 2^(1 - n), or 1 for n = 0."""
    return mcnemar_exact(n_discordant, 0)


def smallest_rank_p(n_sets: int) -> float:
    """Return the p of a rank among random sets if none of them does as well: 1 / (1 + sets)."""
    return rank_p(0, n_sets)


def smallest_holm_p(p: Sequence[float], smallest: Sequence[float]) -> list[float]:
    """Return the smallest Holm-corrected p that each test could have, given the p values of the others.

    Args:
        p: uncorrected p values of the family.
        smallest: the smallest possible uncorrected p of each test, at most `p`.
    """
    return [float(holm([*p[:i], floor, *p[i + 1 :]])[i]) for i, floor in enumerate(smallest)]
