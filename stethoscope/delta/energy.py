"""Share of a task vector in the span of selected SAE latents, per matrix and layer, compared with chance.

`parts` computes sums for each layer. This module converts them to one row for each k: retention with its null, ceiling
and references, angles with the matrix's own directions, and the functional effect of tau.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

from stethoscope.delta.activity import FunctionalEnergy
from stethoscope.delta.chance import Chance, MatrixSpectrum, chance, mean_squared_cosine
from stethoscope.delta.parts import (
    COMPONENTS,
    CONTROL,
    ENCODER,
    SELECTED,
    LayerParts,
    Part,
    PartsReader,
    References,
    SpectraOf,
    is_random_draw,
    keep_none,
)
from stethoscope.delta.projection import RowsOfLayer
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import Site, finite_or_none
from stethoscope.results import EnergyCell

FLAT_SD = 1e-12  # below this, all random subspaces keep the same: rank d, or a matrix without preferred directions


class EnergyTable(NamedTuple):
    """Retention per matrix (`cells`), and per layer over its matrices stacked along the SAE's axis (`layers`)."""

    cells: tuple[EnergyCell, ...]
    layers: tuple[EnergyCell, ...]


def energy_cells(
    loaded: LoadedModel,
    task_vector: TaskVector,
    rows_of_layer: RowsOfLayer,
    ks: Sequence[int],
    subject: str,
    progress: Progress | None = None,
    *,
    sae_site: Site = "resid_post",
    fold_gains: bool = True,
    references: References | None = None,
    functional: Mapping[str, FunctionalEnergy] | None = None,
    spectra_of: SpectraOf = keep_none,
) -> EnergyTable:
    """Return the energy of the task vector that the first k rows keep, for every k of `ks`.

    Matrices without an SAE (readers of layer 0; all but one matrix for mlp_out and attn_out) have no cells. The null of
    a layer is one random subspace shared by its stacked matrices: decoder spans of neighbouring layers overlap, and
    treating the matrices as independent would understate the sd. The ceiling uses the best subspace for each basis
    (readers and writers have separate ones), so that no retention can exceed it.

    Args:
        rows_of_layer: decoder rows [k_max, d] of a layer's selected latents, best first.
        fold_gains: False for unscaled weights (G = I).
        functional: functional energy of each matrix, by its name.

    Raises:
        SaeError: rows that do not match the model.
        CheckpointError: a task-vector tensor that cannot be read or is not finite.
    """
    progress = Progress() if progress is None else progress
    progress.start("Measuring energy", loaded.layout.n_layers)
    reader = PartsReader(
        loaded, task_vector, rows_of_layer, sae_site, fold_gains, references, functional or {}, spectra_of
    )
    cells: list[EnergyCell] = []
    layers: list[EnergyCell] = []
    for layer in range(loaded.layout.n_layers):
        progress.check_cancel()
        if (parts := reader.layer(layer)) is not None:
            cells += _matrix_cells(parts, ks, subject)
            layers += _layer_cells(parts, ks, subject)
        progress.advance()
    return EnergyTable(tuple(cells), tuple(layers))


def _matrix_cells(parts: LayerParts, ks: Sequence[int], subject: str) -> list[EnergyCell]:
    cells: list[EnergyCell] = []
    for part in parts.matrices:
        spectrum = parts.spectra.matrices[part.matrix]
        stack = _Stack((part,), (part,), (spectrum,), spectrum.concentration)
        cells += [stack.cell(parts.layer, part.matrix, subject, k) for k in ks]
    return cells


def _layer_cells(parts: LayerParts, ks: Sequence[int], subject: str) -> list[EnergyCell]:
    stacked = parts.stacks
    spectra = tuple(parts.spectra.stacks[part.layer] for part in stacked)
    stack = _Stack(parts.matrices, stacked, spectra, parts.spectra.concentration)
    return [stack.cell(parts.layer, "all", subject, k) for k in ks]


