"""Halves, bootstrap and permutation: what a draw weighs, that copies stay in their half, what blocks hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.sae import resampling
from stethoscope.sae.resampling import Bootstrap, Design, Draws, Observed, Permuted

N_DOMAIN, N_CONTROL = 30, 25


def a_design(n_splits: int = 3) -> Design:
    return Design.of(N_DOMAIN, N_CONTROL, n_splits=n_splits, seed=0)


def a_table(seed: int = 0, latents: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.binomial(20, 0.1, size=(N_DOMAIN + N_CONTROL, latents)) / 20).astype(np.float32)


@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_split_parts_all_documents_into_equal_halves(n_domain: int, n_control: int, seed: int) -> None:
    design = Design.of(n_domain, n_control, n_splits=4, seed=seed)
    for split in design.splits:
        assert sorted(np.concatenate(split.domain).tolist()) == list(range(n_domain))
        assert sorted(np.concatenate(split.control).tolist()) == list(range(n_domain, n_domain + n_control))
        assert len(split.domain[1]) - len(split.domain[0]) in (0, 1)
        assert len(split.control[1]) - len(split.control[0]) in (0, 1)
    assert len({split.domain[0].tobytes() for split in design.splits}) == 4


@pytest.mark.parametrize("draws", [Observed(a_design()), Bootstrap(a_design(), 5)], ids=["observed", "bootstrap"])
def test_resamples_stay_in_their_half(draws: Draws) -> None:
    """Marking half A's documents with 1 shows where every draw's weight comes from."""
    for i, split in enumerate(draws.design.splits):
        marked = np.zeros((N_DOMAIN + N_CONTROL, 2), dtype=np.float32)
        marked[split.domain[0]] = marked[split.control[0]] = 1
        first, second = list(draws.halves(marked, slice(0, draws.size)))[i]
        for half, expected in ((first, 1.0), (second, 0.0)):
            np.testing.assert_allclose(half.p, expected, atol=1e-6)
            np.testing.assert_allclose(half.q, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [Bootstrap, Permuted])
def test_halves_are_the_weighted_means_of_their_documents(kind: type[Bootstrap] | type[Permuted]) -> None:
    """Against a loop over draws and documents, in float64; the hits that `means_at` takes are the same numbers."""
    design, table = a_design(), a_table()
    draws = kind(design, 6)
    for split, halves in zip(design.splits, draws.halves(table, slice(0, 6)), strict=True):
        for h, half in enumerate(halves):
            for side, means, weights in (
                (split.domain[h], half.p, half.domain),
                (split.control[h], half.q, half.control),
            ):
                for draw in range(6):
                    if isinstance(draws, Permuted):
                        expected = table[draws.order[draw, side]].mean(0)
                    else:
                        expected = np.average(table[side], axis=0, weights=draws.counts[draw, side])
                    np.testing.assert_allclose(means[draw], expected, atol=1e-6)
                at = np.repeat(np.arange(6), 7), np.tile(np.arange(7), 6)
                np.testing.assert_allclose(weights.means_at(table, *at), means[at], atol=1e-6)


def test_a_permutation_shuffles_domain_with_control_and_keeps_every_document() -> None:
    draws = Permuted(a_design(), 200)
    assert np.array_equal(np.sort(draws.order, axis=1), np.tile(np.arange(N_DOMAIN + N_CONTROL), (200, 1)))
    from_control = (draws.order[:, :N_DOMAIN] >= N_DOMAIN).mean()
    expected = N_CONTROL / (N_DOMAIN + N_CONTROL)
    assert from_control == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / (200 * N_DOMAIN)))
    table = a_table()
    for split, (a, b) in zip(draws.design.splits, draws.halves(table, slice(0, 200)), strict=True):
        sums = [len(split.domain[0]) * a.p, len(split.domain[1]) * b.p]
        sums += [len(split.control[0]) * a.q, len(split.control[1]) * b.q]
        np.testing.assert_allclose(sum(sums), np.tile(table.sum(0), (200, 1)), rtol=1e-4)


def test_a_bootstrap_draws_as_many_documents_as_there_are_from_each_side() -> None:
    counts = Bootstrap(a_design(), 400).counts
    assert set(counts[:, :N_DOMAIN].sum(1)) == {N_DOMAIN}
    assert set(counts[:, N_DOMAIN:].sum(1)) == {N_CONTROL}
    assert counts.var() == pytest.approx(1 - 1 / 27.5, rel=0.05)  # of a multinomial with 25 to 30 equal cells


def test_blocks_cover_the_draws_and_keep_a_table_small(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Bootstrap(a_design(), 300)
    for n_latents in (0, 1, 500, 16_384, 262_144):
        blocks = list(draws.blocks(n_latents))
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(300))
        assert all((block.stop - block.start) * n_latents <= 2**21 for block in blocks)
    whole = [half.p for pair in draws.halves(a_table(), slice(0, 300)) for half in pair]
    monkeypatch.setattr(resampling, "BLOCK_ELEMENTS", 7 * 64)
    assert len(list(draws.blocks(7))) == 5
    parts = [
        np.concatenate(column)
        for column in zip(
            *([half.p for pair in draws.halves(a_table(), rows) for half in pair] for rows in draws.blocks(7)),
            strict=True,
        )
    ]
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_draws_depend_on_seed_and_counts_alone() -> None:
    assert np.array_equal(Bootstrap(a_design(1), 9).counts, Bootstrap(a_design(8), 9).counts)
    assert np.array_equal(Permuted(a_design(1), 9).order, Permuted(a_design(8), 9).order)
    other = Design.of(N_DOMAIN, N_CONTROL, n_splits=1, seed=1)
    assert not np.array_equal(Bootstrap(other, 9).counts, Bootstrap(a_design(1), 9).counts)
