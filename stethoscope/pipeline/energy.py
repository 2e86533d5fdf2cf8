"""Use case: energy. The share of the task vector's energy that survives projection on a subject's latents and other
spans."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stethoscope.delta.activity import measure_activity
from stethoscope.delta.energy import energy_cells
from stethoscope.delta.parts import LayerSpectra, References
from stethoscope.delta.projection import layer_basis
from stethoscope.model.residual import site_width
from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.listening import corpus_documents, firing_rates, selected_latents, top_latents
from stethoscope.progress import Progress
from stethoscope.records import EnergySpec
from stethoscope.results import EnergyResult
from stethoscope.sae.bank import SaeBank
from stethoscope.sae.documents import tokenise
from stethoscope.sae.matching import matched_latents


def run(spec: EnergySpec, context: Context, progress: Progress) -> EnergyResult:
    """Return retention, null, enrichment, ceiling and references per matrix and per layer for every k of the spec."""
    diagnosis, site = spec.diagnosis, spec.diagnosis.listens_with.site
    loaded = context.load(diagnosis.model, progress)
    task_vector = context.task_vector(spec.task_vector, loaded, progress)
    bank = context.bank(diagnosis.listens_with, loaded, progress)
    spans = {
        layer: _rows_of(bank, layer, latents)
        for layer, latents in _choose_latents(spec, bank, context, progress).items()
        if layer < loaded.layout.n_layers
    }
    width = site_width(loaded, site)
    bases = {
        layer: basis.to(loaded.device)
        for layer in spans
        if (basis := layer_basis(lambda of: spans[of].selected, layer, width)) is not None
    }
    activity = measure_activity(
        loaded,
        task_vector,
        bases,
        tokenise(loaded, corpus_documents(diagnosis, spec.subject), diagnosis.tokens),
        n_components=max(spec.k),
        sae_site=site,
        fold_gains=spec.fold_gains,
        progress=progress,
    )
    owner = f"{context.identity(diagnosis.model)} {context.identity(spec.task_vector)}"

    def spectra_of(key: str, make: Callable[[], LayerSpectra]) -> LayerSpectra:
        return context.spectra_of(f"{owner} {key}", make)

    table = energy_cells(
        loaded,
        task_vector,
        lambda layer: spans[layer].selected if layer in spans else None,
        spec.k,
        spec.subject,
        progress,
        sae_site=site,
        fold_gains=spec.fold_gains,
        references=_references(spans, activity.components, spec.draws),
        functional=activity.functional,
        spectra_of=spectra_of,
    )
    return EnergyResult(
        task_vector=spec.task_vector.name,
        subject=spec.subject,
        control=diagnosis.control,
        site=site,
        n_layers=loaded.layout.n_layers,
        d_model=loaded.layout.d_model,
        k=spec.k,
        cells=table.cells,
        layers=table.layers,
        fold_gains=spec.fold_gains,
        draws=spec.draws,
        n_tokens=activity.n_tokens,
    )


@dataclass(frozen=True)
class _Latents:
    """The latents of one layer for each span."""

    selected: np.ndarray
    control: np.ndarray
    random: list[np.ndarray]


@dataclass(frozen=True)
class _Rows:
    """The directions of these latents, each [k, d]."""

    selected: Tensor
    encoder: Tensor
    control: Tensor
    random: list[Tensor]


def _choose_latents(spec: EnergySpec, bank: SaeBank, context: Context, progress: Progress) -> dict[int, _Latents]:
    """Return the subject's top latents of each layer, those of the control corpus (roles swapped), and matched random
    ones."""
    diagnosis, top_k = spec.diagnosis, max(spec.k)
    every = max(row.d_sae for row in bank.rows)
    candidates = selected_latents(diagnosis, spec.subject, every, context, progress)  # live, sparse, by effect
    domain = firing_rates(diagnosis, spec.subject, context, Progress())
    control = firing_rates(diagnosis, diagnosis.control, context, Progress())
    swapped = top_latents(diagnosis, top_k, control, domain)
    return {
        layer: _Latents(
            selected=latents[:top_k],
            control=swapped[layer],
            random=matched_latents(
                domain.mean_rate(layer), latents[:top_k], latents, draws=spec.draws, seed=(diagnosis.seed, layer)
            ),
        )
        for layer, latents in candidates.items()
    }


def _rows_of(bank: SaeBank, layer: int, latents: _Latents) -> _Rows:
    """Read the SAE of `layer` once."""
    sae = bank.load(layer)

    def decoder(chosen: np.ndarray) -> Tensor:
        return sae.W_dec[torch.from_numpy(chosen)]

    return _Rows(
        selected=decoder(latents.selected),
        encoder=sae.W_enc[:, torch.from_numpy(latents.selected)].T.contiguous(),
        control=decoder(latents.control),
        random=[decoder(chosen) for chosen in latents.random],
    )


def _references(spans: Mapping[int, _Rows], components: Mapping[int, Tensor], draws: int) -> References:
    def random_rows(draw: int) -> Callable[[int], Tensor | None]:
        return lambda layer: spans[layer].random[draw] if layer in spans else None

    return References(
        components=components.get,
        control=lambda layer: spans[layer].control if layer in spans else None,
        encoder=lambda layer: spans[layer].encoder if layer in spans else None,
        random=tuple(random_rows(draw) for draw in range(draws)),
    )


def needs(spec: EnergySpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of measuring firing rates and of the energy table."""
    yield job_memory.listening(spec.diagnosis, setting, saes_of)
    yield job_memory.measuring_energy(spec.diagnosis, setting, saes_of)


def smaller(spec: EnergySpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_documents(spec.diagnosis)
