"""Parts of a task vector without effect: the part along the weights, and the part lost to rounding.

If a norm follows a matrix, the scale of the matrix has no effect: of o_proj and down_proj as a whole with a post-norm,
of q_proj and k_proj per head with a q- or k-norm. The radial share of tau is the part that does not change the
direction,

    sum over blocks b of <tau_b, theta_b>^2 / ||theta_b||^2  /  ||tau||^2.

A bfloat16 model does not change by tau but by round(theta + tau) - round(theta), which differs in direction (cosine)
and length (norm ratio; above 1 if rounding steps are larger than tau).
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
    """Sums over one or several matrices, which can be added to form layers.

    Attributes:
        intended: ||tau||^2.
        moved: ||round(theta + tau) - round(theta)||^2.
        product: <round(theta + tau) - round(theta), tau>.
        radial: energy of tau along the weights, which a following norm removes; None without such a norm.
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
        """Cosine of the realised and the intended step; None if either is zero."""
        length = math.sqrt(self.moved * self.intended)
        return self.product / length if length > 0 else None

    @property
    def norm_ratio(self) -> float | None:
        """Ratio of the lengths of the realised and the intended step."""
        return math.sqrt(self.moved / self.intended) if self.intended > 0 else None

    @property
    def radial_share(self) -> float | None:
        """Share of tau's energy that the following norm removes."""
        return None if self.radial is None or self.intended == 0 else self.radial / self.intended


def realise(
    loaded: LoadedModel, site: MatrixSite, origin: Float[Tensor, "out in"], delta: Float[Tensor, "out in"]
) -> Realised:
    """Return the realised step when `delta` (float32) is added to the weights of `site`.

    Args:
        origin: the weights as stored in the base's files (see `TaskVector.origin`).
    """
    return realised_step(origin, delta, scale_free_rows(loaded, site), dtype=loaded.parameter(site.name).dtype)


def realised_step(
    weight: Float[Tensor, "out in"],
    delta: Float[Tensor, "out in"],
    scale_free: int | None,
    *,
    dtype: torch.dtype | None = None,
) -> Realised:
    """Return the realised step of `delta` on `weight`; the scale of blocks of `scale_free` rows is removed by a norm.

    Args:
        dtype: rounding dtype of both; None for the dtype of `weight`, which is then exact.
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
    """Return the number of rows that share a scale which a norm removes; None if every scale matters."""
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
