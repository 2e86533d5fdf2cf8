"""Energy of a matrix that a random and the best subspace keep, and angles with the best one.

A random subspace of rank r keeps r/d on average, so "3% kept" by 77 of 2560 dimensions must be compared with 77/2560.
The variance is known exactly (the second moment of the Haar measure), with s the singular values of M:

    Var = 2 r (d-r) / [d (d-1) (d+2)] * (c - 1/d),      c = 1/r_eff = sum s^4 / (sum s^2)^2

No subspace of rank r keeps more than the r largest s^2 (Eckart-Young). All of it comes from the Gram matrix M M^T,
which depends only on the task vector and the norm weights; `MatrixSpectrum` stores the required part.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy import special
from torch import Tensor

N_DIRECTIONS = 8  # number of top singular directions to compare the span with
NULL_SHARE = 1e-12  # squared singular values below this share of the largest are rounding errors of a Gram matrix


@dataclass(frozen=True, slots=True)
class MatrixSpectrum:
    """Squared singular values of a matrix, largest first, and its first left singular directions; on the CPU.

    Attributes:
        squares: s_i^2, all d of them.
        directions: orthonormal columns; fewer than `N_DIRECTIONS` if the matrix has a lower rank.
    """

    squares: Float64[Tensor, " d"]
    directions: Float64[Tensor, "d n"]

    def ceiling(self, rank: int) -> float:
        """Return sum_{i<=r} s_i^2: the energy that the best subspace of this rank keeps (Eckart-Young)."""
        return float(self.squares[:rank].sum())

    @property
    def concentration(self) -> float:
        """1/r_eff = sum s^4 / (sum s^2)^2; NaN for a matrix of zeros."""
        return float(self.squares.square().sum() / self.squares.sum().square())

    @property
    def size_bytes(self) -> int:
        """Size in bytes."""
        return 8 * (self.squares.numel() + self.directions.numel())


def spectrum_of(gram: Float64[Tensor, "d d"]) -> MatrixSpectrum:
    """Return the spectrum of the matrix whose Gram matrix M M^T is `gram`."""
    values, vectors = torch.linalg.eigh(gram)
    squares = values.flip(0).clamp_min(0)
    n = min(N_DIRECTIONS, int((squares > NULL_SHARE * squares[0]).sum()))
    directions = vectors[:, vectors.shape[1] - n :].flip(1)
    return MatrixSpectrum(squares.cpu(), directions.cpu().contiguous())


def concentration(gram: Float64[Tensor, "d d"]) -> float:
    """Return 1/r_eff = sum s^4 / (sum s^2)^2 of the matrix with Gram matrix `gram`; NaN for a matrix of zeros."""
    return float(gram.square().sum() / gram.trace().square())


@dataclass(frozen=True, slots=True)
class Chance:
    """Mean and standard deviation of the retention of a random subspace."""

    mean: float
    sd: float

    def percentile(self, retention: float) -> float | None:
        """Return the share of random subspaces that keep less; None if all keep the same.

        From the Beta distribution with the null's mean and variance: exact for a matrix of rank 1, close otherwise.
        """
        variance = self.sd**2
        if not variance > 1e-24:
            return None
        size = self.mean * (1 - self.mean) / variance - 1
        return float(special.betainc(self.mean * size, (1 - self.mean) * size, min(max(retention, 0.0), 1.0)))


def chance(rank: int | float, d: int, concentrated: float) -> Chance:
    """Return the null of a uniformly random `rank`-dimensional subspace of d dimensions (see the module's formula).

    Args:
        concentrated: `concentration` of the projected matrix.
    """
    variance = 2 * rank * (d - rank) / (d * (d - 1) * (d + 2)) * (concentrated - 1 / d)
    return Chance(rank / d, math.sqrt(max(variance, 0.0)))


def mean_squared_cosine(Q: Float64[Tensor, "d r"], directions: Float64[Tensor, "d n"]) -> float:
    """Return the mean squared cosine of the principal angles of two spans, ||U^T Q||_F^2 / min(r, n).

    For a random subspace it is max(r, n) / d on average.
    """
    shared = (directions.to(Q).T @ Q).square().sum()
    return float(shared) / min(Q.shape[1], directions.shape[1])
