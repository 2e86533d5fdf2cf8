"""Sparse table of how often and how strongly each latent fires in each document.

    f_ij = (kept tokens of document i on which latent j fires) / (kept tokens of document i)
    m_ij = (sum of latent j's activation over them) / (kept tokens of document i) * ||W_dec,j||

Most latents fire in few documents, so each layer is stored by rows: document i owns the entries `starts[i]:starts[i +
1]`, each a latent with its f_ij and m_ij; missing entries are 0. An entry takes 10 bytes (12 above 65,536 latents).
Bootstrap and permutations use this table without measuring again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt

_COLUMNS = ("starts", "latents", "rates", "masses")


@dataclass(frozen=True, slots=True)
class LayerTable:
    """One layer's entries, by document and then by latent.

    Attributes:
        d_sae: number of latents.
        starts: index of each document's first entry, and the end of the last document's entries.
        latents: firing latent of each entry, ascending within a document.
        rates: f_ij, above 0.
        masses: m_ij, above 0.
    """

    d_sae: int
    starts: Int[np.ndarray, " n_docs_plus_1"]
    latents: UInt[np.ndarray, " n_entries"]
    rates: Float[np.ndarray, " n_entries"]
    masses: Float[np.ndarray, " n_entries"]

    @classmethod
    def of_entries(
        cls,
        d_sae: int,
        n_documents: int,
        *,
        documents: Int[np.ndarray, " n_entries"],
        latents: Int[np.ndarray, " n_entries"],
        rates: Float[np.ndarray, " n_entries"],
        masses: Float[np.ndarray, " n_entries"],
    ) -> "LayerTable":
        """Return the table of entries sorted by document."""
        starts = np.zeros(n_documents + 1, dtype=np.int64)
        np.cumsum(np.bincount(documents, minlength=n_documents), out=starts[1:])
        return cls(
            d_sae,
            starts,
            latents.astype(np.uint16 if d_sae <= 1 << 16 else np.uint32),
            rates.astype(np.float32),
            masses.astype(np.float32),
        )

    @property
    def owners(self) -> Int[np.ndarray, " n_entries"]:
        """Document of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def of(self, documents: Int[np.ndarray, " n_chosen"]) -> "LayerTable":
        """Return the rows of some documents, in this order; repeats are allowed."""
        sizes = np.diff(self.starts)[documents]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.starts[documents] - starts[:-1], sizes) + np.arange(starts[-1])
        return LayerTable(self.d_sae, starts, self.latents[entries], self.rates[entries], self.masses[entries])

    def spread(
        self, values: Float[np.ndarray, " n_entries"], latents: Sequence[int] | np.ndarray | None
    ) -> Float[np.ndarray, "n_docs n_latents"]:
        """Return one value per entry as a dense table with the columns of some latents (all if None)."""
        n_documents = len(self.starts) - 1
        if latents is None:
            table = np.zeros((n_documents, self.d_sae), dtype=np.float32)
            table[self.owners, self.latents] = values
            return table
        wanted = np.asarray(latents, dtype=np.int64)
        assert not len(wanted) or 0 <= wanted.min() <= wanted.max() < self.d_sae, f"latents outside 0..{self.d_sae - 1}"
        distinct, place = np.unique(wanted, return_inverse=True)
        column = np.full(self.d_sae, -1)
        column[distinct] = np.arange(len(distinct))
        columns = column[self.latents]
        kept = columns >= 0
        table = np.zeros((n_documents, len(distinct)), dtype=np.float32)
        table[self.owners[kept], columns[kept]] = values[kept]
        return table[:, place]


def stack_tables(tables: Sequence[LayerTable]) -> LayerTable:
    """Return one layer's tables of successive documents as one."""
    ends = np.cumsum([0, *(table.starts[-1] for table in tables)])
    starts = [table.starts[:-1] + end for table, end in zip(tables, ends, strict=False)]
    return LayerTable(
        tables[0].d_sae,
        np.concatenate([*starts, ends[-1:]]),
        np.concatenate([table.latents for table in tables]),
        np.concatenate([table.rates for table in tables]),
        np.concatenate([table.masses for table in tables]),
    )


