"""What of a task vector the model cannot feel: the part along the weights, and the part that rounding loses.

Where a norm follows, a matrix' scale does nothing: o_proj and down_proj as a whole under a post-norm, q_proj and k_proj
head by head under a q- or k-norm. The radial share of tau is what it does not turn,

    sum over blocks b of <tau_b, theta_b>^2 / ||theta_b||^2  /  ||tau||^2.

And a model of dtype bfloat16 does not move by tau but by round(theta + tau) - round(theta), which differs in direction
(cosine) and length (norm ratio; above 1 where rounding steps are longer than tau).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.projection import float64
from stethoscope.model.layout import MatrixSite
from stethoscope.model.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class Realised:
    """Sums over one matrix, or over several: what they add up to stays a sum, so that layers can be formed.

    Attributes:
        intended: ||tau||^2.
        moved: ||round(theta + tau) - round(theta)||^2.
        product: <round(theta + tau) - round(theta), tau>.
        radial: energy of tau along the weights, where a norm makes it do nothing; None where no norm follows.
    """

    intended: float
    moved: float
    product: float
    radial: float | None

    def __add__(self, other: "Realised") -> "Realised":
        radials = [radial for radial in (self.radial, other.radial) if radial is not None]
        return Realised(
            self.intended + other.intended,
            self.moved + other.moved,
            self.product + other.product,
            sum(radials) if radials else None,
        )

    @property
    def cosine(self) -> float | None:
        """Cosine of the realised with the intended step, None where either is zero."""
        length = math.sqrt(self.moved * self.intended)
        return self.product / length if length > 0 else None

    @property
    def norm_ratio(self) -> float | None:
        """Length of the realised over that of the intended step."""
        return math.sqrt(self.moved / self.intended) if self.intended > 0 else None

    @property
    def radial_share(self) -> float | None:
        """Share of tau's energy that the following norm cancels."""
        return None if self.radial is None or self.intended == 0 else self.radial / self.intended


def realise(
    loaded: LoadedModel, site: MatrixSite, origin: Float[Tensor, "out in"], delta: Float[Tensor, "out in"]
) -> Realised:
    """Return what becomes of `delta` (float32) when the full task vector is put on the weights of `site`.

    Args:
        origin: the weights as the base's files hold them (see `TaskVector.origin`).
    """
    return realised_step(origin, delta, scale_free_rows(loaded, site), dtype=loaded.parameter(site.name).dtype)


def realised_step(
    weight: Float[Tensor, "out in"],
    delta: Float[Tensor, "out in"],
    scale_free: int | None,
    *,
    dtype: torch.dtype | None = None,
) -> Realised:
    """Return what becomes of `delta` on `weight`; blocks of `scale_free` rows have a scale that a norm cancels.

    Args:
        dtype: that both are rounded to; None is that of `weight`, which is then exact.
    """
    base, dtype = weight.float(), dtype or weight.dtype
    step = ((base + delta).to(dtype).float() - base.to(dtype).float()).flatten()
    tau = delta.flatten()
    return Realised(
        intended=_dot(tau, tau),
        moved=_dot(step, step),
        product=_dot(step, tau),
        radial=None if scale_free is None else radial_energy(delta, base, scale_free),
    )


def scale_free_rows(loaded: LoadedModel, site: MatrixSite) -> int | None:
    """Return how many rows of the matrix share a scale that a norm cancels, None where every scale matters."""
    if site.matrix in ("q_proj", "k_proj"):
        module = loaded.model.get_submodule(site.name.removesuffix(".weight").rpartition(".")[0])
        norm = getattr(module, f"{site.matrix[0]}_norm", None)
        return None if norm is None else int(norm.weight.shape[0])  # one head, or all heads in OLMo's case
    if site.side == "write" and site.gain is not None:
        return int(loaded.parameter(site.name).shape[0])
    return None


def radial_energy(delta: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], rows: int) -> float:
    """Return the energy of `delta` along `weight`, summed over blocks of `rows` rows."""
    tau, theta = (float64(tensor).reshape(-1, rows * tensor.shape[1]) for tensor in (delta, weight))
    norms = theta.square().sum(dim=1)
    along = (tau * theta).sum(dim=1).square() / torch.where(norms > 0, norms, 1.0)
    return float(along.sum())


def _dot(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    return float(float64(a) @ float64(b))