@dataclass(frozen=True)
class _Stack:
    """Matrices stacked along the shared axis: one part for each SAE, measured with its own spans."""

    matrices: tuple[Part, ...]
    parts: tuple[Part, ...]
    spectra: tuple[MatrixSpectrum, ...]
    concentration: float

    def cell(self, layer: int, matrix: str, subject: str, k: int) -> EnergyCell:
        """Return the row of the first `k` latents."""
        ranks = [part.span.rank_at(k) for part in self.parts]
        d, total, rank = len(self.spectra[0].squares), self._total, self._mean(ranks)
        retention = self._share([SELECTED] * len(ranks), ranks) if max(ranks) else None
        null = chance(rank, d, self.concentration) if total > 0 else Chance(rank / d, math.nan)
        ceiling = sum(spectrum.ceiling(rank) for spectrum, rank in zip(self.spectra, ranks, strict=True))
        enrichment = z = percentile = None
        if retention is not None:
            enrichment, percentile = retention / null.mean, null.percentile(retention)
            z = (retention - null.mean) / null.sd if null.sd > FLAT_SD else None
        realised = reduce(add, (part.realised for part in self.parts))
        return EnergyCell(
            layer=layer,
            matrix=matrix,
            subject=subject,
            k=k,
            rank=round(rank),
            d=d,
            retention=retention,
            null_mean=null.mean,
            null_sd=finite_or_none(null.sd),
            enrichment=enrichment,
            z=z,
            ceiling=min(ceiling / total, 1.0) if total > 0 else None,
            approximate=any(part.approximate for part in self.parts),
            percentile=percentile,
            n_latents=min(min(k, part.span.n_rows) for part in self.parts),
            n_directions=max(spectrum.directions.shape[1] for spectrum in self.spectra),
            n_dropped=max(min(k, part.span.n_rows) - r for part, r in zip(self.parts, ranks, strict=True)),
            radial_share=realised.radial_share,
            realised_cosine=realised.cosine,
            realised_norm_ratio=realised.norm_ratio,
            **self._references(ranks),
            **self._directions(ranks),
            **self._functional(k),
        )

    @property
    def _total(self) -> float:
        return sum(part.total for part in self.parts)

    def _mean(self, values: Sequence[int] | Sequence[float]) -> float:
        """Average over the parts, weighted by energy."""
        if len(set(values)) == 1 or self._total == 0:
            return float(values[0])
        return sum(part.total * value for part, value in zip(self.parts, values, strict=True)) / self._total

    def _share(self, names: Sequence[str], ranks: Sequence[int]) -> float | None:
        """Share of the energy kept by each part's span with this name; None if one has too few dimensions."""
        kept = [part.kept_at(name, rank) for part, name, rank in zip(self.parts, names, ranks, strict=True)]
        found = [energy for energy in kept if energy is not None]
        return min(sum(found) / self._total, 1.0) if len(found) == len(kept) and self._total > 0 else None

    def _references(self, ranks: Sequence[int]) -> dict[str, float | None]:
        """Retention of the reference spans at the same ranks."""
        if not max(ranks):
            return {}
        n = len(self.parts)
        encoder = [ENCODER if part.reads else SELECTED for part in self.parts]
        draws = [draw for draw in self.parts[0].kept if is_random_draw(draw)]
        random = [share for draw in draws if (share := self._share([draw] * n, ranks)) is not None]
        complete = bool(draws) and len(random) == len(draws)
        return {
            "components": self._share([COMPONENTS] * n, ranks),
            "control": self._share([CONTROL] * n, ranks),
            "encoder": self._share(encoder, ranks) if ENCODER in encoder else None,
            "random_mean": sum(random) / len(random) if complete else None,
            "random_low": min(random) if complete else None,
            "random_high": max(random) if complete else None,
        }

    def _directions(self, ranks: Sequence[int]) -> dict[str, float | None]:
        """Mean squared cosine of the principal angles with each part's own top directions."""
        counts = [spectrum.directions.shape[1] for spectrum in self.spectra]
        if not min(ranks) or not min(counts) or self._total == 0:
            return {}
        cosines, nulls = [], []
        for part, spectrum, rank, n in zip(self.parts, self.spectra, ranks, counts, strict=True):
            cosines.append(mean_squared_cosine(part.span.Q[:, :rank], spectrum.directions))
            nulls.append(max(rank, n) / len(spectrum.squares))
        return {"principal_cos2": min(self._mean(cosines), 1.0), "principal_null": self._mean(nulls)}

    def _functional(self, k: int) -> dict[str, float | None]:
        """Functional energy of a matrix and the share of it that the projected edit keeps; for a layer, the mean share.

        Outputs of different matrices are in different spaces, so energies are not added; shares are averaged with
        weights ||M||^2.
        """
        shares: list[float] = []
        for part in self.matrices:
            if part.functional is None or part.functional.total <= 0:
                return {}
            shares.append(float(part.functional.kept[part.span.rank_at(k)]) / part.functional.total)
        kept = sum(part.total * share for part, share in zip(self.matrices, shares, strict=True))
        spanned = any(part.span.rank_at(k) for part in self.matrices)
        alone = self.matrices[0].functional if len(self.matrices) == 1 else None
        return {
            "functional_energy": None if alone is None else alone.total,
            "functional_share": kept / self._total if spanned else None,
        }
