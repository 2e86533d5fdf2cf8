"""Which layers are specific to a subject: a score per layer with its interval, its permutation p and its rank.

The scores are defined in `scores`. Their uncertainty is that of the documents: a bootstrap with halves fixed by
document gives the interval and P(top-1), the share of draws in which a layer comes first; shuffled labels give

    p = (1 + draws with a score at least as high) / (1 + draws),

corrected over the layers by step-down max-T from the same draws, which all layers share. Layers are worked off one
after the other: what is held is one layer's live latents and a block of draws, however many layers there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from stethoscope.errors import CorpusError
from stethoscope.progress import Progress
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.scores import SCORES, LayerSample
from stethoscope.sae.selection import live_latents
from stethoscope.statistics import SIGNIFICANCE, percentile_interval, step_down_max_t

MIN_DOCUMENTS = 20
SAME_SCORE = 1e-6  # a permuted score this far below the observed one, of its size, equals it: float32 sums


@dataclass(frozen=True, slots=True)
class LayerSpecificity:
    """One layer's score for one subject; None where no latent of the layer can be selected.

    Attributes:
        score: the layer score, in the units of its formula.
        ci_low: lower end of the document bootstrap's 95% percentile interval.
        ci_high: its upper end.
        p: one-sided label-permutation p; never below 1 / (1 + permutations).
        p_adjusted: p corrected over the layers of the subject, family-wise; never below 1 / (1 + permutations) either.
        specific: the layer is shown to be specific: p_adjusted is below .05 and the interval lies above the null.
        n_live: live latents of the layer.
        n_documents: domain documents listened to.
        p_top: share of bootstrap draws in which this layer comes first (layers that tie share the draw).
    """

    layer: int
    score: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_adjusted: float | None
    specific: bool | None
    n_live: int
    n_documents: int
    p_top: float | None


@dataclass(frozen=True, slots=True)
class Variant:
    """A score and a number of selected latents."""

    score: str
    top_k: int


def specificity(
    domain: FiringRates,
    control: FiringRates,
    *,
    score: str = "mean_rate_difference",
    top_k: int = 16,
    live_share: float = 0.01,
    dense_rate: float = 0.10,
    n_splits: int = 8,
    n_bootstrap: int = 200,
    n_permutations: int = 299,
    seed: int = 0,
    cross_fit: bool = True,
    progress: Progress | None = None,
) -> list[LayerSpecificity]:
    """Score every layer for one subject, in layer order.

    `cross_fit=False` selects and scores on the same documents (biased; for comparison only).

    Raises:
        CorpusError: fewer than 20 documents on either side.
        Cancelled: asked to stop.
    """
    progress = progress or Progress()
    design = _design(domain, control, n_splits if cross_fit else 0, seed)
    method = SCORES[score]
    bootstrap, permuted = Bootstrap(design, n_bootstrap), Permuted(design, n_permutations)
    layers = sorted(domain.layers)
    observed = np.full(len(layers), np.nan)
    draws, null = np.full((n_bootstrap, len(layers)), np.nan), np.full((n_permutations, len(layers)), np.nan)
    n_live: list[int] = []
    for i, layer in enumerate(layers):
        sample = _sample(domain, control, layer, live_share=live_share, dense_rate=dense_rate, top_k=top_k,
                         with_mass=method.needs_mass)  # fmt: skip
        n_live.append(sample.rates.shape[1])
        observed[i] = method.observed(sample, design)
        draws[:, i] = method.bootstrap(sample, bootstrap, progress)
        null[:, i] = method.permuted(sample, permuted, progress)
    draws, null = _or_null(draws, method.null), _or_null(null, method.null)
    return _rows(layers, n_live, design.n_domain, observed, draws, null, method.null)


def score_draws(
    domain: FiringRates,
    control: FiringRates,
    *,
    score: str = "mean_rate_difference",
    top_k: int = 16,
    live_share: float = 0.01,
    dense_rate: float = 0.10,
    n_splits: int = 8,
    n_bootstrap: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Float[np.ndarray, "draws n_layers"]:
    """Return the bootstrap draws of every layer's score behind `specificity`'s intervals, layers in order.

    A row is one draw of the documents, the same for every layer. A layer without a latent to select is NaN in all rows.

    Raises:
        CorpusError: fewer than 20 documents on either side.
        Cancelled: asked to stop.
    """
    design = _design(domain, control, n_splits, seed)
    method, bootstrap = SCORES[score], Bootstrap(design, n_bootstrap)
    columns = []
    for layer in sorted(domain.layers):
        sample = _sample(domain, control, layer, live_share=live_share, dense_rate=dense_rate, top_k=top_k,
                         with_mass=method.needs_mass)  # fmt: skip
        drawn = method.bootstrap(sample, bootstrap, progress or Progress())
        known = not np.isnan(method.observed(sample, design))
        columns.append(_or_null(drawn, method.null) if known else np.full(n_bootstrap, np.nan))
    return np.stack(columns, axis=1)


def observed_scores(
    domain: FiringRates,
    control: FiringRates,
    variants: Sequence[Variant],
    *,
    live_share: float = 0.01,
    dense_rate: float = 0.10,
    n_splits: int = 8,
    seed: int = 0,
) -> Float[np.ndarray, "n_variants n_layers"]:
    """Return the scores of every layer, in order, for each variant, without their uncertainty; NaN where undefined.

    Raises:
        CorpusError: fewer than 20 documents on either side.
    """
    design = _design(domain, control, n_splits, seed)
    layers = sorted(domain.layers)
    scores = np.empty((len(variants), len(layers)))
    with_mass = any(SCORES[variant.score].needs_mass for variant in variants)
    for i, layer in enumerate(layers):
        sample = _sample(domain, control, layer, live_share=live_share, dense_rate=dense_rate, top_k=1,
                         with_mass=with_mass)  # fmt: skip
        for row, variant in enumerate(variants):
            scores[row, i] = SCORES[variant.score].observed(replace(sample, top_k=variant.top_k), design)
    return scores


def _design(domain: FiringRates, control: FiringRates, n_splits: int, seed: int) -> Design:
    assert sorted(domain.layers) == sorted(control.layers), "domain and control were listened to at different layers"
    for what, rates in (("domain", domain), ("control", control)):
        if len(rates.n_tokens) < MIN_DOCUMENTS:
            raise CorpusError(
                f"the {what} corpus is too small for a diagnosis",
                got=f"{len(rates.n_tokens)} documents",
                expected=f"at least {MIN_DOCUMENTS}",
                next_step="Add texts, or pick another corpus.",
            )
    return Design.of(len(domain.n_tokens), len(control.n_tokens), n_splits=n_splits, seed=seed)


def _sample(
    domain: FiringRates,
    control: FiringRates,
    layer: int,
    *,
    live_share: float,
    dense_rate: float,
    top_k: int,
    with_mass: bool,
) -> LayerSample:
    """Take the live latents of one layer, domain documents first."""
    live = np.flatnonzero(live_latents(domain, control, layer, live_share))
    both = (domain, control)
    return LayerSample(
        rates=np.concatenate([rates.dense(layer, live) for rates in both]),
        mass=np.concatenate([rates.mass(layer, live) for rates in both]) if with_mass else None,
        total_mass=np.concatenate([rates.total_mass(layer) for rates in both]) if with_mass else None,
        top_k=top_k,
        dense_rate=dense_rate,
        floor=1 / (2 * float(control.n_tokens.sum())),
    )


def _or_null(draws: Float[np.ndarray, "*shape"], null: float) -> Float[np.ndarray, "*shape"]:
    """Return draws in which nothing could be selected as draws that found nothing."""
    return np.where(np.isnan(draws), null, draws)


def _rows(
    layers: list[int],
    n_live: list[int],
    n_documents: int,
    observed: Float[np.ndarray, " n_layers"],
    draws: Float[np.ndarray, "draws n_layers"],
    null: Float[np.ndarray, "permutations n_layers"],
    at_null: float,
) -> list[LayerSpecificity]:
    alive = ~np.isnan(observed)
    intervals = [percentile_interval(column) for column in draws.T]
    slack = SAME_SCORE * np.maximum(np.abs(observed), 1e-3)
    p = (1 + (null >= observed - slack).sum(0)) / (1 + len(null))
    p_adjusted = np.ones(len(layers))
    p_adjusted[alive] = step_down_max_t(observed[alive], null[:, alive], slack[alive])
    p_top = rank_first(np.where(alive, draws, np.nan))

    def known(value: float, i: int) -> float | None:
        return float(value) if alive[i] else None

    return [
        LayerSpecificity(
            layer=layer,
            score=known(observed[i], i),
            ci_low=known(intervals[i].low, i),
            ci_high=known(intervals[i].high, i),
            p=known(p[i], i),
            p_adjusted=known(p_adjusted[i], i),
            specific=bool(p_adjusted[i] < SIGNIFICANCE and intervals[i].low > at_null) if alive[i] else None,
            n_live=n_live[i],
            n_documents=n_documents,
            p_top=known(p_top[i], i),
        )
        for i, layer in enumerate(layers)
    ]


def rank_first(draws: Float[np.ndarray, "draws n_layers"]) -> Float[np.ndarray, " n_layers"]:
    """Return P(top-1): the share of draws in which each layer comes first; ties share a draw, NaN never comes first."""
    ranked = np.where(np.isnan(draws), -np.inf, draws)
    best = ranked.max(axis=1, keepdims=True)
    first = (ranked == best) & np.isfinite(best)
    return (first / np.maximum(first.sum(1, keepdims=True), 1)).mean(0)
