"""Cache of prepared patches with a size limit, which reuses the buffers of evicted patches.

New memory is slow (the system allocates it page by page), so a new patch is written into the buffers of an old one. A
buffer becomes free only when its patch is no longer referenced, as determined by Python's reference counting: a patch
that is applied, temporarily removed, or waiting in a job keeps its buffers even after eviction.
"""

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stethoscope.delta.patch import BufferLike, Patch, fresh_buffer
from stethoscope.errors import ResourceError
from stethoscope.model.free_memory import free_bytes
from stethoscope.store.home import asked_bytes

BUDGET_VARIABLE = "STETHOSCOPE_EDIT_MIB"
LEAST_BUDGET = 256 << 20
SPARE_BYTES = 256 * 2**20  # memory to keep free for everything else


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass
class ReadyPatches:
    """Patches by key with LRU eviction, using at most `capacity_bytes` including free buffers.

    The newest patch is never evicted, even if it is larger than the capacity.
    """

    capacity_bytes: int
    _ready: "OrderedDict[str, Patch]" = field(default_factory=OrderedDict)
    _free: list[Tensor] = field(default_factory=list)
    _returned: "deque[Tensor]" = field(default_factory=deque)  # filled by finalizers: appending is always safe
    _made_bytes: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the cached patches, least recently used first."""
        return tuple(self._ready)

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers: cached patches, evicted patches that are still in use, and free buffers."""
        return self._made_bytes

    def get_or_build(self, key: str, build: Callable[[BufferLike], Patch]) -> Patch:
        """Return the patch of `key`; if it is not cached, build it with `build` and buffers of this cache.

        Raises:
            ResourceError: not enough memory for the patch. Errors of `build` are passed on, and its buffers are
                released.
        """
        if key in self._ready:
            self._ready.move_to_end(key)
            return self._ready[key]
        taken: list[Tensor] = []

        def buffer_like(base: Tensor) -> Tensor:
            taken.append(self._buffer_like(base))
            return taken[-1]

        try:
            patch = build(buffer_like)
        except BaseException:
            self._returned.extend(taken)
            raise
        weakref.finalize(patch, self._returned.extend, taken)
        self._ready[key] = patch
        self._collect()
        while self._made_bytes > self.capacity_bytes and (self._free or len(self._ready) > 1):
            self._shrink(keep=1)
        return patch

    def forget_one(self) -> bool:
        """Evict the least recently used patch, or release a free buffer; return False if there is neither."""
        return self._shrink(keep=0)

    def clear(self) -> None:
        """Drop all patches and free buffers."""
        self._ready.clear()
        self._collect()
        while self._free:
            self._drop_free_buffer()

    def _buffer_like(self, base: Tensor) -> Tensor:
        """Return a matching free buffer, or a new one; evict old patches if memory is short."""
        size = _bytes_of(base)
        while True:
            self._collect()
            for index, buffer in enumerate(self._free):
                if buffer.shape == base.shape and buffer.dtype == base.dtype and buffer.device == base.device:
                    return self._free.pop(index)
            if self._made_bytes + size <= self.capacity_bytes or not self._shrink(keep=0):
                break
        free = free_bytes(base.device)
        while free < size + SPARE_BYTES and self._shrink(keep=0):
            free = free_bytes(base.device)
        if free < size + SPARE_BYTES:
            raise ResourceError(
                "not enough memory for the edited weights",
                got=f"{free / 2**20:.0f} MiB free on {base.device}",
                expected=f"{(size + SPARE_BYTES) / 2**20:.0f} MiB for the next tensor of shape {list(base.shape)}",
                next_step="Edit fewer layers, load the model in a smaller dtype, or close other programs.",
            )
        self._made_bytes += size
        return fresh_buffer(base)

    def _shrink(self, *, keep: int) -> bool:
        """Evict the least recently used patch (which may free its buffers), otherwise drop a free buffer; return False
        if there is none."""
        self._collect()
        if len(self._ready) > keep:
            self._ready.popitem(last=False)
            self._collect()
            return True
        if self._free:
            self._drop_free_buffer()
            return True
        return False

    def _drop_free_buffer(self) -> None:
        self._made_bytes -= _bytes_of(self._free.pop())

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())


def budget_bytes(device: torch.device, asked: int | None = None, *, weights_bytes: int = 0) -> int:
    """Return the memory limit of prepared edits in bytes: as requested, from the environment, or `default_budget` of
    the free memory.

    Raises:
        ResourceError: STETHOSCOPE_EDIT_MIB is not a number of MiB.
    """
    if asked is not None:
        return asked
    named = asked_bytes(BUDGET_VARIABLE)
    return default_budget(free_bytes(device), weights_bytes) if named is None else named


def default_budget(free: int, weights_bytes: int) -> int:
    """Return the default limit of prepared edits and their directions: twice the model's weights, at least 256 MiB, at
    most half of the `free` bytes."""
    return min(free // 2, max(LEAST_BUDGET, 2 * weights_bytes))
