"""Estimated memory of each use case, and the available memory."""

from collections.abc import Sequence
from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result

CARDS_GB = (8, 12, 16, 24, 40, 80)  # sizes of GPUs


class MemoryPart(Record):
    """One part of a stack.

    Attributes:
        formula: how the size is calculated, with numbers.
        gives_way: whether it uses only free memory and is evicted if something else needs it.
        where: on the computing devices, or in host memory if a GPU computes.
    """

    part: str
    size_bytes: int
    formula: str
    gives_way: bool = False
    where: Literal["device", "host"] = "device"


class MemoryStack(Record):
    """Peak memory of one use case.

    Attributes:
        advice: what to reduce if it does not fit; None if it fits.
    """

    activity: str
    parts: tuple[MemoryPart, ...]
    advice: str | None = None

    @property
    def need_bytes(self) -> int:
        """Bytes that it needs on the devices."""
        return sum(part.size_bytes for part in self.parts if part.where == "device" and not part.gives_way)

    @property
    def host_bytes(self) -> int:
        """Bytes that it needs in host memory in addition to a GPU."""
        return sum(part.size_bytes for part in self.parts if part.where == "host" and not part.gives_way)

    @property
    def peak_bytes(self) -> int:
        """Peak bytes on the devices, including evictable parts."""
        return sum(part.size_bytes for part in self.parts if part.where == "device")


class MemoryResult(Result):
    """Memory of a model and its SAEs on a device, before anything is loaded.

    Attributes:
        capacity_bytes: total memory of the device, or the assumed one.
        available_bytes: memory available now, including what this process already uses for the model.
        stacks: one per use case, loading first.
        host_available_bytes: available host memory if there is a GPU; None without one.
    """

    model: str
    dtype: str
    device: str
    device_name: str
    capacity_bytes: int
    available_bytes: int
    stacks: tuple[MemoryStack, ...]
    edited_layers: int
    batch_size: int
    host_available_bytes: int | None = None

    def cards(self, sizes_gb: Sequence[int] = CARDS_GB) -> dict[int | None, tuple[str, ...]]:
        """Return the use cases grouped by the smallest GPU, in GB (10^9 bytes), on which they fit; None if they fit on
        none.

        All GPU memory counts as free; host memory is not considered.
        """
        found: dict[int | None, list[str]] = {}
        for stack in self.stacks:
            size = next((size for size in sorted(sizes_gb) if stack.need_bytes <= size * 10**9), None)
            found.setdefault(size, []).append(stack.activity)
        order = sorted(found, key=lambda size: float("inf") if size is None else size)
        return {size: tuple(found[size]) for size in order}

    def fits(self, stack: MemoryStack) -> bool:
        """Return whether the memory that `stack` needs is available."""
        host = self.host_available_bytes
        return stack.need_bytes <= self.available_bytes and (host is None or stack.host_bytes <= host)


def cards_text(result: MemoryResult) -> str:
    """Return a sentence saying which use cases fit on which size of GPU."""
    said = [
        f"none of these: {', '.join(activities)}" if size is None else f"{size} GB: {', '.join(activities)}"
        for size, activities in result.cards().items()
    ]
    return f"Smallest GPU ({', '.join(map(str, CARDS_GB))} GB, all memory free) by use case. {'; '.join(said)}."
