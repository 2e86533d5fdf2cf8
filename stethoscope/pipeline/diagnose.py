"""Use case: diagnosis. Scores how specific each layer is to each subject."""

from collections.abc import Iterable

import torch

from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.listening import firing_rates, scoring_device, start_listening, top_latents
from stethoscope.pipeline.tuned_on import Seen
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec
from stethoscope.results import DiagnosisResult, SelectedLatent, SpecificityCell
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.scores import SCORES
from stethoscope.sae.specificity import specificity


def _cells(
    spec: DiagnoseSpec,
    subject: str,
    domain: FiringRates,
    control: FiringRates,
    device: torch.device,
    progress: Progress,
) -> list[SpecificityCell]:
    return specificity(
        domain,
        control,
        subject=subject,
        score=spec.score,
        top_k=spec.top_k,
        cuts=spec.cuts,
        n_bootstrap=spec.n_bootstrap,
        n_permutations=spec.n_permutations,
        device=device,
        progress=progress,
    )


def order_layers(layers: tuple[int, ...], scores: tuple[float | None, ...]) -> tuple[int, ...]:
    """Return the layers with a score, best first, ties by depth."""
    scored = [(-score, layer) for layer, score in zip(layers, scores, strict=True) if score is not None]
    return tuple(layer for _, layer in sorted(scored))


def _selected(spec: DiagnoseSpec, subject: str, domain: FiringRates, control: FiringRates) -> list[SelectedLatent]:
    chosen = top_latents(spec, spec.top_k, domain, control)
    rows = []
    for layer, latents in chosen.items():
        p, q = domain.mean_rate(layer), control.mean_rate(layer)
        rows.extend(
            SelectedLatent(
                layer=layer,
                subject=subject,
                latent=int(latent),
                domain_rate=float(p[latent]),
                control_rate=float(q[latent]),
                effect=float(p[latent]) - float(q[latent]),
            )
            for latent in latents
        )
    return rows


def run(spec: DiagnoseSpec, context: Context, progress: Progress) -> DiagnosisResult:
    """Return the score of every layer for every subject, with intervals, p values and the selected latents."""
    loaded = context.load(spec.model, progress)
    subjects = spec.problems.subjects
    start_listening(spec, len(subjects) + 1, context, progress)
    control = firing_rates(spec, spec.control, context, progress)
    domains = {subject: firing_rates(spec, subject, context, progress) for subject in subjects}
    progress.start("Scoring layers", len(subjects) * len(control.layers))
    cells: list[SpecificityCell] = []
    latents: list[SelectedLatent] = []
    order: dict[str, tuple[int, ...]] = {}
    for subject in subjects:
        progress.detail = subject.replace("_", " ")
        rows = _cells(spec, subject, domains[subject], control, scoring_device(loaded), progress)
        cells.extend(rows)
        order[subject] = order_layers(tuple(row.layer for row in rows), tuple(row.score for row in rows))
        latents.extend(_selected(spec, subject, domains[subject], control))
    score = SCORES[spec.score]
    return DiagnosisResult(
        score=spec.score,
        formula=score.formula,
        source=score.source,
        subjects=subjects,
        control=spec.control,
        n_layers=loaded.layout.n_layers,
        site=spec.listens_with.site,
        top_k=spec.top_k,
        null=score.null,
        cells=tuple(cells),
        order=order,
        latents=tuple(latents),
    )


def needs(spec: DiagnoseSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of measuring and scoring."""
    yield job_memory.listening(spec, setting, saes_of)


def smaller(spec: DiagnoseSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_documents(spec)


def seen(spec: DiagnoseSpec) -> Seen:
    """Return the documents that layers are chosen on."""
    names = (*spec.problems.subjects, spec.control)
    return Seen(spec.model, spec.problems, names, spec.split, spec.documents, spec.seed)
