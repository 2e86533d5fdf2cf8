"""Halves, bootstrap and permutation of documents, as weights: a resampled mean rate is one matrix product.

    p(draw, j) = sum_i w(draw, i) f_ij,   rows of w sum to 1

A document belongs to one half of a split, whatever is drawn: its copies stay there. A draw weighs (or relabels) the
documents alike in every split and layer, and depends on the seed and the number of documents alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int


class Stream(IntEnum):
    """Independent random streams under one seed."""

    SPLITS = 0
    DOCUMENTS = 1
    LABELS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean rates of each latent on domain (p) and control (q), one row a draw."""

    p: Float[np.ndarray, "draws latents"]
    q: Float[np.ndarray, "draws latents"]


@dataclass(frozen=True, slots=True)
class Halves:
    """Mean rates on the two halves of a split."""

    a: Rates
    b: Rates


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the documents in half A and half B, for domain and control apart."""

    domain: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]
    control: tuple[Int[np.ndarray, " c"], Int[np.ndarray, " d"]]
    whole: bool = False  # not cross-fitted: each half is everything


@dataclass(frozen=True, slots=True)
class Sample:
    """Live latents of all layers side by side, float32: one row a document.

    Attributes:
        pooled: domain documents, then control documents.
        n_domain: how many of them are domain documents.
        cuts: the columns of each layer.
        splits: the halvings.
    """

    pooled: Float[np.ndarray, "n latents"]
    n_domain: int
    cuts: tuple[slice, ...]
    splits: tuple[Split, ...]
    top_k: int
    dense_rate: float
    floor: float
    seed: int

    @property
    def domain(self) -> Float[np.ndarray, "n_domain latents"]:
        """Rates of the domain documents."""
        return self.pooled[: self.n_domain]

    @property
    def control(self) -> Float[np.ndarray, "n_control latents"]:
        """Rates of the control documents."""
        return self.pooled[self.n_domain :]

    @classmethod
    def of(
        cls,
        domain: Sequence[Float[np.ndarray, "n_domain d_sae"]],
        control: Sequence[Float[np.ndarray, "n_control d_sae"]],
        *,
        live: Sequence[Bool[np.ndarray, " d_sae"]],
        top_k: int,
        dense_rate: float,
        floor: float,
        n_splits: int,
        seed: int,
    ) -> "Sample":
        """Lay the live latents of each layer side by side; n_splits=0 puts every document into both halves."""
        tables = [np.concatenate([d[:, keep], c[:, keep]]) for d, c, keep in zip(domain, control, live, strict=True)]
        edges = np.cumsum([0] + [table.shape[1] for table in tables]).tolist()
        n_domain, n_control = len(domain[0]), len(control[0])
        all_domain, all_control = np.arange(n_domain), np.arange(n_control)
        everyone = Split((all_domain, all_domain), (all_control, all_control), whole=True)
        return cls(
            pooled=np.ascontiguousarray(np.concatenate(tables, axis=1), dtype=np.float32),
            n_domain=n_domain,
            cuts=tuple(slice(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True)),
            splits=tuple(_halve(n_domain, n_control, seed, i) for i in range(n_splits)) or (everyone,),
            top_k=top_k,
            dense_rate=dense_rate,
            floor=floor,
            seed=seed,
        )


def observed_halves(sample: Sample) -> Iterator[Halves]:
    """Yield the plain mean rates of each split, as one draw."""
    for split in sample.splits:
        a, b = (
            Rates(
                sample.domain[split.domain[half]].mean(0, dtype=np.float64)[None],
                sample.control[split.control[half]].mean(0, dtype=np.float64)[None],
            )
            for half in (0, 1)
        )
        yield Halves(a, b)


def bootstrap_halves(sample: Sample, draws: int) -> Iterator[Halves]:
    """Yield for each split the mean rates of documents drawn with replacement; copies stay in their document's half.

    A draw weighs the documents alike in every split. (Drawing anew for each split would average the noise of eight
    independent draws away: intervals 2.8 times too narrow.)
    """
    yield from _weighted_halves(sample, *document_weights(sample, draws))


def permuted_halves(sample: Sample, draws: int) -> Iterator[Halves]:
    """Yield for each split the mean rates under shuffled labels; a draw shuffles alike in every split."""
    labels = permuted_labels(sample, draws)
    everything = sample.pooled.sum(0, dtype=np.float64)
    domain_total = _sum_of(sample, labels[:, : sample.n_domain])
    totals = (domain_total, (everything - domain_total).astype(np.float32))
    for split in sample.splits:
        control = (split.control[0] + sample.n_domain, split.control[1] + sample.n_domain)
        means: list[tuple[Float[np.ndarray, "draws latents"], Float[np.ndarray, "draws latents"]]] = []
        for total, (half_a, half_b) in zip(totals, (split.domain, control), strict=True):
            sum_a = _sum_of(sample, labels[:, half_a])
            sum_b = sum_a if split.whole else _rest(total, sum_a)
            means.append((sum_a / np.float32(len(half_a)), sum_b / np.float32(len(half_b))))
        yield Halves(Rates(means[0][0], means[1][0]), Rates(means[0][1], means[1][1]))


def _weighted_halves(
    sample: Sample, w_domain: Float[np.ndarray, "draws n_domain"], w_control: Float[np.ndarray, "draws n_control"]
) -> Iterator[Halves]:
    """Yield for each split the weighted mean rates of its halves."""
    sides = ((sample.domain, w_domain), (sample.control, w_control))
    totals = [weights @ table for table, weights in sides]
    for split in sample.splits:
        means: list[tuple[Float[np.ndarray, "draws latents"], Float[np.ndarray, "draws latents"]]] = []
        for (table, weights), total, (half_a, _) in zip(sides, totals, (split.domain, split.control), strict=True):
            mass_a = weights[:, half_a].sum(1, keepdims=True)  # rows of the weights sum to 1
            sum_a = weights[:, half_a] @ table[half_a]
            sum_b, mass_b = (sum_a, mass_a) if split.whole else (_rest(total, sum_a), 1 - mass_a)
            means.append((sum_a / np.maximum(mass_a, 1e-3), sum_b / np.maximum(mass_b, 1e-3)))
        yield Halves(Rates(means[0][0], means[1][0]), Rates(means[0][1], means[1][1]))


def _rest(
    total: Float[np.ndarray, "draws latents"], part: Float[np.ndarray, "draws latents"]
) -> Float[np.ndarray, "draws latents"]:
    """What `part` leaves of `total`: half B from half A, which spares half of the matrix products."""
    rest = total - part
    return np.maximum(rest, 0, out=rest)


def _sum_of(sample: Sample, documents: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws latents"]:
    """Sum the rates of each draw's documents."""
    weights = np.zeros((len(documents), len(sample.pooled)), dtype=np.float32)
    np.put_along_axis(weights, documents, 1, axis=1)
    return weights @ sample.pooled


