"""Run each document once, and yield activations in super-batches of limited size.

Documents are grouped into batches of similar length, and batches into super-batches. The activations of all layers are
captured for as many tokens as fit into `capture_bytes`, yielded and released. Memory depends on the super-batch, not on
the corpus, and each SAE is read once per super-batch. BOS and padding are dropped, because the first position has
massive activations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stethoscope.errors import CheckpointError, CorpusError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.residual import capture_residual, up_to_layer
from stethoscope.progress import Progress
from stethoscope.records import Site

BATCH_TOKENS = 8192
CAPTURE_BYTES = 1 << 30  # 3,000 tokens of a 4B model's 34 layers


@dataclass(frozen=True, slots=True)
class Document:
    """One document: a problem or control text, its solution if any, and its subject."""

    problem: str
    solution: str | None
    subject: str


@dataclass(frozen=True, slots=True)
class SuperBatch:
    """Activations of some documents.

    Attributes:
        documents: positions of the documents, in the order of their vectors.
        n_tokens: number of kept tokens of each document.
        captured: layer -> [sum of n_tokens, d] in float32; taking out a layer releases its memory.
    """

    documents: list[int]
    n_tokens: Int[np.ndarray, " n_docs"]
    captured: dict[int, Tensor]

    def take(self, layer: int) -> Tensor:
        """Take the vectors of `layer` out.

        Raises:
            CheckpointError: activations that are not finite.
        """
        x = self.captured.pop(layer)
        if not torch.isfinite(x).all():
            raise CheckpointError(
                f"activations of layer {layer} are not finite",
                got="NaN or infinity",
                next_step="Run the model in float32 or bfloat16.",
            )
        return x


def tokenise(loaded: LoadedModel, documents: Sequence[Document], tokens: Literal["prompt", "all"]) -> list[list[int]]:
    """Return the token ids of each document, with BOS if the tokenizer adds it.

    tokens="prompt" uses the text of the problem without few-shot examples; "all" uses problem, blank line and solution.

    Raises:
        CorpusError: a document without a token.
    """
    texts = [
        document.problem + (f"\n\n{document.solution}" if tokens == "all" and document.solution is not None else "")
        for document in documents
    ]
    rows = loaded.encode(texts)
    for document, row in zip(documents, rows, strict=True):
        if len(row) <= loaded.skipped_tokens:
            raise CorpusError(
                f"a document of {document.subject} is empty",
                got=repr(document.problem),
                next_step="Remove it from the corpus.",
            )
    return rows


def listen(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    site: Site,
    *,
    d: int,
    batch_tokens: int = BATCH_TOKENS,
    capture_bytes: int = CAPTURE_BYTES,
    progress: Progress,
) -> Iterator[SuperBatch]:
    """Run every row (see `tokenise`) once and yield the activations of `layers` at `site`, with width `d`.

    A forward pass has at most `batch_tokens` padded tokens, and captured vectors take at most `capture_bytes` (a single
    row is always allowed). Checks for cancel before each forward pass.
    """
    budget = capture_bytes // (4 * d)  # vectors of one token at one layer
    at_once = batches_by_length(rows, min(batch_tokens, budget // (2 * len(layers) + 1)))
    skip = loaded.skipped_tokens
    for batches in _runs(at_once, rows, len(layers), budget):
        documents = [i for batch in batches for i in batch]
        n_tokens = np.array([len(rows[i]) - skip for i in documents], dtype=np.int64)
        captured: dict[int, Tensor] = {}
        done = 0
        for batch in batches:
            progress.yield_to_interactive()
            done += _capture(loaded, [rows[i] for i in batch], layers, site, captured, done, int(n_tokens.sum()))
        yield SuperBatch(documents, n_tokens, captured)


def _capture(
    loaded: LoadedModel,
    batch: Sequence[Sequence[int]],
    layers: Sequence[int],
    site: Site,
    captured: dict[int, Tensor],
    start: int,
    n_kept: int,
) -> int:
    """Run one batch and write its kept tokens to `captured` ([n_kept, d] a layer) from `start`; return their number."""
    padded = loaded.batch(batch)
    with torch.no_grad(), capture_residual(loaded, layers, site) as heard, up_to_layer(loaded, max(layers)):
        loaded.decoder(input_ids=padded.input_ids, attention_mask=padded.attention_mask, use_cache=False)
    kept = padded.attention_mask.bool()
    kept[:, : loaded.skipped_tokens] = False
    end = start + int(kept.sum())
    for layer in layers:
        x = heard.pop(layer)
        if layer not in captured:
            captured[layer] = x.new_empty(n_kept, x.shape[-1])
        captured[layer][start:end] = x[kept.to(x.device)]
    return end - start


def batches_by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of rows of similar length, with at most `batch_tokens` padded tokens (at least one row)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _runs(
    batches: Iterator[list[int]], rows: Sequence[Sequence[int]], n_layers: int, budget: int
) -> Iterator[list[list[int]]]:
    """Yield runs of batches whose captured vectors fit `budget` (at least one batch).

    Peak memory consists of the run's kept tokens and its largest padded batch at every layer, and the kept tokens of
    that batch at the layer being copied.
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
