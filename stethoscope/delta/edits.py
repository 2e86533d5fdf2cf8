"""Edits of a recipe before they are applied: a strength and a direction for each tensor.

    theta(strength) = round(theta_base + strength * e)

The direction e does not depend on alpha: it is tau (raw), tau projected onto a span (of SAE latents, or random), or tau
itself for norms, embeddings and head, for which no projection is defined. The strength is the recipe's alpha; with norm
matching it is divided in each layer by ||P tau|| / ||tau|| in the metric of the retention. Directions can therefore be
cached, and moving the slider changes only strengths.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.projection import (
    RowsOfLayer,
    SpanBasis,
    facing_basis,
    gain_of,
    layer_basis,
    project_delta,
)
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import RecipeError
from stethoscope.model.layout import MatrixSite
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.recipes.reach import serving
from stethoscope.records import (
    EditRecipe,
    EditType,
    NormMatchedEdit,
    ProjectedEdit,
    RandomSubspaceEdit,
    RawEdit,
    ServedEdit,
    Site,
)
from stethoscope.store.ids import content_id

NOTHING_KEPT = 1e-6  # a projection shorter than this share of tau is rounding error


@dataclass(frozen=True, slots=True)
class Direction:
    """The tensor added at strength 1, in float32, with its energies before and after projection in the span's metric.

    The energies are equal without projection. `origin` is the tensor that it is added to, if that is not the model's
    parameter (see `TaskVector.as_stored`).
    """

    tensor: Tensor
    raw_energy: float
    kept_energy: float
    origin: Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        tensors = (self.tensor,) if self.origin is None else (self.tensor, self.origin)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, slots=True)
class Edit:
    """Edit of one tensor: `strength * direction` is added to `origin`, or to parameter `name` if that is None."""

    name: str
    strength: float
    direction: Tensor
    origin: Tensor | None = None


@dataclass
class Directions:
    """Cache of directions with at most `capacity_bytes`, so that a new alpha reads no files.

    When full, directions that the current build has not used are evicted, oldest first. Those that it has used stay, so
    that an edit larger than the capacity keeps what fits instead of evicting itself.
    """

    capacity_bytes: int
    size_bytes: int = 0
    _kept: dict[tuple[str, str], Direction] = field(default_factory=dict)
    _used: set[tuple[str, str]] = field(default_factory=set)

    def start(self) -> None:
        """Start a build; it can evict directions of earlier builds."""
        self._used.clear()

    def get_or_make(self, identity: str, name: str, make: Callable[[], Direction]) -> Direction:
        """Return the direction of parameter `name` under `identity`; create it if it is not cached."""
        key = (identity, name)
        self._used.add(key)
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # the newest is last
            return self._kept[key]
        direction = make()
        for old in [kept for kept in self._kept if kept not in self._used]:
            if self.size_bytes + direction.size_bytes <= self.capacity_bytes:
                break
            self.size_bytes -= self._kept.pop(old).size_bytes
        if self.size_bytes + direction.size_bytes <= self.capacity_bytes:
            self._kept[key] = direction
            self.size_bytes += direction.size_bytes
        return direction

    def clear(self) -> None:
        """Drop all directions."""
        self._kept.clear()
        self._used.clear()
        self.size_bytes = 0


@dataclass(frozen=True, slots=True)
class EditSource:
    """Inputs of a recipe's edits; each basis is factorised once per SAE layer.

    Attributes:
        rows_of_layer: decoder rows of a layer's selected latents, best first; needed only for projection on SAE
            latents.
        sae_layers: layers with an SAE; needed by edit types restricted to these matrices: raw, or in a random subspace.
        directions: cache of directions across builds.
        identity: content of weights and SAEs, which determine a direction together with the edit type.
    """

    loaded: LoadedModel
    task_vector: TaskVector
    recipe: EditRecipe
    rows_of_layer: RowsOfLayer | None = None
    sae_layers: Collection[int] = ()
    directions: Directions = field(default_factory=lambda: Directions(0))
    identity: str = ""
    _bases: dict[int, SpanBasis | None] = field(default_factory=dict)

    def raw(self, name: str) -> Direction:
        """Return tau of parameter `name`."""

        def read() -> Direction:
            return Direction(self.task_vector.delta(name), 1.0, 1.0, self.task_vector.as_stored(name))

        return self.directions.get_or_make(self.identity, name, read)

    def sites(self, layer: int) -> list[tuple[MatrixSite, float]]:
        """Return the matrices of `layer` that the recipe edits and tau changes, with their effective alpha."""
        strengths = [(site, self.recipe.alpha(layer, site.part)) for site in self.loaded.layout.of_layer(layer)]
        return [(site, alpha) for site, alpha in strengths if alpha and self.task_vector.moves(site.name)]

    def basis(self, layer: int, width: int, rows_of_layer: RowsOfLayer) -> SpanBasis | None:
        """Return the basis of the rows of `layer`; None if it has no SAE."""
        if layer not in self._bases:
            self._bases[layer] = layer_basis(rows_of_layer, layer, width)
        return self._bases[layer]

    def projected(self, layer: int, span: "Span") -> "list[Projected]":
        """Return the projection of every matrix of `layer` that the recipe edits and `span` covers."""
        found: list[Projected] = []
        for site, alpha in self.sites(layer):
            use = serving(site, span.site)
            if use is None:
                continue
            shape = self.loaded.parameter(site.name).shape
            basis = self.basis(use.layer, shape[0 if use.output_side else 1], span.rows_of_layer)
            if basis is None:
                continue

            def project(site: MatrixSite = site, basis: SpanBasis = basis) -> Direction:
                return _project(self, site, basis, span.site)

            identity = f"{self.identity} {span.identity}"
            found.append(Projected(site.name, alpha, self.directions.get_or_make(identity, site.name, project)))
        return found


@dataclass(frozen=True, slots=True)
class Projected:
    """A matrix, the recipe's alpha for it, and its projected direction."""

    name: str
    alpha: float
    direction: Direction


