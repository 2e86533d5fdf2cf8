"""Effect of a task vector on the tokens of a subject, from one pass over its documents with hooks.

Functional energy of a matrix is the mean of ||tau x||^2 over its own inputs x, which is tr(tau S_x tau^T) with S_x
their second moment; S_x itself (10240 x 10240 behind an MLP) is never computed. The share that the projected edit
keeps, for all nested ranks at once, needs two small Gram matrices along the basis Q:

    writers: P tau x = G^-1 Q c,  c = Q^T G tau x      E||P tau x||^2 = tr(A C),  A = Q^T G^-2 Q,  C = E c c^T
    readers: P tau x = B z,       z = Q^T G^-1 x       E||P tau x||^2 = tr(A C),  A = B^T B, B = tau G Q,  C = E z z^T

and the leading r x r blocks of A and C give rank r. The same pass gives the principal components of the stream itself:
the top eigenvectors of the second moment of the SAE's input. First positions (BOS) and padding are excluded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from stethoscope.delta.projection import SpanBasis, float64, gain_of, inverse_gain
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.layout import MatrixSite
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.residual import listen_inputs, listen_residual, site_width
from stethoscope.progress import Progress
from stethoscope.recipes.reach import Serving, serving
from stethoscope.records import Site
from stethoscope.sae.documents import batches_by_length

BATCH_TOKENS = 8192  # each batch reads every delta once


@dataclass(frozen=True, slots=True)
class FunctionalEnergy:
    """Mean ||tau x||^2 over the inputs of a matrix, and the part that the projected edit keeps.

    Attributes:
        total: tr(tau S_x tau^T).
        kept: the same for the edit projected on the first r basis vectors, r = 0..rank. With folded norm weights, the
            projection is oblique and this can exceed `total`.
    """

    total: float
    kept: Float64[Tensor, " r_plus_1"]


@dataclass(frozen=True, slots=True)
class Activity:
    """Results of one pass over the documents.

    Attributes:
        n_tokens: number of counted tokens.
        components: layer of an SAE -> the leading principal components of its input, [n, d], largest first.
        functional: name of a matrix -> its functional energy.
    """

    n_tokens: int
    components: Mapping[int, Float64[Tensor, "n d"]]
    functional: Mapping[str, FunctionalEnergy]


def measure_activity(
    loaded: LoadedModel,
    task_vector: TaskVector,
    bases: Mapping[int, SpanBasis],
    rows: Sequence[Sequence[int]],
    *,
    n_components: int,
    sae_site: Site = "resid_post",
    fold_gains: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Activity:
    """Return the functional energy of every matrix with a basis in `bases` (by SAE layer), and the principal
    components.

    Args:
        rows: token ids of the documents, including BOS if the tokenizer has one.
    """
    progress = Progress() if progress is None else progress
    progress.start("Measuring functional energy", len(rows))
    counters = {
        site.name: _Counter(loaded, task_vector, site, use, bases[use.layer], fold_gains)
        for site in loaded.layout.matrices
        if (use := serving(site, sae_site)) is not None and use.layer in bases
    }
    width = site_width(loaded, sae_site)
    moments: dict[int, Tensor] = {}
    kept: Bool[Tensor, "batch seq"] = torch.zeros(0, 0, dtype=torch.bool)

    def add_moment(layer: int, x: Tensor) -> None:
        tokens = float64(x[kept.to(x.device)])
        moments.setdefault(layer, tokens.new_zeros(width, width)).addmm_(tokens.T, tokens)

    def count(name: str, x: Tensor) -> None:
        counters[name].add(x[kept.to(x.device)])

    skip, n_tokens = loaded.skipped_tokens, 0
    with (
        torch.no_grad(),
        listen_residual(loaded, list(bases), add_moment, sae_site),
        listen_inputs(loaded, list(counters), count),
    ):
        for batch in batches_by_length(rows, batch_tokens):
            progress.check_cancel()
            padded = loaded.batch([rows[i] for i in batch])
            kept = padded.attention_mask.bool()
            kept[:, :skip] = False
            n_tokens += int(kept.sum())
            loaded.decoder(input_ids=padded.input_ids, attention_mask=padded.attention_mask, use_cache=False)
            progress.advance(len(batch))
    components = {}
    for layer in sorted(moments):
        progress.check_cancel()
        vectors = torch.linalg.eigh(moments.pop(layer)).eigenvectors
        components[layer] = vectors.flip(1)[:, :n_components].T.contiguous()
    functional = {name: counter.energy(n_tokens) for name, counter in counters.items()}
    return Activity(n_tokens, components, functional)


class _Counter:
    """Running sums of one matrix over tokens; tau is read for each batch, and only small sums are stored."""

    def __init__(
        self,
        loaded: LoadedModel,
        task_vector: TaskVector,
        site: MatrixSite,
        use: Serving,
        basis: SpanBasis,
        fold_gains: bool,
    ) -> None:
        self._delta = lambda: task_vector.delta(site.name)
        self._writes = use.output_side
        gain = gain_of(loaded, site) if use.gain and fold_gains else None
        Q = basis.Q
        self._gain_Q = Q if gain is None else float64(gain).to(Q.device)[:, None] * Q
        self._inverse_Q = Q if gain is None else inverse_gain(gain).values.to(Q.device)[:, None] * Q
        rank = Q.shape[1]
        self._total = 0.0
        self._moment = Q.new_zeros(rank, rank)
        self._shape: Tensor | None = None

    def add(self, x: Float[Tensor, "n in"]) -> None:
        """Count the inputs of `x`."""
        delta = self._delta()
        moved = float64(x @ delta.to(x.device).T)  # [n, out]
        self._total += float(moved.square().sum())
        along = moved @ self._gain_Q.to(moved.device) if self._writes else float64(x) @ self._inverse_Q.to(moved.device)
        self._moment += (along.T @ along).to(self._moment.device)
        if self._shape is None:
            image = self._inverse_Q if self._writes else float64(delta).to(self._gain_Q.device) @ self._gain_Q
            self._shape = image.T @ image

    def energy(self, n_tokens: int) -> FunctionalEnergy:
        """Return the means over `n_tokens`: leading blocks of A * C, summed."""
        assert self._shape is not None, "no token was seen"
        blocks = torch.nn.functional.pad(self._shape * self._moment, (1, 0, 1, 0)).cumsum(0).cumsum(1).diagonal()
        return FunctionalEnergy(self._total / n_tokens, blocks.cpu() / n_tokens)
