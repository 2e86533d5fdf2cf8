"""Halves, bootstrap and permutation of documents, as weights: a resampled mean rate is one matrix product.

    p(draw, j) = sum_i w(draw, i) f_ij,   rows of w sum to 1

A document belongs to one half of a split, whatever is drawn; a bootstrap draws inside each half. The draws depend on
the seed and the number of documents alone, so every layer (and every score) of a subject sees the same ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int


class Stream(IntEnum):
    """Independent random streams under one seed."""

    SPLITS = 0
    BOOTSTRAP = 1
    LABELS = 2
    DOCUMENTS = 3


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
    control: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]


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
        everyone = Split((all_domain, all_domain), (all_control, all_control))
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
    """Yield for each split the mean rates of documents drawn with replacement inside each half."""
    for i, split in enumerate(sample.splits):
        rng = np.random.default_rng([sample.seed, Stream.BOOTSTRAP, i])
        a, b = (
            Rates(
                _multinomial(rng, len(split.domain[half]), draws) @ sample.domain[split.domain[half]],
                _multinomial(rng, len(split.control[half]), draws) @ sample.control[split.control[half]],
            )
            for half in (0, 1)
        )
        yield Halves(a, b)


def permuted_halves(sample: Sample, draws: int) -> Iterator[Halves]:
    """Yield for each split the mean rates under shuffled labels; a draw shuffles alike in every split."""
    labels = permuted_labels(sample, draws)
    weights = np.zeros(labels.shape, dtype=np.float32)
    for split in sample.splits:
        rates: list[Float[np.ndarray, "draws latents"]] = []
        for positions in (*split.domain, *(half + sample.n_domain for half in split.control)):
            weights[:] = 0
            np.put_along_axis(weights, labels[:, positions], 1 / len(positions), axis=1)
            rates.append(weights @ sample.pooled)
        yield Halves(Rates(rates[0], rates[2]), Rates(rates[1], rates[3]))


def permuted_labels(sample: Sample, draws: int) -> Int[np.ndarray, "draws n"]:
    """Return for each draw the documents in shuffled order: the first n_domain are called domain."""
    rng = np.random.default_rng([sample.seed, Stream.LABELS])
    return rng.permuted(np.tile(np.arange(len(sample.pooled)), (draws, 1)), axis=1)


def document_weights(
    sample: Sample, draws: int
) -> tuple[Float[np.ndarray, "draws n_domain"], Float[np.ndarray, "draws n_control"]]:
    """Return bootstrap weights over all domain and all control documents (for scores without halves)."""
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
