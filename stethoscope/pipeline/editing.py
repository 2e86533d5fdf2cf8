"""From a recipe to a ready patch: the task vector, the projection's basis where one is asked for, the tensors."""

import dataclasses

from stethoscope.delta.expectation import expected_digests
from stethoscope.delta.patch import BufferLike, Patch, build_patch
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
            identity=" ".join((content_id(recipe.task_vector), *record_fingerprints(recipe))),
            buffer_like=buffer_like,
        )
        expected = expected_digests(session, task_vector, recipe, patch.tensors, recipe_id)
        return dataclasses.replace(patch, expected=expected)

    return context.patches.get_or_build(context.identity(recipe), build)
