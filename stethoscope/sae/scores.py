"""Layer scores from the firing rates of live latents. To add a score, add a class and list it in `SCORES`.

p_j, q_j: mean firing rate of latent j over domain / control documents. Three of the four scores are cross-fitted,

    score = mean over splits s, halves A, B of  effect of S_k(A) on B,   S_k(A) = the k largest p_j - q_j on half A,

because selecting and scoring on the same documents gives positive scores on pure noise. Dense latents (q_j > dense_rate
on the selecting half) are not selected; latents tied at the k-th place share its slots. Every score is 0 on average if
domain and control do not differ. `source` says which part of a score is published and which is our own.

Most latents fire too rarely to be among the k largest of any draw, and a bound excludes them from the computation
(`judged`) without changing the scores.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.progress import Progress
from stethoscope.sae.judged import Judged, judged
from stethoscope.sae.ranks import Ranked, mann_whitney_spread, mann_whitney_z, rejected_by_fdr, two_sided_p
from stethoscope.sae.resampling import Bootstrap, Design, Draws, Observed, Permuted
from stethoscope.sae.sample import LayerSample
from stethoscope.sae.top_k import at_least, descending

FDR = 0.05
RARE_RATE = 0.01  # maximum control firing rate of a latent that counts for specific_share
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 23}  # rows x latents in memory, 4 bytes each: a CPU cache; 32 MB
Z_LIMIT = 1.95  # below this |z|, p is above FDR


class LayerScore(ABC):
    """A layer score: name, formula, source, and its values on the sample and on draws.

    Attributes:
        null: the value if domain and control do not differ.
        needs_mass: whether it uses activation mass in addition to firing rates.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    null: ClassVar[float] = 0.0
    needs_mass: ClassVar[bool] = False

    @abstractmethod
    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the score; NaN if no latent can be selected."""

    @abstractmethod
    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of resampled documents; NaN if no latent can be selected."""

    @abstractmethod
    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of documents with shuffled labels; NaN if no latent can be selected."""


class CrossFitted(LayerScore):
    """Selects the k largest p - q on one half and computes their `effect` on the other."""

    @abstractmethod
    def effect(self, half: Judged) -> Float[Tensor, " rows"]:
        """Return the effect of the selected latents on the evaluating half."""

    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the score on the observed documents."""
        return float(self._average(sample, Observed(design, sample.rates.device), Progress())[0])

    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of resampled documents, each copy in its document's half."""
        return self._average(sample, draws, progress)

    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the scores of documents with shuffled labels."""
        return self._average(sample, draws, progress)

    def _average(self, sample: LayerSample, draws: Draws, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Average over splits and halves, excluding halves without selectable latents."""
        if sample.n_latents == 0 or draws.size == 0:
            return np.full(draws.size, np.nan)
        values = torch.cat([self.effect(half) for half in judged(sample, draws, progress)])
        return values.view(draws.size, draws.design.n_halves).nanmean(1).cpu().numpy()


class MeanRateDifference(CrossFitted):
    """T = mean over S of p_j - q_j: how much more often the selected latents fire on the subject."""

    name = "mean_rate_difference"
    formula = "mean of p_j - q_j over the k latents with the largest difference, cross-fitted"
    source = "p_j - q_j: latent separation, Ferrando et al., arXiv 2411.14257; top-k mean and cross-fitting are ours"

    def effect(self, half: Judged) -> Float[Tensor, " rows"]:
        """Return the mean of p - q."""
        return half.chosen.mean(half.delta)


class LogRatio(CrossFitted):
    """L = mean over S of log((p_j + e) / (q_j + e)), e = 1 / (2 control tokens): the log of the ratio of rates, in
    nats."""

    name = "log_ratio"
    formula = "mean of log((p_j + e) / (q_j + e)) over the same k latents, cross-fitted; e = 1 / (2 control tokens)"
    source = "ours: the log of the ratio of rates, with half a firing added to each side"

    def effect(self, half: Judged) -> Float[Tensor, " rows"]:
        """Return the mean of log((p + e) / (q + e))."""
        p, q = (side.double() for side in half.means(half.ordered.rates(half.n_columns)))
        return half.chosen.mean(torch.log((p + half.sample.floor) / (q + half.sample.floor)))


class ActivationMass(CrossFitted):
    """M = m(domain) - m(control), m = sum over S of a_j ||W_dec,j|| / sum over all latents: the share of mass in S."""

    name = "activation_mass"
    formula = (
        "share of the activation mass a_j ||W_dec,j|| of all latents that the same k latents carry, "
        "domain minus control, cross-fitted"
    )
    source = "ours; weighting an activation by the norm of its decoder row is common practice"
    needs_mass = True

    def effect(self, half: Judged) -> Float[Tensor, " rows"]:
        """Return the share of mass on the domain minus that on the control."""
        carried = half.means(half.ordered.masses(half.n_columns))
        totals = half.total_mass()
        shares = [mass / total for mass, total in zip(carried, totals, strict=True)]
        return half.chosen.sum(shares[0] - shares[1])


