"""Which layers are specific to a subject: a score per layer with its interval and its permutation p.

p_j, q_j: mean firing rate of latent j over domain / control documents. Live latents fire in at least `live_share` of
all documents; dense ones (q_j > `dense_rate`) are never selected. The default score is cross-fitted,

    T = mean over splits s, halves A, B of  1/k sum_{j in S_k(A)} (p_j - q_j)(B),   S_k = the k largest p_j - q_j,

because selecting and scoring on the same documents is above 0 on pure noise. Halves are fixed by document when the
bootstrap copies documents (`resampling`): a copy in the other half would leak. The p-value permutes the labels of
documents; Holm runs over the layers. Latents tied at the k-th place count with equal shares. These definitions are
ours, not a paper's. All layers lie side by side in one matrix, so that every layer sees the same draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from stethoscope.errors import CorpusError
from stethoscope.progress import Progress
from stethoscope.sae.resampling import (
    Halves,
    Sample,
    bootstrap_halves,
    document_weights,
    observed_halves,
    permuted_halves,
    permuted_labels,
)
from stethoscope.statistics import holm

MIN_DOCUMENTS = 20
FDR = 0.05
RARE_RATE = 0.01  # a latent that passes for N fires on fewer control tokens than this


@dataclass(frozen=True, slots=True)
class LayerSpecificity:
    """One layer's score for one subject; None where no latent of the layer is live.

    Attributes:
        score: the layer score, in the units of its formula.
        ci_low: lower end of the document bootstrap's 95% percentile interval.
        ci_high: its upper end.
        p: one-sided label-permutation p; never below 1 / (1 + permutations).
        p_holm: p corrected over the layers.
        n_live: latents that were candidates.
        n_documents: domain documents listened to.
        p_top: share of bootstrap draws in which this layer comes first.
    """

    layer: int
    score: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_holm: float | None
    n_live: int
    n_documents: int
    p_top: float | None


class LayerScore(ABC):
    """A way to score layers; `null` is its value when the subject and the control do not differ."""

    name: ClassVar[str]
    formula: ClassVar[str]
    null: ClassVar[float] = 0.0

    @abstractmethod
    def observed(self, sample: Sample) -> Float[np.ndarray, " n_layers"]:
        """Return the score of each layer."""

    @abstractmethod
    def bootstrap(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of resampled documents."""

    @abstractmethod
    def permuted(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of documents whose labels were shuffled."""


class CrossFitted(LayerScore):
    """Selects the k largest p - q on one half and averages `effect` over them on the other."""

    @abstractmethod
    def effect(
        self, p: Float[np.ndarray, "draws latents"], q: Float[np.ndarray, "draws latents"], floor: float
    ) -> Float[np.ndarray, "draws latents"]:
        """Return what a selected latent counts, from its rates on the judging half."""

    def observed(self, sample: Sample) -> Float[np.ndarray, " n_layers"]:
        """Return the score of each layer."""
        return self._average(sample, observed_halves(sample), Progress())[0]

    def bootstrap(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of resampled documents, each copy in its document's half."""
        return self._average(sample, bootstrap_halves(sample, draws), progress)

    def permuted(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of documents whose labels were shuffled."""
        return self._average(sample, permuted_halves(sample, draws), progress)

    def _average(
        self, sample: Sample, splits: Iterable[Halves], progress: Progress
    ) -> Float[np.ndarray, "draws n_layers"]:
        total: list[Float[np.ndarray, "draws n_layers"]] = []
        for halves in splits:
            progress.check_cancel()
            for select, judge in ((halves.a, halves.b), (halves.b, halves.a)):
                delta = select.p - select.q
                delta[select.q > sample.dense_rate] = -np.inf
                effect = self.effect(judge.p, judge.q, sample.floor)
                columns = [_mean_of_top(delta[:, cut], effect[:, cut], sample.top_k) for cut in sample.cuts]
                total.append(np.stack(columns, axis=1))
        return np.mean(total, axis=0)


class MeanRateDifference(CrossFitted):
    """T: how much more often the subject's own latents fire on it."""

    name = "mean_rate_difference"
    formula = "mean of p_j - q_j over the k latents with the largest difference, cross-fitted"

    def effect(
        self, p: Float[np.ndarray, "draws latents"], q: Float[np.ndarray, "draws latents"], floor: float
    ) -> Float[np.ndarray, "draws latents"]:
        """Return p - q."""
        return p - q


class LogRatio(CrossFitted):
    """How many times more often, in nats."""

    name = "log_ratio"
    formula = "mean of log((p_j + e) / (q_j + e)) over the same k latents, cross-fitted; e = 1 / (2 control tokens)"

    def effect(
        self, p: Float[np.ndarray, "draws latents"], q: Float[np.ndarray, "draws latents"], floor: float
    ) -> Float[np.ndarray, "draws latents"]:
        """Return log((p + e) / (q + e))."""
        return np.log((p + floor) / (q + floor))


class SpecificShare(LayerScore):
    """N: the share of live latents that fire more on the subject (Mann-Whitney, FDR 5%) and hardly on the control."""

    name = "specific_share"
    formula = "share of live latents with Mann-Whitney AUROC > .5 at FDR 5% and q_j < 1%"

    def observed(self, sample: Sample) -> Float[np.ndarray, " n_layers"]:
        """Return the score of each layer."""
        n_domain = len(sample.domain)
        labels = np.arange(len(sample.pooled))[None]
        return self._shares(sample, _rank_sums(sample, labels), sample.control.mean(0)[None], n_domain)[0]

    def bootstrap(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of resampled documents (the variance's tie correction is the sample's)."""
        w_domain, w_control = document_weights(sample, draws)
        n_domain, n_control = len(sample.domain), len(sample.control)
        u = np.empty((draws, sample.domain.shape[1]), dtype=np.float32)
        for start in range(0, u.shape[1], 64):
            progress.check_cancel()
            chunk = slice(start, start + 64)
            x, y = sample.domain[:, chunk].T[:, :, None], sample.control[:, chunk].T[:, None, :]
            wins = (x > y).astype(np.float32) + np.float32(0.5) * (x == y)  # [latents, n_domain, n_control]
            u[:, chunk] = np.einsum("lrc,rc->rl", w_domain @ wins, w_control, optimize=True)
        u *= n_domain * n_control
        return self._shares(sample, u, w_control @ sample.control, n_domain)

    def permuted(self, sample: Sample, draws: int, progress: Progress) -> Float[np.ndarray, "draws n_layers"]:
        """Return the scores of documents whose labels were shuffled."""
        progress.check_cancel()
        labels = permuted_labels(sample, draws)
        n_domain = len(sample.domain)
        weights = np.zeros((draws, len(sample.pooled)), dtype=np.float32)
        np.put_along_axis(weights, labels[:, n_domain:], 1 / len(sample.control), axis=1)
        return self._shares(sample, _rank_sums(sample, labels), weights @ sample.pooled, n_domain)

    def _shares(
        self,
        sample: Sample,
        u: Float[np.ndarray, "draws latents"],
        q: Float[np.ndarray, "draws latents"],
        n_domain: int,
    ) -> Float[np.ndarray, "draws n_layers"]:
        """Turn Mann-Whitney's U into p-values and count what passes, per layer."""
        n, n_control = len(sample.pooled), len(sample.pooled) - n_domain
        ties = _tie_term(sample.pooled)
        sd = np.sqrt(n_domain * n_control / 12 * np.maximum((n + 1) - ties / (n * (n - 1)), 1e-12))
        excess = u - n_domain * n_control / 2
        p = 2 * special.ndtr(-np.maximum(np.abs(excess) - 0.5, 0) / sd)
        shares = []
        for cut in sample.cuts:
            width = max(cut.stop - cut.start, 1)
            ordered = np.sort(p[:, cut], axis=1)
            passing = ordered <= FDR * np.arange(1, ordered.shape[1] + 1) / width
            limit = np.where(passing, ordered, -1.0).max(axis=1, initial=-1.0)[:, None]
            specific = (p[:, cut] <= limit) & (excess[:, cut] > 0) & (q[:, cut] < RARE_RATE)
            shares.append(specific.sum(1) / width)
        return np.stack(shares, axis=1)


SCORES: dict[str, LayerScore] = {score.name: score for score in (MeanRateDifference(), SpecificShare(), LogRatio())}


def specificity(
    domain: Mapping[int, Float[np.ndarray, "n_domain d_sae"]],
    control: Mapping[int, Float[np.ndarray, "n_control d_sae"]],
    *,
    score: str = MeanRateDifference.name,
    top_k: int = 16,
    live_share: float = 0.01,
    dense_rate: float = 0.10,
    n_splits: int = 8,
    n_bootstrap: int = 200,
    n_permutations: int = 199,
    seed: int = 0,
    control_tokens: int | None = None,
    cross_fit: bool = True,
    progress: Progress | None = None,
) -> list[LayerSpecificity]:
    """Score every layer for one subject from firing rates per document (`FiringRates.dense`), in layer order.

    `control_tokens` sets the log-ratio's floor e = 1 / (2 control_tokens); where None, documents are counted instead.
    `cross_fit=False` selects and scores on the same documents (biased; for comparison only).

    Raises:
        CorpusError: fewer than 20 documents on either side.
        Cancelled: asked to stop.
    """
    progress = progress or Progress()
    layers = sorted(domain)
    assert layers == sorted(control), "domain and control were listened to at different layers"
    n_domain, n_control = len(domain[layers[0]]), len(control[layers[0]])
    for what, n in (("domain", n_domain), ("control", n_control)):
        if n < MIN_DOCUMENTS:
            raise CorpusError(
                f"the {what} corpus is too small for a diagnosis",
                got=f"{n} documents",
                expected=f"at least {MIN_DOCUMENTS}",
                next_step="Add texts, or pick another corpus.",
            )
    sample = Sample.of(
        [domain[layer] for layer in layers],
        [control[layer] for layer in layers],
        live=[_live(domain[layer], control[layer], live_share) for layer in layers],
        top_k=top_k,
        dense_rate=dense_rate,
        floor=1 / (2 * (control_tokens or n_control)),
        n_splits=n_splits if cross_fit else 0,
        seed=seed,
    )
    method = SCORES[score]
    observed = method.observed(sample)
    draws = method.bootstrap(sample, n_bootstrap, progress)
    null = method.permuted(sample, n_permutations, progress)
    return _rows(layers, sample, observed, draws, null)


def select_latents(
    domain_rates: Float[np.ndarray, "n_domain d_sae"],
    control_rates: Float[np.ndarray, "n_control d_sae"],
    k: int,
    *,
    live_share: float = 0.01,
    dense_rate: float = 0.10,
) -> Int[np.ndarray, " k"]:
    """Return the (at most) k live, non-dense latents with the largest p_j - q_j, largest first, on all documents."""
    q = control_rates.mean(0, dtype=np.float64)
    delta = domain_rates.mean(0, dtype=np.float64) - q
    candidates = np.flatnonzero(_live(domain_rates, control_rates, live_share) & (q <= dense_rate))
    return candidates[np.argsort(-delta[candidates], kind="stable")[:k]]


def _live(
    domain_rates: Float[np.ndarray, "n_domain d_sae"],
    control_rates: Float[np.ndarray, "n_control d_sae"],
    live_share: float,
) -> np.ndarray:
    """Mask the latents that fire in at least `live_share` of all documents, and in one at the least."""
    fires = (domain_rates > 0).sum(0) + (control_rates > 0).sum(0)
    return fires >= max(live_share * (len(domain_rates) + len(control_rates)), 1)


def _mean_of_top(
    delta: Float[np.ndarray, "draws latents"], effect: Float[np.ndarray, "draws latents"], k: int
) -> Float[np.ndarray, " draws"]:
    """Average `effect` over the k largest finite `delta` of each row; latents tied at the k-th place share its slots.

    A row without a finite delta is 0.
    """
    width = delta.shape[1]
    if width == 0:
        return np.zeros(len(delta))
    k = min(k, width)
    kth = np.partition(delta, width - k, axis=1)[:, width - k, None]
    above = delta > kth
    tied = (delta == kth) & np.isfinite(kth)
    n_above, n_tied = above.sum(1), tied.sum(1)
    slots = np.where(n_tied > 0, k - n_above, 0)
    sum_above = np.einsum("rl,rl->r", above.astype(effect.dtype), effect)
    sum_tied = np.einsum("rl,rl->r", tied.astype(effect.dtype), effect)
    return (sum_above + slots * sum_tied / np.maximum(n_tied, 1)) / np.maximum(n_above + slots, 1)


def _rank_sums(sample: Sample, labels: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws latents"]:
    """Mann-Whitney's U of the documents that `labels` puts first, from midranks of all documents."""
    from scipy import stats  # half a second to import: only where it is used

    n_domain = len(sample.domain)
    ranks = stats.rankdata(sample.pooled, axis=0)
    weights = np.zeros(labels.shape)
    np.put_along_axis(weights, labels[:, :n_domain], 1.0, axis=1)
    return weights @ ranks - n_domain * (n_domain + 1) / 2


def _tie_term(pooled: Float[np.ndarray, "n latents"]) -> Float[np.ndarray, " latents"]:
    """Sum of t^3 - t over the groups of t equal values, per latent."""
    ordered = np.sort(pooled, axis=0)
    first = np.concatenate([np.ones((1, pooled.shape[1]), dtype=bool), ordered[1:] != ordered[:-1]])
    terms = np.zeros(pooled.shape[1])
    for latent in range(pooled.shape[1]):
        sizes = np.diff(np.append(np.flatnonzero(first[:, latent]), len(pooled))).astype(np.float64)
        terms[latent] = (sizes**3 - sizes).sum()
    return terms


def _rows(
    layers: list[int],
    sample: Sample,
    observed: Float[np.ndarray, " n_layers"],
    draws: Float[np.ndarray, "draws n_layers"],
    null: Float[np.ndarray, "permutations n_layers"],
) -> list[LayerSpecificity]:
    n_live = [cut.stop - cut.start for cut in sample.cuts]
    alive = np.array(n_live) > 0
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    p = (1 + (null >= observed - 1e-9).sum(0)) / (1 + len(null))
    p_holm = np.ones(len(layers))
    p_holm[alive] = holm(p[alive]) if alive.any() else []
    ranked = np.where(alive, draws, -np.inf)
    first = (ranked == ranked.max(axis=1, keepdims=True)) & alive
    p_top = (first / np.maximum(first.sum(1, keepdims=True), 1)).mean(0)

    def known(values: np.ndarray, i: int) -> float | None:
        return float(values[i]) if alive[i] else None

    return [
        LayerSpecificity(
            layer=layer,
            score=known(observed, i),
            ci_low=known(low, i),
            ci_high=known(high, i),
            p=known(p, i),
            p_holm=known(p_holm, i),
            n_live=n_live[i],
            n_documents=len(sample.domain),
            p_top=known(p_top, i),
        )
        for i, layer in enumerate(layers)
    ]
