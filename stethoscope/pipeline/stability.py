"""Use case: stability of the layer order under other scores, other k and other control corpora.

Kendall's tau-b of each variant's scores with those of the reference diagnosis, over the layers that both score. Uses
observed scores only: one number per layer, without bootstrap or permutations.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.diagnose import order_layers
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.listening import firing_rates, scoring_device, start_listening
from stethoscope.progress import Progress
from stethoscope.records import SCORE_NAMES, StabilitySpec, finite_or_none
from stethoscope.results import StabilityResult, StabilityRow
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.specificity import Variant, observed_scores
from stethoscope.statistics import kendall_tau

Kind = Literal["score", "k", "control"]


def _rows(
    spec: StabilitySpec,
    subject: str,
    domain: FiringRates,
    controls: dict[str, FiringRates],
    device: torch.device,
    progress: Progress,
) -> list[StabilityRow]:
    """Score all variants of one subject; each kind includes the reference."""
    diagnosis = spec.diagnosis
    reference = Variant(diagnosis.score, diagnosis.top_k)
    scores = [Variant(name, diagnosis.top_k) for name in SCORE_NAMES]
    ks = [Variant(diagnosis.score, k) for k in sorted({*spec.ks, diagnosis.top_k})]
    layers = tuple(sorted(domain.layers))

    def observed(control: str, variants: list[Variant]) -> Float[np.ndarray, "n_variants n_layers"]:
        return observed_scores(
            domain,
            controls[control],
            variants,
            cuts=diagnosis.cuts,
            device=device,
            progress=progress,
        )

    own = observed(diagnosis.control, [*scores, *ks])
    of_reference = own[scores.index(reference)]
    found: list[tuple[Kind, str, Float[np.ndarray, " n_layers"]]] = [
        *(("score", variant.score, row) for variant, row in zip(scores, own, strict=False)),
        *(("k", str(variant.top_k), row) for variant, row in zip(ks, own[len(scores) :], strict=True)),
        *(
            ("control", name, of_reference if name == diagnosis.control else observed(name, [reference])[0])
            for name in controls
        ),
    ]
    return [
        StabilityRow(
            subject=subject,
            kind=kind,
            variant=variant,
            kendall_tau=_agreement(of_reference, values),
            order=order_layers(layers, tuple(map(finite_or_none, values.tolist()))),
            scores=tuple(map(finite_or_none, values.tolist())),
        )
        for kind, variant, values in found
    ]


def _agreement(reference: Float[np.ndarray, " n_layers"], values: Float[np.ndarray, " n_layers"]) -> float | None:
    """Return Kendall's tau-b over the layers that both score; None for fewer than two layers or a constant side."""
    both = ~(np.isnan(reference) | np.isnan(values))
    return finite_or_none(float(kendall_tau(reference[both], values[both]))) if both.sum() > 1 else None


def run(spec: StabilitySpec, context: Context, progress: Progress) -> StabilityResult:
    """Return each subject's layer order under every score, k and control corpus, and its tau with the reference.

    Raises:
        CorpusError: fewer documents in a corpus than requested.
        Cancelled: the job was stopped.
    """
    diagnosis = spec.diagnosis
    loaded = context.load(diagnosis.model, progress)
    subjects, names = diagnosis.problems.subjects, diagnosis.problems.control_names
    start_listening(diagnosis, len(subjects) + len(names), context, progress)
    controls = {name: firing_rates(diagnosis, name, context, progress) for name in names}
    domains = {subject: firing_rates(diagnosis, subject, context, progress) for subject in subjects}
    layers = tuple(sorted(controls[diagnosis.control].layers))
    progress.start("Comparing orders", len(subjects) * len(names) * len(layers))
    rows: list[StabilityRow] = []
    for subject in subjects:
        progress.detail = subject.replace("_", " ")
        rows.extend(_rows(spec, subject, domains[subject], controls, scoring_device(loaded), progress))
    return StabilityResult(
        score=diagnosis.score,
        top_k=diagnosis.top_k,
        control=diagnosis.control,
        n_layers=loaded.layout.n_layers,
        layers=layers,
        rows=tuple(rows),
    )


def needs(spec: StabilitySpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of measuring and scoring."""
    yield job_memory.listening(spec.diagnosis, setting, saes_of)


def smaller(spec: StabilitySpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_documents(spec.diagnosis)