class SpecificShare(LayerScore):
    """N = share of live latents with AUROC > .5 at FDR 5% and q_j < 1%: the share of latents specific to the
    subject."""

    name = "specific_share"
    formula = "share of live latents with Mann-Whitney AUROC > .5 at FDR 5% and q_j < 1%"
    source = "ours, from the tests of Mann & Whitney (1947) and Benjamini & Hochberg (1995)"

    def observed(self, sample: LayerSample, design: Design) -> float:
        """Return the share on the observed documents."""
        is_domain = torch.zeros(1, sample.n_documents, device=sample.rates.device)
        is_domain[0, : design.n_domain] = 1
        return float(_Table.of(sample).shares(is_domain)[0])

    def bootstrap(self, sample: LayerSample, draws: Bootstrap, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the shares of resampled documents (the variance's tie correction is the sample's)."""
        ranked, n_domain, n_control = sample.ranked, draws.design.n_domain, draws.design.n_control
        w_domain, w_control = draws.counts[:, :n_domain], draws.counts[:, n_domain:]
        u = w_domain.new_empty(sample.n_latents, draws.size)
        for latents, of_latents in ranked.weighted_u(w_domain, w_control, _elements(draws.device)):
            progress.check_cancel()
            u[latents] = of_latents
        rates = sample.all_rates()[n_domain:]
        shares = [torch.zeros(0, dtype=torch.float64, device=draws.device)]
        for rows in _blocks(draws.size, sample.n_latents, draws.device):
            progress.check_cancel()
            q = w_control[rows] @ rates / n_control
            shares.append(_specific_share(u[:, rows].T, q, n_domain, n_control, ranked.tie_sum))
        return torch.cat(shares).cpu().numpy()

    def permuted(self, sample: LayerSample, draws: Permuted, progress: Progress) -> Float[np.ndarray, " draws"]:
        """Return the shares of documents with shuffled labels."""
        table, shares = _Table.of(sample), [torch.zeros(0, dtype=torch.float64, device=draws.device)]
        for rows in _blocks(draws.size, sample.n_latents, draws.device):
            progress.check_cancel()
            shares.append(table.shares(draws.is_domain(rows)))
        return torch.cat(shares).cpu().numpy()


@dataclass(frozen=True, slots=True)
class _Table:
    """All live latents of a layer: rates, and midranks as sums that are exact in float32 below 2^24."""

    rates: Float[Tensor, "n latents"]
    above_silent: Float[Tensor, "n latents"]
    ranked: Ranked

    @classmethod
    def of(cls, sample: LayerSample) -> "_Table":
        ranked = sample.ranked
        return cls(sample.all_rates(), ranked.spread(torch.float32), ranked)

    def shares(self, is_domain: Float[Tensor, "draws n"]) -> Float[Tensor, " draws"]:
        """Score the labels of each draw: U from midranks of all documents."""
        n_domain = round(float(is_domain[0].sum()))
        n_control = is_domain.shape[1] - n_domain
        silent = (self.ranked.silent * n_domain - n_domain * (n_domain + 1) / 2).to(torch.float32)
        u = is_domain @ self.above_silent + silent
        q = (1 - is_domain) @ self.rates / n_control
        return _specific_share(u, q, n_domain, n_control, self.ranked.tie_sum)


def _elements(device: torch.device) -> int:
    return BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS["cpu"])


def _blocks(n_draws: int, n_latents: int, device: torch.device) -> Iterator[slice]:
    """Yield the draws in blocks that limit the size of a table of draws x latents."""
    height = max(_elements(device) // max(n_latents, 1), 1)
    for start in range(0, n_draws, height):
        yield slice(start, min(start + height, n_draws))


def _specific_share(
    u: Float[Tensor, "draws latents"],
    q: Float[Tensor, "draws latents"],
    n_domain: int,
    n_control: int,
    tie_sum: Float[Tensor, " latents"],
) -> Float[Tensor, " draws"]:
    """Convert Mann-Whitney's U to p values and return the share of latents that pass; NaN without latents.

    p values are computed in float64 only if the float32 U does not decide whether p is below the FDR.
    """
    n_draws, n_latents = u.shape
    if n_latents == 0:
        return torch.full((n_draws,), torch.nan, dtype=torch.float64, device=u.device)
    half, spread = n_domain * n_control / 2, mann_whitney_spread(n_domain, n_control, tie_sum)
    draws, latents = at_least((u - half).abs_(), (Z_LIMIT * spread + 0.5).to(u.dtype)[None])
    z = mann_whitney_z(u[draws, latents].double(), n_domain, n_control, spread[latents])
    own = (u[draws, latents] > half) & (q[draws, latents] < RARE_RATE)
    counts = torch.bincount(draws, minlength=n_draws)
    place = torch.arange(len(draws), device=u.device) - (counts.cumsum(0) - counts)[draws]
    by_draw = z.new_full((n_draws, int(counts.max())), -torch.inf)  # [draws, undecided latents]
    by_draw[draws, place] = z
    p = two_sided_p(descending(by_draw))
    rejected = rejected_by_fdr(p, n_latents, FDR)
    last = p.gather(1, (rejected - 1).clamp(min=0)[:, None])[:, 0] if p.shape[1] else p.sum(1)
    passing = own & (rejected[draws] > 0) & (two_sided_p(z) <= last[draws])
    return torch.bincount(draws, weights=passing.double(), minlength=n_draws) / n_latents


SCORES: dict[str, LayerScore] = {
    score.name: score for score in (MeanRateDifference(), SpecificShare(), ActivationMass(), LogRatio())
}
