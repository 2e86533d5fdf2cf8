"""Writes that the store could not take for now (a full disk, a folder that is gone), kept in memory and tried again.

A long computation hands its writes over here, so that what hinders them does not end it: each further write tries the
kept ones first, oldest first. They are lost when the process ends.
"""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from stethoscope.errors import ResourceError
from stethoscope.progress import Progress

T = TypeVar("T")


class Backlog:
    """The writes that wait, and what hindered the last one.

    Attributes:
        hindrance: what keeps writes waiting; None if none waits.
    """

    def __init__(self) -> None:
        self.hindrance: ResourceError | None = None
        self._waiting: deque[Callable[[], object]] = deque()

    def write(self, put: Callable[[], object], progress: Progress | None = None) -> None:
        """Write by `put` behind what waits, now or when the store takes it; the first hindrance is told on `progress`.

        Raises:
            StoreError: the store is damaged: waiting would not help.
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
        """Write what waits, as far as the store takes it."""
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
        """Return `get()`; `nothing` where the store cannot be read for now: the write that follows tells why."""
        try:
            return get()
        except ResourceError:
            return nothing
