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
