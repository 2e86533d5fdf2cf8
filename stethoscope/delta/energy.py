"""How much of a task vector lies in the span of selected SAE latents, and how much would by chance.

Every matrix is turned so that the axis that the SAE lives on comes first, and scaled by the gain that stands between
the matrix and that axis: M = G tau for writers of the residual stream (o_proj, down_proj; G = the post-norm's gain),
M = (tau G)^T for its readers (G = the pre-norm's gain). With Q an orthonormal basis of the selected decoder rows,

    retention = ||Q^T M||_F^2 / ||M||_F^2,      projected edit = G^-1 Q Q^T G tau   or   tau G Q Q^T G^-1.

Q comes from a QR factorisation in float64, never from D^T D: decoder rows are not orthogonal. One factorisation serves
every nested k by cumulative sums. Chance is a random subspace of the same rank: r/d on average, so "3% kept" by 77 of
2560 dimensions says nothing until it is divided by 77/2560.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import SaeError
from stethoscope.model.layout import MatrixSite
from stethoscope.model.session import ModelSession
from stethoscope.progress import Progress
from stethoscope.records import Site, finite_or_none
from stethoscope.results import EnergyCell

DEPENDENT = 1e-3  # a row adds a dimension only if this share of its norm is new
NEAR_ZERO_GAIN = 1e-2  # gains below this share of the median are not inverted

RowsOfLayer = Callable[[int], Tensor | None]
"""Layer -> decoder rows [k_max, d] of its selected latents, best first; None where the layer has no SAE."""


@dataclass(frozen=True, slots=True)
class SpanBasis:
    """Orthonormal basis of the span of k rows, in the rows' order.

    Attributes:
        Q: [d, r] columns; the first `rank_at(k)` span the first k rows.
        kept: indices of the rows that added a dimension, increasing.
        n_rows: number of rows that were given.
    """

    Q: Float64[Tensor, "d r"]
    kept: tuple[int, ...]
    n_rows: int

    @property
    def dropped(self) -> int:
        """Number of rows that depend on earlier ones: credited nothing, and counted."""
        return self.n_rows - len(self.kept)

    def rank_at(self, k: int) -> int:
        """Return the rank of the span of the first `k` rows (of all of them where k is larger)."""
        return bisect_left(self.kept, k)

    def to(self, device: torch.device) -> "SpanBasis":
        """Return the basis with its columns on `device`."""
        return SpanBasis(self.Q.to(device), self.kept, self.n_rows)


def span_basis(rows: Float[Tensor, "k d"]) -> SpanBasis:
    """Return the nested orthonormal basis of `rows` [k, d] by QR in float64.

    A row with |R_kk| <= 1e-3 ||d_k|| depends on the rows before it and is dropped. Householder QR then fills its column
    of Q with an arbitrary direction that later rows would be measured against, so the factorisation is repeated
    without the row.
    """
    columns = _float64(rows).T
    norms = torch.linalg.vector_norm(columns, dim=0)
    kept = list(range(columns.shape[1]))
    while True:
        Q, R = torch.linalg.qr(columns[:, kept])
        diagonal = R.diagonal().abs()
        dependent = (diagonal <= DEPENDENT * norms[kept[: len(diagonal)]]).nonzero()
        if len(dependent):
            del kept[int(dependent[0])]
        else:
            del kept[len(diagonal) :]  # more rows than dimensions: these are full
            return SpanBasis(Q, tuple(kept), columns.shape[1])


def cumulative_energy(matrix: Float64[Tensor, "d n"], basis: SpanBasis) -> Float64[Tensor, " r_plus_1"]:
    """Return ||Q_r^T M||_F^2 for r = 0..rank, from one product (M with the basis' axis first)."""
    energy = (basis.Q.T @ matrix).square().sum(dim=1)
    return torch.cat([energy.new_zeros(1), energy.cumsum(0)])


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


@dataclass(frozen=True, slots=True)
class Serving:
    """Which SAE a matrix is projected with, on which of its axes.

    Attributes:
        layer: layer of the SAE whose rows are the basis.
        output_side: True where the basis lives on the output axis (rows of the weight), False for the input axis.
        gain: whether a norm's gain stands between the matrix and the SAE.
        approximate: the SAE reads the stream before another write that the matrix sees.
    """

    layer: int
    output_side: bool
    gain: bool
    approximate: bool = False


def serving(site: MatrixSite, sae_site: Site) -> Serving | None:
    """Return which SAE serves `site`, or None where none does.

    resid_post of layer l serves the writers of l; readers of l see resid_post of l-1 (gate and up only after the
    attention's write: approximate), so layer 0's have none. mlp_out serves down_proj on its output side, attn_out
    serves o_proj on its input side, where no norm stands between.
    """
    if sae_site == "attn_out":
        return Serving(site.layer, output_side=False, gain=False) if site.matrix == "o_proj" else None
    if sae_site == "mlp_out":
        return Serving(site.layer, output_side=True, gain=True) if site.matrix == "down_proj" else None
    if site.side == "write":
        return Serving(site.layer, output_side=True, gain=True)
    if site.layer == 0:
        return None
    return Serving(site.layer - 1, output_side=False, gain=True, approximate=site.part == "mlp")


def gain_of(session: ModelSession, site: MatrixSite) -> Float[Tensor, " d"] | None:
    """Return the gain [d_model] of the norm on the residual side of `site` (1 + w for Gemma), None without a norm."""
    if site.gain is None:
        return None
    return session.parameter(site.gain).detach().float() + site.gain_offset


def facing_basis(
    delta: Float[Tensor, "out in"], use: Serving, gain: Float[Tensor, " d"] | None
) -> Float64[Tensor, "d n"]:
    """Return M = G tau or (tau G)^T in float64: the axis of the SAE comes first (G = I where gain is None)."""
    matrix = _float64(delta) if use.output_side else _float64(delta).T
    return matrix if gain is None or not use.gain else _float64(gain)[:, None] * matrix


@dataclass(frozen=True, slots=True)
class InverseGain:
    """1/gain [d], with zeros where the gain is too small to invert; `n_without_edit` counts these."""

    values: Float64[Tensor, " d"]
    n_without_edit: int


def inverse_gain(gain: Float[Tensor, " d"]) -> InverseGain:
    """Return 1/gain, zero where |gain| is below 1% of the median: there a projected edit would explode."""
    gain = _float64(gain)
    usable = gain.abs() >= NEAR_ZERO_GAIN * gain.abs().median()
    usable &= gain != 0
    values = torch.where(usable, 1 / gain.where(usable, torch.ones_like(gain)), 0.0)
    return InverseGain(values, int((~usable).sum()))


def project_delta(
    delta: Float[Tensor, "out in"],
    site: MatrixSite,
    gain: Float[Tensor, " d"] | None,
    Q: Float64[Tensor, "d r"],
    *,
    sae_site: Site = "resid_post",
) -> Float[Tensor, "out in"]:
    """Return the part of `delta` that the model sees inside span(Q): G^-1 Q Q^T G tau or tau G Q Q^T G^-1.

    Coordinates whose gain is near zero get no edit (`inverse_gain` counts them). Float32, as `delta`.
    """
    use = serving(site, sae_site)
    assert use is not None, f"no SAE at {sae_site} serves {site.name}"
    Q = Q.to(delta.device)
    matrix = facing_basis(delta, use, gain)
    projected = Q @ (Q.T @ matrix)
    if gain is not None and use.gain:
        projected = inverse_gain(gain).values[:, None] * projected
    return (projected if use.output_side else projected.T).float().contiguous()


def layer_basis(rows_of_layer: RowsOfLayer, layer: int, width: int) -> SpanBasis | None:
    """Return the basis of the rows of `layer`, None where it has no SAE.

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
            next_step="Pick SAEs that were trained on this model and site.",
        )
    if not bool(torch.isfinite(rows).all()):
        raise SaeError(f"the SAE of layer {layer} has decoder rows that are NaN or infinite")
    return span_basis(rows)


@dataclass(frozen=True, slots=True)
class _Energy:
    """One matrix, or several that share a basis: Gram matrix along the SAE's axis, and energy kept by rank."""

    basis: SpanBasis
    gram: Float64[Tensor, "d d"]
    kept: Float64[Tensor, " r_plus_1"]
    approximate: bool

    def __add__(self, other: "_Energy") -> "_Energy":
        return _Energy(
            self.basis, self.gram + other.gram, self.kept + other.kept, self.approximate or other.approximate
        )


class EnergyTable(NamedTuple):
    """Retention per matrix (`cells`), and per layer over its matrices stacked along the SAE's axis (`layers`)."""

    cells: tuple[EnergyCell, ...]
    layers: tuple[EnergyCell, ...]


def energy_cells(
    session: ModelSession,
    task_vector: TaskVector,
    rows_of_layer: RowsOfLayer,
    ks: Sequence[int],
    subject: str,
    progress: Progress | None = None,
    *,
    sae_site: Site = "resid_post",
    use_gains: bool = True,
) -> EnergyTable:
    """Return the energy that the first k rows keep of the task vector, for every k of `ks`.

    Matrices that no SAE serves (layer 0's readers; all but one matrix for mlp_out and attn_out) have no cells.
    The layer's null is one random subspace shared by its stacked matrices: decoder spans of neighbouring layers
    overlap, and taking the matrices as independent understates the sd. Its ceiling takes the best subspace for each
    basis in use (readers and writers have their own), so that no retention can exceed it.

    Args:
        rows_of_layer: decoder rows [k_max, d] of a layer's selected latents, best first.
        use_gains: False for the plain-weight variant (G = I).

    Raises:
        SaeError: rows that do not fit the model.
        CheckpointError: a task-vector tensor that cannot be read or is not finite.
    """
    progress = Progress() if progress is None else progress
    progress.start("measure energy", session.layout.n_layers)
    bases: dict[int, SpanBasis | None] = {}
    cells: list[EnergyCell] = []
    layers: list[EnergyCell] = []
    for layer in range(session.layout.n_layers):
        progress.check_cancel()
        by_basis: dict[int, _Energy] = {}
        for site in session.layout.of_layer(layer):
            use = serving(site, sae_site)
            if use is None:
                continue
            delta = task_vector.delta(site.name)
            matrix = facing_basis(delta, use, gain_of(session, site) if use_gains else None)
            if use.layer not in bases:
                bases[use.layer] = layer_basis(rows_of_layer, use.layer, matrix.shape[0])
            basis = bases[use.layer]
            if basis is None:
                continue
            basis = basis.to(matrix.device)
            energy = _Energy(basis, matrix @ matrix.T, cumulative_energy(matrix, basis), use.approximate)
            cells += _cells(layer, site.matrix, subject, ks, [energy])
            by_basis[use.layer] = by_basis[use.layer] + energy if use.layer in by_basis else energy
        if by_basis:
            layers += _cells(layer, "all", subject, ks, list(by_basis.values()))
        progress.advance()
    return EnergyTable(tuple(cells), tuple(layers))


def _cells(layer: int, matrix: str, subject: str, ks: Sequence[int], parts: Sequence[_Energy]) -> list[EnergyCell]:
    """Return one cell per k for `parts` stacked along the SAE's axis, each measured against its own basis."""
    gram = torch.stack([part.gram for part in parts]).sum(dim=0)
    d, total = gram.shape[0], float(gram.trace())
    best = [best_energy(part.gram) for part in parts]
    cells: list[EnergyCell] = []
    for k in ks:
        ranks = [part.basis.rank_at(k) for part in parts]
        kept = sum(float(part.kept[rank]) for part, rank in zip(parts, ranks, strict=True))
        ceiling = sum(float(energy[rank]) for energy, rank in zip(best, ranks, strict=True))
        rank = float(ranks[0])
        if len(set(ranks)) > 1 and total > 0:  # rows were dropped from one basis only: the energy-weighted mean rank
            rank = sum(float(part.gram.trace()) / total * rank for part, rank in zip(parts, ranks, strict=True))
        null = chance(gram, rank) if total > 0 else Chance(rank / d, math.nan)
        retention = min(kept / total, 1.0) if total > 0 else math.nan
        cells.append(
            EnergyCell(
                layer=layer,
                matrix=matrix,
                subject=subject,
                k=k,
                rank=round(rank),
                d=d,
                retention=finite_or_none(retention),
                null_mean=null.mean,
                null_sd=finite_or_none(null.sd),
                enrichment=finite_or_none(retention / null.mean) if null.mean > 0 else None,
                z=finite_or_none((retention - null.mean) / null.sd) if null.sd > 0 else None,
                ceiling=min(ceiling / total, 1.0) if total > 0 else None,
                approximate=any(part.approximate for part in parts),
            )
        )
    return cells


def _float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64, on the CPU where its device has none (mps)."""
    tensor = tensor.detach()
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)
