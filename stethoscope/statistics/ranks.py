"""Kendall's tau-b, many draws at once, and its permutation test."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

ROUNDING = 1e-9  # two values of tau this close are equal


def kendall_tau(
    a: Sequence[float] | Real[np.ndarray, "*a n"], b: Sequence[float] | Real[np.ndarray, "*b n"]
) -> Float[np.ndarray, "..."]:
    """Return Kendall's tau-b along the last axis, for many draws at once; NaN if one side is constant.

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
        tau, p: NaN if one side is constant.
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

    All n! orders are counted if there are at most `permutations`. Otherwise that many are drawn at random, and the
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
