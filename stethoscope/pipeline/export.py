"""Use case: write the edited model as a plain checkpoint that transformers loads without this package."""

from pathlib import Path

from stethoscope.delta.export import export_checkpoint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.progress import Progress
from stethoscope.records import ExportSpec
from stethoscope.results import ExportResult


def run(spec: ExportSpec, context: Context, progress: Progress) -> ExportResult:
    """Write the checkpoint folder, reload it and compare it with the live edited model."""
    session = context.session(spec.recipe.model, progress)
    patch = patch_of(spec.recipe, context, progress)
    return export_checkpoint(session, patch, spec.recipe, Path(spec.out), progress=progress)
