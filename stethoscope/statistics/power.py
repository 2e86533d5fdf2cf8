"""What a benchmark can see before it is run: power of the exact McNemar test, detectable effect, problems for a margin.

With accuracies p1 (arm) and p2 (reference) and the correlation phi of right and wrong over problems, a problem is
gained with p10 and lost with p01,

    p11 = p1 p2 + phi sqrt(p1 (1 - p1) p2 (1 - p2)),   p10 = p1 - p11,   p01 = p2 - p11.

Of K ~ Binomial(n, p10 + p01) discordant pairs G ~ Binomial(K, p10 / (p10 + p01)) are gained: the power of one test sums
both exactly, with no simulation and no normal approximation. A phi that two such accuracies cannot have is brought to
the nearest they can.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import special

from stethoscope.statistics.paired import SIGNIFICANCE

DIFFERENCE_STEP = 1e-4  # a hundredth of a point
FAMILIES = 20_000


class DiscordantRates(NamedTuple):
    """Probability that a problem is gained (only the arm is right) and that it is lost."""

    gained: float
    lost: float


def discordant_rates(base_accuracy: float, difference: float, correlation: float) -> DiscordantRates:
    """Return how often a problem is gained and lost, from the reference's accuracy, the true difference and phi."""
    reference, arm = base_accuracy, base_accuracy + difference
    assert min(reference, arm) >= -1e-12, f"accuracies {reference}, {arm} are not in [0, 1]"
    assert max(reference, arm) <= 1 + 1e-12, f"accuracies {reference}, {arm} are not in [0, 1]"
    assert -1 <= correlation <= 1, f"correlation={correlation} is not in [-1, 1]"
    reference, arm = min(max(reference, 0.0), 1.0), min(max(arm, 0.0), 1.0)
    both = arm * reference + correlation * math.sqrt(arm * (1 - arm) * reference * (1 - reference))
    both = min(max(both, arm + reference - 1, 0.0), arm, reference)
    return DiscordantRates(arm - both, reference - both)


@lru_cache(maxsize=64)
def _critical_losses(n: int, level: float) -> Int[np.ndarray, " n_plus_1"]:
    """Return for K = 0..n discordant pairs the most losses with a two-sided exact p below `level`; -1: none."""
    from scipy import stats  # 0.7 s, which no page and no command that computes no power waits for

    pairs = np.arange(n + 1)
    return stats.binom.ppf(level / 2, pairs, 0.5).astype(int) - 1  # ppf: the smallest c with P(X <= c) >= level / 2


@lru_cache(maxsize=4096)
def mcnemar_power(
    n: int, base_accuracy: float, difference: float, correlation: float, *, level: float = SIGNIFICANCE
) -> float:
    """Return the power of the exact McNemar test on n problems to detect the difference in its true direction.

    Args:
        base_accuracy: accuracy of the reference.
        difference: true accuracy of the arm minus that; negative for a true loss; 0 gives the one-sided error rate.
        correlation: phi between correctness in the two arms, over problems.
        level: the two-sided p must be below it (for Holm's first step over m subjects: level / m).
    """
    from scipy import stats  # see above

    assert n >= 0, f"n={n} is negative"
    gained, lost = discordant_rates(base_accuracy, difference, correlation)
    if difference < 0:
        gained, lost = lost, gained
    discordant = gained + lost
    if discordant == 0:
        return 0.0
    pairs = np.arange(n + 1)
    critical = _critical_losses(n, level)
    losses = np.where(critical >= 0, special.bdtr(np.maximum(critical, 0), pairs, lost / discordant), 0.0)
    return float(stats.binom.pmf(pairs, n, discordant) @ losses)


@lru_cache(maxsize=1024)
def detectable_difference(
    n: int, base_accuracy: float, correlation: float, *, power: float = 0.8, level: float = SIGNIFICANCE
) -> float | None:
    """Return the smallest true gain that n problems find with `power`, to a hundredth of a point; None: not even 100%.

    The other arguments are those of `mcnemar_power`.
    """

    def enough(steps: int) -> bool:
        return mcnemar_power(n, base_accuracy, steps * DIFFERENCE_STEP, correlation, level=level) >= power

    low, high = 0, math.floor((1 - base_accuracy) / DIFFERENCE_STEP + 1e-9)
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * DIFFERENCE_STEP


@lru_cache(maxsize=1024)
def expected_found(sizes: tuple[int, ...], base_accuracy: float, difference: float, correlation: float) -> float:
    """Return how many subjects, all truly better by `difference`, are found on average after Holm's correction.

    The mean over `FAMILIES` seeded draws of the whole family's tables: its standard error is at most .005 per subject.

    Args:
        sizes: problems of each subject. The other arguments are those of `mcnemar_power`.
    """
    gained, lost = discordant_rates(base_accuracy, difference, correlation)
    generator = np.random.default_rng(0)
    p = np.ones((FAMILIES, len(sizes)))
    for column, n in enumerate(sizes):
        wins, losses, _ = generator.multinomial(n, [gained, lost, 1 - gained - lost], size=FAMILIES).T
        p[:, column] = np.where(wins > losses, 2 * special.bdtr(losses, wins + losses, 0.5), 1.0)
    p.sort(axis=1)
    rejected = np.logical_and.accumulate(p * np.arange(len(sizes), 0, -1) < SIGNIFICANCE, axis=1)  # Holm, step by step
    return float(rejected.sum(axis=1).mean())


def n_for_margin(
    base_accuracy: float, correlation: float, margin: float, *, difference: float = 0.0, power: float = 0.8
) -> int:
    """Return the problems at which "not worse by more than the margin" is found with `power`.

    n = (p10 + p01 - d^2) (z_{.975} + z_power)^2 / (margin + d)^2, the normal approximation for a paired difference d
    (Liu, Hsueh, Hsieh & Chen 2002, Statistics in Medicine 21:231), for planning only.
    """
    assert margin + difference > 0, f"a true difference of {difference} is itself worse than the margin {margin}"
    gained, lost = discordant_rates(base_accuracy, difference, correlation)
    variance = gained + lost - difference**2
    quantiles = float(special.ndtri(1 - SIGNIFICANCE / 2) + special.ndtri(power))
    return math.ceil(variance * quantiles**2 / (margin + difference) ** 2)
