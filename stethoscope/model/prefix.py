"""Shared prefixes: keys and values of a common prompt prefix are computed once and used by all rows of a batch.

    row i, right-aligned in L = longest row slots:   [ padding | shared prefix | own tokens ]
                                                       L-len_i    cached         computed in one block

Sliding-window layers count cache *slots*, not positions, so padding must be left of the prefix. Keys include their
rotary position, so the cached part of a row is the prefix's keys shifted right by its padding; the block of the last L
- P tokens then repeats a few prefix tokens for rows shorter than the longest. The results equal those of left-padding
each whole prompt. A prefix belongs to one set of weights: it is made inside `delta.patch.applied`, remembers the
version of the weights, and is refused with any other.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from stethoscope.errors import CheckpointError, StethoscopeError
from stethoscope.model.loaded_model import LoadedModel

MIN_PREFIX = 8  # a shorter prefix is not worth a separate forward pass


@dataclass(frozen=True, slots=True)
class Prefix:
    """A shared prefix with its keys and values in each layer (none if `tokens` is empty).

    Attributes:
        tokens: token ids of the prefix.
        weights_version: the weights that it was computed with (see `LoadedModel.weights_version`); it fits no other.
    """

    tokens: tuple[int, ...]
    weights_version: int
    keys: tuple[Float[Tensor, "1 heads prefix head_dim"], ...]
    values: tuple[Float[Tensor, "1 heads prefix head_dim"], ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def check(self, loaded: LoadedModel) -> None:
        """Raise `StethoscopeError` unless the weights in place are those that the prefix was computed with."""
        if self.weights_version != loaded.weights_version:
            raise StethoscopeError(
                f"keys and values are of weights version {self.weights_version}, not {loaded.weights_version}: "
                "compute the prefix inside the patch that uses it"
            )

    def cut_to(self, rows: Sequence[Sequence[int]]) -> "Prefix":
        """Return the part that all of `rows` start with, leaving at least one token per row.

        Nothing is copied, because later tokens do not affect the keys and values of earlier ones.
        """
        length = min(_common(row, self.tokens) for row in rows) if rows else 0
        length = length if length >= MIN_PREFIX else 0
        kept = self.keys if length else (), self.values if length else ()
        keys, values = (tuple(states[:, :, :length] for states in layers) for layers in kept)
        return Prefix(self.tokens[:length], self.weights_version, keys, values)


@dataclass(slots=True)
class Block:
    """Model input for a batch: the last tokens of each row, after the cached slots.

    Attributes:
        input_ids: [batch, block].
        attention_mask: over cached slots and block, 1 = a real token, [batch, slots].
        position_ids: true positions of the block, [batch, block].
        cache: keys and values of the cached slots; the forward pass extends it.
    """

    input_ids: Int[Tensor, "batch block"]
    attention_mask: Int[Tensor, "batch slots"]
    position_ids: Int[Tensor, "batch block"]
    cache: DynamicCache


def share_prefix(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Prefix:
    """Compute the longest common token prefix of `rows`, leaving at least one token per row.

    A prefix under `MIN_PREFIX` tokens, or of a single row, is empty.
    """
    tokens = tuple(os.path.commonprefix([tuple(row) for row in rows])) if len(rows) > 1 else ()
    length = min([len(tokens), *(len(row) - 1 for row in rows)])
    if length < MIN_PREFIX:
        return Prefix((), loaded.weights_version, (), ())
    ids = torch.tensor([tokens[:length]], device=loaded.device)
    cache = DynamicCache()  # without a config it keeps all slots, even in sliding-window layers
    with torch.no_grad():
        loaded.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    keys = tuple(layer.keys for layer in layers if layer.keys is not None)
    values = tuple(layer.values for layer in layers if layer.values is not None)
    if not len(keys) == len(values) == loaded.layout.n_layers:
        raise CheckpointError(
            f"{loaded.ref.id} cannot share a common prompt prefix",
            got=f"cached keys and values in {len(keys)} of {loaded.layout.n_layers} layers",
            expected="attention with a plain cache in every layer",
            next_step="Use a model without recurrent or cross-layer caches.",
        )
    return Prefix(tokens[:length], loaded.weights_version, keys, values)


def _common(row: Sequence[int], tokens: Sequence[int]) -> int:
    """Return the length of the common prefix of `tokens` and `row`, excluding the row's last token."""
    return len(os.path.commonprefix([tuple(row[:-1]), tuple(tokens)]))


def right_align(loaded: LoadedModel, rows: Sequence[Sequence[int]], prefix: Prefix) -> Block:
    """Return the block for computing `rows`, which all start with `prefix`."""
    prefix.check(loaded)
    batch = loaded.batch(rows, side="left")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=loaded.model.config)
    width = batch.input_ids.shape[1]
    padding = [width - len(row) for row in rows]
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(_shift_right(keys, padding), _shift_right(values, padding), layer)
    return Block(
        input_ids=batch.input_ids[:, prefix.length :],
        attention_mask=batch.attention_mask,
        position_ids=positions[:, prefix.length :],
        cache=cache,
    )


def _shift_right(
    states: Float[Tensor, "1 heads prefix head_dim"], padding: Sequence[int]
) -> Float[Tensor, "batch heads prefix head_dim"]:
    """Copy `states` to each row, shifted right by its padding; tokens shifted out are part of the row's block."""
    out = states.new_zeros(len(padding), *states.shape[1:])
    for row, shift in enumerate(padding):
        kept = states.shape[2] - shift
        if kept > 0:
            out[row, :, shift:] = states[0, :, :kept]
    return out
