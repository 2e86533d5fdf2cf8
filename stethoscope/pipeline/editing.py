"""Build a patch from a recipe: the task vector, the projection's basis if needed, and the tensors."""

import dataclasses
import math
from collections.abc import Iterable

from stethoscope.delta.edits import EditSource, edits_of
from stethoscope.delta.expectation import expected_digests
from stethoscope.delta.patch import BufferLike, Patch, build_patch, check_fit, edits_nothing
from stethoscope.delta.projection import RowsOfLayer
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import decoder_rows
from stethoscope.progress import Progress
from stethoscope.recipes.reach import reach, saes_of
from stethoscope.records import (
    BenchArm,
    EditRecipe,
    NormMatchedEdit,
    ProjectedEdit,
    RandomSubspaceEdit,
    RawEdit,
    SaeRef,
    ServedEdit,
)
from stethoscope.results import Ground, Reach
from stethoscope.store.fingerprints import record_fingerprints
from stethoscope.store.ids import content_id


def bases_of(recipe: EditRecipe, loaded: LoadedModel, context: Context, progress: Progress) -> RowsOfLayer | None:
    """Return the decoder rows that the recipe projects on; None if it does not project."""
    match recipe.edit_type:
        case RawEdit() | RandomSubspaceEdit() | ServedEdit():
            return None
        case ProjectedEdit() | NormMatchedEdit() as arm:
            return decoder_rows(arm.diagnosis, arm.subject, arm.top_k, loaded, context, progress)


def sae_layers(saes: SaeRef | None, loaded: LoadedModel, context: Context, progress: Progress) -> tuple[int, ...]:
    """Return the layers with one of `saes`; empty without SAEs."""
    return () if saes is None else context.bank(saes, loaded, progress).layers


def ground_of(
    recipe: EditRecipe, context: Context, progress: Progress, *, whole: bool = False, saes: SaeRef | None = None
) -> Ground:
    """Return the `Ground` of `recipe`, read from the task vector once, for its own layers or the whole model.

    Args:
        saes: SAEs for projected control arms if the recipe itself needs none.
    """
    loaded = context.load(recipe.model, progress)
    task_vector = context.task_vector(recipe.task_vector, loaded, progress)
    layers = range(loaded.layout.n_layers) if whole else recipe.layers
    return Ground(
        n_layers=loaded.layout.n_layers,
        moved=tuple(row for layer in layers for row in task_vector.moved(layer)),
        outer=task_vector.moves_outer,
        sae_layers=sae_layers(saes_of(recipe) or saes, loaded, context, progress),
        not_the_fine_tune=task_vector.not_the_fine_tune,
    )


def reach_of_arms(arms: Iterable[BenchArm], context: Context, progress: Progress) -> dict[str, Reach]:
    """Return the weights that each arm's recipe changes, by arm name, without building the edit.

    Raises:
        RecipeError: a recipe for another model, or for layers that the model does not have.
    """
    found: dict[str, Reach] = {}
    for arm in arms:
        if arm.recipe is not None:
            check_fit(context.load(arm.recipe.model, progress), None, arm.recipe)
            found[arm.name] = reach(arm.recipe, ground_of(arm.recipe, context, progress))
    return found


def not_the_fine_tunes(
    arms: Iterable[BenchArm], context: Context, progress: Progress, *, whole: bool = False
) -> dict[str, str]:
    """Return why no arm is the fine-tuned model, by task vector; only for task vectors where this is the case.

    Args:
        whole: compare all values if necessary; see `TaskVector.compared_whole`.
    """
    found: dict[str, str] = {}
    for arm in arms:
        if arm.recipe is not None:
            loaded = context.load(arm.recipe.model, progress)
            task_vector = context.task_vector(arm.recipe.task_vector, loaded, progress)
            why = task_vector.compared_whole(progress) if whole else task_vector.not_the_fine_tune
            found |= {} if why is None else {arm.recipe.task_vector.name: why}
    return found


def edit_norm(recipe: EditRecipe, context: Context, progress: Progress) -> float:
    """Return the Frobenius norm of everything that `recipe` adds to the weights, before rounding."""
    if edits_nothing(recipe):
        return 0.0
    loaded = context.load(recipe.model, progress)
    source = EditSource(
        loaded,
        context.task_vector(recipe.task_vector, loaded, progress),
        recipe,
        bases_of(recipe, loaded, context, progress),
        sae_layers(saes_of(recipe), loaded, context, progress),
        context.directions,
        _identity(recipe),
    )
    energies = [edit.strength**2 * float(edit.direction.double().square().sum()) for edit in edits_of(source)]
    return math.sqrt(math.fsum(energies))


def _identity(recipe: EditRecipe) -> str:
    """Content ids of weights and SAEs, which determine the recipe's directions together with its edit type."""
    return " ".join((content_id(recipe.task_vector), *record_fingerprints(recipe)))


def patch_of(recipe: EditRecipe, context: Context, progress: Progress) -> Patch:
    """Return the replacement tensors of `recipe` (cached), with their expected values (see `delta.expectation`)."""
    loaded = context.load(recipe.model, progress)

    def build(buffer_like: BufferLike) -> Patch:
        task_vector = context.task_vector(recipe.task_vector, loaded, progress)
        recipe_id = content_id(recipe)
        patch = build_patch(
            loaded,
            task_vector,
            recipe,
            bases_of(recipe, loaded, context, progress),
            recipe_id,
            sae_layers=sae_layers(saes_of(recipe), loaded, context, progress),
            directions=context.directions,
            identity=_identity(recipe),
            buffer_like=buffer_like,
        )
        expected = expected_digests(loaded, task_vector, recipe, patch.tensors, recipe_id)
        return dataclasses.replace(patch, expected=expected)

    patch = context.patches.get_or_build(context.identity(recipe), build)
    context.job_memory()
    return patch
