"""Spans of SAE latents, and the component of an edit within a span.

Every matrix is oriented so that the SAE's axis comes first, and scaled by the norm weight between the matrix and that
axis: M = G tau for writers of the residual stream (o_proj, down_proj; G = the post-norm's gain), M = (tau G)^T for its
readers (G = the pre-norm's gain). With Q an orthonormal basis of the selected decoder rows,

    retention = ||Q^T M||_F^2 / ||M||_F^2,      projected edit = G^-1 Q Q^T G tau   or   tau G Q Q^T G^-1.

Q comes from a QR factorisation in float64, not from D^T D, because decoder rows are not orthogonal. One factorisation
gives all nested k by cumulative sums.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.model.layout import MatrixSite
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.recipes.reach import Serving, serving
from stethoscope.records import Site

DEPENDENT = 1e-3  # a row adds a dimension only if this share of its norm is new
NEAR_ZERO_GAIN = 1e-2  # norm weights below this share of the median are not inverted

RowsOfLayer = Callable[[int], Tensor | None]
"""Layer -> decoder rows [k_max, d] of its selected latents, best first; None if the layer has no SAE."""


@dataclass(frozen=True, slots=True)
class SpanBasis:
    """Orthonormal basis of the span of k rows, in the rows' order.

    Attributes:
        Q: [d, r] columns; the first `rank_at(k)` span the first k rows.
        kept: indices of the rows that added a dimension, increasing.
        n_rows: number of input rows.
    """

    Q: Float64[Tensor, "d r"]
    kept: tuple[int, ...]
    n_rows: int

    @property
    def dropped(self) -> int:
        """Number of rows that are linearly dependent on earlier ones."""
        return self.n_rows - len(self.kept)

    def rank_at(self, k: int) -> int:
        """Return the rank of the span of the first `k` rows (of all rows if k is larger)."""
        return bisect_left(self.kept, k)

    def to(self, device: torch.device) -> "SpanBasis":
        """Return the basis with its columns on `device`."""
        return SpanBasis(self.Q.to(device), self.kept, self.n_rows)


def span_basis(rows: Float[Tensor, "k d"]) -> SpanBasis:
    """Return the nested orthonormal basis of `rows` [k, d] by QR in float64.

    A row with |R_kk| <= 1e-3 ||d_k|| depends on the rows before it and is dropped. Householder QR fills its column of Q
    with an arbitrary direction, which would affect later rows, so the factorisation is repeated without the row.
    """
    columns = float64(rows).T
    norms = torch.linalg.vector_norm(columns, dim=0)
    kept = list(range(columns.shape[1]))
    while True:
        Q, R = torch.linalg.qr(columns[:, kept])
        diagonal = R.diagonal().abs()
        dependent = (diagonal <= DEPENDENT * norms[kept[: len(diagonal)]]).nonzero()
        if len(dependent):
            del kept[int(dependent[0])]
        else:
            del kept[len(diagonal) :]  # more rows than dimensions: the space is full
            return SpanBasis(Q, tuple(kept), columns.shape[1])


def cumulative_energy(matrix: Float64[Tensor, "d n"], basis: SpanBasis) -> Float64[Tensor, " r_plus_1"]:
    """Return ||Q_r^T M||_F^2 for r = 0..rank, from one product (M with the basis axis first)."""
    energy = (basis.Q.T @ matrix).square().sum(dim=1)
    return torch.cat([energy.new_zeros(1), energy.cumsum(0)])


def gain_of(loaded: LoadedModel, site: MatrixSite) -> Float[Tensor, " d"] | None:
    """Return the weight [d_model] of the norm on the residual side of `site` (1 + w for Gemma); None without a norm."""
    if site.gain is None:
        return None
    return loaded.parameter(site.gain).detach().float() + site.gain_offset


def facing_basis(
    delta: Float[Tensor, "out in"], use: Serving, gain: Float[Tensor, " d_model"] | None
) -> Float64[Tensor, "d n"]:
    """Return M = G tau or (tau G)^T in float64: with the SAE's axis first (G = I if gain is None).

    At attn_out, d is heads x head_dim, and the norm weight on the residual side is not used.
    """
    matrix = float64(delta) if use.output_side else float64(delta).T
    return matrix if gain is None or not use.gain else float64(gain)[:, None] * matrix


@dataclass(frozen=True, slots=True)
class InverseGain:
    """1/gain [d], with zeros if the norm weight is too small to invert; `n_without_edit` counts these."""

    values: Float64[Tensor, " d"]
    n_without_edit: int


def inverse_gain(gain: Float[Tensor, " d"]) -> InverseGain:
    """Return 1/gain, zero where |gain| is below 1% of the median: where a projected edit would become too large."""
    gain = float64(gain)
    usable = gain.abs() >= NEAR_ZERO_GAIN * gain.abs().median()
    usable &= gain != 0
    values = torch.where(usable, 1 / gain.where(usable, torch.ones_like(gain)), 0.0)
    return InverseGain(values, int((~usable).sum()))


def project_delta(
    delta: Float[Tensor, "out in"],
    site: MatrixSite,
    gain: Float[Tensor, " d_model"] | None,
    Q: Float64[Tensor, "d r"],
    *,
    sae_site: Site = "resid_post",
) -> Float[Tensor, "out in"]:
    """Return the component of `delta` in span(Q): G^-1 Q Q^T G tau or tau G Q Q^T G^-1.

    Coordinates with a norm weight near zero are not edited (`inverse_gain` counts them). Float32, like `delta`.
    """
    use = serving(site, sae_site)
    assert use is not None, f"no SAE at {sae_site} for {site.name}"
    Q = Q.to(delta.device)
    matrix = facing_basis(delta, use, gain)
    projected = Q @ (Q.T @ matrix)
    if gain is not None and use.gain:
        projected = inverse_gain(gain).values[:, None] * projected
    return (projected if use.output_side else projected.T).float().contiguous()


def layer_basis(rows_of_layer: RowsOfLayer, layer: int, width: int) -> SpanBasis | None:
    """Return the basis of the rows of `layer`, None if it has no SAE.

    Raises:
        SaeError: the rows are not `width` wide, or not finite.
    """
    rows = rows_of_layer(layer)
    if rows is None:
        return None
    if rows.ndim != 2 or rows.shape[1] != width:
        raise SaeError(
            f"the SAE of layer {layer} does not fit the model",
            got=f"decoder rows of shape {list(rows.shape)}",
            expected=f"rows of width {width}",
            next_step="Use SAEs trained on this model and site.",
        )
    if not bool(torch.isfinite(rows).all()):
        raise SaeError(
            f"the SAE of layer {layer} has NaN or infinite decoder rows",
            got="rows that are not finite",
            expected="finite rows",
            next_step="Download or save the SAE again.",
        )
    return span_basis(rows)


def float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64, on the CPU if its device does not support float64 (mps)."""
    tensor = tensor.detach()
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)