def permuted_labels(sample: Sample, draws: int) -> Int[np.ndarray, "draws n"]:
    """Return for each draw the documents in shuffled order: the first n_domain are called domain."""
    rng = np.random.default_rng([sample.seed, Stream.LABELS])
    return rng.permuted(np.tile(np.arange(len(sample.pooled)), (draws, 1)), axis=1)


def document_weights(
    sample: Sample, draws: int
) -> tuple[Float[np.ndarray, "draws n_domain"], Float[np.ndarray, "draws n_control"]]:
    """Return bootstrap weights over the domain and over the control documents: multinomial counts, rows sum to 1."""
    rng = np.random.default_rng([sample.seed, Stream.DOCUMENTS])
    return _multinomial(rng, len(sample.domain), draws), _multinomial(rng, len(sample.control), draws)


def _halve(n_domain: int, n_control: int, seed: int, i: int) -> Split:
    rng = np.random.default_rng([seed, Stream.SPLITS, i])
    domain, control = rng.permutation(n_domain), rng.permutation(n_control)
    return Split(
        (domain[: n_domain // 2], domain[n_domain // 2 :]), (control[: n_control // 2], control[n_control // 2 :])
    )


def _multinomial(rng: np.random.Generator, n: int, draws: int) -> Float[np.ndarray, "draws n"]:
    return (rng.multinomial(n, np.full(n, 1 / n), size=draws) / n).astype(np.float32)
