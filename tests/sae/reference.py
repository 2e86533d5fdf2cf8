"""The scores of a layer in plain dense numpy: a second, independent computation.

Computes every latent of every draw, without bounds, sparsity or devices. Draws, halves and ties are as in
`stethoscope.sae`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from stethoscope.sae.resampling import Design, Stream
from stethoscope.sae.scores import FDR, RARE_RATE
from stethoscope.sae.top_k import SAME_RATE

BLOCK_ELEMENTS = 2**21  # draws x latents held at once: 8 MB a table in float32


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of some documents (rows of the pooled table; None: all) in each draw; a row need not sum to 1."""

    documents: np.ndarray | None
    weights: np.ndarray

    def sums(self, table: np.ndarray) -> np.ndarray:
        """Return the weighted sums of the documents' rows, in the precision of the weights."""
        rows = table if self.documents is None else table[self.documents]
        return self.weights @ rows.astype(self.weights.dtype, copy=False)

    def mass(self) -> np.ndarray:
        """Return the total weight of each draw; a half that nothing was drawn into (p < 2^-10) weighs a little."""
        return np.maximum(self.weights.sum(1, keepdims=True), 1e-3)

    def means_at(self, table: np.ndarray, draws: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """Return the weighted mean of some latents in some draws; only the columns that are asked for are summed."""
        columns, where = np.unique(latents, return_inverse=True)
        return (self.sums(table[:, columns]) / self.mass())[draws, where]


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a split: mean rates on domain (p) and control (q), one row a draw, and the weights behind them."""

    p: np.ndarray
    q: np.ndarray
    domain: Weights
    control: Weights


class Draws(ABC):
    """Some draws of the documents: the sample itself, copies with replacement, or shuffled labels."""

    def __init__(self, design: "Design", size: int) -> None:
        self.design = design
        self.size = size
        self._weighed: dict[tuple[int, int, bytes], Weights] = {}  # every layer asks for the same

    @abstractmethod
    def weigh(self, rows: slice, documents: np.ndarray) -> Weights:
        """Return the weights of the documents at these positions, in the draws of `rows`."""

    def _weigh_once(self, rows: slice, documents: np.ndarray) -> Weights:
        key = (rows.start, rows.stop, documents.tobytes())
        if key not in self._weighed:
            self._weighed[key] = self.weigh(rows, documents)
        return self._weighed[key]

    def halves(self, table: np.ndarray, rows: slice) -> Iterator[tuple[Half, Half]]:
        """Yield the two halves of each split. Half B is what half A leaves of the total: half of the products.

        (In float32 it may be -1e-8 where half A has all of it: far below every floor and cut.)
        """
        design = self.design
        totals = [self._weigh_once(rows, side).sums(table) for side in _sides(design)]
        for split in design.splits:
            means: list[list[np.ndarray]] = []
            weights: list[list[Weights]] = []
            for side, total in zip((split.domain, split.control), totals, strict=True):
                first, second = (self._weigh_once(rows, documents) for documents in side)
                of_a = first.sums(table)
                of_b = of_a.copy() if design.whole else total - of_a
                of_a /= first.mass()
                of_b /= second.mass()
                means.append([of_a, of_b])
                weights.append([first, second])
            yield (
                Half(means[0][0], means[1][0], weights[0][0], weights[1][0]),
                Half(means[0][1], means[1][1], weights[0][1], weights[1][1]),
            )

    def blocks(self, n_latents: int) -> Iterator[slice]:
        """Yield the draws in blocks that keep a table of draws x latents small."""
        height = max(BLOCK_ELEMENTS // max(n_latents, 1), 1)
        for start in range(0, self.size, height):
            yield slice(start, min(start + height, self.size))


class Observed(Draws):
    """The documents unchanged: one draw, in float64, so that sums of float32 rates are exact and ties are preserved."""

    def __init__(self, design: "Design") -> None:
        super().__init__(design, 1)

    def weigh(self, rows: slice, documents: np.ndarray) -> Weights:
        """Return a weight of 1 for each document."""
        return Weights(documents, np.ones((1, len(documents))))


class Bootstrap(Draws):
    """Documents drawn with replacement, separately for domain and control; copies stay in their document's half.

    A draw weights the documents identically in all splits. (Independent draws for the eight splits would average out
    the noise and make intervals 2.8 times too narrow.)
    """

    def __init__(self, design: "Design", size: int) -> None:
        super().__init__(design, size)
        rng = np.random.default_rng([design.seed, Stream.DOCUMENTS])
        counts = [rng.multinomial(n, np.full(n, 1 / n), size=size) for n in (design.n_domain, design.n_control)]
        self.counts = np.concatenate(counts, axis=1).astype(np.float32)  # [draws, n]

    def weigh(self, rows: slice, documents: np.ndarray) -> Weights:
        """Return how many copies of each document were drawn."""
        return Weights(documents, self.counts[rows, documents])


class Permuted(Draws):
    """Shuffled labels: a draw assigns documents to positions, which determine label and half."""

    def __init__(self, design: "Design", size: int) -> None:
        super().__init__(design, size)
        rng = np.random.default_rng([design.seed, Stream.LABELS])
        n = design.n_domain + design.n_control
        self.order = rng.permuted(np.tile(np.arange(n), (size, 1)), axis=1)  # [draws, n]

    def weigh(self, rows: slice, documents: np.ndarray) -> Weights:
        """Return weight 1 for the documents that stand at these positions."""
        order = self.order[rows]
        weights = np.zeros(order.shape, dtype=np.float32)
        np.put_along_axis(weights, order[:, documents], 1, axis=1)
        return Weights(None, weights)


def _sides(design: Design) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(design.n_domain), np.arange(design.n_domain, design.n_documents)


@dataclass(frozen=True, slots=True)
class RankTest:
    """Per column: area under the ROC curve (.5 = no separation) and the two-sided Mann-Whitney p."""

    auroc: np.ndarray
    p: np.ndarray


@dataclass(frozen=True, slots=True)
class Midranks:
    """Ranks along each row, equal values sharing their mean rank; `tie_sum` is the sum of t^3 - t over ties of t."""

    ranks: np.ndarray
    tie_sum: np.ndarray


def midranks(values: np.ndarray) -> Midranks:
    """Return the ranks 1..n along each row, ties sharing the mean of theirs."""
    values = np.ascontiguousarray(values)
    n = values.shape[1]
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    begins = np.ones(values.shape, dtype=bool)  # where a run of equal values begins
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begin = np.flatnonzero(begins)
    size = np.diff(np.append(begin, values.size)).astype(np.float64)
    shared = np.repeat(begin % n + (size + 1) / 2, size.astype(np.int64)).reshape(values.shape)
    ranks = np.empty_like(shared)
    np.put_along_axis(ranks, order, shared, axis=1)
    tie_sum = np.bincount(begin // n, weights=size**3 - size, minlength=len(values))
    return Midranks(ranks, tie_sum.astype(np.float64))  # without a row, bincount counts in integers


def mann_whitney_p(u: np.ndarray, n1: int, n2: int, tie_sum: np.ndarray) -> np.ndarray:
    """Return the two-sided p of Mann-Whitney's U: normal approximation with tie and continuity correction.

    Source: Hollander & Wolfe 1999, section 4.1. A column of n1 + n2 equal values has p 1.
    """
    n = n1 + n2
    variance = n1 * n2 / 12 * ((n + 1) - tie_sum / (n * max(n - 1, 1)))
    varies = variance > 1e-9
    excess = np.maximum(np.abs(u - n1 * n2 / 2) - 0.5, 0.0)
    z = np.where(varies, excess / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    return np.minimum(2 * special.ndtr(-z), 1.0)


def mann_whitney_auroc(x: np.ndarray, y: np.ndarray) -> RankTest:
    """Return P(x > y) + P(x = y)/2 per column, and its two-sided Mann-Whitney p, all columns at once.

    A column that is constant over both samples has AUROC .5 and p 1.

    Args:
        x: [n1, j] values of the first sample (documents of the domain), one column a variable.
        y: [n2, j] values of the second sample.
    """
    assert x.shape[1:] == y.shape[1:] == (x.shape[-1],), f"shapes {x.shape} and {y.shape} do not match"
    assert min(len(x), len(y)) > 0, "an empty sample has no ranks"
    n1, n2 = len(x), len(y)
    ranked = midranks(np.concatenate([x, y]).T)
    u = ranked.ranks[:, :n1].sum(axis=1) - n1 * (n1 + 1) / 2  # [j]
    return RankTest(u / (n1 * n2), mann_whitney_p(u, n1, n2, ranked.tie_sum))


def fdr_threshold(p: np.ndarray, level: float) -> np.ndarray:
    """Return the largest p that Benjamini-Hochberg rejects at `level` along the last axis, -1 where it rejects none.

    p <= fdr_threshold(p, level) says the same as benjamini_hochberg(p) <= level, for many families at once.
    """
    ordered = np.sort(p, axis=-1)
    passing = ordered <= level * np.arange(1, p.shape[-1] + 1) / p.shape[-1]
    return np.where(passing, ordered, -1.0).max(axis=-1, initial=-1.0)


PAIR_BLOCK = 64  # latents whose pairs of documents are compared at once


@dataclass(frozen=True, slots=True)
class DenseSample:
    """The live latents of one layer: one row a document, domain documents first.

    Attributes:
        rates: share of the document's kept tokens on which each latent fires, float32.
        mass: mean activation per kept token times the norm of the decoder row; None if the score does not need it.
        total_mass: the same, summed over all latents of the layer, dead ones included.
        floor: e of the log-ratio, half a firing in all control tokens.
    """

    rates: np.ndarray
    mass: np.ndarray | None
    total_mass: np.ndarray | None
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

    draws: np.ndarray
    latents: np.ndarray
    weight: np.ndarray
    n_slots: np.ndarray

    @classmethod
    def largest(cls, delta: np.ndarray, k: int) -> "Selection":
        """Select the k largest finite `delta` of each row (all if there are fewer); ties share the last slots."""
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

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of the hits' values in each draw: NaN where nothing was selected."""
        total = np.bincount(self.draws, weights=self.weight * values, minlength=len(self.n_slots))
        return np.where(self.n_slots > 0, total, np.nan)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of the hits' values in each draw: NaN where nothing was selected."""
        return self.sum(values) / np.maximum(self.n_slots, 1)


class CrossFitted(ABC):
    """Selects the k largest p - q on one half and computes their `effect` on the other."""

    @abstractmethod
    def effect(self, sample: DenseSample, judge: Half, chosen: Selection) -> np.ndarray:
        """Return the effect of the selected latents on the evaluating half."""

    def observed(self, sample: DenseSample, design: Design) -> float:
        """Return the score on the observed documents."""
        return float(self._average(sample, Observed(design))[0])

    def bootstrap(self, sample: DenseSample, draws: Bootstrap) -> np.ndarray:
        """Return the scores of resampled documents, each copy in its document's half."""
        return self._average(sample, draws)

    def permuted(self, sample: DenseSample, draws: Permuted) -> np.ndarray:
        """Return the scores of documents with shuffled labels."""
        return self._average(sample, draws)

    def _average(self, sample: DenseSample, draws: Draws) -> np.ndarray:
        """Average over splits and halves, excluding halves without selectable latents."""
        total, counted = np.zeros(draws.size), np.zeros(draws.size)
        for rows in draws.blocks(sample.rates.shape[1]):
            for a, b in draws.halves(sample.rates, rows):
                for select, judge in ((a, b), (b, a)):
                    delta = select.p - select.q
                    delta[select.q > sample.dense_rate + SAME_RATE] = -np.inf
                    values = self.effect(sample, judge, Selection.largest(delta, sample.top_k))
                    known = ~np.isnan(values)
                    total[rows] += np.where(known, values, 0.0)
                    counted[rows] += known
        return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


class MeanRateDifference(CrossFitted):
    """T = mean over S of p_j - q_j: how much more often the selected latents fire on the subject."""

    def effect(self, sample: DenseSample, judge: Half, chosen: Selection) -> np.ndarray:
        """Return the mean of p - q."""
        at = chosen.draws, chosen.latents
        return chosen.mean(judge.p[at] - judge.q[at])


class LogRatio(CrossFitted):
    """L = mean over S of log((p_j + e) / (q_j + e)), e = 1 / (2 control tokens): the log of the ratio of rates, in
    nats."""

    def effect(self, sample: DenseSample, judge: Half, chosen: Selection) -> np.ndarray:
        """Return the mean of log((p + e) / (q + e))."""
        at = chosen.draws, chosen.latents
        p, q = (side[at].astype(np.float64) for side in (judge.p, judge.q))
        return chosen.mean(np.log((p + sample.floor) / (q + sample.floor)))


class ActivationMass(CrossFitted):
    """M = m(domain) - m(control), m = sum over S of a_j ||W_dec,j|| / sum over all latents: the share of mass in S."""

    def effect(self, sample: DenseSample, judge: Half, chosen: Selection) -> np.ndarray:
        """Return the share of mass on the domain minus that on the control."""
        assert sample.mass is not None
        assert sample.total_mass is not None
        shares = []
        for side in (judge.domain, judge.control):
            carried = side.means_at(sample.mass, chosen.draws, chosen.latents)
            total = (side.sums(sample.total_mass[:, None]) / side.mass())[:, 0]
            shares.append(carried / np.maximum(total, np.finfo(np.float32).tiny)[chosen.draws])
        return chosen.sum(shares[0] - shares[1])


class SpecificShare:
    """N = share of live latents with AUROC > .5 at FDR 5% and q_j < 1%: the share of latents specific to the
    subject."""

    def observed(self, sample: DenseSample, design: Design) -> float:
        """Return the share on the observed documents."""
        is_domain = np.zeros((1, len(sample.rates)), dtype=np.float32)
        is_domain[0, : design.n_domain] = 1
        return float(self._from_labels(sample, midranks(sample.rates.T), is_domain)[0])

    def bootstrap(self, sample: DenseSample, draws: Bootstrap) -> np.ndarray:
        """Return the shares of resampled documents (the variance's tie correction is the sample's)."""
        n_domain, n_control = draws.design.n_domain, draws.design.n_control
        w_domain, w_control = draws.counts[:, :n_domain], draws.counts[:, n_domain:]
        domain, control = sample.rates[:n_domain], sample.rates[n_domain:]
        u = np.empty((draws.size, sample.rates.shape[1]), dtype=np.float32)
        for start in range(0, u.shape[1], PAIR_BLOCK):
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

    def permuted(self, sample: DenseSample, draws: Permuted) -> np.ndarray:
        """Return the shares of documents with shuffled labels."""
        ranked = midranks(sample.rates.T)
        shares = [np.zeros(0)]
        for rows in draws.blocks(sample.rates.shape[1]):
            shares.append(self._from_labels(sample, ranked, draws.weigh(rows, _sides(draws.design)[0]).weights))
        return np.concatenate(shares)

    def _from_labels(self, sample: DenseSample, ranked: Midranks, is_domain: np.ndarray) -> np.ndarray:
        """Score the labels of each draw: U from midranks of all documents."""
        n_domain = round(float(is_domain[0].sum()))
        n_control = len(sample.rates) - n_domain
        u = is_domain @ ranked.ranks.T - n_domain * (n_domain + 1) / 2
        return _specific_share(u, (1 - is_domain) @ sample.rates / n_control, n_domain, n_control, ranked.tie_sum)


def _specific_share(
    u: np.ndarray,
    q: np.ndarray,
    n_domain: int,
    n_control: int,
    tie_sum: np.ndarray,
) -> np.ndarray:
    """Convert Mann-Whitney's U to p values and return the share of latents that pass; NaN without latents."""
    if u.shape[1] == 0:
        return np.full(len(u), np.nan)
    p = mann_whitney_p(u, n_domain, n_control, tie_sum)
    passing = p <= fdr_threshold(p, FDR)[:, None]
    return (passing & (u > n_domain * n_control / 2) & (q < RARE_RATE)).mean(1)


SCORES: dict[str, CrossFitted | SpecificShare] = {
    "mean_rate_difference": MeanRateDifference(),
    "specific_share": SpecificShare(),
    "activation_mass": ActivationMass(),
    "log_ratio": LogRatio(),
}
