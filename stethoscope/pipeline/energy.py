"""Use case: how much of the task vector's energy survives the projection on a subject's latents?"""

from stethoscope.delta.energy import energy_cells
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import decoder_rows
from stethoscope.progress import Progress
from stethoscope.records import EnergySpec
from stethoscope.results import EnergyResult


def run(spec: EnergySpec, context: Context, progress: Progress) -> EnergyResult:
    """Return retention, null, enrichment and ceiling per matrix and per layer for every k of the spec."""
    session = context.session(spec.diagnosis.model, progress)
    task_vector = context.task_vector(spec.task_vector, session)
    rows = decoder_rows(spec.diagnosis, spec.subject, max(spec.k), session, context, progress)
    table = energy_cells(session, task_vector, rows, spec.k, spec.subject, progress, sae_site=spec.diagnosis.saes.site)
    return EnergyResult(
        task_vector=spec.task_vector.name,
        subject=spec.subject,
        control=spec.diagnosis.control,
        site=spec.diagnosis.saes.site,
        n_layers=session.layout.n_layers,
        d_model=session.layout.d_model,
        k=spec.k,
        cells=table.cells,
        layers=table.layers,
    )
