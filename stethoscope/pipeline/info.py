"""Use case: what does a profile hold? Sizes, SAEs, and how far each task vector moves each layer."""

from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import CheckpointError
from stethoscope.model.session import ModelSession
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.preflight import OPENS, failed_check
from stethoscope.progress import Progress
from stethoscope.records import InfoSpec
from stethoscope.results import InfoResult, ModelRow, TaskVectorRow


def model_row(context: Context) -> ModelRow:
    """Return identity and size of the loaded model; call after `context.session`."""
    session = context.loaded
    assert session is not None
    assert context.base_checksum is not None
    parameters = list(session.model.parameters())
    return ModelRow(
        id=session.ref.id,
        revision=session.revision or session.ref.revision,
        asked_revision=session.ref.revision,
        dtype=session.ref.dtype,
        n_layers=session.layout.n_layers,
        d_model=session.layout.d_model,
        parameters=sum(parameter.numel() for parameter in parameters),
        device=str(session.device),
        size_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        checksum=context.base_checksum,
        chat_template=bool(session.tokenizer.chat_template),
    )


def run(spec: InfoSpec, context: Context, progress: Progress) -> InfoResult:
    """Return what the profile holds, loading the model and reading every task vector once.

    One that cannot be used with this base is a row with the reason.
    """
    session = context.session(spec.model, progress)
    progress.start("Reading task vectors", len(spec.task_vectors))
    rows = []
    for ref in spec.task_vectors:
        progress.check_cancel()
        try:
            rows.append(_row(context.task_vector(ref, session, progress), session))
        except CheckpointError as error:
            why = failed_check(OPENS, error)
            rows.append(TaskVectorRow(name=ref.name, source=ref.tuned, relative_norm_by_layer=(), unusable=why))
        progress.advance()
    saes = () if spec.saes is None else context.bank(spec.saes, session, progress).rows
    return InfoResult(model=model_row(context), saes=saes, task_vectors=tuple(rows))


def _row(task_vector: TaskVector, session: ModelSession) -> TaskVectorRow:
    return TaskVectorRow(
        name=task_vector.ref.name,
        source=task_vector.source,
        relative_norm_by_layer=task_vector.relative_norms(),
        moved=tuple(row for layer in range(session.layout.n_layers) for row in task_vector.moved(layer)),
        moves_outer=task_vector.moves_outer,
        not_the_fine_tune=task_vector.not_the_fine_tune,
    )
