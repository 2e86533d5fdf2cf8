"""Use case: examples of a latent. Shows the tokens on which it fires.

The stored firing rates and masses bound each document's peak activation (mean over firing tokens <= peak <= sum over
them), so that only documents that may be among the strongest are run again.
"""

import numpy as np

from stethoscope.errors import SaeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.latents import check_subject
from stethoscope.pipeline.listening import corpus_documents, firing_rates, start_listening
from stethoscope.progress import Progress
from stethoscope.records import LatentExamplesSpec
from stethoscope.results import LatentExample, LatentExamplesResult
from stethoscope.sae.bank import SaeBank
from stethoscope.sae.counts import check_layers
from stethoscope.sae.documents import listen, tokenise
from stethoscope.sae.rates import FiringRates

ROUNDING = 1e-3  # sums and means in the table are float32


def run(spec: LatentExamplesSpec, context: Context, progress: Progress) -> LatentExamplesResult:
    """Return the documents of subject and control corpus with the latent's strongest activations, strongest first.

    Raises:
        CorpusError: a subject that the problems do not have.
        SaeError: a layer without an SAE, or a latent that its SAE does not have.
    """
    diagnosis = spec.diagnosis
    check_subject(diagnosis, spec.subject)
    loaded = context.load(diagnosis.model, progress)
    bank = context.bank(diagnosis.listens_with, loaded, progress)
    check_layers(loaded, bank, [spec.layer])
    d_sae = bank.row(spec.layer).d_sae
    if spec.latent >= d_sae:
        raise SaeError(
            f"layer {spec.layer} has no latent {spec.latent}",
            got=f"an SAE with {d_sae} latents",
            expected=f"0 to {d_sae - 1}",
            next_step="Choose one of these.",
        )
    corpora, layers = (spec.subject, diagnosis.control), (spec.layer,)
    start_listening(diagnosis, 2, context, progress, layers=layers)
    rates = {corpus: firing_rates(diagnosis, corpus, context, progress, layers=layers) for corpus in corpora}
    progress.start("Reading examples", 2 * spec.n)
    examples = [
        found for corpus in corpora for found in _strongest(spec, corpus, rates[corpus], loaded, bank, progress)
    ]
    return LatentExamplesResult(
        layer=spec.layer,
        latent=spec.latent,
        subject=spec.subject,
        control=diagnosis.control,
        examples=tuple(examples),
    )


def candidates(rates: FiringRates, layer: int, latent: int, n: int) -> np.ndarray:
    """Return the documents that may be among the n with the latent's strongest peak activation."""
    rate, mass = rates.dense(layer, [latent])[:, 0], rates.mass(layer, [latent])[:, 0]
    fires = np.flatnonzero(rate)
    at_least, at_most = mass[fires] / rate[fires], mass[fires] * rates.n_tokens[fires]
    if len(fires) <= n:
        return fires
    return fires[at_most >= np.sort(at_least)[-n] * (1 - ROUNDING)]


def _strongest(
    spec: LatentExamplesSpec,
    corpus: str,
    rates: FiringRates,
    loaded: LoadedModel,
    bank: SaeBank,
    progress: Progress,
) -> list[LatentExample]:
    chosen = candidates(rates, spec.layer, spec.latent, spec.n)
    documents = corpus_documents(spec.diagnosis, corpus)
    rows = tokenise(loaded, [documents[i] for i in chosen], spec.diagnosis.tokens)
    sae = bank.load(spec.layer).only([spec.latent])
    found: list[LatentExample] = []
    for heard in listen(loaded, rows, [spec.layer], bank.ref.site, d=bank.d_model, progress=progress):
        x = heard.take(spec.layer)
        of_token = sae.to(x.device).encode(x)[:, 0].cpu().numpy()
        for i, activations in zip(heard.documents, np.split(of_token, np.cumsum(heard.n_tokens)[:-1]), strict=True):
            ids = rows[i][loaded.skipped_tokens :]
            tokens = tuple(loaded.decode([token]) for token in ids)
            found.append(LatentExample(corpus=corpus, tokens=tokens, activations=tuple(activations.tolist())))
    progress.advance(spec.n)
    return sorted(found, key=lambda example: -max(example.activations))[: spec.n]
