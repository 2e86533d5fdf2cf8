"""The smallest p that a test can reach at its size; where that is not below .05, nothing can be significant.

A discrete test has a smallest p: 2^(1 - m) for McNemar's test with m discordant pairs, 1 / (1 + sets) for a rank among
random sets, 2 / n! for Kendall's tau of n layers in distinct places. With a correction over a family the smallest
corrected p counts. A p that could not have been small is no evidence that there is no effect, so such a test is never
called "not significant".
"""

from collections.abc import Sequence

from stethoscope.statistics.corrections import holm
from stethoscope.statistics.draws import rank_p
from stethoscope.statistics.paired import SIGNIFICANCE, mcnemar_exact

CANNOT_BE_SIGNIFICANT = "cannot be significant at this size"
FEWEST_RANDOM_SETS = int(1 / SIGNIFICANCE)  # 1 / (1 + sets) is below .05 from here on


def cannot_reach(smallest_p: float) -> bool:
    """Return whether a test whose smallest p this is can never be significant (p < .05)."""
    return smallest_p >= SIGNIFICANCE


def smallest_mcnemar_p(n_discordant: int) -> float:
    """Return McNemar's exact two-sided p where all discordant pairs fall on one side: 2^(1 - n), 1 without any."""
    return mcnemar_exact(n_discordant, 0)


def smallest_rank_p(n_sets: int) -> float:
    """Return the p of a rank among random sets where none of them is as good: 1 / (1 + sets)."""
    return rank_p(0, n_sets)


def smallest_holm_p(p: Sequence[float], smallest: Sequence[float]) -> list[float]:
    """Return the smallest Holm-corrected p that each test could have had beside the others' p as they are.

    Args:
        p: uncorrected p of the tests of the family.
        smallest: the smallest uncorrected p of each, at most `p`.
    """
    return [float(holm([*p[:i], floor, *p[i + 1 :]])[i]) for i, floor in enumerate(smallest)]
