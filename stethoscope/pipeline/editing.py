"""From a recipe to a ready patch: the task vector, the projection's basis where one is asked for, the tensors."""

import dataclasses
import math

from stethoscope.delta.edits import EditSource, edits_of
from stethoscope.delta.expectation import expected_digests
from stethoscope.delta.patch import BufferLike, Patch, build_patch, edits_nothing
from stethoscope.delta.projection import RowsOfLayer
from stethoscope.model.session import ModelSession
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import decoder_rows
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, NormMatchedArm, ProjectedArm, RandomSubspaceArm, RawArm
from stethoscope.store.fingerprints import record_fingerprints
from stethoscope.store.ids import content_id


def bases_of(recipe: EditRecipe, session: ModelSession, context: Context, progress: Progress) -> RowsOfLayer | None:
    """Return the decoder rows that the recipe projects on, None where it projects on none."""
    match recipe.arm:
        case RawArm() | RandomSubspaceArm():
            return None
        case ProjectedArm() | NormMatchedArm() as arm:
            return decoder_rows(arm.diagnosis, arm.subject, arm.top_k, session, context, progress)


def edit_norm(recipe: EditRecipe, context: Context, progress: Progress) -> float:
    """Return the Frobenius norm of all that `recipe` adds to the weights, before any rounding."""
    if edits_nothing(recipe):
        return 0.0
    session = context.session(recipe.model, progress)
    source = EditSource(
        session,
        context.task_vector(recipe.task_vector, session, progress),
        recipe,
        bases_of(recipe, session, context, progress),
        context.directions,
        _identity(recipe),
    )
    energies = [edit.strength**2 * float(edit.direction.double().square().sum()) for edit in edits_of(source)]
    return math.sqrt(math.fsum(energies))


def _identity(recipe: EditRecipe) -> str:
    """What decides the recipe's directions besides its arm: the content of weights and SAEs."""
    return " ".join((content_id(recipe.task_vector), *record_fingerprints(recipe)))


def patch_of(recipe: EditRecipe, context: Context, progress: Progress) -> Patch:
    """Return the replacement tensors of `recipe`, built once and kept while recently used, with what is expected of
    them (see `delta.expectation`)."""
    session = context.session(recipe.model, progress)

    def build(buffer_like: BufferLike) -> Patch:
        task_vector = context.task_vector(recipe.task_vector, session, progress)
        recipe_id = content_id(recipe)
        patch = build_patch(
            session,
            task_vector,
            recipe,
            bases_of(recipe, session, context, progress),
            recipe_id,
            directions=context.directions,
            identity=_identity(recipe),
            buffer_like=buffer_like,
        )
        expected = expected_digests(session, task_vector, recipe, patch.tensors, recipe_id)
        return dataclasses.replace(patch, expected=expected)

    patch = context.patches.get_or_build(context.identity(recipe), build)
    context.make_room()
    return patch
