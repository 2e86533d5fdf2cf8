"""Size of tau relative to the weights, as sums that add up over matrices to layers.

    relative norm = ||tau|| / ||theta||,    cosine to base = <theta + tau, theta> / (||theta + tau|| ||theta||)

The effect of rounding to the model's dtype comes from `delta.realised` and is added up in the same way.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.projection import float64
from stethoscope.delta.realised import Realised, realised_step

CHUNK = 2**22  # elements at a time: 32 MB in float64
NOTHING = Realised(0.0, 0.0, 0.0, None)


@dataclass(frozen=True, slots=True)
class DeltaMoments:
    """Sums over parameters: number of elements, ||theta||^2, <tau, theta>, and the realised step in the model's
    dtype."""

    n: int = 0
    base_energy: float = 0.0
    base_delta: float = 0.0
    step: Realised = field(default=NOTHING)

    def __add__(self, other: "DeltaMoments") -> "DeltaMoments":
        return DeltaMoments(
            self.n + other.n,
            self.base_energy + other.base_energy,
            self.base_delta + other.base_delta,
            self.step + other.step,
        )

    @property
    def relative_norm(self) -> float | None:
        """||tau|| / ||theta||, None if all weights are 0."""
        return math.sqrt(self.step.intended / self.base_energy) if self.base_energy else None

    @property
    def cosine_to_base(self) -> float | None:
        """Cosine of theta + tau and theta; None if either is 0."""
        tuned_energy = self.base_energy + 2 * self.base_delta + self.step.intended
        if self.base_energy <= 0 or tuned_energy <= 0:
            return None
        return (self.base_energy + self.base_delta) / math.sqrt(self.base_energy * tuned_energy)

    @property
    def realised_cosine(self) -> float | None:
        """Cosine of the realised delta and tau; 0 if rounding removes it completely, None if tau is 0."""
        return (self.step.cosine or 0.0) if self.step.intended else None


@torch.no_grad()
def delta_moments(
    base: Float[Tensor, "..."], delta: Float[Tensor, "..."], dtype: torch.dtype | None = None
) -> DeltaMoments:
    """Return the sums of one parameter whose `delta` is float32; sums are rounded to `dtype` (None: that of `base`)."""
    total = DeltaMoments()
    for theta, tau in zip(base.detach().reshape(-1).split(CHUNK), delta.reshape(-1).split(CHUNK), strict=True):
        step = realised_step(theta[None], tau[None], None, dtype=dtype)
        product = float(float64(theta) @ float64(tau))
        total += DeltaMoments(theta.numel(), base_moments(theta).base_energy, product, step)
    return total


@torch.no_grad()
def saved_in(base: Float[Tensor, "..."], delta: Float[Tensor, "..."]) -> torch.dtype | None:
    """Return the dtype such that rounding one of base and base + delta gives the other; None if there is none.

    Such weights were not trained but saved in another dtype; `delta` is rounding error.
    """
    pieces = list(zip(base.detach().reshape(-1).split(CHUNK), delta.reshape(-1).split(CHUNK), strict=True))
    for dtype in (torch.bfloat16, torch.float16):
        # base and fine-tune are within a factor of 2, so that their difference and this sum are exact
        if all(torch.equal(theta.to(dtype).float(), theta.float() + tau) for theta, tau in pieces):
            return dtype
        if all(torch.equal(theta.float(), (theta.float() + tau).to(dtype).float()) for theta, tau in pieces):
            return dtype
    return None


@torch.no_grad()
def base_moments(base: Float[Tensor, "..."]) -> DeltaMoments:
    """Return the sums of an unchanged parameter."""
    energy = sum(float(float64(theta).square().sum()) for theta in base.detach().reshape(-1).split(CHUNK))
    return DeltaMoments(n=base.numel(), base_energy=energy)
