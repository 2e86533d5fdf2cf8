"""Ways to score a layer from the firing rates of its live latents; to add one, add a class and put it into `SCORES`.

p_j, q_j: mean firing rate of latent j over domain / control documents. Three of the four scores are cross-fitted,

    score = mean over splits s, halves A, B of  effect of S_k(A) on B,   S_k(A) = the k largest p_j - q_j on half A,

because selecting and scoring on the same documents is above 0 on pure noise. Dense latents (q_j > dense_rate on the
selecting half) are not selected; latents tied at the k-th place share its slots. Every score is 0 on average where
domain and control do not differ. Which part of a score is published and which is ours stands in its `source`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from stethoscope.progress import Progress
from stethoscope.sae.resampling import Bootstrap, Design, Draws, Half, Observed, Permuted
from stethoscope.statistics import Midranks, fdr_threshold, mann_whitney_p, midranks

FDR = 0.05
RARE_RATE = 0.01  # a latent that passes for specific_share fires on fewer control tokens than this
SAME_RATE = 1e-6  # mean rates closer than this are equal: float32 sums of shares of tokens, which are 1e-4 apart
PAIR_BLOCK = 64  # latents whose pairs of documents are compared at once


@dataclass(frozen=True, slots=True)
class LayerSample:
    """The live latents of one layer: one row a document, domain documents first.

    Attributes:
        rates: share of the document's kept tokens on which each latent fires, float32.
        mass: mean activation per kept token times the norm of the decoder row; None where the score needs none.
        total_mass: the same, summed over all latents of the layer, dead ones included.
        floor: e of the log-ratio, half a firing in all control tokens.
    """

    rates: Float[np.ndarray, "n latents"]
    mass: Float[np.ndarray, "n latents"] | None
    total_mass: Float[np.ndarray, " n"] | None
    top_k: int
    dense_rate: float
    floor: float


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected latents of each draw, as a list of hits.

    Attributes:
        weight: 1 for a hit, less for those tied at the last places, which share what slots are left.
        n_slots: latents selected in each draw: k, or fewer where fewer can be.
    """

    draws: Int[np.ndarray, " hits"]
    latents: Int[np.ndarray, " hits"]
    weight: Float[np.ndarray, " hits"]
    n_slots: Int[np.ndarray, " draws"]

    @classmethod
    def largest(cls, delta: Float[np.ndarray, "draws latents"], k: int) -> "Selection":
        """Select the k largest finite `delta` of each row (all, where there are fewer); ties share the last slots."""
        n_draws, width = delta.shape
        k = min(k, width)
        if k == 0:
            nothing = np.zeros(0, dtype=np.int64)
            return cls(nothing, nothing, np.zeros(0), np.zeros(n_draws, dtype=np.int64))
        kth = np.partition(delta, width - k, axis=1)[:, width - k]
        lowest = np.maximum(kth - SAME_RATE, np.finfo(delta.dtype).min)  # minus infinity is never selected
        draws, latents = np.divmod(np.flatnonzero(delta >= lowest[:, None]), width)
        tied = delta[draws, latents] <= kth[draws] + SAME_RATE
        n_tied = np.bincount(draws[tied], minlength=n_draws)
        n_above = np.bincount(draws[~tied], minlength=n_draws)
        slots = np.where(n_tied > 0, k - n_above, 0)
        weight = np.where(tied, (slots / np.maximum(n_tied, 1))[draws], 1.0)
        return cls(draws, latents, weight, n_above + slots)

    def sum(self, values: Float[np.ndarray, " hits"]) -> Float[np.ndarray, " draws"]:
        """Return the sum of the hits' values in each draw: NaN where nothing was selected."""
        total = np.bincount(self.draws, weights=self.weight * values, minlength=len(self.n_slots))
        return np.where(self.n_slots > 0, total, np.nan)

    def mean(self, values: Float[np.ndarray, " hits"]) -> Float[np.ndarray, " draws"]:
        """Return the mean of the hits' values in each draw: NaN where nothing was selected."""
        return self.sum(values) / np.maximum(self.n_slots, 1)


