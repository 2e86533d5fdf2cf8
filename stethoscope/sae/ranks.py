"""Mann-Whitney test of many latents at once, from the documents in which they fire.

    z = max(|U - n1 n2 / 2| - 1/2, 0) / sqrt(n1 n2 / 12 ((n + 1) - sum over ties (t^3 - t) / (n (n - 1))))

n = n1 + n2, p = 2 (1 - Phi(z)) = erfc(z / sqrt(2)), corrected for ties and continuity (Hollander & Wolfe 1999, section
4.1). Documents in which a latent does not fire are tied and below all others, so that only the others are sorted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RankTest:
    """Per latent: area under the ROC curve (.5 = no separation) and the two-sided Mann-Whitney p."""

    auroc: Float[Tensor, " latents"]
    p: Float[Tensor, " latents"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The entries of a sample by latent and then by rate, with their midranks among all documents.

    Attributes:
        keys: sort key by latent, then by rate.
        above_silent: midrank of each entry minus that of a document in which its latent does not fire, float64.
        silent: midrank of a document in which the latent does not fire.
        tie_sum: sum of t^3 - t over each latent's groups of t equal documents, including the group in which it does not
            fire.
    """

    documents: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    keys: Int[Tensor, " entries"]
    above_silent: Float[Tensor, " entries"]
    silent: Float[Tensor, " latents"]
    tie_sum: Float[Tensor, " latents"]
    n_documents: int

    @classmethod
    def of(
        cls,
        documents: Int[Tensor, " entries"],
        latents: Int[Tensor, " entries"],
        rates: Float[Tensor, " entries"],
        *,
        n_documents: int,
        n_latents: int,
    ) -> "Ranked":
        """Sort entries; rates are float32 above 0."""
        keys = (latents << 32) | rates.view(
            torch.int32
        ).long()  # bits of positive floats: their order is that of the floats
        order = _argsort(keys)
        documents, latents, keys, device = documents[order], latents[order], keys[order], keys.device
        firing = torch.bincount(latents, minlength=n_latents)
        first = firing.cumsum(0) - firing  # per latent
        begins = torch.ones_like(keys, dtype=torch.bool)  # start of each run of equal entries
        begins[1:] = keys[1:] != keys[:-1]
        begin, run = begins.nonzero()[:, 0], begins.cumsum(0) - 1
        size = torch.diff(begin, append=torch.tensor([len(keys)], device=device)).double()
        not_firing = (n_documents - firing).double()
        mean_place = begin - first[latents[begin]] + (size + 1) / 2  # among the entries of the latent, from 1
        silent = (not_firing + 1) / 2
        ranks = not_firing[latents] + mean_place[run]
        tie_sum = (not_firing**3 - not_firing).index_add_(0, latents[begin], size**3 - size)
        return cls(documents, latents, keys, ranks - silent[latents], silent, tie_sum, n_documents)

    @property
    def n_latents(self) -> int:
        """Number of latents, with or without entries."""
        return len(self.silent)

    def spread(self, dtype: torch.dtype) -> Float[Tensor, "n latents"]:
        """Return `above_silent` as a dense table; 0 if a latent does not fire."""
        table = torch.zeros(self.n_documents, self.n_latents, dtype=dtype, device=self.keys.device)
        table.view(-1)[self.documents * self.n_latents + self.latents] = self.above_silent.to(dtype)
        return table

    def test(self, n_domain: int) -> RankTest:
        """Compare the first documents with the rest; AUROC is .5 and p is 1 if all are equal."""
        n_control = self.n_documents - n_domain
        assert min(n_domain, n_control) > 0, "an empty sample has no ranks"
        of_domain = torch.where(self.documents < n_domain, self.above_silent, 0.0)
        sums = (n_domain * self.silent).index_add_(0, self.latents, of_domain)
        u = sums - n_domain * (n_domain + 1) / 2
        z = mann_whitney_z(u, n_domain, n_control, mann_whitney_spread(n_domain, n_control, self.tie_sum))
        return RankTest(u / (n_domain * n_control), two_sided_p(z))

    def weighted_u(
        self, w_domain: Float[Tensor, "draws n_domain"], w_control: Float[Tensor, "draws n_control"], elements: int
    ) -> Iterator[tuple[slice, Float[Tensor, "latents draws"]]]:
        """Yield Mann-Whitney's U of weighted documents in blocks of latents: weights of pairs x > y, plus half of those
        with x = y.

            U_j = sum_i w_i (W(y < x_i) + W(y = x_i) / 2) + w_x(silent) w_y(silent) / 2,   i: domain documents that fire

        W, the weight of the control documents below a rate, is a cumulative sum over the sorted entries. Sums of
        counts are exact in float32 below 2^24.

        Args:
            elements: maximum of entries times draws in memory.
        """
        n_domain, n_draws = w_domain.shape[1], len(w_domain)
        is_domain = self.documents < n_domain
        x_latents, y_latents = self.latents[is_domain], self.latents[~is_domain]
        x_keys, y_keys = self.keys[is_domain], self.keys[~is_domain]
        below, up_to = (torch.searchsorted(y_keys, x_keys, right=right) for right in (False, True))
        x_weights, y_weights = w_domain.T.contiguous(), w_control.T.contiguous()  # [documents, draws]
        x_documents, y_documents = self.documents[is_domain], self.documents[~is_domain] - n_domain
        totals = w_domain.sum(1), w_control.sum(1)
        edges = torch.arange(self.n_latents + 1, device=self.keys.device)
        x_starts, y_starts = torch.searchsorted(x_latents, edges), torch.searchsorted(y_latents, edges)
        for latents in _latent_blocks((x_starts + y_starts).tolist(), max(elements // max(n_draws, 1), 1)):
            x_part = slice(int(x_starts[latents.start]), int(x_starts[latents.stop]))
            y_first, y_last = int(y_starts[latents.start]), int(y_starts[latents.stop])
            y = torch.zeros(y_last - y_first + 1, n_draws, dtype=w_control.dtype, device=w_control.device)
            torch.cumsum(y_weights.index_select(0, y_documents[y_first:y_last]), 0, out=y[1:])
            y_edges = y.index_select(0, y_starts[latents.start : latents.stop + 1] - y_first)  # [latents + 1, draws]
            y_silent = totals[1] - (y_edges[1:] - y_edges[:-1])
            x = x_weights.index_select(0, x_documents[x_part])
            column = x_latents[x_part] - latents.start
            x_firing = torch.zeros_like(y_silent).index_add_(0, column, x)
            beaten = y.index_select(0, below[x_part] - y_first)
            beaten += y.index_select(0, up_to[x_part] - y_first)
            u = torch.zeros_like(y_silent).index_add_(0, column, beaten.mul_(x)).mul_(0.5)
            u += x_firing * (y_silent - y_edges[:-1])
            yield latents, u + 0.5 * (totals[0] - x_firing) * y_silent


def _argsort(keys: Int[Tensor, " entries"]) -> Int[Tensor, " entries"]:
    """Return the order of the keys, equal keys in any order (numpy's sort is faster on a CPU)."""
    return torch.from_numpy(np.argsort(keys.numpy())) if keys.device.type == "cpu" else keys.argsort()


def _latent_blocks(starts: list[int], entries: int) -> Iterator[slice]:
    """Yield the latents in blocks with a limited number of entries, at least one latent each."""
    first = 0
    for latent in range(1, len(starts)):
        if starts[latent] - starts[first] > entries and latent - 1 > first:
            yield slice(first, latent - 1)
            first = latent - 1
    if len(starts) - 1 > first:
        yield slice(first, len(starts) - 1)


def mann_whitney_spread(n1: int, n2: int, tie_sum: Float[Tensor, " latents"]) -> Float[Tensor, " latents"]:
    """Return the standard deviation of U; infinite if all n1 + n2 values are equal, so that z is 0 and p is 1."""
    n = n1 + n2
    variance = n1 * n2 / 12 * ((n + 1) - tie_sum / (n * max(n - 1, 1)))
    return torch.where(variance > 1e-9, variance.clamp(min=1e-9).sqrt(), torch.inf)


def mann_whitney_z(
    u: Float[Tensor, " tests"], n1: int, n2: int, spread: Float[Tensor, " tests"]
) -> Float[Tensor, " tests"]:
    """Return |z| of Mann-Whitney's U, with continuity correction."""
    return ((u - n1 * n2 / 2).abs() - 0.5).clamp(min=0) / spread


def two_sided_p(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the two-sided p of |z| under the normal distribution."""
    return torch.erfc(z * 0.5**0.5)  # torch's ndtr is 0 for z >= 8.3


def rejected_by_fdr(p: Float[Tensor, "rows m"], n: int, level: float) -> Int[Tensor, " rows"]:
    """Return how many of `n` tests per row Benjamini-Hochberg (1995) rejects at `level`.

    Args:
        p: the smallest p values of each row, ascending; includes at least all values up to `level`.
        n: total number of tests.
    """
    order = torch.arange(1, p.shape[1] + 1, dtype=p.dtype, device=p.device)
    passing = torch.where(p <= level * order / n, order, 0).long()
    return passing.amax(1) if p.shape[1] else passing.sum(1)
