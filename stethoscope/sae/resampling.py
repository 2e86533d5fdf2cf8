"""Halves, bootstrap and permutation of documents, as weights: a resampled mean rate is one matrix product.

    mean(draw, half, j) = sum_i w(draw, half, i) f_ij / sum_i w(draw, half, i)

A document belongs to one half of a split, whatever is drawn: its copies stay there. A draw weighs (or relabels) the
documents alike in every split and in every layer, and depends on the seed and the number of documents alone. Draws are
worked off in blocks, so that what is held at once does not grow with their number.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int

BLOCK_ELEMENTS = 2**21  # draws x latents held at once: 8 MB a table in float32


class Stream(IntEnum):
    """Independent random streams under one seed."""

    SPLITS = 0
    DOCUMENTS = 1
    LABELS = 2


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of some documents (rows of the pooled table; None: all) in each draw; a row need not sum to 1."""

    documents: Int[np.ndarray, " m"] | None
    weights: Float[np.ndarray, "draws m"]

    def sums(self, table: Float[np.ndarray, "n latents"]) -> Float[np.ndarray, "draws latents"]:
        """Return the weighted sums of the documents' rows, in the precision of the weights."""
        rows = table if self.documents is None else table[self.documents]
        return self.weights @ rows.astype(self.weights.dtype, copy=False)

    def mass(self) -> Float[np.ndarray, "draws 1"]:
        """Return the total weight of each draw; a half that nothing was drawn into (p < 2^-10) weighs a little."""
        return np.maximum(self.weights.sum(1, keepdims=True), 1e-3)

    def means_at(
        self, table: Float[np.ndarray, "n latents"], draws: Int[np.ndarray, " hits"], latents: Int[np.ndarray, " hits"]
    ) -> Float[np.ndarray, " hits"]:
        """Return the weighted mean of some latents in some draws; only the columns that are asked for are summed."""
        columns, where = np.unique(latents, return_inverse=True)
        return (self.sums(table[:, columns]) / self.mass())[draws, where]


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a split: mean rates on domain (p) and control (q), one row a draw, and the weights behind them."""

    p: Float[np.ndarray, "draws latents"]
    q: Float[np.ndarray, "draws latents"]
    domain: Weights
    control: Weights


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the documents in half A and half B; control positions count on from the domain's."""

    domain: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]
    control: tuple[Int[np.ndarray, " c"], Int[np.ndarray, " d"]]


class Draws(ABC):
    """Some draws of the documents: the sample itself, copies with replacement, or shuffled labels."""

    def __init__(self, design: "Design", size: int) -> None:
        self.design = design
        self.size = size
        self._weighed: dict[tuple[int, int, bytes], Weights] = {}  # every layer asks for the same

    @abstractmethod
    def weigh(self, rows: slice, documents: Int[np.ndarray, " m"]) -> Weights:
        """Return the weights of the documents at these positions, in the draws of `rows`."""

    def _weigh_once(self, rows: slice, documents: Int[np.ndarray, " m"]) -> Weights:
        key = (rows.start, rows.stop, documents.tobytes())
        if key not in self._weighed:
            self._weighed[key] = self.weigh(rows, documents)
        return self._weighed[key]

    def halves(self, table: Float[np.ndarray, "n latents"], rows: slice) -> Iterator[tuple[Half, Half]]:
        """Yield the two halves of each split. Half B is what half A leaves of the total: half of the products.

        (In float32 it may be -1e-8 where half A has all of it: far below every floor and cut.)
        """
        design = self.design
        totals = [self._weigh_once(rows, side).sums(table) for side in (design.domain, design.control)]
        for split in design.splits:
            means: list[list[Float[np.ndarray, "draws latents"]]] = []
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
    """The documents as they are: one draw, in float64, where sums of float32 rates are exact and ties stay ties."""

    def __init__(self, design: "Design") -> None:
        super().__init__(design, 1)

    def weigh(self, rows: slice, documents: Int[np.ndarray, " m"]) -> Weights:
        """Return a weight of 1 for each document."""
        return Weights(documents, np.ones((1, len(documents))))


class Bootstrap(Draws):
    """Documents drawn with replacement, domain and control apart; copies stay in their document's half.

    A draw weighs the documents alike in every split. (Drawing anew for each split would average the noise of eight
    independent draws away: intervals 2.8 times too narrow.)
    """

    def __init__(self, design: "Design", size: int) -> None:
        super().__init__(design, size)
        rng = np.random.default_rng([design.seed, Stream.DOCUMENTS])
        counts = [rng.multinomial(n, np.full(n, 1 / n), size=size) for n in (design.n_domain, design.n_control)]
        self.counts = np.concatenate(counts, axis=1).astype(np.float32)  # [draws, n]

    def weigh(self, rows: slice, documents: Int[np.ndarray, " m"]) -> Weights:
        """Return how many copies of each document were drawn."""
        return Weights(documents, self.counts[rows, documents])


class Permuted(Draws):
    """Shuffled labels: the document that a draw puts at a position counts as that position's label and half say."""

    def __init__(self, design: "Design", size: int) -> None:
        super().__init__(design, size)
        rng = np.random.default_rng([design.seed, Stream.LABELS])
        n = design.n_domain + design.n_control
        self.order = rng.permuted(np.tile(np.arange(n), (size, 1)), axis=1)  # [draws, n]

    def weigh(self, rows: slice, documents: Int[np.ndarray, " m"]) -> Weights:
        """Return weight 1 for the documents that stand at these positions."""
        order = self.order[rows]
        weights = np.zeros(order.shape, dtype=np.float32)
        np.put_along_axis(weights, order[:, documents], 1, axis=1)
        return Weights(None, weights)


@dataclass(frozen=True, slots=True)
class Design:
    """How many documents there are, their halvings and the seed: the same for every layer.

    Attributes:
        splits: the halvings.
        whole: not cross-fitted: each half is everything.
    """

    n_domain: int
    n_control: int
    splits: tuple[Split, ...]
    whole: bool
    seed: int

    @classmethod
    def of(cls, n_domain: int, n_control: int, *, n_splits: int, seed: int) -> "Design":
        """Halve the documents `n_splits` times; n_splits=0 puts every document into both halves."""
        domain, control = np.arange(n_domain), np.arange(n_domain, n_domain + n_control)
        whole = Split((domain, domain), (control, control))
        splits = tuple(_halve(domain, control, seed, i) for i in range(n_splits)) or (whole,)
        return cls(n_domain, n_control, splits, n_splits == 0, seed)

    @property
    def domain(self) -> Int[np.ndarray, " n_domain"]:
        """Positions of the domain documents."""
        return np.arange(self.n_domain)

    @property
    def control(self) -> Int[np.ndarray, " n_control"]:
        """Positions of the control documents."""
        return np.arange(self.n_domain, self.n_domain + self.n_control)


def _halve(domain: Int[np.ndarray, " n_domain"], control: Int[np.ndarray, " n_control"], seed: int, i: int) -> Split:
    rng = np.random.default_rng([seed, Stream.SPLITS, i])
    domain, control = rng.permutation(domain), rng.permutation(control)
    half_domain, half_control = len(domain) // 2, len(control) // 2
    return Split((domain[:half_domain], domain[half_domain:]), (control[:half_control], control[half_control:]))
