"""How much memory each use case needs, by formula, beside what there is."""

from stethoscope.records import Record


class MemoryPart(Record):
    """One part of a stack.

    Attributes:
        formula: what the number is made of, with its numbers.
        gives_way: it only fills memory that is free, and is dropped when something needs the room.
    """

    part: str
    size_bytes: int
    formula: str
    gives_way: bool = False


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
        """What it cannot do without."""
        return sum(part.size_bytes for part in self.parts if not part.gives_way)

    @property
    def peak_bytes(self) -> int:
        """What it holds at its worst moment, with what gives way."""
        return sum(part.size_bytes for part in self.parts)


class MemoryResult(Record):
    """Memory of a model and its SAEs on a device, before anything is loaded.

    Attributes:
        capacity_bytes: what the device has in all, or what was asked about.
        available_bytes: what can be had of it now, what this process already holds for the model included.
        stacks: one a use case, loading first.
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

    def fits(self, stack: MemoryStack) -> bool:
        """Tell whether what `stack` cannot do without is there."""
        return stack.need_bytes <= self.available_bytes
