"""Which weights an edit changes, determined from names alone before any weight is read.

A recipe selects layers. It changes only weights that the task vector changes (a LoRA may contain only some layers or
matrices) and, if the edit is projected, only matrices with a matching SAE. Comparing arms is fair only if they change
the same weights, so all code that shows a recipe or draws other layers uses this module.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from stethoscope.recipes.files import layers_text
from stethoscope.records import EditRecipe, NormMatchedEdit, ProjectedEdit, RandomSubspaceEdit, SaeRef, ServedEdit, Site
from stethoscope.results import Ground, MovedWeights, Reach

HALVES: tuple[Literal["attention"], Literal["mlp"]] = ("attention", "mlp")  # of a layer


@runtime_checkable
class Matrix(Protocol):
    """Location of a matrix; the rows of a `Ground` and the sites of a model's layout have this type."""

    @property
    def layer(self) -> int: ...
    @property
    def part(self) -> Literal["attention", "mlp"]: ...
    @property
    def side(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Serving:
    """The SAE that a matrix is projected with, and the axis.

    Attributes:
        layer: layer of the SAE whose decoder rows are the basis.
        output_side: True if the basis is on the output axis (rows of the weight), False for the input axis.
        gain: whether norm weights are between the matrix and the SAE.
        approximate: whether another write to the residual stream lies between the SAE and the matrix.
    """

    layer: int
    output_side: bool
    gain: bool
    approximate: bool = False


def serving(matrix: Matrix, sae_site: Site) -> Serving | None:
    """Return the SAE that matches `matrix`; None if there is none.

    resid_post of layer l matches the matrices of l that write the residual stream. The matrices of l that read it use
    resid_post of l-1 (approximate for gate and up, which read after the attention's write), so those of layer 0 have
    none. mlp_out matches down_proj on its output side, attn_out matches o_proj on its input side, without a norm in
    between.
    """
    writer = matrix.part if matrix.side == "write" else None
    if sae_site == "attn_out":
        return Serving(matrix.layer, output_side=False, gain=False) if writer == "attention" else None
    if sae_site == "mlp_out":
        return Serving(matrix.layer, output_side=True, gain=True) if writer == "mlp" else None
    if matrix.side == "write":
        return Serving(matrix.layer, output_side=True, gain=True)
    if matrix.layer == 0:
        return None
    return Serving(matrix.layer - 1, output_side=False, gain=True, approximate=matrix.part == "mlp")


def saes_of(recipe: EditRecipe) -> SaeRef | None:
    """Return the SAEs that determine which matrices `recipe` edits; None for edit types that need no SAEs."""
    match recipe.edit_type:
        case ProjectedEdit() | NormMatchedEdit() as edit_type:
            return edit_type.diagnosis.saes
        case ServedEdit() | RandomSubspaceEdit() as edit_type:
            return edit_type.saes
        case _:
            return None


def reach(recipe: EditRecipe, ground: Ground) -> Reach:
    """Return what `recipe` changes; `ground` is that of its task vector and SAEs."""
    moves: list[MovedWeights] = []
    lacks: list[MovedWeights] = []
    halves = {(layer, part) for layer in recipe.layers for part in HALVES if recipe.alpha(layer, part)}
    for row in ground.moved:
        if (row.layer, row.part) not in halves:
            continue
        if row.side == "norm":
            moves += [row] if recipe.norms else []
        else:
            (moves if _served(row, recipe, ground) else lacks).append(row)
    seen = {row.layer for row in (*moves, *lacks)}
    return Reach(
        moves=tuple(moves),
        lacks=tuple(lacks),
        idle=tuple(layer for layer in recipe.layers if layer not in seen),
        outer=recipe.embeddings and ground.outer and recipe.master_alpha != 0,
    )


def _served(row: MovedWeights, recipe: EditRecipe, ground: Ground) -> bool:
    saes = saes_of(recipe)
    if saes is not None:
        use = serving(row, saes.site)
        return use is not None and use.layer in ground.sae_layers
    return not isinstance(recipe.edit_type, RandomSubspaceEdit) or serving(row, recipe.edit_type.site) is not None


def trimmed(recipe: EditRecipe, ground: Ground) -> EditRecipe:
    """Return `recipe` without the layers that it does not change, so that identical edits become equal."""
    found = reach(recipe, ground)
    kept = {layer: alpha for layer, alpha in recipe.layers.items() if layer in found.layers}
    norms = any(row.side == "norm" for row in found.moves)
    return recipe.model_copy(update={"layers": kept, "norms": norms, "embeddings": found.outer})


def in_words(found: Reach) -> str:
    """Return a text about the selected layers and matrices that the edit does not change; "" if it changes all of
    them."""
    said: list[str] = []
    if found.lacks:
        moved = [row for row in found.moves if row.side != "norm"]
        n, whole = _count(moved), _count(moved) + _count(found.lacks)
        where = f": {_grouped(moved)}" if moved else ""
        said.append(f"Edits {n} of {whole} matrices{where}; no SAE for {_grouped(found.lacks)}.")
    if found.idle:
        said.append(f"The task vector changes nothing in {layers_text(found.idle)}, which the recipe edits.")
    if found.nothing:
        said.insert(0, "Changes nothing: its weights equal those of the base.")
    return " ".join(said)


def _count(rows: Iterable[MovedWeights]) -> int:
    return sum(len(row.names) for row in rows)


def _grouped(rows: Sequence[MovedWeights]) -> str:
    """Return matrices with their layers; layers with the same matrices are grouped."""
    names: dict[int, tuple[str, ...]] = {}
    for row in rows:
        names[row.layer] = (*names.get(row.layer, ()), *row.names)
    layers: dict[tuple[str, ...], list[int]] = {}
    for layer, of_layer in names.items():
        layers.setdefault(of_layer, []).append(layer)
    return "; ".join(f"{', '.join(of_layer)} in {layers_text(where)}" for of_layer, where in layers.items())
