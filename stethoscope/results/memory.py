"""How much memory each use case needs, by formula, beside what there is."""

from collections.abc import Sequence
from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result

CARDS_GB = (8, 12, 16, 24, 40, 80)  # sizes of GPUs


class MemoryPart(Record):
    """One part of a stack.

    Attributes:
        formula: what the number is made of, with its numbers.
        gives_way: it only fills memory that is free, and is dropped when something needs the room.
        where: on the devices that compute, or in the memory of a machine whose GPU computes.
    """

    part: str
    size_bytes: int
    formula: str
    gives_way: bool = False
    where: Literal["device", "host"] = "device"


class MemoryStack(Record):
    """What one use case holds at its worst moment.

    Attributes:
        advice: what to reduce where it does not fit; None where it fits.
    """

    activity: str
    parts: tuple[MemoryPart, ...]
    advice: str | None = None

    @property
    def need_bytes(self) -> int:
        """What it cannot do without on the devices."""
        return sum(part.size_bytes for part in self.parts if part.where == "device" and not part.gives_way)

    @property
    def host_bytes(self) -> int:
        """What it cannot do without in the machine's memory, beside a GPU."""
        return sum(part.size_bytes for part in self.parts if part.where == "host" and not part.gives_way)

    @property
    def peak_bytes(self) -> int:
        """What it holds on the devices at its worst moment, with what gives way."""
        return sum(part.size_bytes for part in self.parts if part.where == "device")


class MemoryResult(Result):
    """Memory of a model and its SAEs on a device, before anything is loaded.

    Attributes:
        capacity_bytes: what the device has in all, or what was asked about.
        available_bytes: what can be had of it now, what this process already holds for the model included.
        stacks: one a use case, loading first.
        host_available_bytes: what can be had of the machine's own memory beside a GPU; None without one.
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
        """Return the use cases by the smallest GPU, of so many GB (10^9 bytes), on which each fits; None: on none.

        All of the GPU's memory counts as free, and what the machine's own memory holds beside it is left out.
        """
        found: dict[int | None, list[str]] = {}
        for stack in self.stacks:
            size = next((size for size in sorted(sizes_gb) if stack.need_bytes <= size * 10**9), None)
            found.setdefault(size, []).append(stack.activity)
        order = sorted(found, key=lambda size: float("inf") if size is None else size)
        return {size: tuple(found[size]) for size in order}

    def fits(self, stack: MemoryStack) -> bool:
        """Tell whether what `stack` cannot do without is there."""
        host = self.host_available_bytes
        return stack.need_bytes <= self.available_bytes and (host is None or stack.host_bytes <= host)


def cards_text(result: MemoryResult) -> str:
    """Return in a sentence which use cases fit on a GPU of which size, by the formulas."""
    said = [
        f"{', '.join(activities)} on none of these" if size is None else f"{size} GB: {', '.join(activities)}"
        for size, activities in result.cards().items()
    ]
    return f"Smallest GPU ({', '.join(map(str, CARDS_GB))} GB, all of it free) by use case. {'; '.join(said)}."
