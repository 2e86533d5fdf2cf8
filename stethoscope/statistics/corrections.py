"""Corrections for many tests: Holm's, Benjamini-Hochberg's, and step-down max-T from shared permutations."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def p_values(p: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(p, dtype=np.float64)
    assert values.ndim == 1, f"expected a list of p-values, got shape {values.shape}"
    assert bool(np.all((values >= 0) & (values <= 1))), f"not p-values: {values}"
    return values


def holm(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Holm's step-down adjusted p-values [n], in the given order (Holm 1979); controls the family-wise error
    rate."""
    values = p_values(p)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def step_down_max_t(
    observed: Float[np.ndarray, " m"],
    null: Float[np.ndarray, "draws m"],
    slack: Float[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, " m"]:
    """Return family-wise adjusted one-sided p values [m] from permutation draws shared by all m tests.

    Each test is standardised by its own permutation distribution (its draws and the observed value); for tests with
    z_(1) >= z_(2) >= ..., the i-th has

        p_(i) = max over j <= i of  (1 + draws with max(z of tests (j), (j + 1), ...) >= z_(j)) / (1 + draws),

    which is at least 1 / (1 + draws) for any number of tests. The shared draws preserve the dependence between tests.
    Source: Westfall and Young 1993, Resampling-Based Multiple Testing, algorithm 4.1.

    Args:
        slack: a draw at most this far below the observed value counts as equal (rounding).
    """
    centre, spread = (of(np.vstack([null, observed]), axis=0) for of in (np.mean, np.std))
    scale = np.where(spread > 0, spread, 1.0)  # a test with the same value in every draw has z = 0
    z, drawn = (observed - centre) / scale, (null - centre) / scale
    order = np.argsort(-z, kind="stable")
    largest = np.maximum.accumulate(drawn[:, order[::-1]], axis=1)[
        :, ::-1
    ]  # maximum over a test and the following ones
    reached = largest >= (z if slack is None else z - slack / scale)[order]
    adjusted = np.empty(len(z))
    adjusted[order] = np.maximum.accumulate((1 + reached.sum(axis=0)) / (1 + len(null)))
    return adjusted


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Benjamini-Hochberg q-values [n], in the given order (1995); controls the false discovery rate."""
    values = p_values(p)
    order = np.argsort(values, kind="stable")[::-1]
    ranks = np.arange(len(values), 0, -1)
    stepped = np.minimum.accumulate(values[order] * len(values) / ranks)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
