"""Halves, bootstrap and permutation of documents as weights, so that resampled differences of rates are one matrix
product.

    p_j - q_j = sum_i w_i f_ij,   w_i = c_i / (domain copies in the half)      for a domain document of the half
                                  w_i = -c_i / (control copies in the half)    for a control document of the half
                                  w_i = 0                                      for the other documents

A row of weights is one half of one split of one draw; c_i is the number of copies of document i in the draw. A document
and its copies always belong to the same half of a split. A draw weights (or relabels) the documents identically in all
splits and layers, and depends only on the seed and the number of documents.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LEAST_COPIES = 1e-3  # divisor for an empty half (p < 2^-10)


class Stream(IntEnum):
    """Independent random streams under one seed."""

    SPLITS = 0
    DOCUMENTS = 1
    LABELS = 2


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the documents in halves A and B; control positions follow the domain's."""

    domain: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]
    control: tuple[Int[np.ndarray, " c"], Int[np.ndarray, " d"]]


@dataclass(frozen=True, slots=True)
class Design:
    """Numbers of documents, their halves and the seed, the same for all layers.

    Attributes:
        splits: the splits into halves.
        whole: without cross-fitting; each half contains all documents.
    """

    n_domain: int
    n_control: int
    splits: tuple[Split, ...]
    whole: bool
    seed: int

    @classmethod
    def of(cls, n_domain: int, n_control: int, *, n_splits: int, seed: int) -> "Design":
        """Split the documents into halves `n_splits` times; with n_splits=0, both halves contain all documents."""
        domain, control = np.arange(n_domain), np.arange(n_domain, n_domain + n_control)
        whole = Split((domain, domain), (control, control))
        splits = tuple(_halve(domain, control, seed, i) for i in range(n_splits)) or (whole,)
        return cls(n_domain, n_control, splits, n_splits == 0, seed)

    @property
    def n_documents(self) -> int:
        """Numbers of domain and control documents."""
        return self.n_domain + self.n_control

    @property
    def n_halves(self) -> int:
        """Rows of weights in a draw: two halves of every split, A and B next to each other."""
        return 2 * len(self.splits)

    @property
    def signs(self) -> Float[np.ndarray, "halves n"]:
        """Return 1 for the domain documents of each half, -1 for its control documents, and 0 for the rest."""
        signs = np.zeros((self.n_halves, self.n_documents), dtype=np.float32)
        for i, split in enumerate(self.splits):
            for half in range(2):
                signs[2 * i + half, split.domain[half]] = 1
                signs[2 * i + half, split.control[half]] = -1
        return signs


def _halve(domain: Int[np.ndarray, " n_domain"], control: Int[np.ndarray, " n_control"], seed: int, i: int) -> Split:
    rng = np.random.default_rng([seed, Stream.SPLITS, i])
    domain, control = rng.permutation(domain), rng.permutation(control)
    half_domain, half_control = len(domain) // 2, len(control) // 2
    return Split((domain[:half_domain], domain[half_domain:]), (control[:half_control], control[half_control:]))


class Draws(ABC):
    """Some draws of the documents: the sample itself, copies with replacement, or shuffled labels.

    Attributes:
        size: number of draws.
        dtype: precision of the weights, and of the rates that they weigh.
        device: device of the weights.
    """

    dtype = torch.float32

    def __init__(self, design: Design, size: int, device: torch.device | str = "cpu") -> None:
        self.design = design
        self.size = size
        self.device = torch.device(device)
        self._signs = torch.from_numpy(design.signs).to(self.device, self.dtype)

    @abstractmethod
    def weights(self, draws: slice) -> Float[Tensor, "rows n"]:
        """Return the weights of some draws: `design.n_halves` rows each, alternating halves A and B of a split."""

    @property
    @abstractmethod
    def domain(self) -> slice:
        """Documents that can count as domain documents in any draw."""

    @property
    @abstractmethod
    def control(self) -> slice:
        """Documents that can count as control documents in any draw."""

    @property
    @abstractmethod
    def largest_weight(self) -> float:
        """The largest weight of a domain document in any row."""


