"""From a recipe to a ready patch: the task vector, the projection's basis where one is asked for, the tensors."""

from stethoscope.delta.patch import Patch, build_patch
from stethoscope.delta.projection import RowsOfLayer
from stethoscope.model.session import ModelSession
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import decoder_rows
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, NormMatchedArm, ProjectedArm, RawArm
from stethoscope.store.ids import content_id


def _bases(recipe: EditRecipe, session: ModelSession, context: Context, progress: Progress) -> RowsOfLayer | None:
    match recipe.arm:
        case RawArm():
            return None
        case ProjectedArm() | NormMatchedArm() as arm:
            return decoder_rows(arm.diagnosis, arm.subject, arm.top_k, session, context, progress)


def patch_of(recipe: EditRecipe, context: Context, progress: Progress) -> Patch:
    """Return the replacement tensors of `recipe`, built once and kept while recently used."""
    session = context.session(recipe.model, progress)

    def build() -> Patch:
        task_vector = context.task_vector(recipe.task_vector, session)
        bases = _bases(recipe, session, context, progress)
        return build_patch(session, task_vector, recipe, bases, content_id(recipe))

    return context.patches.get_or_make(context.identity(recipe), build)
