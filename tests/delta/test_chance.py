"""The null of random subspaces, percentiles and principal angles, compared with two thousand random subspaces."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from stethoscope.delta.chance import (
    N_DIRECTIONS,
    Chance,
    chance,
    concentration,
    mean_squared_cosine,
    spectrum_of,
)
from stethoscope.delta.projection import cumulative_energy, span_basis

D, OTHER, DRAWS = 24, 40, 2000


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def few_directions() -> Tensor:
    """A matrix with a few strong directions, as task vectors have."""
    return normal(D, 5, seed=1) @ normal(5, OTHER, seed=2) + 0.3 * normal(D, OTHER, seed=3)


def random_subspaces(rank: int) -> Tensor:
    return torch.linalg.qr(normal(DRAWS, D, rank, seed=4)).Q  # [draws, D, rank]


def kept_by(subspaces: Tensor, matrix: Tensor) -> Tensor:
    return (subspaces.transpose(1, 2) @ matrix).square().sum(dim=(1, 2)) / matrix.square().sum()


def null_of(matrix: Tensor, rank: int) -> Chance:
    return chance(rank, len(matrix), concentration(matrix @ matrix.T))


@pytest.mark.parametrize("rank", [1, 6, 20])
def test_chance_agrees_with_two_thousand_random_subspaces(rank: int) -> None:
    matrix = few_directions()
    kept, null = kept_by(random_subspaces(rank), matrix), null_of(matrix, rank)
    assert null.mean == pytest.approx(rank / D)
    assert float(kept.mean()) == pytest.approx(null.mean, abs=4 * null.sd / math.sqrt(DRAWS))  # 4 standard errors
    assert float(kept.std()) == pytest.approx(null.sd, rel=4 / math.sqrt(2 * DRAWS) * 1.5)  # 1.5: not quite normal


@pytest.mark.parametrize("rank", [1, 6, 20])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.99])
def test_the_percentile_is_the_share_of_random_subspaces_that_keep_less(rank: int, level: float) -> None:
    matrix = few_directions()
    kept = kept_by(random_subspaces(rank), matrix)
    percentile = null_of(matrix, rank).percentile(float(kept.quantile(level)))
    error = 4 * math.sqrt(level * (1 - level) / DRAWS)  # Monte Carlo
    assert percentile == pytest.approx(level, abs=error + 0.02)  # .02: the Beta is fitted by two moments


def test_the_percentile_is_exact_for_a_matrix_of_rank_one() -> None:
    """One direction's share inside a random r-dimensional subspace is Beta(r/2, (d-r)/2)."""
    matrix, rank = normal(D, 1) @ normal(1, OTHER, seed=1), 5
    for share in (0.05, 0.2, 0.6):
        expected = stats.beta(rank / 2, (D - rank) / 2).cdf(share)
        assert null_of(matrix, rank).percentile(share) == pytest.approx(expected, abs=1e-9)


def test_chance_of_the_whole_space_is_certain() -> None:
    null = null_of(normal(D, OTHER), D)
    assert (null.mean, null.sd, null.percentile(1.0)) == (1, 0, None)


def test_a_matrix_without_preferred_direction_has_no_spread() -> None:
    null = null_of(torch.eye(D, dtype=torch.float64), 5)
    assert null.sd == pytest.approx(0, abs=1e-8)
    assert Chance(0.2, 0.0).percentile(0.2) is None


def test_three_percent_of_2560_by_77_dimensions_is_chance() -> None:
    null = chance(77, 2560, 1 / 300)
    assert null.mean == pytest.approx(0.0301, abs=1e-4)
    assert null.percentile(0.0301) == pytest.approx(0.5, abs=0.05)  # a little skewed


def test_the_ceiling_is_eckart_young_and_no_subspace_beats_it() -> None:
    matrix = normal(D, OTHER, seed=6)
    spectrum = spectrum_of(matrix @ matrix.T)
    squares = torch.linalg.svdvals(matrix).square()
    best = torch.tensor([spectrum.ceiling(rank) for rank in range(D + 1)], dtype=torch.float64)
    assert float(best[0]) == 0
    assert torch.allclose(best[1:], squares.cumsum(0), rtol=1e-10)
    assert spectrum.concentration == pytest.approx(concentration(matrix @ matrix.T), rel=1e-12)
    U = torch.linalg.svd(matrix).U
    top = cumulative_energy(matrix, span_basis(U.T[:7]))
    assert torch.allclose(top, best[:8], rtol=1e-9)  # the best subspace reaches it
    assert bool((kept_by(random_subspaces(7), matrix) * matrix.square().sum() < best[7]).all())


def test_directions_are_the_top_left_singular_vectors_and_no_more_than_there_are() -> None:
    matrix = few_directions()
    U = torch.linalg.svd(matrix).U[:, :N_DIRECTIONS]
    directions = spectrum_of(matrix @ matrix.T).directions
    assert torch.allclose((U * directions).sum(0).abs(), torch.ones(N_DIRECTIONS, dtype=torch.float64), atol=1e-9)
    low_rank = normal(D, 3) @ normal(3, OTHER, seed=1)  # a LoRA
    assert spectrum_of(low_rank @ low_rank.T).directions.shape == (D, 3)
    assert spectrum_of(torch.zeros(D, D, dtype=torch.float64)).directions.shape == (D, 0)


@pytest.mark.parametrize("rank", [3, N_DIRECTIONS, 15])
def test_principal_angles_have_their_null(rank: int) -> None:
    directions = spectrum_of(few_directions() @ few_directions().T).directions
    cosines = [mean_squared_cosine(Q, directions) for Q in random_subspaces(rank)]
    expected = max(rank, N_DIRECTIONS) / D
    spread = torch.tensor(cosines).std()
    assert sum(cosines) / DRAWS == pytest.approx(expected, abs=4 * float(spread) / math.sqrt(DRAWS))


def test_principal_angles_are_those_of_the_definition() -> None:
    directions, Q = spectrum_of(few_directions() @ few_directions().T).directions, span_basis(normal(5, D)).Q
    cosines = torch.linalg.svdvals(directions.T @ Q)
    assert mean_squared_cosine(Q, directions) == pytest.approx(float(cosines.square().mean()), rel=1e-12)
    assert mean_squared_cosine(directions[:, :4], directions) == pytest.approx(1)
    outside = torch.linalg.qr(directions, mode="complete").Q[:, N_DIRECTIONS:]
    assert mean_squared_cosine(outside, directions) == pytest.approx(0, abs=1e-20)
