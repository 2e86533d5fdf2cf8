"""Halves, bootstrap and permutation: weights of a draw, and copies that stay in the same half."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """A half's weights lie on its own documents: they sum to 1 over its domain's and to -1 over its control's."""
    weights = draws.weights(slice(0, draws.size)).view(draws.size, -1, N_DOMAIN + N_CONTROL).numpy()
    assert weights.shape[1] == draws.design.n_halves == 6
    for i, split in enumerate(draws.design.splits):
        for half in range(2):
            own = weights[:, 2 * i + half]
            np.testing.assert_allclose(own[:, split.domain[half]].sum(1), 1, rtol=1e-6)
            np.testing.assert_allclose(own[:, split.control[half]].sum(1), -1, rtol=1e-6)
            assert not own[:, split.domain[1 - half]].any()
            assert not own[:, split.control[1 - half]].any()


@pytest.mark.parametrize("kind", [Bootstrap, Permuted])
def test_a_row_of_weights_is_the_difference_of_the_halfs_means(kind: type[Bootstrap] | type[Permuted]) -> None:
    """Against a loop over draws and documents, in float64."""
    design, table = a_design(), a_table()
    draws = kind(design, 6)
    got = (draws.weights(slice(0, 6)) @ torch.from_numpy(table)).view(6, design.n_halves, -1).numpy()
    for draw in range(6):
        for i, split in enumerate(design.splits):
            for half in range(2):
                means = []
                for side in (split.domain[half], split.control[half]):
                    if isinstance(draws, Permuted):
                        means.append(table[draws.order[draw, side]].astype(np.float64).mean(0))
                    else:
                        copies = draws.counts[draw].numpy()[side]
                        means.append(np.average(table[side].astype(np.float64), axis=0, weights=copies))
                np.testing.assert_allclose(got[draw, 2 * i + half], means[0] - means[1], atol=1e-6)


@pytest.mark.parametrize("kind", [Bootstrap, Permuted])
def test_no_domain_weight_exceeds_the_largest(kind: type[Bootstrap] | type[Permuted]) -> None:
    """The bound that leaves latents out of a selection rests on it, and on which documents may be domain's."""
    for design in (a_design(), a_design(0)):
        draws = kind(design, 40)
        weights = draws.weights(slice(0, 40))
        assert draws.largest_weight == pytest.approx(float(weights.max()))
        positive, negative = (weights > 0).any(0).nonzero()[:, 0], (weights < 0).any(0).nonzero()[:, 0]
        assert draws.domain.start <= int(positive.min()) <= int(positive.max()) < draws.domain.stop
        assert draws.control.start <= int(negative.min()) <= int(negative.max()) < draws.control.stop


def test_a_permutation_shuffles_domain_with_control_and_keeps_every_document() -> None:
    draws = Permuted(a_design(), 200)
    assert np.array_equal(np.sort(draws.order, axis=1), np.tile(np.arange(N_DOMAIN + N_CONTROL), (200, 1)))
    from_control = (draws.order[:, :N_DOMAIN] >= N_DOMAIN).mean()
    expected = N_CONTROL / (N_DOMAIN + N_CONTROL)
    assert from_control == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / (200 * N_DOMAIN)))
    weights = draws.weights(slice(0, 200)).view(200, 3, 2, -1)
    assert bool(((weights != 0).sum(2) == 1).all()), "every document is in one half of every split"
    labels = draws.is_domain(slice(0, 200))
    assert bool(((weights > 0).any(2) == (labels > 0)[:, None]).all())


def test_a_bootstrap_draws_as_many_documents_as_there_are_from_each_side() -> None:
    counts = Bootstrap(a_design(), 400).counts.numpy()
    assert set(counts[:, :N_DOMAIN].sum(1)) == {N_DOMAIN}
    assert set(counts[:, N_DOMAIN:].sum(1)) == {N_CONTROL}
    assert counts.var() == pytest.approx(1 - 1 / 27.5, rel=0.05)  # of a multinomial with 25 to 30 equal cells


def test_some_draws_are_the_same_rows_as_all() -> None:
    for draws in (Bootstrap(a_design(), 9), Permuted(a_design(), 9)):
        parts = torch.cat([draws.weights(slice(0, 4)), draws.weights(slice(4, 9))])
        assert torch.equal(parts, draws.weights(slice(0, 9)))


def test_draws_depend_on_seed_and_counts_alone() -> None:
    assert np.array_equal(Bootstrap(a_design(1), 9).counts, Bootstrap(a_design(8), 9).counts)
    assert np.array_equal(Permuted(a_design(1), 9).order, Permuted(a_design(8), 9).order)
    other = Design.of(N_DOMAIN, N_CONTROL, n_splits=1, seed=1)
    assert not np.array_equal(Bootstrap(other, 9).counts, Bootstrap(a_design(1), 9).counts)