class LayerScore(ABC):
    """A way to score a layer: its name, formula and source, and its values on the sample and on draws of it.

    Attributes:
        null: the value where domain and control do not differ.
        needs_mass: reads activation mass beside firing rates.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    null: ClassVar[float] = 0.0
    needs_mass: ClassVar[bool] = False

    @abstractmethod
    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the score; NaN where no latent can be selected."""

    @abstractmethod
    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of resampled documents; NaN where no latent can be selected."""

    @abstractmethod
    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of documents whose labels were shuffled; NaN where no latent can be selected."""


class CrossFitted(LayerScore):
    """Selects the k largest p - q on one half and takes `effect` of them on the other."""

    @abstractmethod
    def effect(self, sample: LayerSample, judge: Half, chosen: Selection) -> Float[np.ndarray, " draws"]:
        """Return what the selected latents are worth on the judging half."""

    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the score on the documents as they are."""
        return float(self._average(sample, Observed(design), Progress())[0])

    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of resampled documents, each copy in its document's half."""
        return self._average(sample, draws, progress)

    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of documents whose labels were shuffled."""
        return self._average(sample, draws, progress)

    def _average(self, sample: LayerSample, draws: Draws, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Average over splits and halves; a half in which nothing can be selected does not count."""
        total, counted = np.zeros(draws.size), np.zeros(draws.size)
        for rows in draws.blocks(sample.rates.shape[1]):
            for a, b in draws.halves(sample.rates, rows):
                progress.check_cancel()
                for select, judge in ((a, b), (b, a)):
                    delta = select.p - select.q
                    delta[select.q > sample.dense_rate] = -np.inf
                    values = self.effect(sample, judge, Selection.largest(delta, sample.top_k))
                    known = ~np.isnan(values)
                    total[rows] += np.where(known, values, 0.0)
                    counted[rows] += known
        return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


class MeanRateDifference(CrossFitted):
    """T = mean over S of p_j - q_j: how much more often the subject's own latents fire on it."""

    name = "mean_rate_difference"
    formula = "mean of p_j - q_j over the k latents with the largest difference, cross-fitted"
    source = "p_j - q_j: latent separation, Ferrando et al., arXiv 2411.14257; top-k mean and cross-fitting are ours"

    def effect(self, sample: LayerSample, judge: Half, chosen: Selection) -> Float[np.ndarray, " draws"]:
        """Return the mean of p - q."""
        at = chosen.draws, chosen.latents
        return chosen.mean(judge.p[at] - judge.q[at])


class LogRatio(CrossFitted):
    """L = mean over S of log((p_j + e) / (q_j + e)), e = 1 / (2 control tokens): how many times more often, in nats."""

    name = "log_ratio"
    formula = "mean of log((p_j + e) / (q_j + e)) over the same k latents, cross-fitted; e = 1 / (2 control tokens)"
    source = "ours: the log of the ratio of rates, with half a firing added to each side"

    def effect(self, sample: LayerSample, judge: Half, chosen: Selection) -> Float[np.ndarray, " draws"]:
        """Return the mean of log((p + e) / (q + e))."""
        at = chosen.draws, chosen.latents
        p, q = (side[at].astype(np.float64) for side in (judge.p, judge.q))
        return chosen.mean(np.log((p + sample.floor) / (q + sample.floor)))


class ActivationMass(CrossFitted):
    """M = m(domain) - m(control), m = sum over S of a_j ||W_dec,j|| / sum over all latents: the mass that S carries."""

    name = "activation_mass"
    formula = (
        "share of the activation mass a_j ||W_dec,j|| of all latents that the same k latents carry, "
        "domain minus control, cross-fitted"
    )
    source = "ours; weighting an activation by the norm of its decoder row is common practice"
    needs_mass = True

    def effect(self, sample: LayerSample, judge: Half, chosen: Selection) -> Float[np.ndarray, " draws"]:
        """Return the share of mass on the domain minus that on the control."""
        assert sample.mass is not None
        assert sample.total_mass is not None
        shares = []
        for side in (judge.domain, judge.control):
            carried = side.means_at(sample.mass, chosen.draws, chosen.latents)
            total = (side.sums(sample.total_mass[:, None]) / side.mass())[:, 0]
            shares.append(carried / np.maximum(total, np.finfo(np.float32).tiny)[chosen.draws])
        return chosen.sum(shares[0] - shares[1])


