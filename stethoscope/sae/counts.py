"""Which latents fire in which document: the share of a document's tokens, for every latent of every layer.

    f_ij = (kept tokens of document i on which latent j fires) / (kept tokens of document i)

The document is the statistical unit. BOS and padding are dropped: the first position carries massive activations.
Documents run in batches of about equal length; a layer's latents are counted without keeping their activations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stethoscope.errors import CheckpointError, CorpusError, SaeError
from stethoscope.model.residual import capture_residual
from stethoscope.model.session import ModelSession
from stethoscope.progress import Progress
from stethoscope.sae.bank import SaeBank

CHUNK_TOKENS = 1024  # tokens encoded at once: [1024, 16k] is 64 MB


@dataclass(frozen=True, slots=True)
class Document:
    """One text to listen to: a problem (or control text), its solution where it has one, and its subject."""

    problem: str
    solution: str | None
    subject: str


@dataclass(frozen=True, slots=True)
class FiringRates:
    """Firing rates per document.

    Attributes:
        layers: layers that were listened to.
        rates: layer -> share of each document's kept tokens on which each latent fires, [n_docs, d_sae] in [0, 1].
        n_tokens: kept tokens of each document, [n_docs].
    """

    layers: tuple[int, ...]
    rates: dict[int, Float[np.ndarray, "n_docs d_sae"]]
    n_tokens: Int[np.ndarray, " n_docs"]

    def of(self, documents: Sequence[int]) -> "FiringRates":
        """Return the rates of some documents, by their position."""
        chosen = np.asarray(documents, dtype=np.int64)
        rates = {layer: table[chosen] for layer, table in self.rates.items()}
        return FiringRates(self.layers, rates, self.n_tokens[chosen])


def count_firing(
    session: ModelSession,
    bank: SaeBank,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] | None = None,
    tokens: Literal["prompt", "all"] = "prompt",
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> FiringRates:
    """Listen to `documents` at `layers` (every layer of the bank where None).

    tokens="prompt" takes the problem's own text, without frame or shots; "all" takes problem, blank line, solution.
    Counts each document on `progress` (which the caller has started) and looks for a cancel between batches.

    Raises:
        SaeError: a layer that the bank or the model lacks, or a broken SAE.
        CorpusError: a document without a token.
        CheckpointError: activations that are not finite.
        Cancelled: asked to stop.
    """
    progress = progress or Progress()
    chosen = tuple(bank.layers if layers is None else layers)
    beyond = [layer for layer in chosen if layer >= session.layout.n_layers]
    if beyond:
        raise SaeError(
            f"{bank.ref.location} has an SAE for layer {beyond[0]}",
            got=f"a model of {session.layout.n_layers} layers",
            next_step="Pick SAEs trained on this model.",
        )
    rows = _tokenise(session, documents, tokens)
    skip = 0 if session.bos_id is None else 1
    n_tokens = np.array([len(row) - skip for row in rows], dtype=np.int64)
    rates = {layer: np.zeros((len(rows), bank.load(layer).d_sae), dtype=np.float32) for layer in chosen}
    for batch in _batches(rows, batch_tokens):
        progress.check_cancel()
        padded = session.batch([rows[i] for i in batch])
        with torch.no_grad(), capture_residual(session, chosen, bank.ref.site) as captured:
            session.model(
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
                use_cache=False,
                logits_to_keep=1,
            )
        kept = padded.attention_mask.bool()
        kept[:, :skip] = False
        owner = torch.nonzero(kept)[:, 0]  # [n_kept] -> row of the batch
        for layer in chosen:
            counts = _count(bank, layer, captured.pop(layer)[kept], owner, len(batch))
            rates[layer][batch] = (counts / torch.from_numpy(n_tokens[batch])[:, None]).numpy()
        progress.advance(len(batch))
    return FiringRates(chosen, rates, n_tokens)


def _count(
    bank: SaeBank, layer: int, x: Float[Tensor, "n_kept d"], owner: Int[Tensor, " n_kept"], n_rows: int
) -> Float[Tensor, "n_rows d_sae"]:
    """Count the tokens of each row on which each latent fires."""
    if not torch.isfinite(x).all():
        raise CheckpointError(
            f"activations of layer {layer} are not finite",
            got="NaN or infinity",
            next_step="Run the model in float32 or bfloat16.",
        )
    sae = bank.load(layer).to(x.device)
    counts = torch.zeros(n_rows, sae.d_sae, device=x.device)
    for start in range(0, len(x), CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        counts.index_add_(0, owner[chunk], sae.fires(x[chunk]).to(torch.float32))
    return counts.cpu()


def _tokenise(
    session: ModelSession, documents: Sequence[Document], tokens: Literal["prompt", "all"]
) -> list[list[int]]:
    texts = [
        document.problem + (f"\n\n{document.solution}" if tokens == "all" and document.solution is not None else "")
        for document in documents
    ]
    rows = session.encode(texts)
    for document, row in zip(documents, rows, strict=True):
        if len(row) <= (0 if session.bos_id is None else 1):
            raise CorpusError(
                f"a document of {document.subject} has no text",
                got=repr(document.problem),
                next_step="Leave it out of the corpus.",
            )
    return rows


def _batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of rows of about equal length, at most `batch_tokens` padded tokens (at least one row)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