class Bootstrap(Draws):
    """Documents drawn with replacement, separately for domain and control; copies stay in their document's half.

    A draw weights the documents identically in all splits. (Independent draws for the eight splits would average out
    the noise and make intervals 2.8 times too narrow.)
    """

    def __init__(self, design: Design, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(design, size, device)
        self.counts = torch.from_numpy(self._draw()).to(self.device, self.dtype)  # [draws, n]

    def _draw(self) -> Float[np.ndarray, "draws n"]:
        design = self.design
        rng = np.random.default_rng([design.seed, Stream.DOCUMENTS])
        sides = (design.n_domain, design.n_control)
        return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=self.size) for n in sides], axis=1).astype(
            np.float32
        )

    def weights(self, draws: slice) -> Float[Tensor, "rows n"]:
        """Return the number of copies of each document as a share of all copies in its half."""
        copies = self.counts[draws, None, :] * self._signs  # [draws, halves, n]
        n_domain = self.design.n_domain
        for side in (copies[..., :n_domain], copies[..., n_domain:]):
            side /= side.sum(-1, keepdim=True).abs().clamp(min=LEAST_COPIES)
        return copies.flatten(0, 1)

    @property
    def domain(self) -> slice:
        """Domain documents remain domain documents."""
        return slice(0, self.design.n_domain)

    @property
    def control(self) -> slice:
        """Control documents remain control documents."""
        return slice(self.design.n_domain, self.design.n_documents)

    @property
    def largest_weight(self) -> float:
        """The largest share of a half's domain copies that one document has."""
        if self.size == 0:
            return 0.0
        counts, signs = self.counts[:, self.domain], self._signs[:, self.domain]
        copies = (counts @ signs.T).clamp(min=LEAST_COPIES)  # [draws, halves]
        largest = torch.stack([(counts * sign).amax(1) for sign in signs], dim=1)
        return float((largest / copies).max())


class Observed(Bootstrap):
    """The documents unchanged: one draw, in float64, so that sums of float32 rates are exact and ties are preserved."""

    dtype = torch.float64

    def __init__(self, design: Design, device: torch.device | str = "cpu") -> None:
        super().__init__(design, 1, device)

    def _draw(self) -> Float[np.ndarray, "draws n"]:
        return np.ones((1, self.design.n_documents), dtype=np.float32)


class Permuted(Draws):
    """Shuffled labels: a draw assigns documents to positions, which determine label and half."""

    def __init__(self, design: Design, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(design, size, device)
        rng = np.random.default_rng([design.seed, Stream.LABELS])
        self.order = rng.permuted(np.tile(np.arange(design.n_documents), (size, 1)), axis=1)  # [draws, n]
        self._position = torch.from_numpy(np.argsort(self.order, axis=1)).to(self.device)  # of each document
        in_half = [(self._signs == sign).sum(1, keepdim=True) for sign in (1, -1)]  # [halves, 1]
        self._shares = self._signs.clamp(min=0) / in_half[0] + self._signs.clamp(max=0) / in_half[1]

    def weights(self, draws: slice) -> Float[Tensor, "rows n"]:
        """Return for each document the weight of its assigned position."""
        shares = self._shares[:, self._position[draws]]  # [halves, draws, n]
        return shares.transpose(0, 1).flatten(0, 1)

    def is_domain(self, draws: slice) -> Float[Tensor, "draws n"]:
        """Return 1 for the documents that the draws assign to the domain."""
        return (self._position[draws] < self.design.n_domain).to(self.dtype)

    @property
    def domain(self) -> slice:
        """Any document."""
        return slice(0, self.design.n_documents)

    @property
    def control(self) -> slice:
        """Any document."""
        return slice(0, self.design.n_documents)

    @property
    def largest_weight(self) -> float:
        """One divided by the number of domain documents in the smaller half."""
        return float(self._shares.max())
