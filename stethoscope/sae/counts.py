"""Which latents fire in which document, counted without a decoder and without a dense activation.

    pre = x @ W_enc + b_enc  into one buffer,  fires = pre > max(threshold, 0),  then only what fires is looked at

Each layer's SAE is read once a super-batch (`documents`), and only the table of what fired (`rates`) grows with the
corpus. Everything is float32 (TF32 stays off), sums are float64.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.model.session import ModelSession
from stethoscope.progress import Progress
from stethoscope.sae.bank import Sae, SaeBank
from stethoscope.sae.documents import BATCH_TOKENS, CAPTURE_BYTES, Document, listen, skipped_tokens, tokenise
from stethoscope.sae.rates import FiringRates, LayerTable, stack_tables

CHUNK_TOKENS = 512  # tokens encoded at once: [512, 16k] is 32 MB
CHUNK_BYTES = 128 << 20  # a wide SAE takes fewer tokens at once


def count_firing(
    session: ModelSession,
    bank: SaeBank,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] | None = None,
    tokens: Literal["prompt", "all"] = "prompt",
    batch_tokens: int = BATCH_TOKENS,
    capture_bytes: int = CAPTURE_BYTES,
    progress: Progress | None = None,
) -> FiringRates:
    """Listen to `documents` at `layers` (every layer of the bank where None); see `documents` for the other options.

    Counts each document on `progress` (which the caller has started) and looks for a cancel between batches and layers.

    Raises:
        SaeError: a layer that the bank or the model lacks, or a broken SAE.
        CorpusError: a document without a token.
        CheckpointError: activations that are not finite.
        Cancelled: asked to stop.
    """
    progress = progress or Progress()
    chosen = tuple(bank.layers if layers is None else layers)
    check_layers(session, bank, chosen)
    rows = tokenise(session, documents, tokens)
    tables: dict[int, list[LayerTable]] = {layer: [] for layer in chosen}
    order: list[int] = []
    for heard in listen(
        session,
        rows,
        chosen,
        bank.ref.site,
        d=bank.d_model,
        batch_tokens=batch_tokens,
        capture_bytes=capture_bytes,
        progress=progress,
    ):
        for layer in chosen:
            progress.give_way()
            tables[layer].append(_count(bank, layer, heard.take(layer), heard.n_tokens))
        order.extend(heard.documents)
        progress.advance(len(heard.documents))
    in_order = np.argsort(order)
    n_tokens = np.array([len(row) for row in rows], dtype=np.int64) - skipped_tokens(session)
    return FiringRates(chosen, n_tokens, {layer: stack_tables(tables.pop(layer)).of(in_order) for layer in chosen})


def check_layers(session: ModelSession, bank: SaeBank, layers: Sequence[int]) -> None:
    """Raise `SaeError` for the first of `layers` that the bank or the model lacks."""
    for layer in layers:
        bank.row(layer)
        if layer >= session.layout.n_layers:
            raise SaeError(
                f"{bank.ref.location} has an SAE for layer {layer}",
                got=f"a model of {session.layout.n_layers} layers",
                next_step="Pick SAEs trained on this model.",
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
    """Return firing rates and mass of the documents whose tokens stand one after another in `x`."""
    assert int(n_tokens.sum()) == len(x), f"documents of {int(n_tokens.sum())} tokens in all, {len(x)} vectors"
    owner = torch.repeat_interleave(torch.from_numpy(n_tokens)).to(x.device)  # [n_tokens] -> document
    size = min(chunk_tokens, max(CHUNK_BYTES // (4 * sae.d_sae), 1), max(len(x), 1))
    buffer = x.new_empty(size, sae.d_sae)
    fires = torch.empty(size, sae.d_sae, dtype=torch.bool, device=x.device)
    cut = sae.threshold.clamp(min=0)
    sums = []
    for start in range(0, len(x), size):
        chunk = x[start : start + size]
        centred = chunk - sae.b_dec if sae.apply_b_dec_to_input else chunk
        pre = torch.addmm(sae.b_enc, centred, sae.W_enc, out=buffer[: len(chunk)])
        token, latent = torch.gt(pre, cut, out=fires[: len(chunk)]).nonzero(as_tuple=True)
        activation = pre[token, latent].to(torch.float64)
        sums.append(_sum_by_key(owner[start + token] * sae.d_sae + latent, torch.ones_like(activation), activation))
    keys, counts, masses = (torch.cat(column) for column in zip(*sums, strict=True))
    if len(sums) > 1:  # a document may lie in several chunks
        keys, counts, masses = _sum_by_key(keys, counts, masses)
    document, latent = (keys // sae.d_sae), keys % sae.d_sae
    length = torch.from_numpy(n_tokens).to(x.device)[document]
    return LayerTable.of_entries(
        sae.d_sae,
        len(n_tokens),
        documents=document.cpu().numpy(),
        latents=latent.cpu().numpy(),
        rates=(counts / length).cpu().numpy(),
        masses=(masses / length * sae.W_dec.norm(dim=1)[latent]).cpu().numpy(),
    )


def _sum_by_key(
    keys: Int[Tensor, " n"], counts: Float[Tensor, " n"], masses: Float[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct keys, ascending, with the sums of their counts and masses."""
    distinct, place = torch.unique(keys, return_inverse=True)
    return (
        distinct,
        counts.new_zeros(len(distinct)).index_add_(0, place, counts),
        masses.new_zeros(len(distinct)).index_add_(0, place, masses),
    )