@dataclass(frozen=True, slots=True)
class FiringRates:
    """Firing rates and activation mass per document, for all latents of the measured layers.

    Attributes:
        layers: measured layers.
        n_tokens: number of kept tokens of each document.
        tables: each layer's entries; read them through the methods.
    """

    layers: tuple[int, ...]
    n_tokens: Int[np.ndarray, " n_docs"]
    tables: Mapping[int, LayerTable]

    @classmethod
    def from_dense(
        cls,
        rates: Mapping[int, Float[np.ndarray, "n_docs d_sae"]],
        n_tokens: Int[np.ndarray, " n_docs"],
        mass: Mapping[int, Float[np.ndarray, "n_docs d_sae"]] | None = None,
    ) -> "FiringRates":
        """Return dense rates (layer -> [n_docs, d_sae]) in this form; without `mass` every firing weighs 1."""
        tables: dict[int, LayerTable] = {}
        for layer, dense in rates.items():
            masses = dense if mass is None else mass[layer]
            documents, latents = np.nonzero(dense)
            assert np.count_nonzero(masses) == np.count_nonzero(masses[documents, latents]), "mass without firing"
            tables[layer] = LayerTable.of_entries(
                dense.shape[1],
                len(dense),
                documents=documents,
                latents=latents,
                rates=dense[documents, latents],
                masses=masses[documents, latents],
            )
        return cls(tuple(rates), np.asarray(n_tokens, dtype=np.int64), tables)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.n_tokens)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tables."""
        columns = [(table.starts, table.latents, table.rates, table.masses) for table in self.tables.values()]
        return sum(column.nbytes for of_layer in columns for column in of_layer)

    def d_sae(self, layer: int) -> int:
        """Return the number of latents of a layer's SAE."""
        return self.tables[layer].d_sae

    def dense(
        self, layer: int, latents: Sequence[int] | np.ndarray | None = None
    ) -> Float[np.ndarray, "n_docs n_latents"]:
        """Return f_ij in float32, for all latents of the layer or for some, in their order."""
        table = self.tables[layer]
        return table.spread(table.rates, latents)

    def mass(
        self, layer: int, latents: Sequence[int] | np.ndarray | None = None
    ) -> Float[np.ndarray, "n_docs n_latents"]:
        """Return m_ij in float32, for all latents of the layer or for some, in their order."""
        table = self.tables[layer]
        return table.spread(table.masses, latents)

    def total_mass(self, layer: int) -> Float[np.ndarray, " n_docs"]:
        """Return the sum of m_ij over all latents, per document, in float64."""
        table = self.tables[layer]
        totals = np.bincount(table.owners, weights=table.masses, minlength=self.n_documents)
        return totals.astype(np.float64)  # without entries, bincount counts in integers

    def n_firing(self, layer: int) -> Int[np.ndarray, " d_sae"]:
        """Return the number of documents in which each latent fires."""
        table = self.tables[layer]
        return np.bincount(table.latents, minlength=table.d_sae)

    def mean_rate(self, layer: int) -> Float[np.ndarray, " d_sae"]:
        """Return the mean of f_ij over documents, in float64."""
        table = self.tables[layer]
        return np.bincount(table.latents, weights=table.rates, minlength=table.d_sae) / self.n_documents

    def mean_mass(self, layer: int) -> Float[np.ndarray, " d_sae"]:
        """Return the mean of m_ij over documents, in float64."""
        table = self.tables[layer]
        return np.bincount(table.latents, weights=table.masses, minlength=table.d_sae) / self.n_documents

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for `from_arrays`."""
        arrays = {"n_tokens": self.n_tokens, "layers": np.array(self.layers, dtype=np.int64)}
        for layer, table in self.tables.items():
            arrays |= {f"{layer}.{name}": getattr(table, name) for name in _COLUMNS}
            arrays[f"{layer}.d_sae"] = np.array([table.d_sae], dtype=np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FiringRates":
        """Return the table from the arrays of `to_arrays`."""
        layers = tuple(int(layer) for layer in arrays["layers"])
        tables = {
            layer: LayerTable(int(arrays[f"{layer}.d_sae"][0]), *(arrays[f"{layer}.{name}"] for name in _COLUMNS))
            for layer in layers
        }
        return cls(layers, arrays["n_tokens"], tables)

    def of(self, documents: Sequence[int] | np.ndarray) -> "FiringRates":
        """Return the documents at these positions, in this order; repeats are allowed."""
        chosen = np.asarray(documents, dtype=np.int64)
        tables = {layer: table.of(chosen) for layer, table in self.tables.items()}
        return FiringRates(self.layers, self.n_tokens[chosen], tables)
