"""Candidates for a better layer score: each is a number per layer and subject, from train documents and dev problems.

T_l is the diagnosis' score, r_l = ||tau_l|| / ||theta_l||, S_l the selected latents, P_l the projection on their
decoder rows (`delta.projection`), x_t the residual stream. None of them uses a measured gain or a test problem. Those
that need a gradient or an edited model can only be predictors, not scores of the base model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.patch import applied
from stethoscope.model.gradients import first_order_effects, graph_from_embeddings
from stethoscope.model.likelihood import encode_solutions, mean_nll
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.listening import corpus_documents, firing_rates, selected_latents
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, GainSpec, LayerAlpha, ProjectedEdit, RawEdit
from stethoscope.sae.counts import count_firing

FORMULAS = {
    "score_step": "T_l - T_(l-1)",
    "score_x_update": "T_l r_l",
    "score_x_span_energy": "T_l norm(P_l tau_l) / norm(theta_l)",
    "span_energy": "norm(P_l tau_l) / norm(theta_l)",
    "rate_change": "mean over S_l of abs(p_j under the full edit - p_j)",
    "rate_change_step": "rate_change_l - rate_change_(l-1)",
    "attribution": "mean over problems of sum over S_l of abs(sum_t <dNLL/dx_t, W_dec_j>)",
    "attribution_x_update": "attribution_l r_l",
    "first_order_in_span": "-<dNLL/dtheta_l, P_l tau_l>",
}
NEEDS_GRADIENT = frozenset(("attribution", "attribution_x_update", "first_order_in_span"))


@dataclass(frozen=True, slots=True)
class Subject:
    """What the candidates of one subject are computed from."""

    spec: GainSpec
    name: str
    pairs: list[tuple[str, str]]
    score: Float[np.ndarray, " n_layers"]
    update: Float[np.ndarray, " n_layers"]


def candidate_values(subject: Subject, context: Context) -> dict[str, Float[np.ndarray, " n_layers"]]:
    """Return every candidate's value of each layer for one subject."""
    spec, progress = subject.spec, Progress()
    loaded = context.load(spec.diagnosis.model, progress)
    projected = _projected_edit(subject, loaded, context, progress)
    span = np.zeros(loaded.layout.n_layers)
    size = np.zeros(loaded.layout.n_layers)
    for site in loaded.layout.matrices:
        span[site.layer] += float(projected(site.name).square().sum())
        size[site.layer] += float(loaded.parameter(site.name).detach().float().square().sum())
    span = np.sqrt(span / size)
    latents = selected_latents(spec.diagnosis, subject.name, spec.diagnosis.top_k, context, progress)
    change = _rate_change(subject, latents, loaded, context)
    attribution = _attribution(subject, latents, loaded, context)
    first_order = -first_order_effects(loaded, subject.pairs, projected).mean(0)
    values = {
        "score_step": np.diff(subject.score, prepend=0.0),
        "score_x_update": subject.score * subject.update,
        "score_x_span_energy": subject.score * span,
        "span_energy": span,
        "rate_change": change,
        "rate_change_step": np.diff(change, prepend=0.0),
        "attribution": attribution,
        "attribution_x_update": attribution * subject.update,
        "first_order_in_span": first_order,
    }
    assert values.keys() == FORMULAS.keys()
    return values


def _recipe(subject: Subject, edit_type: RawEdit | ProjectedEdit, n_layers: int) -> EditRecipe:
    spec = subject.spec
    layers = dict.fromkeys(range(n_layers), LayerAlpha())
    return EditRecipe(model=spec.diagnosis.model, task_vector=spec.task_vector, layers=layers, edit_type=edit_type)


def _projected_edit(
    subject: Subject, loaded: LoadedModel, context: Context, progress: Progress
) -> Callable[[str], Float[Tensor, "out in"]]:
    """Return a function that gives P tau of a parameter by name; zero if no SAE matches the matrix."""
    diagnosis = subject.spec.diagnosis
    edit_type = ProjectedEdit(diagnosis=diagnosis, subject=subject.name, top_k=diagnosis.top_k)
    tensors = patch_of(_recipe(subject, edit_type, loaded.layout.n_layers), context, progress).tensors

    def edit(name: str) -> Tensor:
        base = loaded.parameter(name).detach().float()
        return tensors[name].float() - base if name in tensors else torch.zeros_like(base)

    return edit


def _rate_change(
    subject: Subject, latents: dict[int, np.ndarray], loaded: LoadedModel, context: Context
) -> Float[np.ndarray, " n_layers"]:
    """Return how much the selected latents' rates on the subject move when every layer is injected."""
    diagnosis = subject.spec.diagnosis
    before = firing_rates(diagnosis, subject.name, context, Progress())
    patch = patch_of(_recipe(subject, RawEdit(), loaded.layout.n_layers), context, Progress())
    bank = context.bank(diagnosis.listens_with, loaded, Progress())
    with applied(loaded, patch):
        after = count_firing(loaded, bank, corpus_documents(diagnosis, subject.name), tokens=diagnosis.tokens)
    moved = [np.abs(after.mean_rate(layer) - before.mean_rate(layer))[latents[layer]] for layer in sorted(latents)]
    return np.array([float(change.mean()) if len(change) else 0.0 for change in moved])


def _attribution(
    subject: Subject, latents: dict[int, np.ndarray], loaded: LoadedModel, context: Context
) -> Float[np.ndarray, " n_layers"]:
    """Return how much the NLL depends on the selected latents' directions, layer by layer, one problem at a time."""
    bank = context.bank(subject.spec.diagnosis.listens_with, loaded, Progress())
    rows_of = {layer: bank.load(layer).W_dec[torch.from_numpy(latents[layer])] for layer in latents}
    total = np.zeros(loaded.layout.n_layers)
    handles = []

    def listen(layer: int) -> None:
        def forward(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            def backward(gradient: Tensor) -> None:  # [1, seq, d_model]
                total[layer] += float((gradient[0].float() @ rows_of[layer].T).sum(0).abs().sum())

            (output[0] if isinstance(output, tuple) else output).register_hook(backward)

        module = loaded.model.get_submodule(f"{loaded.layout.layers}.{layer}")
        handles.append(module.register_forward_hook(forward))

    rows, scored = encode_solutions(loaded, subject.pairs)
    try:
        for layer in rows_of:
            listen(layer)
        with torch.enable_grad(), graph_from_embeddings(loaded):
            for row, n in zip(rows, scored, strict=True):
                ids = torch.tensor([row], device=loaded.device)
                logits = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=n + 1).logits
                mean_nll(logits, ids, [n]).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return total / len(rows)
