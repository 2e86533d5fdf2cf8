"""Energy of a layer's matrices, oriented along the SAE's axis, within each span.

The selected latents are compared with references of the same rank: the principal components of the stream, random live
latents matched on firing rate, the control corpus' top latents, and, for matrices with the same input as the SAE, the
encoder directions of the selected latents. Every quantity of a matrix is a sum, so that a layer's is the sum over its
matrices stacked along the SAE's axis.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from stethoscope.delta.activity import FunctionalEnergy
from stethoscope.delta.chance import MatrixSpectrum, concentration, spectrum_of
from stethoscope.delta.projection import (
    RowsOfLayer,
    SpanBasis,
    cumulative_energy,
    facing_basis,
    gain_of,
    layer_basis,
)
from stethoscope.delta.realised import Realised, realise
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.layout import MatrixSite
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.recipes.reach import Serving, serving
from stethoscope.records import Site

SELECTED, COMPONENTS, CONTROL, ENCODER, RANDOM = "selected", "components", "control", "encoder", "random"


@dataclass(frozen=True, slots=True)
class References:
    """Rows [k, d] of other spans, by layer of the SAE; each can be shorter than requested, or None.

    Attributes:
        components: principal components of the SAE's input.
        control: decoder rows of the control corpus' top latents.
        encoder: encoder directions of the selected latents (for readers only).
        random: decoder rows of random live latents, one function per draw.
    """

    components: RowsOfLayer
    control: RowsOfLayer
    encoder: RowsOfLayer
    random: tuple[RowsOfLayer, ...]

    def named(self) -> dict[str, RowsOfLayer]:
        """Return each reference by its name in a part's `kept`."""
        draws = {f"{RANDOM} {draw}": rows for draw, rows in enumerate(self.random)}
        return {COMPONENTS: self.components, CONTROL: self.control, ENCODER: self.encoder} | draws


def is_random_draw(name: str) -> bool:
    """Return whether the span with this name is a draw of random latents."""
    return name.startswith(RANDOM)


