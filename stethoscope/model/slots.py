"""Key-value storage of rows that share a prefix, and the attention that reads it in place.

    position   0 ... P-1            P ... P+C-1
               [ shared prefix ]    [ own slots of row r: slot s holds position P + s ]
                 stored once          one stripe of C slots per row, written in place

One forward pass takes a *packed* list of tokens (model batch 1): the newest token of every continued row, and the whole
tail of every new row. There is no padding, so slots and positions always correspond. A query at position p sees the key
at position j if and only if

    j <= p  and, in a layer with a sliding window,  j > p - window.

Scores with the prefix are one matrix product for all rows, and those with the row's own slots one product per row; a
single softmax covers both. transformers calls `attend` through its attention interface, and the model's own code does
the rest.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from stethoscope.errors import CheckpointError, GenerationError, StethoscopeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import Prefix

ATTENTION = "stethoscope_row_slots"  # a name without a mask function, so that transformers creates no mask
SLOT_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one pass with the same number of tokens; `lowest` and `highest` are the first and last slot."""

    rows: slice
    tokens: slice
    lowest: int
    highest: int


@dataclass(frozen=True, slots=True)
class Packed:
    """The tokens of one forward pass, row after row.

    Attributes:
        ids: token ids, [1, n_tokens].
        positions: true positions, [1, n_tokens].
        rows: the stripe of each token, [n_tokens].
        slots: the slot of each token in its stripe, [n_tokens].
        last: index of each row's last token, [n_rows].
        groups: the continued rows together, then new rows, neighbours of equal length together.
    """

    ids: Int[Tensor, "1 n_tokens"]
    positions: Int[Tensor, "1 n_tokens"]
    rows: Int[Tensor, " n_tokens"]
    slots: Int[Tensor, " n_tokens"]
    last: Int[Tensor, " n_rows"]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Keys that a group sees in layers with one window size: the prefix from `first`, own slots `start:stop`, and a
    mask [n_tokens, m] that is added to the last m columns (every token sees those before them)."""

    first: int
    start: int
    stop: int
    mask: Tensor


class RowSlots:
    """Keys and values of up to `n_rows` rows after one prefix.

    Acts as a transformers cache in the model's forward pass (`update`) and computes its attention (`attend`).
    """

    def __init__(self, loaded: LoadedModel, prefix: Prefix, n_rows: int) -> None:
        self._loaded = loaded
        self._prefix = prefix
        self._n_rows = n_rows
        self._windows = windows_of(loaded)
        self._keys: dict[int, Tensor] = {}  # layer -> [n_rows, kv_heads, slots, head_dim]
        self._values: dict[int, Tensor] = {}
        self._packed: Packed | None = None
        self._seen: dict[tuple[int, int | None, torch.device], _Seen] = {}
        self._attended: set[int] = set()

    def next_tokens(self, continued: Sequence[tuple[int, int]], tails: Sequence[Sequence[int]]) -> list[int]:
        """Run the model once and return the most likely next token of each row, continued rows first.

        Args:
            continued: (newest token, its slot) of each row in stripes 0, 1, ...
            tails: the tokens after the prefix of each new row; these rows use the subsequent stripes.

        Raises:
            GenerationError: logits that are NaN or infinite.
        """
        packed = pack(continued, tails, self._prefix.length, self._loaded.device)
        self._packed, self._seen, self._attended = packed, {}, set()
        with torch.no_grad(), _attention_of(self._loaded):
            logits = self._loaded.model(
                input_ids=packed.ids,
                position_ids=packed.positions,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=packed.last,
                row_slots=self,
            ).logits
        if len(self._attended) != self._loaded.layout.n_layers:
            raise StethoscopeError(f"{type(self._loaded.model).__name__} uses a custom attention implementation")
        best = logits[0].max(-1)  # if a row contains NaN, its maximum is NaN
        if not torch.isfinite(best.values).all():
            raise GenerationError(
                "the model's predictions are not finite",
                got="NaN or infinite logits",
                expected="numbers",
                next_step="Use a smaller alpha or fewer layers, or load the model in a dtype with a wider range.",
            )
        return best.indices.tolist()

    def move(self, source: int, target: int, n_slots: int) -> None:
        """Copy the first `n_slots` slots of stripe `source` to stripe `target`."""
        for states in (*self._keys.values(), *self._values.values()):
            states[target, :, :n_slots] = states[source, :, :n_slots]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values [1, kv_heads, n_tokens, head_dim] of a layer into their slots."""
        packed = self._packed
        assert packed is not None, "no pass is running"
        n_slots = 1 + max(group.highest for group in packed.groups)
        where = packed.rows.to(key.device), slice(None), packed.slots.to(key.device)
        for kept, states in ((self._keys, key), (self._values, value)):
            if layer_idx not in kept or kept[layer_idx].shape[2] < n_slots:
                kept[layer_idx] = self._grown(kept.get(layer_idx), states, n_slots)
            kept[layer_idx][where] = states[0].transpose(0, 1)
        return key, value

    def _grown(self, old: Tensor | None, states: Tensor, n_slots: int) -> Tensor:
        """Return stripes of at least `n_slots`, zero where nothing was written (0 * uninitialised memory might be
        NaN)."""
        size = -(-n_slots // SLOT_CHUNK) * SLOT_CHUNK
        new = states.new_zeros(self._n_rows, states.shape[1], size, states.shape[3])
        if old is not None:
            new[:, :, : old.shape[2]] = old
        return new

    def attend(
        self, layer: int, query: Float[Tensor, "1 heads n_tokens head_dim"], scaling: float, softcap: float | None
    ) -> Float[Tensor, "1 n_tokens heads head_dim"]:
        """Return the attention output of every packed token in `layer`."""
        assert self._packed is not None, "no pass is running"
        self._attended.add(layer)
        n_kv = self._keys[layer].shape[1]
        tokens = (query[0] * scaling).transpose(0, 1).unflatten(1, (n_kv, -1))  # [n_tokens, n_kv, per_kv, head_dim]
        found = [self._attend_group(layer, n, tokens[g.tokens], softcap) for n, g in enumerate(self._packed.groups)]
        return torch.cat(found).flatten(1, 2)[None]

    def _attend_group(
        self, layer: int, number: int, query: Float[Tensor, "tokens n_kv per_kv head_dim"], softcap: float | None
    ) -> Float[Tensor, "tokens n_kv per_kv head_dim"]:
        """Attend from the tokens of one group: products with prefix and own slots, one softmax over both."""
        assert self._packed is not None
        group, seen = self._packed.groups[number], self._what_is_seen(number, layer)
        n_rows = group.rows.stop - group.rows.start
        n_tokens, n_kv, per_kv, width = query.shape
        own_keys = self._keys[layer][group.rows, :, seen.start : seen.stop]  # [rows, n_kv, slots, head_dim]
        own_values = self._values[layer][group.rows, :, seen.start : seen.stop]
        n_prefix, n_own = self._prefix.length - seen.first, seen.stop - seen.start
        by_row = query.unflatten(0, (n_rows, -1)).transpose(1, 2).flatten(2, 3)  # [rows, n_kv, queries, head_dim]
        scores = query.new_empty(n_kv, n_tokens * per_kv, n_prefix + n_own)
        of_row = scores[..., n_prefix:].unflatten(1, (n_rows, -1)).transpose(0, 1)  # [rows, n_kv, queries, slots]
        of_row.copy_(by_row @ own_keys.mT)
        if n_prefix:
            by_head = query.transpose(0, 1).flatten(1, 2)  # [n_kv, all queries, head_dim]
            scores[..., :n_prefix] = by_head @ self._prefix.keys[layer][0, :, seen.first :].mT
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        scores[..., -seen.mask.shape[1] :].unflatten(1, (n_tokens, per_kv)).add_(seen.mask[:, None])
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        of_row = weights[..., n_prefix:].unflatten(1, (n_rows, -1)).transpose(0, 1)
        out = (of_row @ own_values).unflatten(2, (-1, per_kv)).transpose(1, 2).flatten(0, 1)
        if n_prefix:
            shared = weights[..., :n_prefix] @ self._prefix.values[layer][0, :, seen.first :]
            out = out + shared.unflatten(1, (n_tokens, per_kv)).transpose(0, 1)
        return out

    def _what_is_seen(self, number: int, layer: int) -> _Seen:
        """Return the keys that the group sees in a layer; computed once per pass, window size and device."""
        window, device = self._windows[layer], self._keys[layer].device
        if (number, window, device) not in self._seen:
            assert self._packed is not None
            group, length = self._packed.groups[number], self._prefix.length
            lowest = -length if window is None else max(-length, group.lowest - window + 1)  # 0: end of the prefix
            first, start, stop = length + min(lowest, 0), max(lowest, 0), group.highest + 1
            column = torch.arange(0 if window is None else lowest, stop, device=device)
            slot = self._packed.slots[group.tokens, None].to(device)
            visible = column <= slot  # [n_tokens, m]
            if window is not None:
                visible &= column > slot - window
            dtype = self._keys[layer].dtype
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
            self._seen[number, window, device] = _Seen(first, start, stop, mask)
        return self._seen[number, window, device]


def pack(
    continued: Sequence[tuple[int, int]], tails: Sequence[Sequence[int]], length: int, device: torch.device
) -> Packed:
    """Return the pass that continues rows 0, 1, ... with (token, slot) and adds `tails` after them.

    `length` is that of the prefix. Data are copied to the device once.
    """
    table = [(token, slot + length, row, slot) for row, (token, slot) in enumerate(continued)]
    groups, last = [], list(range(len(continued)))
    if continued:
        slots = [slot for _, slot in continued]
        groups.append(Group(slice(0, len(slots)), slice(0, len(slots)), min(slots), max(slots)))
    row = len(continued)
    for size, alike in itertools.groupby(tails, len):
        assert size > 0, "a prompt without a token of its own"
        first_row, first_token = row, len(table)
        for tail in alike:
            table.extend((token, slot + length, row, slot) for slot, token in enumerate(tail))
            last.append(len(table) - 1)
            row += 1
        groups.append(Group(slice(first_row, row), slice(first_token, len(table)), 0, size - 1))
    flat = torch.tensor([number for column in zip(*table, strict=True) for number in column] + last).to(device)
    ids, positions, rows, slots = flat[: 4 * len(table)].view(4, -1)
    return Packed(ids[None], positions[None], rows, slots, flat[4 * len(table) :], tuple(groups))


def windows_of(loaded: LoadedModel) -> list[int | None]:
    """Return each layer's sliding window (None: full attention), as transformers' own cache knows it."""
    windows: list[int | None] = []
    for layer in DynamicCache(config=loaded.model.config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise CheckpointError(
                f"{loaded.ref.id} does not support batches of prompts",
                got=f"a cache of {type(layer).__name__}",
                expected="full or sliding-window attention in every layer",
                next_step="Use a model that has only such layers.",
            )
        windows.append(layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None)
    return windows or [None] * loaded.layout.n_layers


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_slots: RowSlots,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface with the slots; `update` has written keys and values."""
    assert attention_mask is None, "packed tokens know what they see"
    return row_slots.attend(module.layer_idx, query, scaling, softcap), None  # pyright: ignore[reportArgumentType]


AttentionInterface.register(ATTENTION, attend)


@contextlib.contextmanager
def _attention_of(loaded: LoadedModel) -> Iterator[None]:
    """Make the decoder's layers call `attend` in the body."""
    config = loaded.model.get_submodule(loaded.layout.layers.rpartition(".")[0]).config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
