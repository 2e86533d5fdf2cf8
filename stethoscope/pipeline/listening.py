"""Firing rates shared by diagnosis, energy and projected edits: seeded documents, their rates, and the top latents."""

import numpy as np
import torch

from stethoscope.delta.projection import RowsOfLayer
from stethoscope.errors import CorpusError
from stethoscope.minerva.problems import sample_problems
from stethoscope.minerva.sources import load_corpus
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec
from stethoscope.sae.counts import check_layers, count_firing
from stethoscope.sae.documents import Document
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.selection import select_latents

BATCH_TOKENS = {False: 1024, True: 8192}  # small batches stay in a CPU's cache; a GPU needs large ones
CAPTURED_BYTES = {False: 1 << 30, True: 4 << 30}  # a larger value reads each SAE fewer times


def corpus_documents(spec: DiagnoseSpec, corpus: str) -> list[Document]:
    """Return the seeded sample of `spec.documents` texts of a subject or control corpus.

    Raises:
        CorpusError: fewer texts than requested.
    """
    sample = sample_problems(load_corpus(spec.problems, corpus, spec.split), corpus, spec.documents, spec.seed)
    return [Document(problem=problem.problem, solution=problem.solution, subject=corpus) for problem in sample]


def start_listening(
    spec: DiagnoseSpec, n_corpora: int, context: Context, progress: Progress, *, layers: tuple[int, ...] | None = None
) -> None:
    """Load the model, download its SAEs if necessary, and start counting the documents of `n_corpora` corpora.

    Only the SAEs of `layers` are downloaded; all of them if None.

    Raises:
        SaeError: SAEs that do not fit the model; detected before the download from file names or settings if possible,
            otherwise after the first SAE.
    """
    loaded = context.load(spec.model, progress)
    bank = context.bank(spec.listens_with, loaded, progress)
    check_layers(loaded, bank, bank.layers)
    bank.fetch(bank.layers if layers is None else layers, progress)
    progress.start("Listening", n_corpora * spec.documents)


def firing_rates(
    spec: DiagnoseSpec, corpus: str, context: Context, progress: Progress, *, layers: tuple[int, ...] | None = None
) -> FiringRates:
    """Return the firing rates and mass of every SAE's latents on a corpus, per document.

    With `layers`, only these are measured, unless all layers have been measured before. The rates do not depend on the
    score, top-k or thresholds, so changing those measures nothing again. Counts the documents on `progress` (which the
    caller has started with `start_listening`).
    """
    loaded = context.load(spec.model, progress)
    neutral = DiagnoseSpec(
        model=spec.model,
        saes=spec.saes,
        problems=spec.problems,
        control=corpus,
        documents=spec.documents,
        split=spec.split,
        tokens=spec.tokens,
        seed=spec.seed,
    )
    key = context.identity(neutral)
    if layers is not None and key not in context.rates.entries:
        key = f"{key} layers {layers}"
    counted = False

    def count() -> FiringRates:
        nonlocal counted
        counted = True
        return count_firing(
            loaded,
            context.bank(spec.listens_with, loaded, progress),
            corpus_documents(spec, corpus),
            layers=layers,
            tokens=spec.tokens,
            batch_tokens=BATCH_TOKENS[loaded.device.type == "cuda"],
            capture_bytes=CAPTURED_BYTES[loaded.device.type == "cuda"],
            progress=progress,
        )

    rates = context.rates_of(key, count)
    if not counted:
        progress.skip(spec.documents)
    return rates


def scoring_device(loaded: LoadedModel) -> torch.device:
    """Return the device for scoring draws of documents: the model's GPU, or the CPU (MPS lacks float64)."""
    return loaded.device if loaded.device.type == "cuda" else torch.device("cpu")


def top_latents(spec: DiagnoseSpec, top_k: int, domain: FiringRates, control: FiringRates) -> dict[int, np.ndarray]:
    """Return for each layer the indices of the top latents, largest effect first (all documents used)."""
    return {layer: select_latents(domain, control, layer, top_k, cuts=spec.cuts) for layer in domain.layers}


def selected_latents(
    spec: DiagnoseSpec, subject: str, top_k: int, context: Context, progress: Progress
) -> dict[int, np.ndarray]:
    """Return for each layer the subject's top latents, largest effect first.

    Raises:
        CorpusError: no latent of the subject is live and sparse in any layer.
    """
    start_listening(spec, 2, context, progress)
    domain = firing_rates(spec, subject, context, progress)
    latents = top_latents(spec, top_k, domain, firing_rates(spec, spec.control, context, progress))
    if not any(len(chosen) for chosen in latents.values()):
        raise CorpusError(
            f"no live, sparse latent fires more on {subject} in any layer",
            expected=f"latents firing in at least {spec.live_share:.0%} of documents and on at most "
            f"{spec.dense_rate:.0%} of control tokens",
            next_step="Lower live_share or raise dense_rate in the profile.",
        )
    return latents


def decoder_rows(
    spec: DiagnoseSpec, subject: str, top_k: int, loaded: LoadedModel, context: Context, progress: Progress
) -> RowsOfLayer:
    """Return a function that maps a layer to the decoder rows [k, d] of the subject's top latents; None without an SAE.

    Raises:
        CorpusError: no latent of the subject is live and sparse in any layer.
    """
    latents = selected_latents(spec, subject, top_k, context, progress)
    bank = context.bank(spec.listens_with, loaded, progress)

    def rows_of_layer(layer: int) -> torch.Tensor | None:
        if layer not in latents:
            return None
        return bank.load(layer).W_dec[torch.from_numpy(latents[layer])]

    return rows_of_layer