@dataclass(frozen=True, slots=True)
class LayerSpectra:
    """Data of a layer that depend on the task vector and norm weights but not on latents.

    Attributes:
        matrices: spectrum of each matrix, by its role.
        stacks: spectrum of the stacked matrices of one SAE, by the SAE's layer.
        concentration: 1/r_eff of the whole layer, stacked.
    """

    matrices: Mapping[str, MatrixSpectrum]
    stacks: Mapping[int, MatrixSpectrum]
    concentration: float

    @property
    def size_bytes(self) -> int:
        """Size in bytes."""
        return sum(spectrum.size_bytes for spectrum in (*self.matrices.values(), *self.stacks.values()))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for `from_arrays`."""
        arrays = {"concentration": np.array([self.concentration])}
        for kind, spectra in (("matrix", self.matrices), ("stack", self.stacks)):
            for name, spectrum in spectra.items():
                arrays[f"{kind} {name} squares"] = spectrum.squares.numpy()
                arrays[f"{kind} {name} directions"] = spectrum.directions.numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LayerSpectra":
        """Return the object from the arrays of `to_arrays`."""
        found: dict[str, dict[str, MatrixSpectrum]] = {"matrix": {}, "stack": {}}
        for key in arrays:
            if key.endswith(" squares"):
                kind, name, _ = key.split(" ")
                squares, directions = arrays[key], arrays[f"{kind} {name} directions"]
                found[kind][name] = MatrixSpectrum(torch.from_numpy(squares), torch.from_numpy(directions))
        stacks = {int(layer): spectrum for layer, spectrum in found["stack"].items()}
        return cls(found["matrix"], stacks, float(arrays["concentration"][0]))


SpectraOf = Callable[[str, Callable[[], LayerSpectra]], LayerSpectra]
"""Return the spectra of a key; computes them with the function if they are not cached."""


def keep_none(key: str, make: Callable[[], LayerSpectra]) -> LayerSpectra:
    """Compute the spectra without caching."""
    return make()


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix, or several with the same SAE.

    Attributes:
        matrix: role of the matrix.
        layer: layer of the SAE.
        reads: whether the SAE's axis is the input side.
        bases: span of the selected latents and of each reference, by name.
        total: ||M||_F^2.
        kept: energy inside the first r dimensions of each span.
    """

    matrix: str
    layer: int
    reads: bool
    bases: Mapping[str, SpanBasis]
    total: float
    kept: Mapping[str, Float64[Tensor, " r_plus_1"]]
    realised: Realised
    functional: FunctionalEnergy | None
    approximate: bool

    def __add__(self, other: "Part") -> "Part":
        assert (self.layer, self.reads) == (other.layer, other.reads), "matrices of two SAEs do not stack"
        return Part(
            "all",
            self.layer,
            self.reads,
            self.bases,
            self.total + other.total,
            {name: kept + other.kept[name] for name, kept in self.kept.items()},
            self.realised + other.realised,
            None,  # outputs of different matrices are in different spaces
            self.approximate or other.approximate,
        )

    @property
    def span(self) -> SpanBasis:
        """Span of the selected latents."""
        return self.bases[SELECTED]

    def kept_at(self, name: str, rank: int) -> float | None:
        """Return the energy in the first `rank` dimensions of a span; None if it has fewer."""
        kept = self.kept.get(name)
        return None if kept is None or rank >= len(kept) else float(kept[rank])


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The matrices of a layer with an SAE."""

    layer: int
    matrices: tuple[Part, ...]
    spectra: LayerSpectra

    @property
    def stacks(self) -> tuple[Part, ...]:
        """The matrices stacked, one part for each SAE."""
        by_sae: dict[int, list[Part]] = {}
        for part in self.matrices:
            by_sae.setdefault(part.layer, []).append(part)
        return tuple(reduce(add, parts) for parts in by_sae.values())


@dataclass(frozen=True)
class PartsReader:
    """Computes the parts of a task vector layer by layer; bases are cached as long as a layer needs them."""

    loaded: LoadedModel
    task_vector: TaskVector
    rows_of_layer: RowsOfLayer
    sae_site: Site
    fold_gains: bool
    references: References | None
    functional: Mapping[str, FunctionalEnergy]
    spectra_of: SpectraOf
    _bases: dict[int, dict[str, SpanBasis]] = field(default_factory=dict)

    def layer(self, layer: int) -> LayerParts | None:
        """Return the parts of `layer`; None if none of its matrices has an SAE."""
        for former in [known for known in self._bases if known < layer - 1]:
            del self._bases[former]
        served = [(site, use) for site, use in self._served(layer) if SELECTED in self._bases_at(use.layer, site)]
        if not served:
            return None
        parts = tuple(self._part(site, use) for site, use in served)
        key = " ".join((self.sae_site, f"gains {self.fold_gains}", *(site.name for site, _ in served)))
        return LayerParts(layer, parts, self.spectra_of(key, lambda: self._spectra(served)))

    def _served(self, layer: int) -> Iterator[tuple[MatrixSite, Serving]]:
        for site in self.loaded.layout.of_layer(layer):
            if (use := serving(site, self.sae_site)) is not None:
                yield site, use

    def _facing(self, site: MatrixSite, use: Serving, delta: Tensor) -> Float64[Tensor, "d n"]:
        return facing_basis(delta, use, gain_of(self.loaded, site) if self.fold_gains else None)

    def _bases_at(self, layer: int, site: MatrixSite) -> dict[str, SpanBasis]:
        """Return the bases of the SAE of `layer` by name; empty without an SAE."""
        if layer not in self._bases:
            use = serving(site, self.sae_site)
            assert use is not None
            weight = self.loaded.parameter(site.name)
            sources = {SELECTED: self.rows_of_layer} | ({} if self.references is None else self.references.named())
            found = {
                name: layer_basis(rows, layer, weight.shape[not use.output_side]) for name, rows in sources.items()
            }
            self._bases[layer] = {name: basis for name, basis in found.items() if basis is not None}
        return self._bases[layer]

    def _part(self, site: MatrixSite, use: Serving) -> Part:
        delta = self.task_vector.delta(site.name)
        matrix = self._facing(site, use, delta)
        bases = {
            name: basis
            for name, basis in self._bases_at(use.layer, site).items()
            if name != ENCODER or not use.output_side
        }
        return Part(
            matrix=site.matrix,
            layer=use.layer,
            reads=not use.output_side,
            bases=bases,
            total=float(matrix.square().sum()),
            kept={name: cumulative_energy(matrix, basis.to(matrix.device)).cpu() for name, basis in bases.items()},
            realised=realise(self.loaded, site, self.task_vector.origin(site.name), delta),
            functional=self.functional.get(site.name),
            approximate=use.approximate,
        )

    def _spectra(self, served: list[tuple[MatrixSite, Serving]]) -> LayerSpectra:
        """Factorise the Gram matrices of a layer, which is slow and the same for all subjects."""
        matrices: dict[str, MatrixSpectrum] = {}
        grams: dict[int, Tensor] = {}
        for site, use in served:
            matrix = self._facing(site, use, self.task_vector.delta(site.name))
            gram = matrix @ matrix.T
            matrices[site.matrix] = spectrum_of(gram)
            grams[use.layer] = grams[use.layer] + gram if use.layer in grams else gram
        n_served = {layer: sum(use.layer == layer for _, use in served) for layer in grams}
        alone = {use.layer: matrices[site.matrix] for site, use in served}
        stacks = {layer: alone[layer] if n_served[layer] == 1 else spectrum_of(gram) for layer, gram in grams.items()}
        return LayerSpectra(matrices, stacks, concentration(reduce(add, grams.values())))