@dataclass(frozen=True, slots=True)
class Span:
    """A family of subspaces, one per layer and width: its identity, site, and rows by layer."""

    identity: str
    site: Site
    rows_of_layer: RowsOfLayer


def _project(source: EditSource, site: MatrixSite, basis: SpanBasis, sae_site: Site) -> Direction:
    use = serving(site, sae_site)
    assert use is not None, f"no SAE at {sae_site} for {site.name}"
    delta, gain = source.task_vector.delta(site.name), gain_of(source.loaded, site)
    projected = project_delta(delta, site, gain, basis.Q, sae_site=sae_site)
    raw_energy = float(facing_basis(delta, use, gain).square().sum())
    kept_energy = float(facing_basis(projected, use, gain).square().sum())
    return Direction(projected, raw_energy, kept_energy, source.task_vector.as_stored(site.name))


def span_of_latents(source: EditSource, edit_type: ProjectedEdit | NormMatchedEdit) -> Span:
    """Return the span of the edit type's first `top_k` latents."""
    rows_of_layer = source.rows_of_layer
    assert rows_of_layer is not None, "a projected edit needs the decoder rows of its latents"

    def first_rows(layer: int) -> Tensor | None:
        rows = rows_of_layer(layer)
        return None if rows is None else rows[: edit_type.top_k]

    identity = f"{content_id(edit_type.diagnosis)} {edit_type.subject} {edit_type.top_k}"
    return Span(identity, edit_type.diagnosis.listens_with.site, first_rows)


def random_span(source: EditSource, edit_type: RandomSubspaceEdit) -> Span:
    """Return `rank` seeded random directions for each layer: rows of normal numbers, whose span is uniform (Haar).

    If the edit type has SAEs, layers without one have no directions; the directions of the other layers do not change.

    Raises:
        RecipeError: more directions than the axis has dimensions.
    """
    layout = source.loaded.layout
    writer = next(site for site in layout.of_layer(0) if serving(site, edit_type.site) is not None)
    width = source.loaded.parameter(writer.name).shape[1 if edit_type.site == "attn_out" else 0]
    if edit_type.rank > width:
        raise RecipeError(
            "a random subspace cannot have more dimensions than the space",
            got=f"rank {edit_type.rank}",
            expected=f"1 to {width} at {edit_type.site}",
            next_step="Use a smaller rank.",
        )

    plain = edit_type.model_copy(update={"norm_matched": False, "saes": None})  # all project on the same subspace

    def rows(layer: int) -> Float[Tensor, "rank d"] | None:
        if edit_type.saes is not None and layer not in source.sae_layers:
            return None
        generator = torch.Generator().manual_seed(int(content_id(plain, str(layer))[-12:], 16))
        return torch.randn(edit_type.rank, width, generator=generator, dtype=torch.float64)

    return Span(content_id(plain), edit_type.site, rows)


