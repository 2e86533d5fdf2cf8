"""Corrections for many tests: Holm's and Benjamini-Hochberg's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def p_values(p: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(p, dtype=np.float64)
    assert values.ndim == 1, f"expected a list of p-values, got shape {values.shape}"
    assert bool(np.all((values >= 0) & (values <= 1))), f"not p-values: {values}"
    return values


def holm(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Holm's step-down adjusted p-values [n], in the order given (Holm 1979); strong control of any error."""
    values = p_values(p)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return Benjamini-Hochberg q-values [n], in the order given (1995); controls the false discovery rate."""
    values = p_values(p)
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
