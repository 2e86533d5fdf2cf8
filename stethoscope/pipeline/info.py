"""Use case: info. Contents of a profile: sizes, SAEs, and how much each task vector changes each layer."""

from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.preflight import OPENS, failed_check
from stethoscope.progress import Progress
from stethoscope.records import InfoSpec
from stethoscope.results import InfoResult, ModelRow, TaskVectorRow


def model_row(context: Context) -> ModelRow:
    """Return identity and size of the loaded model; call after `context.load`."""
    loaded = context.loaded
    assert loaded is not None
    assert context.base_checksum is not None
    parameters = list(loaded.model.parameters())
    return ModelRow(
        id=loaded.ref.id,
        revision=loaded.revision or loaded.ref.revision,
        asked_revision=loaded.ref.revision,
        dtype=loaded.ref.dtype,
        n_layers=loaded.layout.n_layers,
        d_model=loaded.layout.d_model,
        parameters=sum(parameter.numel() for parameter in parameters),
        device=str(loaded.device),
        size_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        checksum=context.base_checksum,
        chat_template=bool(loaded.tokenizer.chat_template),
    )


def run(spec: InfoSpec, context: Context, progress: Progress) -> InfoResult:
    """Load the model, read every task vector once, and return the contents of the profile.

    A task vector that cannot be used with this base gets a row with the reason.
    """
    loaded = context.load(spec.model, progress)
    progress.start("Reading task vectors", len(spec.task_vectors))
    rows = []
    for ref in spec.task_vectors:
        progress.check_cancel()
        try:
            rows.append(_row(context.task_vector(ref, loaded, progress), loaded))
        except CheckpointError as error:
            why = failed_check(OPENS, error)
            rows.append(TaskVectorRow(name=ref.name, source=ref.tuned, relative_norm_by_layer=(), unusable=why))
        progress.advance()
    saes = () if spec.saes is None else context.bank(spec.saes, loaded, progress).rows
    return InfoResult(model=model_row(context), saes=saes, task_vectors=tuple(rows))


def _row(task_vector: TaskVector, loaded: LoadedModel) -> TaskVectorRow:
    return TaskVectorRow(
        name=task_vector.ref.name,
        source=task_vector.source,
        relative_norm_by_layer=task_vector.relative_norms(),
        moved=tuple(row for layer in range(loaded.layout.n_layers) for row in task_vector.moved(layer)),
        moves_outer=task_vector.moves_outer,
        not_the_fine_tune=task_vector.not_the_fine_tune,
    )