@singledispatch
def layer_edits(edit_type: EditType, source: EditSource, layer: int) -> list[Edit]:
    """Return the edits of the matrices of `layer` for the edit type `edit_type`."""
    raise AssertionError(f"no edit is defined for {type(edit_type).__name__}")


@layer_edits.register
def _raw(edit_type: RawEdit, source: EditSource, layer: int) -> list[Edit]:
    return [_edit(site.name, alpha, source.raw(site.name)) for site, alpha in source.sites(layer)]


@layer_edits.register
def _served(edit_type: ServedEdit, source: EditSource, layer: int) -> list[Edit]:
    return [
        _edit(site.name, alpha, source.raw(site.name))
        for site, alpha in source.sites(layer)
        if (use := serving(site, edit_type.saes.site)) is not None and use.layer in source.sae_layers
    ]


@layer_edits.register
def _projected(edit_type: ProjectedEdit, source: EditSource, layer: int) -> list[Edit]:
    return _plain(source.projected(layer, span_of_latents(source, edit_type)))


@layer_edits.register
def _norm_matched(edit_type: NormMatchedEdit, source: EditSource, layer: int) -> list[Edit]:
    return _matched(source.projected(layer, span_of_latents(source, edit_type)), layer)


@layer_edits.register
def _random(edit_type: RandomSubspaceEdit, source: EditSource, layer: int) -> list[Edit]:
    projected = source.projected(layer, random_span(source, edit_type))
    return _matched(projected, layer) if edit_type.norm_matched else _plain(projected)


def _plain(projected: list[Projected]) -> list[Edit]:
    return [_edit(part.name, part.alpha, part.direction) for part in projected]


def _edit(name: str, strength: float, direction: Direction) -> Edit:
    return Edit(name, strength, direction.tensor, direction.origin)


def _matched(projected: list[Projected], layer: int) -> list[Edit]:
    """Scale a layer's projected edits by ||tau|| / ||P tau||, both times alpha and in the metric of the retention."""
    raw_energy = sum(part.alpha**2 * part.direction.raw_energy for part in projected)
    kept_energy = sum(part.alpha**2 * part.direction.kept_energy for part in projected)
    if raw_energy == 0:
        return _plain(projected)
    kept = (kept_energy / raw_energy) ** 0.5
    if kept < NOTHING_KEPT:
        raise RecipeError(
            f"the span of layer {layer} keeps nothing of the task vector, so the norm cannot be matched",
            got=f"{kept:.1e} of the norm",
            next_step="Use more latents, other layers, or the edit type without norm matching.",
        )
    return [_edit(part.name, part.alpha / kept, part.direction) for part in projected]


def edits_of(source: EditSource) -> Iterator[Edit]:
    """Yield the edit of every tensor that the recipe changes: by layer, then embeddings, final norm and head.

    Raises:
        RecipeError: a projection without a basis. CheckpointError: a tensor of tau that cannot be read.
    """
    recipe, loaded, moves = source.recipe, source.loaded, source.task_vector.moves
    source.directions.start()
    for layer in recipe.layers:
        yield from layer_edits(recipe.edit_type, source, layer)
        if recipe.norms:
            for norm in loaded.layout.norms_of(layer):
                alpha = recipe.alpha(layer, norm.part)
                if alpha and moves(norm.name):
                    yield _edit(norm.name, alpha, source.raw(norm.name))
    if recipe.embeddings and recipe.master_alpha:
        for name in loaded.layout.outer:
            if moves(name):
                yield _edit(name, recipe.master_alpha, source.raw(name))
