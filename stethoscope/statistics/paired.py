"""Tests on paired right-or-wrong answers: exact McNemar, the e-value, the four verdicts; and the abstract's z."""

import math
from dataclasses import dataclass
from typing import Literal

from scipy import special

from stethoscope.statistics.intervals import lm_eval_stderr

BETTER = "better"
WORSE = "worse"
NOT_WORSE = "not worse by more than the margin"
INCONCLUSIVE = "inconclusive"
Verdict = Literal["better", "worse", "not worse by more than the margin", "inconclusive"]
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class ZTest:
    """A standard normal statistic and its two-sided p; both NaN where the standard error is zero or undefined."""

    z: float
    p: float


def unpooled_z(k1: int, n1: int, k2: int, n2: int) -> ZTest:
    """Return z = (k2/n2 - k1/n1) / sqrt(se1^2 + se2^2) with lm-eval's standard errors.

    Positive when the second sample is higher. It takes the two samples as independent, which paired problems are
    not: it is shown for comparability only.
    """
    error = math.hypot(lm_eval_stderr(k1, n1), lm_eval_stderr(k2, n2))
    if not error > 0:
        return ZTest(math.nan, math.nan)
    z = (k2 / n2 - k1 / n1) / error
    return ZTest(z, float(2 * special.ndtr(-abs(z))))


def mcnemar_exact(n10: int, n01: int) -> float:
    """Return the two-sided exact McNemar p: n10 of n10 + n01 discordant pairs against Binomial(1/2); 1 without any."""
    assert min(n10, n01) >= 0, f"negative count in n10={n10}, n01={n01}"
    if n10 == n01:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(min(n10, n01), n10 + n01, 0.5)))


def discordant_e_value(gained: int, lost: int) -> float:
    """Return the anytime-valid e-value 2^(g+l) Beta(g+.5, l+.5) / Beta(.5, .5); evidence at 20 or more."""
    log_e = (gained + lost) * math.log(2) + special.betaln(gained + 0.5, lost + 0.5) - special.betaln(0.5, 0.5)
    return math.exp(min(float(log_e), 700.0))


def verdict(low: float, high: float, holm_p: float, margin: float) -> Verdict:
    """Return the verdict on a paired difference with interval (low, high): one of four.

    Better and worse need Holm's p below .05 and an interval on that side of zero; "not worse" is a non-inferiority
    statement, low > -margin, regardless of p.
    """
    assert margin > 0, f"margin={margin} must be positive"
    if holm_p < SIGNIFICANCE and low > 0:
        return BETTER
    if holm_p < SIGNIFICANCE and high < 0:
        return WORSE
    return NOT_WORSE if low > -margin else INCONCLUSIVE
