"""Which weights an edit really moves, told from names alone: before a weight is read, built or changed.

A recipe names layers. What it changes there is what the task vector moves (a LoRA may hold some layers or matrices
only) and, where the edit is projected, what an SAE serves (some layers may have none). Arms are compared fairly only
where they move the same weights, so every place that shows a recipe or draws another set of layers asks here.
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
    """Where a matrix stands; the rows of a `Ground` and the sites of a model's layout are such."""

    @property
    def layer(self) -> int: ...
    @property
    def part(self) -> Literal["attention", "mlp"]: ...
    @property
    def side(self) -> str: ...


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


def serving(matrix: Matrix, sae_site: Site) -> Serving | None:
    """Return which SAE serves `matrix`, or None where none does.

    resid_post of layer l serves the writers of l; readers of l see resid_post of l-1 (gate and up only after the
    attention's write: approximate), so layer 0's have none. mlp_out serves the MLP's writer (down_proj) on its output
    side, attn_out the attention's (o_proj) on its input side, where no norm stands between.
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
    """Return the SAEs that decide which matrices `recipe` moves; None for arms that need none."""
    match recipe.edit_type:
        case ProjectedEdit() | NormMatchedEdit() as edit_type:
            return edit_type.diagnosis.saes
        case ServedEdit() | RandomSubspaceEdit() as edit_type:
            return edit_type.saes
        case _:
            return None


def reach(recipe: EditRecipe, ground: Ground) -> Reach:
    """Return what `recipe` changes; `ground` is that of its task vector and of its edit type's SAEs."""
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
    """Return `recipe` without what it names and does not change: two recipes that are one edit become equal."""
    found = reach(recipe, ground)
    kept = {layer: alpha for layer, alpha in recipe.layers.items() if layer in found.layers}
    norms = any(row.side == "norm" for row in found.moves)
    return recipe.model_copy(update={"layers": kept, "norms": norms, "embeddings": found.outer})


def in_words(found: Reach) -> str:
    """Return what an edit does not change of what its recipe names, by layers and matrices; "" where it changes all."""
    said: list[str] = []
    if found.lacks:
        moved = [row for row in found.moves if row.side != "norm"]
        n, whole = _count(moved), _count(moved) + _count(found.lacks)
        where = f": {_grouped(moved)}" if moved else ""
        said.append(f"Moves {n} of {whole} matrices{where}; no SAE serves {_grouped(found.lacks)}.")
    if found.idle:
        said.append(f"The task vector moves nothing of {layers_text(found.idle)} that the recipe edits.")
    if found.nothing:
        said.insert(0, "Changes nothing: its weights are the base's.")
    return " ".join(said)


def _count(rows: Iterable[MovedWeights]) -> int:
    return sum(len(row.names) for row in rows)


def _grouped(rows: Sequence[MovedWeights]) -> str:
    """Return matrices with their layers, layers that have the same ones together."""
    names: dict[int, tuple[str, ...]] = {}
    for row in rows:
        names[row.layer] = (*names.get(row.layer, ()), *row.names)
    layers: dict[tuple[str, ...], list[int]] = {}
    for layer, of_layer in names.items():
        layers.setdefault(of_layer, []).append(layer)
    return "; ".join(f"{', '.join(of_layer)} in {layers_text(where)}" for of_layer, where in layers.items())
