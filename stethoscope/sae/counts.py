"""Which latents fire in which document, gathered in one forward pass over each document.

Documents run in batches of about equal length, batches in super-batches: the activations of every layer are captured
for as many tokens as `capture_bytes` holds, then each layer's SAE is read once and its latents are counted. Memory
grows with the super-batch, never with the corpus; only the table of what fired (`rates`) does.

    pre = x @ W_enc + b_enc  into one buffer,  fires = pre > max(threshold, 0),  then only what fires is looked at

No decoder runs and no dense activation is made; everything is float32 (TF32 stays off), sums are float64. BOS and
padding are dropped: the first position carries massive activations.
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
from stethoscope.records import Site
from stethoscope.sae.bank import Sae, SaeBank
from stethoscope.sae.rates import FiringRates, LayerTable, stack_tables

CHUNK_TOKENS = 512  # tokens encoded at once: [512, 16k] is 32 MB
CHUNK_BYTES = 128 << 20  # a wide SAE takes fewer tokens at once
CAPTURE_BYTES = 1 << 30  # activations captured at once: 3,000 tokens of a 4B model's 34 layers


@dataclass(frozen=True, slots=True)
class Document:
    """One text to listen to: a problem (or control text), its solution where it has one, and its subject."""

    problem: str
    solution: str | None
    subject: str


def count_firing(
    session: ModelSession,
    bank: SaeBank,
    documents: Sequence[Document],
    *,
    layers: Sequence[int] | None = None,
    tokens: Literal["prompt", "all"] = "prompt",
    batch_tokens: int = 8192,
    capture_bytes: int = CAPTURE_BYTES,
    progress: Progress | None = None,
) -> FiringRates:
    """Listen to `documents` at `layers` (every layer of the bank where None).

    tokens="prompt" takes the problem's own text, without frame or shots; "all" takes problem, blank line, solution.
    A forward pass sees at most `batch_tokens` padded tokens, and captured activations take at most `capture_bytes`
    (a single document is always let through). Counts each document on `progress` (which the caller has started) and
    looks for a cancel between batches and layers.

    Raises:
        SaeError: a layer that the bank or the model lacks, or a broken SAE.
        CorpusError: a document without a token.
        CheckpointError: activations that are not finite.
        Cancelled: asked to stop.
    """
    progress = progress or Progress()
    chosen = tuple(bank.layers if layers is None else layers)
    for layer in chosen:
        bank.row(layer)
        if layer >= session.layout.n_layers:
            raise SaeError(
                f"{bank.ref.location} has an SAE for layer {layer}",
                got=f"a model of {session.layout.n_layers} layers",
                next_step="Pick SAEs trained on this model.",
            )
    rows = tokenise(session, documents, tokens)
    n_tokens = np.array([len(row) for row in rows], dtype=np.int64) - skipped_tokens(session)
    budget = capture_bytes // (4 * bank.d_model)  # vectors of one token at one layer
    tables: dict[int, list[LayerTable]] = {layer: [] for layer in chosen}
    order: list[int] = []
    at_once = batches_by_length(rows, min(batch_tokens, budget // (2 * len(chosen) + 1)))
    for batches in _super_batches(at_once, rows, len(chosen), budget):
        listened = [i for batch in batches for i in batch]
        captured = _capture(session, [[rows[i] for i in batch] for batch in batches], chosen, bank.ref.site, progress)
        for layer in chosen:
            progress.give_way()
            tables[layer].append(_count(bank, layer, captured.pop(layer), n_tokens[listened]))
        order.extend(listened)
        progress.advance(len(listened))
    in_order = np.argsort(order)
    return FiringRates(chosen, n_tokens, {layer: stack_tables(tables.pop(layer)).of(in_order) for layer in chosen})


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


def _capture(
    session: ModelSession,
    batches: Sequence[Sequence[Sequence[int]]],
    layers: Sequence[int],
    site: Site,
    progress: Progress,
) -> dict[int, Tensor]:
    """Run the batches and return layer -> [n_kept, d]: the kept tokens of all rows, one after another."""
    skip = skipped_tokens(session)
    n_kept = sum(len(row) - skip for batch in batches for row in batch)
    kept_rows: dict[int, Tensor] = {}
    done = 0
    for batch in batches:
        progress.give_way()
        padded = session.batch(batch)
        with torch.no_grad(), capture_residual(session, layers, site) as captured:
            session.model(
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
                use_cache=False,
                logits_to_keep=1,
            )
        kept = padded.attention_mask.bool()
        kept[:, :skip] = False
        end = done + int(kept.sum())
        for layer in layers:
            x = captured.pop(layer)
            store = kept_rows.setdefault(layer, x.new_empty(n_kept, x.shape[-1]))
            store[done:end] = x[kept.to(x.device)]
        done = end
    return kept_rows


def _count(bank: SaeBank, layer: int, x: Float[Tensor, "n_kept d"], n_tokens: Int[np.ndarray, " n_docs"]) -> LayerTable:
    if not torch.isfinite(x).all():
        raise CheckpointError(
            f"activations of layer {layer} are not finite",
            got="NaN or infinity",
            next_step="Run the model in float32 or bfloat16.",
        )
    return sum_by_document(bank.load(layer).to(x.device), x, n_tokens)


def skipped_tokens(session: ModelSession) -> int:
    """Return how many tokens at the start of a row are no document's own."""
    return 0 if session.bos_id is None else 1


def tokenise(session: ModelSession, documents: Sequence[Document], tokens: Literal["prompt", "all"]) -> list[list[int]]:
    """Return the token ids of each document's text, BOS first where the tokenizer has one.

    Raises:
        CorpusError: a document without a token of its own.
    """
    texts = [
        document.problem + (f"\n\n{document.solution}" if tokens == "all" and document.solution is not None else "")
        for document in documents
    ]
    rows = session.encode(texts)
    for document, row in zip(documents, rows, strict=True):
        if len(row) <= skipped_tokens(session):
            raise CorpusError(
                f"a document of {document.subject} has no text",
                got=repr(document.problem),
                next_step="Leave it out of the corpus.",
            )
    return rows


def batches_by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of rows of about equal length, at most `batch_tokens` padded tokens (at least one row)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _super_batches(
    batches: Iterator[list[int]], rows: Sequence[Sequence[int]], n_layers: int, budget: int
) -> Iterator[list[list[int]]]:
    """Yield runs of batches whose captured vectors fit `budget` (at least one batch).

    At the worst moment these are there: the run's kept tokens and its largest padded batch, at every layer, and the
    kept tokens of that batch at the layer that is being copied.
    """
    run: list[list[int]] = []
    n_kept = 0
    for batch in batches:
        n_kept += sum(len(rows[i]) for i in batch)
        n_padded = len(batch) * max(len(rows[i]) for i in batch)
        if run and (n_kept + n_padded) * n_layers + n_padded > budget:
            yield run
            run, n_kept = [], sum(len(rows[i]) for i in batch)
        run.append(batch)
    if run:
        yield run
