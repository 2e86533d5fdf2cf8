"""Pure statistics on numbers: intervals, paired tests, corrections, the bootstrap and the four verdicts.

A comparison is paired: the same problems were put to both arms, and the 2x2 table counts them as n11 (both right),
n10 (only the arm right), n01 (only the reference right) and n00 (both wrong). The headline is

    difference = (n10 - n01) / n, with Newcombe's method-10 interval for paired proportions and the exact McNemar p.

Fractions stay in [0, 1]. Counts that cannot be are programmer mistakes and assert.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real
from scipy import special

BETTER = "better"
WORSE = "worse"
NOT_WORSE = "not worse by more than the margin"
INCONCLUSIVE = "inconclusive"
Verdict = Literal["better", "worse", "not worse by more than the margin", "inconclusive"]
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ZTest:
    """A standard normal statistic and its two-sided p; both NaN where the standard error is zero or undefined."""

    z: float
    p: float


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


@dataclass(frozen=True, slots=True)
class RankTest:
    """Per column: area under the ROC curve (.5 = no separation) and the two-sided Mann-Whitney p."""

    auroc: Float[np.ndarray, " j"]
    p: Float[np.ndarray, " j"]


@dataclass(frozen=True, slots=True)
class Midranks:
    """Ranks along each row, equal values sharing their mean rank; `tie_sum` is the sum of t^3 - t over ties of t."""

    ranks: Float[np.ndarray, "j n"]
    tie_sum: Float[np.ndarray, " j"]


def _normal_quantile(level: float) -> float:
    assert 0 < level < 1, f"level={level} is not in (0, 1)"
    return float(special.ndtri((1 + level) / 2))


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of the proportion correct/n; (0, 1) when n is 0 (Wilson 1927)."""
    assert 0 <= correct <= n, f"correct={correct} is not in [0, n={n}]"
    if n == 0:
        return Interval(0.0, 1.0)
    z = _normal_quantile(level)
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


