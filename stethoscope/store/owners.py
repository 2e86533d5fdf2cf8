"""Which running runs still have somebody who runs them: each holds a lock on a file of its own while it runs.

The system takes the lock back when its process ends, however it ends (a kill -9 included), on the same machine in any
container that shares the folder. So a run that is "running" in the table and whose lock can be had was interrupted.
Locks are taken, given back and tried inside write transactions of the run store, one at a time: between a row and its
lock nobody sees a half-way state.
"""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from stethoscope.store.blobs import write_failure

LET_GO_S = 10.0


class RunLocks:
    """The locks of running runs below `folder`; those taken here are held until given back or the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, FileLock] = {}

    def _lock(self, run_id: str) -> FileLock:
        return FileLock(self._folder / f"{run_id}.lock", thread_local=False)

    def take(self, run_id: str) -> None:
        """Hold the lock of a run that starts or goes on; who has just ended it may take a moment to let go.

        Raises:
            ResourceError: the disk is full. StoreError: the lock's file cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock(run_id)
            lock.acquire(timeout=LET_GO_S)
        except OSError as error:
            raise write_failure(f"the lock of run {run_id}", error) from error
        self._held[run_id] = lock

    def give_back(self, run_id: str) -> None:
        """Let go of the lock of a run that has ended; nothing happens where it is not held here."""
        lock = self._held.pop(run_id, None)
        if lock is not None:
            with contextlib.suppress(OSError):  # the file is empty and only its lock counts
                Path(lock.lock_file).unlink()
            lock.release()

    def is_mine(self, run_id: str) -> bool:
        """Return whether the lock is held here."""
        return run_id in self._held

    def is_held(self, run_id: str) -> bool:
        """Return whether a living process, this one included, holds the lock; True also where nobody can tell."""
        if self.is_mine(run_id):
            return True
        lock = self._lock(run_id)
        if not Path(lock.lock_file).exists():
            return False
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return True
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        return False
