"""Predictors of the layer gain: one table per predictor, subjects x layers, with bootstrap draws.

The specificity scores (T, N, M, log-ratio) and the linear probe use documents. The first-order effect uses the problems
that the gain is measured on. The relative update ||tau_l|| / ||theta_l|| and depth use neither.
"""

import numpy as np
import torch
from jaxtyping import Float

from stethoscope.delta.task_vector import TaskVector
from stethoscope.pipeline.agreement import Predictor
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.linear_probe import auroc_with_draws, document_means, held_out_scores
from stethoscope.pipeline.listening import firing_rates, scoring_device, start_listening
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.scores import SCORES
from stethoscope.sae.specificity import Variant, observed_scores, score_draws

FIRST_ORDER, RELATIVE_UPDATE, LINEAR_PROBE, DEPTH = "first_order", "relative_update", "probe_auroc", "depth"


def specificity_predictors(
    spec: DiagnoseSpec, n_layers: int, context: Context, progress: Progress
) -> tuple[Predictor, ...]:
    """Return one predictor per specificity score; layers without an SAE or without selectable latents have no value.

    Empty without SAEs.
    """
    if spec.saes is None:
        return ()
    subjects = spec.problems.subjects
    start_listening(spec, len(subjects) + 1, context, progress)
    control = firing_rates(spec, spec.control, context, progress)
    domains = [firing_rates(spec, subject, context, progress) for subject in subjects]
    progress.start(
        "Scoring layers", 2 * len(subjects) * len(SCORES) * len(control.layers)
    )  # observed values, and draws
    device = scoring_device(context.load(spec.model, progress))
    return tuple(
        _specificity_predictor(spec, name, domains, control, n_layers=n_layers, device=device, progress=progress)
        for name in SCORES
    )


def _specificity_predictor(
    spec: DiagnoseSpec,
    score: str,
    domains: list[FiringRates],
    control: FiringRates,
    *,
    n_layers: int,
    device: torch.device,
    progress: Progress,
) -> Predictor:
    values = np.full((len(domains), n_layers), np.nan)
    draws = np.full((spec.n_bootstrap, len(domains), n_layers), np.nan)
    layers = sorted(control.layers)
    for row, domain in enumerate(domains):
        progress.check_cancel()
        how = {"cuts": spec.cuts, "device": device, "progress": progress}
        values[row, layers] = observed_scores(domain, control, [Variant(score, spec.top_k)], **how)[0]
        draws[:, row, layers] = score_draws(
            domain, control, score=score, top_k=spec.top_k, n_bootstrap=spec.n_bootstrap, **how
        )
    return Predictor.of_subjects(score, values, draws)


def linear_probe(spec: DiagnoseSpec, context: Context, progress: Progress) -> Predictor:
    """Return the cross-fitted AUROC of a linear probe on the raw residual stream of the diagnosis' documents."""
    subjects = spec.problems.subjects
    progress.start("Reading residuals", spec.documents * (len(subjects) + 1))
    control = document_means(spec, spec.control, context, progress)  # [n_docs, n_layers, d_model]
    n_layers = control.shape[1]
    table = np.empty((1 + spec.n_bootstrap, len(subjects), n_layers))
    for row, subject in enumerate(subjects):
        domain = document_means(spec, subject, context, progress)
        for layer in range(n_layers):
            progress.check_cancel()
            scores = held_out_scores(domain[:, layer], control[:, layer], seed=spec.seed)
            table[:, row, layer] = auroc_with_draws(*scores, draws=spec.n_bootstrap, seed=spec.seed)
    return Predictor.of_subjects(LINEAR_PROBE, table[0], table[1:])


def depth(n_layers: int, n_subjects: int) -> Predictor:
    """Return the layer number as predictor."""
    return Predictor.constant(DEPTH, np.arange(n_layers, dtype=np.float64), n_subjects)


def relative_update(task_vector: TaskVector, n_subjects: int) -> Predictor:
    """Return ||tau_l|| / ||theta_l||."""
    return Predictor.constant(RELATIVE_UPDATE, np.array(task_vector.relative_norms()), n_subjects)


def first_order(
    predicted: list[Float[np.ndarray, "n n_layers"]], weights: list[Float[np.ndarray, "draws n"]]
) -> Predictor:
    """Return the mean predicted gain, -alpha <dNLL/dtheta_l, tau_l>, over each subject's problems, with its draws."""
    values = np.stack([gains.mean(0) for gains in predicted])
    draws = np.stack([weight @ gains for weight, gains in zip(weights, predicted, strict=True)], axis=1)
    return Predictor.of_subjects(FIRST_ORDER, values, draws)
