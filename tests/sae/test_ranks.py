"""Mann-Whitney of many latents, compared with scipy and pair by pair; Benjamini-Hochberg."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stethoscope.sae.ranks import Ranked, rejected_by_fdr
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.sample import LayerSample
from stethoscope.statistics import benjamini_hochberg


def ranked_of(rates: np.ndarray) -> Ranked:
    """Rank the latents (columns) of a dense table."""
    table = FiringRates.from_dense({0: rates.astype(np.float32)}, np.full(len(rates), 20)).tables[0]
    return LayerSample.of_table(table, np.arange(rates.shape[1])).ranked


@given(st.integers(1, 8), st.integers(2, 30), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_midranks_are_scipys(latents: int, n: int, levels: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, (n, latents)) / levels
    ranked = ranked_of(values)
    ranks = (ranked.spread(torch.float64) + ranked.silent).numpy()
    np.testing.assert_array_equal(ranks, stats.rankdata(values.astype(np.float32), axis=0))
    sizes = [np.unique(row, return_counts=True)[1].astype(float) for row in values.T]
    np.testing.assert_array_equal(ranked.tie_sum, [(size**3 - size).sum() for size in sizes])


@pytest.mark.parametrize("levels", [3, 1000])
def test_mann_whitney_is_scipy(levels: int) -> None:
    values = np.random.default_rng(0).integers(0, levels, (54, 11)) / levels
    ours = ranked_of(values).test(23)
    theirs = stats.mannwhitneyu(values[:23], values[23:], method="asymptotic", axis=0)
    np.testing.assert_allclose(ours.auroc, theirs.statistic / (23 * 31))
    np.testing.assert_allclose(ours.p, theirs.pvalue)


def test_mann_whitney_of_a_constant_and_of_a_perfect_column() -> None:
    x = np.array([[0.0, 5.0], [0.0, 6.0], [0.0, 7.0]])
    y = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    test = ranked_of(np.concatenate([x, y])).test(3)
    assert test.auroc.tolist() == [0.5, 1.0]
    assert float(test.p[0]) == 1.0


def test_p_is_uniform_under_the_null() -> None:
    p = ranked_of(np.exp(np.random.default_rng(3).normal(size=(80, 2000)))).test(40).p
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.001


@pytest.mark.parametrize("elements", [1, 200, 10**6])
def test_weighted_u_counts_every_pair_of_copies(elements: int) -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 5, (17, 9)) / 5 * (rng.random((17, 9)) < 0.7)
    values[:, 4] = 0  # never fires
    values[:8, 5] = 0  # fires on one side only
    counts = rng.multinomial(17, np.full(17, 1 / 17), size=6).astype(np.float32)
    weights = torch.from_numpy(counts)
    got = np.full((9, 6), np.nan)
    for latents, u in ranked_of(values).weighted_u(weights[:, :8], weights[:, 8:], elements):
        got[latents] = u.numpy()
    x, y = values[:8].astype(np.float32), values[8:].astype(np.float32)
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # [n_domain, n_control, latents]
    np.testing.assert_array_equal(got, np.einsum("dx,dy,xyj->jd", counts[:, :8], counts[:, 8:], wins))


@given(st.integers(1, 30), st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=60, deadline=None)
def test_as_many_are_rejected_as_by_benjamini_and_hochberg(n: int, seed: int, level: float) -> None:
    p = np.sort(np.random.default_rng(seed).random(n) ** 3)
    expected = int((benjamini_hochberg(p) <= level).sum())
    smallest = torch.from_numpy(p[p <= level])[None]
    assert rejected_by_fdr(smallest, n, level).tolist() == [expected]
