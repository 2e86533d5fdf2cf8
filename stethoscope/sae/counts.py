"""Count which latents fire in which document, without a decoder and without dense activations.

    pre = x @ W_enc + b_enc  into one buffer,  fires = pre > max(threshold, 0),  then only firing entries are read

Each layer's SAE is read once per super-batch (`documents`), and only the table of firing entries (`rates`) grows with
the corpus. Everything is float32 (without TF32), and sums are float64.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.sae.bank import Sae, SaeBank
from stethoscope.sae.documents import BATCH_TOKENS, CAPTURE_BYTES, Document, listen, tokenise
from stethoscope.sae.rates import FiringRates, LayerTable, stack_tables

CHUNK_TOKENS = 512  # tokens encoded at once: [512, 16k] is 32 MB
CHUNK_BYTES = 128 << 20  # a wide SAE encodes fewer tokens at once


def count_firing(
    loaded: LoadedModel,
    bank: SaeBank,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] | None = None,
    tokens: Literal["prompt", "all"] = "prompt",
    batch_tokens: int = BATCH_TOKENS,
    capture_bytes: int = CAPTURE_BYTES,
    progress: Progress | None = None,
) -> FiringRates:
    """Measure the latents at `layers` (all layers of the bank if None) on `documents`; see `documents` for the other
    options.

    Counts each document on `progress` (which the caller has started) and checks for cancel between batches and layers.

    Raises:
        SaeError: a layer missing in the bank or the model, or an invalid SAE.
        CorpusError: a document without tokens.
        CheckpointError: activations that are not finite.
        Cancelled: the job was stopped.
    """
    progress = progress or Progress()
    chosen = tuple(bank.layers if layers is None else layers)
    check_layers(loaded, bank, chosen)
    rows = tokenise(loaded, documents, tokens)
    tables: dict[int, list[LayerTable]] = {layer: [] for layer in chosen}
    order: list[int] = []
    for heard in listen(
        loaded,
        rows,
        chosen,
        bank.ref.site,
        d=bank.d_model,
        batch_tokens=batch_tokens,
        capture_bytes=capture_bytes,
        progress=progress,
    ):
        for layer in chosen:
            progress.yield_to_interactive()
            tables[layer].append(_count(bank, layer, heard.take(layer), heard.n_tokens))
        order.extend(heard.documents)
        progress.advance(len(heard.documents))
    in_order = np.argsort(order)
    n_tokens = np.array([len(row) for row in rows], dtype=np.int64) - loaded.skipped_tokens
    return FiringRates(chosen, n_tokens, {layer: stack_tables(tables.pop(layer)).of(in_order) for layer in chosen})


def check_layers(loaded: LoadedModel, bank: SaeBank, layers: Sequence[int]) -> None:
    """Raise `SaeError` for the first of `layers` missing in the bank or the model."""
    for layer in layers:
        bank.row(layer)
        if layer >= loaded.layout.n_layers:
            raise SaeError(
                f"{bank.ref.location} has an SAE for layer {layer}",
                got=f"a model with {loaded.layout.n_layers} layers",
                next_step="Use SAEs trained on this model.",
            )


def _count(bank: SaeBank, layer: int, x: Tensor, n_tokens: Int[np.ndarray, " n_docs"]) -> LayerTable:
    return sum_by_document(bank.load(layer).to(x.device), x, n_tokens)


def sum_by_document(
    sae: Sae,
    x: Float[Tensor, "n_tokens d_model"],
    n_tokens: Int[np.ndarray, " n_docs"],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LayerTable:
    """Return firing rates and mass of the documents whose tokens are concatenated in `x`."""
    assert int(n_tokens.sum()) == len(x), f"documents of {int(n_tokens.sum())} tokens in all, {len(x)} vectors"
    owner = torch.repeat_interleave(torch.from_numpy(n_tokens)).to(x.device)  # [n_tokens] -> document
    size = min(chunk_tokens, max(CHUNK_BYTES // (4 * sae.d_sae), 1), max(len(x), 1))
    buffer = x.new_empty(size, sae.d_sae)
    fires = torch.empty(size, sae.d_sae, dtype=torch.bool, device=x.device)
    cut = sae.threshold.clamp(min=0)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # document, latent, count, sum of activations
    begun: tuple[Tensor, Tensor] | None = None  # counts and sums of a document that continues in the next chunk
    for start in range(0, len(x), size):
        chunk = x[start : start + size]
        centred = chunk - sae.b_dec if sae.apply_b_dec_to_input else chunk
        pre = torch.addmm(sae.b_enc, centred, sae.W_enc, out=buffer[: len(chunk)])
        token, latent = torch.gt(pre, cut, out=fires[: len(chunk)]).nonzero(as_tuple=True)
        first, last = int(owner[start]), int(owner[start + len(chunk) - 1])
        shape = (last - first + 1, sae.d_sae)
        counts, sums = _sums_by_row(owner[start + token] - first, latent, pre[token, latent], shape)
        if begun is not None:
            counts[0] += begun[0]
            sums[0] += begun[1]
        goes_on = start + size < len(x) and int(owner[start + size]) == last
        begun = (counts[-1], sums[-1]) if goes_on else None
        row, latent = counts[: shape[0] - goes_on].nonzero(as_tuple=True)
        columns.append((first + row, latent, counts[row, latent], sums[row, latent]))
    document, latent, counts, sums = (torch.cat(column) for column in zip(*columns, strict=True))
    length = torch.from_numpy(n_tokens).to(x.device)[document]
    return LayerTable.of_entries(
        sae.d_sae,
        len(n_tokens),
        documents=document.cpu().numpy(),
        latents=latent.cpu().numpy(),
        rates=(counts.double() / length).cpu().numpy(),
        masses=(sums / length * sae.W_dec.norm(dim=1)[latent]).cpu().numpy(),
    )


def _sums_by_row(
    rows: Int[Tensor, " n"], latents: Int[Tensor, " n"], values: Float[Tensor, " n"], shape: tuple[int, int]
) -> tuple[Int[Tensor, "rows d_sae"], Float64[Tensor, "rows d_sae"]]:
    """Return the number of entries of each (row, latent), and the sum of their values."""
    place = rows * shape[1] + latents
    counts = torch.bincount(place, minlength=shape[0] * shape[1])
    sums = torch.bincount(place, values.double(), minlength=shape[0] * shape[1])
    return counts.view(shape), sums.view(shape).double()  # without entries, torch counts in integers
