"""Totals over strata with paired bootstrap intervals."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from stethoscope.statistics.intervals import PairedDifference


def stratified_paired_bootstrap(
    arm: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    *,
    kind: Literal["macro", "micro"] = "macro",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Return arm - reference over all strata with a bootstrap interval; pairs are resampled within each stratum.

    Macro is the mean of the strata's differences, micro the difference over all pairs. A pair has the value -1, 0 or 1,
    so that resampling n pairs is one multinomial draw of three counts: exact, and independent of n. The counts are
    drawn with half a pair added to each cell of a stratum's paired table (Agresti and Min 2005), so that identical
    outcomes of all pairs do not give a zero-width interval; the interval is the difference plus the quantiles of (drawn
    - expected), within [-1, 1].

    Args:
        arm, reference: correctness by stratum, for the same problems in the same order (bool [n] each).
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
        shares = np.array([gained + 0.5, lost + 0.5, n - gained - lost + 1]) / (n + 2)
        counts = generator.multinomial(n, shares, size=draws)
        differences.append((gained - lost) / n)
        drawn.append((counts[:, 0] - counts[:, 1]) / n - (shares[0] - shares[1]))
        sizes.append(n)
    weights = np.asarray(sizes, dtype=np.float64) if kind == "micro" else np.ones(len(sizes))
    weights /= weights.sum()
    difference = float(np.dot(differences, weights))
    errors = np.stack(drawn, axis=1) @ weights  # [draws]
    low, high = difference + np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(difference, max(float(low), -1.0), min(float(high), 1.0))
