"""Use case: latents. Lists the latents of a layer that distinguish a subject from the control corpus."""

from stethoscope.errors import CorpusError
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import firing_rates, start_listening
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec, LatentsSpec
from stethoscope.results import LatentRow, LatentsResult
from stethoscope.sae.counts import check_layers
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.scores import FDR
from stethoscope.sae.selection import latent_statistics, select_latents


def check_subject(spec: DiagnoseSpec, subject: str) -> None:
    """Raise `CorpusError` for a subject that the problems do not have."""
    if subject not in spec.problems.subjects:
        raise CorpusError(
            "no subject of that name",
            got=repr(subject),
            expected="one of " + ", ".join(spec.problems.subjects),
            next_step="Choose one of these.",
        )


def run(spec: LatentsSpec, context: Context, progress: Progress) -> LatentsResult:
    """Return all live latents of the layer with rates, effect, AUROC, p and q value, largest effect first."""
    diagnosis = spec.diagnosis
    check_subject(diagnosis, spec.subject)
    loaded = context.load(diagnosis.model, progress)
    bank = context.bank(diagnosis.listens_with, loaded, progress)
    check_layers(loaded, bank, [spec.layer])
    layers = (spec.layer,)  # do not make the user wait for the other layers
    start_listening(diagnosis, 2, context, progress, layers=layers)
    domain = firing_rates(diagnosis, spec.subject, context, progress, layers=layers)
    control = firing_rates(diagnosis, diagnosis.control, context, progress, layers=layers)
    rows = _rows(spec, domain, control)
    return LatentsResult(
        layer=spec.layer,
        subject=spec.subject,
        control=diagnosis.control,
        site=diagnosis.listens_with.site,
        n_documents=domain.n_documents,
        d_sae=domain.d_sae(spec.layer),
        n_dead=domain.d_sae(spec.layer) - len(rows),
        fdr=FDR,
        link=bank.latent_page(spec.layer),
        rows=rows,
    )


def _rows(spec: LatentsSpec, domain: FiringRates, control: FiringRates) -> tuple[LatentRow, ...]:
    diagnosis, layer = spec.diagnosis, spec.layer
    table = latent_statistics(domain, control, layer, cuts=diagnosis.cuts)
    selected = set(select_latents(domain, control, layer, diagnosis.top_k, cuts=diagnosis.cuts).tolist())
    mass = domain.mean_mass(layer)
    rows = [
        LatentRow(
            latent=j,
            domain_rate=float(table.domain_rate[j]),
            control_rate=float(table.control_rate[j]),
            effect=float(table.effect[j]),
            auroc=float(table.auroc[j]),
            p=float(table.p[j]),
            q_value=float(table.q_value[j]),
            mass=float(mass[j]),
            dense=bool(table.dense[j]),
            selected=j in selected,
        )
        for j in table.live.nonzero()[0].tolist()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.effect, row.latent)))
