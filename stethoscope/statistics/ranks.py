"""Ranks: Kendall's tau-b and the Mann-Whitney test, many columns or draws at once."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy import special

ROUNDING = 1e-9  # two values of tau this close are equal


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


@dataclass(frozen=True, slots=True)
class TauTest:
    """Kendall's tau-b with its two-sided permutation p.

    Attributes:
        tau, p: NaN where one side is constant.
        smallest_p: the smallest p that any order of these values could have had: 2 / n! without ties.
        null: tau of permuted orders [draws].
    """

    tau: float
    p: float
    smallest_p: float
    null: Float[np.ndarray, " draws"]


def kendall_test(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, permutations: int, seed: int | Sequence[int]
) -> TauTest:
    """Return tau-b and the share of orders of `a` whose |tau-b| with `b` is at least as large.

    All n! orders are counted where that is at most `permutations`. Otherwise as many are drawn at random, and the
    observed order is counted among them, so that p is never 0 (Phipson & Smyth 2010).
    """
    n, tau = len(a), float(kendall_tau(a, b))
    exact = math.factorial(n) <= permutations
    if exact:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    null = kendall_tau(a[orders], b)
    sizes = np.abs(null) if exact else np.abs(np.append(null, tau))

    def share(size: float) -> float:
        return float((sizes >= size - ROUNDING).mean())

    if np.isnan(tau):
        return TauTest(tau, math.nan, math.nan, null)
    return TauTest(tau, share(abs(tau)), share(sizes.max()), null)


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