class SpecificShare(LayerScore):
    """N = share of live latents with AUROC > .5 at FDR 5% and q_j < 1%: how many latents the subject has to itself."""

    name = "specific_share"
    formula = "share of live latents with Mann-Whitney AUROC > .5 at FDR 5% and q_j < 1%"
    source = "ours, from the tests of Mann & Whitney (1947) and Benjamini & Hochberg (1995)"

    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the share on the documents as they are."""
        is_domain = np.zeros((1, len(sample.rates)), dtype=np.float32)
        is_domain[0, : design.n_domain] = 1
        return float(self._from_labels(sample, midranks(sample.rates.T), is_domain)[0])

    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the shares of resampled documents (the variance's tie correction is the sample's)."""
        n_domain, n_control = draws.design.n_domain, draws.design.n_control
        w_domain, w_control = draws.counts[:, :n_domain], draws.counts[:, n_domain:]
        domain, control = sample.rates[:n_domain], sample.rates[n_domain:]
        u = np.empty((draws.size, sample.rates.shape[1]), dtype=np.float32)
        for start in range(0, u.shape[1], PAIR_BLOCK):
            progress.check_cancel()
            chunk = slice(start, start + PAIR_BLOCK)
            x, y = domain[:, chunk].T[:, :, None], control[:, chunk].T[:, None, :]
            wins = (x > y).astype(np.float32) + np.float32(0.5) * (x == y)  # [latents, n_domain, n_control]
            u[:, chunk] = np.einsum("lrc,rc->rl", w_domain @ wins, w_control, optimize=True)
        tie_sum = midranks(sample.rates.T).tie_sum
        shares = [np.zeros(0)]
        for rows in draws.blocks(u.shape[1]):
            q = w_control[rows] @ control / np.float32(n_control)
            shares.append(_specific_share(u[rows], q, n_domain, n_control, tie_sum))
        return np.concatenate(shares)

    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the shares of documents whose labels were shuffled."""
        ranked = midranks(sample.rates.T)
        shares = [np.zeros(0)]
        for rows in draws.blocks(sample.rates.shape[1]):
            progress.check_cancel()
            shares.append(self._from_labels(sample, ranked, draws.weigh(rows, draws.design.domain).weights))
        return np.concatenate(shares)

    def _from_labels(
        self, sample: LayerSample, ranked: Midranks, is_domain: Float[np.ndarray, "draws n"]
    ) -> Float[np.ndarray, " draws"]:
        """Score the labels that each draw gives the documents: U from midranks of all documents."""
        n_domain = round(float(is_domain[0].sum()))
        n_control = len(sample.rates) - n_domain
        u = is_domain @ ranked.ranks.T - n_domain * (n_domain + 1) / 2
        return _specific_share(u, (1 - is_domain) @ sample.rates / n_control, n_domain, n_control, ranked.tie_sum)


def _specific_share(
    u: Float[np.ndarray, "draws latents"],
    q: Float[np.ndarray, "draws latents"],
    n_domain: int,
    n_control: int,
    tie_sum: Float[np.ndarray, " latents"],
) -> Float[np.ndarray, " draws"]:
    """Turn Mann-Whitney's U into p-values and return the share of latents that pass; NaN without a latent."""
    if u.shape[1] == 0:
        return np.full(len(u), np.nan)
    p = mann_whitney_p(u, n_domain, n_control, tie_sum)
    passing = p <= fdr_threshold(p, FDR)[:, None]
    return (passing & (u > n_domain * n_control / 2) & (q < RARE_RATE)).mean(1)


SCORES: dict[str, LayerScore] = {
    score.name: score for score in (MeanRateDifference(), SpecificShare(), ActivationMass(), LogRatio())
}
