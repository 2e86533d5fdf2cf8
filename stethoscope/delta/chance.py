"""What a random subspace keeps of a matrix, and what the best one keeps.

A random subspace of rank r keeps r/d on average, so "3% kept" by 77 of 2560 dimensions says nothing until it is divided
by 77/2560. No subspace of rank r keeps more than the r largest squared singular values (Eckart-Young).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chance:
    """Mean and standard deviation of the retention of a random subspace."""

    mean: float
    sd: float


def chance(gram: Float64[Tensor, "d d"], rank: int | float) -> Chance:
    """Return the null of a uniformly random `rank`-dimensional subspace for a matrix with Gram matrix M M^T.

    Var = 2 r (d-r) / [d (d-1) (d+2)] * (1/r_eff - 1/d): the second moment of the Haar measure, with
    1/r_eff = sum s^4 / (sum s^2)^2 = ||M M^T||_F^2 / tr(M M^T)^2 over the singular values s of M.
    """
    d = gram.shape[0]
    concentration = float(gram.square().sum() / gram.trace().square())
    variance = 2 * rank * (d - rank) / (d * (d - 1) * (d + 2)) * (concentration - 1 / d)
    return Chance(rank / d, math.sqrt(max(variance, 0.0)))


def best_energy(gram: Float64[Tensor, "d d"]) -> Float64[Tensor, " d_plus_1"]:
    """Return sum_{i<=r} s_i^2 for r = 0..d: what the best subspace of rank r keeps (Eckart-Young)."""
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
    return torch.cat([squares.new_zeros(1), squares.cumsum(0)])
