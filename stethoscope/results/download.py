"""What would be fetched from the hub, of what size, and what of it is on this machine."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result


class DownloadFile(Record):
    """A file of a repository, and whether it is on this machine."""

    name: str
    size_bytes: int
    here: bool


class Refusal(Record):
    """What the hub would not give or tell, in the four parts of a `UserError`."""

    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None


class DownloadPart(Record):
    """What one part of a profile takes from one repository.

    Attributes:
        part: "model", "SAEs", "task vector NAME", "problems" or "controls".
        revision: commit that the files are of; None where it could not be told.
        files: those that would be used, here or not; none where the repository could not be listed.
        begun_bytes: of the missing files, what came before a download was cut off; the next one goes on from there.
        refusal: what a download would end with, or why nothing could be listed.
    """

    part: str
    location: str
    repo_type: Literal["model", "dataset"]
    revision: str | None
    files: tuple[DownloadFile, ...] = ()
    begun_bytes: int = 0
    refusal: Refusal | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes that would be fetched."""
        return sum(file.size_bytes for file in self.files if not file.here) - self.begun_bytes


class DownloadResult(Result):
    """Every part of a profile that lies on the hub; none where all of it is on this machine anyway.

    Attributes:
        cache: folder that downloads go to.
        free_bytes: what is free on its disk.
        offline: the hub is switched off (HF_HUB_OFFLINE): what is not here cannot be fetched.
    """

    parts: tuple[DownloadPart, ...]
    cache: str
    free_bytes: int
    offline: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of all parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def missing_bytes(self) -> int:
        """Bytes that would be fetched."""
        return sum(part.missing_bytes for part in self.parts)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """One refusal for each next step there is; where several parts need the same, the first names the others."""
        found: dict[str | None, list[DownloadPart]] = {}
        for part in self.parts:
            if part.refusal is not None:
                found.setdefault(part.refusal.next_step, []).append(part)
        return tuple(_of_all(parts) for parts in found.values())

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what would be fetched."""
        return self.missing_bytes <= self.free_bytes


def _of_all(parts: list[DownloadPart]) -> Refusal:
    first, *others = parts
    assert first.refusal is not None
    if not others:
        return first.refusal
    also = ", ".join(f"{part.part} ({part.location})" for part in others)
    return first.refusal.model_copy(update={"what": f"{first.refusal.what}; the same for {also}"})
