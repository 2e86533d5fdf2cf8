"""Live latents of one layer in the form that scores need, on the scoring device.

Rates are sparse (most latents fire in few documents), and most latents fire too rarely to be selected in any draw.
Therefore latents are sorted by an upper bound of p_j over all draws,

    p_j <= min(largest weight * sum over documents of f_ij,  max over documents of f_ij),

and dense tables [documents, latents] are built only for the first latents that a score can need.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stethoscope.sae.ranks import Ranked
from stethoscope.sae.rates import LayerTable

ROUNDING = 1e-5  # margin of a bound: float32 sums of a draw exceed it by less


@dataclass(frozen=True, eq=False)
class LayerSample:
    """The live latents of one layer: one entry for each document and latent that fires in it, domain documents first.

    Attributes:
        starts: index of each document's first entry, and the end of the last document's entries.
        documents: document of each entry, ascending.
        latents: index of each entry's latent among the live ones.
        rates: share of the document's kept tokens on which the latent fires, float32, above 0.
        masses: mean activation per kept token times the norm of the decoder row; None if the score does not need it.
        total_mass: the same, summed over all latents of the layer, dead ones included.
        n_documents: domain and control documents.
        n_latents: live latents.
        top_k: latents to select.
        dense_rate: latents with a higher firing rate on control tokens are not selected.
        floor: e of the log-ratio, half a firing in all control tokens.
    """

    starts: tuple[int, ...]
    documents: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    rates: Float[Tensor, " entries"]
    masses: Float[Tensor, " entries"] | None
    total_mass: Float[Tensor, " n"] | None
    n_documents: int
    n_latents: int
    top_k: int
    dense_rate: float
    floor: float

    @classmethod
    def of_table(
        cls,
        table: LayerTable,
        live: Int[np.ndarray, " latents"],
        *,
        with_mass: bool = False,
        top_k: int = 0,
        dense_rate: float = 1.0,
        floor: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> "LayerSample":
        """Copy the entries of the `live` latents (ascending) from a layer's pooled table to `device`.

        Mass, top_k, dense_rate and floor are needed by scores, but not by ranking.
        """
        column = np.full(table.d_sae, -1)
        column[live] = np.arange(len(live))
        latents = column[table.latents]
        kept, n_documents = latents >= 0, len(table.starts) - 1
        total = np.bincount(table.owners, weights=table.masses, minlength=n_documents).astype(np.float64)

        def moved(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        owners = table.owners[kept]
        return cls(
            starts=tuple(np.searchsorted(owners, np.arange(n_documents + 1)).tolist()),
            documents=moved(owners),
            latents=moved(latents[kept]),
            rates=moved(table.rates[kept]),
            masses=moved(table.masses[kept]) if with_mass else None,
            total_mass=moved(total) if with_mass else None,
            n_documents=n_documents,
            n_latents=len(live),
            top_k=top_k,
            dense_rate=dense_rate,
            floor=floor,
        )

    @cached_property
    def ranked(self) -> Ranked:
        """The entries sorted by latent and rate; computed once."""
        return Ranked.of(
            self.documents, self.latents, self.rates, n_documents=self.n_documents, n_latents=self.n_latents
        )

    def total(self, documents: slice) -> Float[Tensor, " latents"]:
        """Return the sum of each latent's rates over some documents, in float64."""
        latents, rates = self._entries(documents)
        return rates.new_zeros(self.n_latents, dtype=torch.float64).index_add_(0, latents, rates.double())

    def largest(self, documents: slice) -> Float[Tensor, " latents"]:
        """Return each latent's maximum rate in some documents."""
        latents, rates = self._entries(documents)
        return rates.new_zeros(self.n_latents).scatter_reduce_(0, latents, rates, "amax")

    def _entries(self, documents: slice) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"]]:
        inside = slice(self.starts[documents.start], self.starts[documents.stop])
        return self.latents[inside], self.rates[inside]

    def all_rates(self) -> Float[Tensor, "n latents"]:
        """Return the rates of all live latents in float32; 0 if a latent does not fire."""
        columns = torch.arange(self.n_latents, device=self.rates.device)
        return self.spread(self.rates, columns, self.n_latents, torch.float32)

    def spread(
        self, values: Float[Tensor, " entries"], column: Int[Tensor, " latents"], n_columns: int, dtype: torch.dtype
    ) -> Float[Tensor, "n columns"]:
        """Return one value per entry as a dense table; `column` is each latent's column, and those from `n_columns` on
        are dropped."""
        place = column[self.latents].clamp(max=n_columns)  # the last column collects dropped latents
        table = values.new_zeros(self.n_documents, n_columns + 1, dtype=dtype)
        table.view(-1)[self.documents * (n_columns + 1) + place] = values.to(dtype)
        return table[:, :n_columns]


class Ordered:
    """The latents of a sample sorted by an upper bound of p_j, largest first, with dense tables of the first ones.

    Latents that can exceed the dense rate in any draw come first.

    Attributes:
        n_may_be_dense: number of latents that can exceed it.
    """

    def __init__(
        self, sample: LayerSample, *, domain: slice, control: slice, largest_weight: float, dtype: torch.dtype
    ) -> None:
        total, largest = sample.total(domain), sample.largest(domain).double()
        bound = torch.minimum(total * largest_weight, largest) * (1 + ROUNDING)
        bound[sample.largest(control) > sample.dense_rate] = torch.inf
        self._bound, self._latents = torch.sort(bound, descending=True, stable=True)
        self._column = torch.empty_like(self._latents)
        self._column[self._latents] = torch.arange(len(self._latents), device=self._latents.device)
        self._sample, self._dtype = sample, dtype
        self._rates = self._masses = torch.empty(sample.n_documents, 0, dtype=dtype, device=bound.device)
        self.n_may_be_dense = self.reaching(torch.inf)

    def __len__(self) -> int:
        return len(self._bound)

    def reaching(self, least: float) -> int:
        """Return the number of latents before those with p_j below `least` in every draw."""
        return int((self._bound >= least).sum())

    def rates(self, n_columns: int) -> Float[Tensor, "n columns"]:
        """Return the rates of the first latents; the largest requested table is cached."""
        self._rates = self._widened(self._rates, self._sample.rates, n_columns)
        return self._rates[:, :n_columns]

    def masses(self, n_columns: int) -> Float[Tensor, "n columns"]:
        """Return the activation mass of the first latents; the largest requested table is cached."""
        assert self._sample.masses is not None, "a sample without activation mass"
        self._masses = self._widened(self._masses, self._sample.masses, n_columns)
        return self._masses[:, :n_columns]

    def _widened(self, table: Tensor, values: Tensor, n_columns: int) -> Tensor:
        if table.shape[1] >= n_columns:
            return table
        return self._sample.spread(values, self._column, n_columns, self._dtype)
