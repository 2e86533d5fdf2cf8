"""Selection of a subject's latents in a layer, and statistics of each latent.

    effect_j = p_j - q_j,   AUROC_j = P(f_ij > f_i'j) + P(f_ij = f_i'j) / 2   for domain document i, control document i'

A latent is live if it fires in at least `live_share` of all documents, and dense if q_j > `dense_rate`; the top latents
are live and not dense. The two-sided Mann-Whitney p (normal approximation, ties and continuity corrected) is converted
to a q value by Benjamini-Hochberg over the layer's live latents.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from stethoscope.records import DEFAULT_CUTS, Cuts
from stethoscope.sae.rates import FiringRates, stack_tables
from stethoscope.sae.sample import LayerSample
from stethoscope.statistics import benjamini_hochberg


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """One row per latent of the layer, in the SAE's order; auroc, p and q_value are NaN if a latent is not live.

    Attributes:
        domain_rate: p_j, mean firing rate over domain documents.
        control_rate: q_j, mean firing rate over control documents.
        effect: p_j - q_j.
        auroc: AUROC of the firing rate, domain against control; .5 means no separation.
        p: two-sided Mann-Whitney p.
        q_value: Benjamini-Hochberg over the live latents.
        live: whether it fires in enough documents.
        dense: whether it fires on too many control tokens to be selected.
    """

    domain_rate: Float[np.ndarray, " d_sae"]
    control_rate: Float[np.ndarray, " d_sae"]
    effect: Float[np.ndarray, " d_sae"]
    auroc: Float[np.ndarray, " d_sae"]
    p: Float[np.ndarray, " d_sae"]
    q_value: Float[np.ndarray, " d_sae"]
    live: Bool[np.ndarray, " d_sae"]
    dense: Bool[np.ndarray, " d_sae"]


def live_latents(
    domain: FiringRates, control: FiringRates, layer: int, live_share: float
) -> Bool[np.ndarray, " d_sae"]:
    """Return a mask of the latents that fire in at least `live_share` of all documents (and at least one)."""
    n_documents = len(domain.n_tokens) + len(control.n_tokens)
    return domain.n_firing(layer) + control.n_firing(layer) >= max(live_share * n_documents, 1)


def select_latents(
    domain: FiringRates,
    control: FiringRates,
    layer: int,
    k: int,
    *,
    cuts: Cuts = DEFAULT_CUTS,
) -> Int[np.ndarray, " k"]:
    """Return the (at most) k live, non-dense latents with the largest p_j - q_j, largest first, on all documents."""
    q = control.mean_rate(layer)
    effect = domain.mean_rate(layer) - q
    candidates = np.flatnonzero(live_latents(domain, control, layer, cuts.live_share) & (q <= cuts.dense_rate))
    return candidates[np.argsort(-effect[candidates], kind="stable")[:k]]


def latent_statistics(
    domain: FiringRates,
    control: FiringRates,
    layer: int,
    *,
    cuts: Cuts = DEFAULT_CUTS,
) -> LatentStatistics:
    """Return rates, effect, AUROC, p and q value of every latent of `layer`, and whether it is live or dense."""
    p_j, q_j = domain.mean_rate(layer), control.mean_rate(layer)
    live = live_latents(domain, control, layer, cuts.live_share)
    auroc, p, q_value = (np.full(len(live), np.nan) for _ in range(3))
    pooled = stack_tables([rates.tables[layer] for rates in (domain, control)])
    test = LayerSample.of_table(pooled, np.flatnonzero(live)).ranked.test(domain.n_documents)
    auroc[live], p[live] = test.auroc.numpy(), test.p.numpy()
    q_value[live] = benjamini_hochberg(p[live])
    return LatentStatistics(
        domain_rate=p_j,
        control_rate=q_j,
        effect=p_j - q_j,
        auroc=auroc,
        p=p,
        q_value=q_value,
        live=live,
        dense=q_j > cuts.dense_rate,
    )
