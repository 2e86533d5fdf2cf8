"""Specificity of layers to a subject: a score per layer with interval, permutation p value and rank.

The scores are defined in `scores`. Uncertainty is over documents: a bootstrap with fixed halves gives the interval and
P(top-1), the share of draws in which a layer ranks first; shuffled labels give

    p = (1 + draws with a score at least as high) / (1 + draws),

corrected over the layers by step-down max-T with the same draws for all layers. A layer needs its live latents and a
block of draws in memory. A CPU processes one layer per core, other devices one layer at a time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float

from stethoscope.errors import CorpusError
from stethoscope.progress import Progress
from stethoscope.records import DEFAULT_CUTS, Cuts
from stethoscope.results import SpecificityCell
from stethoscope.sae.rates import FiringRates, stack_tables
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.sample import LayerSample
from stethoscope.sae.scores import SCORES
from stethoscope.sae.selection import live_latents
from stethoscope.statistics import SIGNIFICANCE, percentile_interval, step_down_max_t

MIN_DOCUMENTS = 20
Found = TypeVar("Found")
SAME_SCORE = 1e-6  # relative tolerance within which a permuted score equals the observed one (float32 sums)


@dataclass(frozen=True, slots=True)
class Variant:
    """A score and a number of selected latents."""

    score: str
    top_k: int


def specificity(
    domain: FiringRates,
    control: FiringRates,
    *,
    subject: str = "",
    score: str = "mean_rate_difference",
    top_k: int = 16,
    cuts: Cuts = DEFAULT_CUTS,
    n_bootstrap: int = 200,
    n_permutations: int = 299,
    cross_fit: bool = True,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[SpecificityCell]:
    """Score every layer for `subject`, in layer order; count each on `progress`, which the caller has started.

    `cross_fit=False` selects and scores on the same documents (biased; for comparison only). The draws are the same on
    every `device`, and their scores agree within 1e-6.

    Raises:
        CorpusError: fewer than 20 documents on either side.
        Cancelled: the job was stopped.
    """
    progress = progress or Progress()
    design = _design(domain, control, cuts.n_splits if cross_fit else 0, cuts.seed)
    method = SCORES[score]
    bootstrap, permuted = Bootstrap(design, n_bootstrap, device), Permuted(design, n_permutations, device)
    layers = sorted(domain.layers)

    def score_layer(layer: int) -> _LayerDraws:
        sample = _sample(
            domain,
            control,
            layer,
            cuts=cuts,
            top_k=top_k,
            with_mass=method.needs_mass,
            device=device,
        )
        return _LayerDraws(
            sample.n_latents,
            method.observed(sample, design),
            method.bootstrap(sample, bootstrap, progress),
            method.permuted(sample, permuted, progress),
        )

    found = _map_layers(score_layer, layers, device, progress)
    observed = np.array([row.observed for row in found])
    draws, null = (np.stack(columns, axis=1) for columns in zip(*((row.draws, row.null) for row in found), strict=True))
    n_live = [row.n_live for row in found]
    draws, null = _or_null(draws, method.null), _or_null(null, method.null)
    return _rows(subject, layers, n_live, design.n_domain, observed, draws, null, method.null)


def score_draws(
    domain: FiringRates,
    control: FiringRates,
    *,
    score: str = "mean_rate_difference",
    top_k: int = 16,
    cuts: Cuts = DEFAULT_CUTS,
    n_bootstrap: int = 200,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Float[np.ndarray, "draws n_layers"]:
    """Return the bootstrap draws of every layer's score behind `specificity`'s intervals, layers in order.

    Counts each layer on `progress`, which the caller has started.

    A row is one draw of the documents, the same for all layers. A layer without selectable latents is NaN in all rows.

    Raises:
        CorpusError: fewer than 20 documents on either side.
        Cancelled: the job was stopped.
    """
    design = _design(domain, control, cuts.n_splits, cuts.seed)
    method, bootstrap = SCORES[score], Bootstrap(design, n_bootstrap, device)
    progress = progress or Progress()

    def draw_layer(layer: int) -> Float[np.ndarray, " draws"]:
        sample = _sample(
            domain,
            control,
            layer,
            cuts=cuts,
            top_k=top_k,
            with_mass=method.needs_mass,
            device=device,
        )
        drawn = method.bootstrap(sample, bootstrap, progress)
        known = not np.isnan(method.observed(sample, design))
        return _or_null(drawn, method.null) if known else np.full(n_bootstrap, np.nan)

    return np.stack(_map_layers(draw_layer, sorted(domain.layers), device, progress), axis=1)


def observed_scores(
    domain: FiringRates,
    control: FiringRates,
    variants: Sequence[Variant],
    *,
    cuts: Cuts = DEFAULT_CUTS,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Float[np.ndarray, "n_variants n_layers"]:
    """Return the scores of every layer, in order, for each variant, without uncertainty; NaN if undefined.

    Counts each layer on `progress`, which the caller has started.

    Raises:
        CorpusError: fewer than 20 documents on either side.
    """
    design = _design(domain, control, cuts.n_splits, cuts.seed)
    progress = progress or Progress()
    with_mass = any(SCORES[variant.score].needs_mass for variant in variants)

    def score_layer(layer: int) -> list[float]:
        sample = _sample(
            domain,
            control,
            layer,
            cuts=cuts,
            top_k=1,
            with_mass=with_mass,
            device=device,
        )
        progress.check_cancel()
        return [SCORES[variant.score].observed(replace(sample, top_k=variant.top_k), design) for variant in variants]

    return np.array(_map_layers(score_layer, sorted(domain.layers), device, progress)).T


@dataclass(frozen=True, slots=True)
class _LayerDraws:
    """Score of one layer on the observed documents and on draws."""

    n_live: int
    observed: float
    draws: Float[np.ndarray, " draws"]
    null: Float[np.ndarray, " permutations"]


def _map_layers(
    work: Callable[[int], Found], layers: Sequence[int], device: torch.device | str, progress: Progress
) -> list[Found]:
    """Return `work` of each layer, counted on `progress`; on a CPU in parallel, with one torch thread each."""
    n_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    found: list[Found] = []
    with ThreadPoolExecutor(n_threads, initializer=lambda: torch.set_num_threads(1)) as executor:
        try:
            for of_layer in executor.map(work, layers) if n_threads > 1 else map(work, layers):
                progress.check_cancel()
                found.append(of_layer)
                progress.advance()
        finally:
            torch.set_num_threads(torch.get_num_threads())  # threads started later use the caller's number again
            executor.shutdown(cancel_futures=True)
    return found


def _design(domain: FiringRates, control: FiringRates, n_splits: int, seed: int) -> Design:
    assert sorted(domain.layers) == sorted(control.layers), "subject and control were measured at different layers"
    for what, rates in (("domain", domain), ("control", control)):
        if len(rates.n_tokens) < MIN_DOCUMENTS:
            raise CorpusError(
                f"the {what} corpus is too small for a diagnosis",
                got=f"{len(rates.n_tokens)} documents",
                expected=f"at least {MIN_DOCUMENTS}",
                next_step="Add texts, or choose another corpus.",
            )
    return Design.of(len(domain.n_tokens), len(control.n_tokens), n_splits=n_splits, seed=seed)


def _sample(
    domain: FiringRates,
    control: FiringRates,
    layer: int,
    *,
    cuts: Cuts,
    top_k: int,
    with_mass: bool,
    device: torch.device | str,
) -> LayerSample:
    """Return the live latents of one layer, domain documents first."""
    return LayerSample.of_table(
        stack_tables([rates.tables[layer] for rates in (domain, control)]),
        np.flatnonzero(live_latents(domain, control, layer, cuts.live_share)),
        with_mass=with_mass,
        top_k=top_k,
        dense_rate=cuts.dense_rate,
        floor=1 / (2 * float(control.n_tokens.sum())),
        device=device,
    )


def _or_null(draws: Float[np.ndarray, "*shape"], null: float) -> Float[np.ndarray, "*shape"]:
    """Return draws with the null value where nothing could be selected."""
    return np.where(np.isnan(draws), null, draws)


def _rows(
    subject: str,
    layers: list[int],
    n_live: list[int],
    n_documents: int,
    observed: Float[np.ndarray, " n_layers"],
    draws: Float[np.ndarray, "draws n_layers"],
    null: Float[np.ndarray, "permutations n_layers"],
    at_null: float,
) -> list[SpecificityCell]:
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
        SpecificityCell(
            subject=subject,
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
    """Return P(top-1): the share of draws in which each layer ranks first; ties share a draw, and NaN never ranks
    first."""
    ranked = np.where(np.isnan(draws), -np.inf, draws)
    best = ranked.max(axis=1, keepdims=True)
    first = (ranked == best) & np.isfinite(best)
    return (first / np.maximum(first.sum(1, keepdims=True), 1)).mean(0)
