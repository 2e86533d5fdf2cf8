"""Files to download from the hub, their sizes, and which of them are already on this machine."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result


class DownloadFile(Record):
    """A file of a repository, and whether it is on this machine."""

    name: str
    size_bytes: int
    here: bool


class Refusal(Record):
    """An error of the hub, in the four parts of a `UserError`."""

    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None


class DownloadPart(Record):
    """The files that one part of a profile needs from one repository.

    Attributes:
        part: "model", "SAEs", "task vector NAME", "problems" or "controls".
        revision: commit of the files; None if unknown.
        files: all files that are used, whether already here or not; empty if the repository could not be listed.
        begun_bytes: bytes of the missing files from an interrupted download, which resumes.
        refusal: the error that a download would raise, or why the files could not be listed.
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
        """Size of all files in bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes to download."""
        return sum(file.size_bytes for file in self.files if not file.here) - self.begun_bytes


class DownloadResult(Result):
    """All parts of a profile that are on the hub; empty if the profile uses only local files.

    Attributes:
        cache: download folder.
        free_bytes: free space on its disk.
        offline: HF_HUB_OFFLINE is set, so missing files cannot be downloaded.
    """

    parts: tuple[DownloadPart, ...]
    cache: str
    free_bytes: int
    offline: bool

    @property
    def size_bytes(self) -> int:
        """Size of all files of all parts in bytes."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def missing_bytes(self) -> int:
        """Bytes to download."""
        return sum(part.missing_bytes for part in self.parts)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """One error for each next step; if several parts need the same step, the first error names the others."""
        found: dict[str | None, list[DownloadPart]] = {}
        for part in self.parts:
            if part.refusal is not None:
                found.setdefault(part.refusal.next_step, []).append(part)
        return tuple(_of_all(parts) for parts in found.values())

    @property
    def fits(self) -> bool:
        """Whether the disk has enough space for the download."""
        return self.missing_bytes <= self.free_bytes


def _of_all(parts: list[DownloadPart]) -> Refusal:
    first, *others = parts
    assert first.refusal is not None
    if not others:
        return first.refusal
    also = ", ".join(f"{part.part} ({part.location})" for part in others)
    return first.refusal.model_copy(update={"what": f"{first.refusal.what}; also for {also}"})
