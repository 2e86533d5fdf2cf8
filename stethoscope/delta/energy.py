"""How much of a task vector lies in the span of selected SAE latents, per matrix and per layer, and how much by chance.

Retention and the bases are `projection`'s, the null and the ceiling `chance`'s; here they meet a whole model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from stethoscope.delta.chance import Chance, best_energy, chance
from stethoscope.delta.projection import (
    RowsOfLayer,
    SpanBasis,
    cumulative_energy,
    facing_basis,
    gain_of,
    layer_basis,
    serving,
)
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.session import ModelSession
from stethoscope.progress import Progress
from stethoscope.records import Site, finite_or_none
from stethoscope.results import EnergyCell


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
