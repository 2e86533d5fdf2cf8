"""Writes that failed for now (a full disk, a missing folder), kept in memory and retried.

A long computation writes through a backlog, so that a failing store does not end it. Each further write first retries
the waiting ones, oldest first. They are lost when the process ends.
"""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from stethoscope.errors import ResourceError
from stethoscope.progress import Progress

T = TypeVar("T")


class Backlog:
    """The waiting writes, and why the last one failed.

    Attributes:
        hindrance: why writes are waiting; None if none is.
    """

    def __init__(self) -> None:
        self.hindrance: ResourceError | None = None
        self._waiting: deque[Callable[[], object]] = deque()

    def write(self, put: Callable[[], object], progress: Progress | None = None) -> None:
        """Write with `put` after the waiting writes, now or when the store works again; report the first failure on
        `progress`.

        Raises:
            StoreError: the store is damaged, so waiting would not help.
        """
        known = self.hindrance is not None
        self._waiting.append(put)
        self.flush()
        if progress is not None and self.hindrance is not None and not known:
            progress.note(
                f"{self.hindrance.what} ({self.hindrance.got}). The work continues with its result in memory; the "
                f"result is lost if this process ends before it can be stored. {self.hindrance.next_step or ''}"
            )

    def flush(self) -> None:
        """Write the waiting writes until one fails."""
        while self._waiting:
            try:
                self._waiting[0]()
            except ResourceError as error:
                self.hindrance = error
                return
            except BaseException:
                self._waiting.popleft()
                raise
            self._waiting.popleft()
        self.hindrance = None

    def read(self, get: Callable[[], T], nothing: T) -> T:
        """Return `get()`, or `nothing` if the store cannot be read for now; the next write reports why."""
        try:
            return get()
        except ResourceError:
            return nothing
