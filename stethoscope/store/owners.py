"""Locks that show which runs are still running: each run holds a lock on its own file.

The operating system releases the lock when the process ends in any way (including kill -9), also across containers on
the same machine that share the folder. Therefore a run that is "running" in the table but whose lock is free was
interrupted. Locks are acquired, released and tested within write transactions of the run store, so that row and lock
are always consistent.
"""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from stethoscope.store.blobs import write_failure

LET_GO_S = 10.0


class RunLocks:
    """The locks of running runs in `folder`; acquired locks are held until they are released or the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, FileLock] = {}

    def _lock(self, run_id: str) -> FileLock:
        return FileLock(self._folder / f"{run_id}.lock", thread_local=False)

    def take(self, run_id: str) -> None:
        """Acquire the lock of a run that starts or continues; a previous owner may need a moment to release it.

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
        """Release the lock of a finished run; no effect if this process does not hold it."""
        lock = self._held.pop(run_id, None)
        if lock is not None:
            with contextlib.suppress(OSError):  # the file is empty; only its lock matters
                Path(lock.lock_file).unlink()
            lock.release()

    def is_mine(self, run_id: str) -> bool:
        """Return whether this process holds the lock."""
        return run_id in self._held

    def is_held(self, run_id: str) -> bool:
        """Return whether a running process, including this one, holds the lock; True if unknown."""
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