def _p_values(p: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(p, dtype=np.float64)
    assert values.ndim == 1, f"expected a list of p-values, got shape {values.shape}"
    assert bool(np.all((values >= 0) & (values <= 1))), f"not p-values: {values}"
    return values


def holm(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Holm's step-down adjusted p-values [n], in the order given (Holm 1979); strong control of any error."""
    values = _p_values(p)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Benjamini-Hochberg q-values [n], in the order given (1995); controls the false discovery rate."""
    values = _p_values(p)
    order = np.argsort(values, kind="stable")[::-1]
    ranks = np.arange(len(values), 0, -1)
    stepped = np.minimum.accumulate(values[order] * len(values) / ranks)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def fdr_threshold(p: Float[np.ndarray, "*draws n"], level: float) -> Float[np.ndarray, "*draws"]:
    """Return the largest p that Benjamini-Hochberg rejects at `level` along the last axis, -1 where it rejects none.

    p <= fdr_threshold(p, level) says the same as benjamini_hochberg(p) <= level, for many families at once.
    """
    ordered = np.sort(p, axis=-1)
    passing = ordered <= level * np.arange(1, p.shape[-1] + 1) / p.shape[-1]
    return np.where(passing, ordered, -1.0).max(axis=-1, initial=-1.0)


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


def stratified_paired_bootstrap(
    arm: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    *,
    kind: Literal["macro", "micro"] = "macro",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Return arm - reference over all strata with a percentile interval, pairs resampled inside each stratum.

    Macro is the mean of the strata's differences, micro the difference over all pairs. A pair is worth -1, 0 or 1,
    so that resampling n pairs is one multinomial draw of their three counts: exact, and independent of n.

    Args:
        arm, reference: right or wrong by stratum, the same problems in the same order (bool [n] each).
    """
    assert arm, "no strata to total"
    assert arm.keys() == reference.keys(), "arm and reference need the same strata"
    generator = np.random.default_rng(seed)
    differences: list[float] = []
    drawn: list[np.ndarray] = []
    sizes: list[int] = []
    for stratum in sorted(arm):
        ours, theirs = np.asarray(arm[stratum], dtype=bool), np.asarray(reference[stratum], dtype=bool)
        n = len(ours)
        assert ours.shape == theirs.shape == (n,) > (0,), f"{stratum}: not paired, {ours.shape} and {theirs.shape}"
        gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
        counts = generator.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=draws)
        differences.append((gained - lost) / n)
        drawn.append((counts[:, 0] - counts[:, 1]) / n)
        sizes.append(n)
    weights = np.asarray(sizes, dtype=np.float64) if kind == "micro" else np.ones(len(sizes))
    weights /= weights.sum()
    totals = np.stack(drawn, axis=1) @ weights  # [draws]
    low, high = np.quantile(totals, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(float(np.dot(differences, weights)), float(low), float(high))


def kendall_tau(
    a: Sequence[float] | Real[np.ndarray, "*a n"], b: Sequence[float] | Real[np.ndarray, "*b n"]
) -> Float[np.ndarray, "..."]:
    """Return Kendall's tau-b along the last axis, for many draws at once; NaN where one side is constant.

    tau_b = (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b)  (Kendall 1945). Leading axes
    broadcast: draws of a score [draws, n] against one measured gain [n], or against draws of it. Two plain sequences
    give an array without axes, which `float` takes.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = first.shape[-1]
    assert n == second.shape[-1], f"lengths {n} and {second.shape[-1]} differ"
    shape = np.broadcast_shapes(first.shape, second.shape)[:-1]
    agreement, untied_a, untied_b = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i in range(n - 1):  # one position against all later ones: no table of all pairs
        of_a = np.sign(first[..., i + 1 :] - first[..., i, None])
        of_b = np.sign(second[..., i + 1 :] - second[..., i, None])
        agreement += (of_a * of_b).sum(-1)
        untied_a += np.abs(of_a).sum(-1)
        untied_b += np.abs(of_b).sum(-1)
    pairs = untied_a * untied_b
    return np.where(pairs > 0, agreement / np.sqrt(np.maximum(pairs, 1)), np.nan)


def percentile_interval(draws: Sequence[float] | Float[np.ndarray, " draws"], *, level: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap draws, undefined (NaN) draws left out; NaN bounds without any."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def midranks(values: Real[np.ndarray, "j n"]) -> Midranks:
    """Return the ranks 1..n along each row, ties sharing the mean of theirs."""
    values = np.ascontiguousarray(values)
    n = values.shape[1]
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    begins = np.ones(values.shape, dtype=bool)  # where a run of equal values begins
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begin = np.flatnonzero(begins)
    size = np.diff(np.append(begin, values.size)).astype(np.float64)
    shared = np.repeat(begin % n + (size + 1) / 2, size.astype(np.int64)).reshape(values.shape)
    ranks = np.empty_like(shared)
    np.put_along_axis(ranks, order, shared, axis=1)
    tie_sum = np.bincount(begin // n, weights=size**3 - size, minlength=len(values))
    return Midranks(ranks, tie_sum.astype(np.float64))  # without a row, bincount counts in integers


def mann_whitney_p(
    u: Float[np.ndarray, "*draws j"], n1: int, n2: int, tie_sum: Float[np.ndarray, " j"]
) -> Float[np.ndarray, "*draws j"]:
    """Return the two-sided p of Mann-Whitney's U: normal approximation with tie and continuity correction.

    Source: Hollander & Wolfe 1999, section 4.1. A column of n1 + n2 equal values has p 1.
    """
    n = n1 + n2
    variance = n1 * n2 / 12 * ((n + 1) - tie_sum / (n * max(n - 1, 1)))
    varies = variance > 1e-9
    excess = np.maximum(np.abs(u - n1 * n2 / 2) - 0.5, 0.0)
    z = np.where(varies, excess / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    return np.minimum(2 * special.ndtr(-z), 1.0)


def mann_whitney_auroc(x: Real[np.ndarray, "n1 j"], y: Real[np.ndarray, "n2 j"]) -> RankTest:
    """Return P(x > y) + P(x = y)/2 per column, and its two-sided Mann-Whitney p, all columns at once.

    A column that is constant over both samples has AUROC .5 and p 1.

    Args:
        x: [n1, j] values of the first sample (documents of the domain), one column a variable.
        y: [n2, j] values of the second sample.
    """
    assert x.shape[1:] == y.shape[1:] == (x.shape[-1],), f"shapes {x.shape} and {y.shape} do not match"
    assert min(len(x), len(y)) > 0, "an empty sample has no ranks"
    n1, n2 = len(x), len(y)
    ranked = midranks(np.concatenate([x, y]).T)
    u = ranked.ranks[:, :n1].sum(axis=1) - n1 * (n1 + 1) / 2  # [j]
    return RankTest(u / (n1 * n2), mann_whitney_p(u, n1, n2, ranked.tie_sum))


def discordant_e_value(gained: int, lost: int) -> float:
    """Return the anytime-valid e-value 2^(g+l) Beta(g+.5, l+.5) / Beta(.5, .5); evidence at 20 or more."""
    log_e = (gained + lost) * math.log(2) + special.betaln(gained + 0.5, lost + 0.5) - special.betaln(0.5, 0.5)
    return math.exp(min(float(log_e), 700.0))


def verdict(low: float, high: float, holm_p: float, margin: float) -> Verdict:
    """Return the verdict on a paired difference with interval (low, high): one of four, and no other.

    Better and worse need Holm's p below .05 and an interval on that side of zero; "not worse" is a non-inferiority
    statement, low > -margin, whatever p says.
    """
    assert margin > 0, f"margin={margin} must be positive"
    if holm_p < SIGNIFICANCE and low > 0:
        return BETTER
    if holm_p < SIGNIFICANCE and high < 0:
        return WORSE
    return NOT_WORSE if low > -margin else INCONCLUSIVE
