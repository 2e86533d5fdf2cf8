"""Progress counts finished items; long loops check for cancel and pause between items.

A pipeline receives one `Progress` and calls `start`, `advance`, `yield_to_interactive` (between decode steps, batches)
and, for streamed text and interim results, `write` and `publish`. The base class prints nothing; the job worker and the
command line subclass it.

    rate = items worked on in this stage / seconds spent on it      (without items from the store and suspended time)
"""

import contextlib
import time
from collections.abc import Iterator

from stethoscope.errors import Cancelled, Paused


class Progress:
    """Silent progress that is never stopped unless `cancel` or `pause` is called."""

    def __init__(self) -> None:
        self.stage = ""
        self.detail = ""  # description of the current step within the stage
        self.done = 0
        self.total = 0
        self.unit = ""
        self.cancelled = False
        self.pausing = False
        self._skipped = 0
        self._started = time.perf_counter()
        self._paused_at: float | None = None

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        """Begin `stage` of `total` items; the count starts at zero. `unit` "B" means that the items are bytes."""
        self.stage, self.detail, self.done, self.total, self.unit = stage, "", 0, total, unit
        self._skipped, self._started = 0, time.perf_counter()

    def advance(self, items: int = 1) -> None:
        """Count `items` as finished."""
        self.done += items

    def skip(self, items: int) -> None:
        """Count `items` as finished without work; they do not affect the rate."""
        self._skipped += items
        self.advance(items)

    @property
    def rate(self) -> float | None:
        """Items worked on per second of this stage; None before the first item."""
        worked, elapsed_s = self.done - self._skipped, (self._paused_at or time.perf_counter()) - self._started
        return worked / elapsed_s if worked > 0 and elapsed_s > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end of this stage at its rate; None if the rate is unknown."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Exclude the time of the body from the rate."""
        self._paused_at = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - self._paused_at
            self._paused_at = None

    def note(self, text: str) -> None:
        """Show a note to the user, for example how long the work will take."""

    def write(self, channel: str, text: str) -> None:
        """Append streamed `text` to `channel` (for example "base" or "edited")."""

    def publish(self, result: object) -> None:
        """Publish an interim `result`; it replaces the previous one."""

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self.cancelled = True

    def pause(self) -> None:
        """Ask the work to stop at its next check and continue later; a cancel takes precedence."""
        self.pausing = True

    @property
    def stopping(self) -> bool:
        """Whether the work was asked to stop or pause."""
        return self.cancelled or self.pausing

    def check_cancel(self) -> None:
        """Raise `Cancelled` or `Paused` if the work was asked to stop."""
        if self.cancelled:
            raise Cancelled(f"cancelled at {self.stage}: {self.done} of {self.total} done")
        if self.pausing:
            raise Paused(f"paused at {self.stage}: {self.done} of {self.total} done")

    def yield_to_interactive(self) -> None:
        """Run the worker's waiting interactive jobs during a batch job; raise `Cancelled` if the work was asked to
        stop.

        Other jobs use the model meanwhile, so call it only when the model has no hooks and no forward or backward pass
        is in progress. Weights (`delta.patch.patch_removed`) and key-value caches are unchanged afterwards.
        """
        self.check_cancel()


class SubProgress(Progress):
    """Progress of work outside the counted stage: not shown, but it stops and yields with the whole job."""

    def __init__(self, whole: Progress) -> None:
        super().__init__()
        self._whole = whole

    def check_cancel(self) -> None:
        self._whole.check_cancel()

    def yield_to_interactive(self) -> None:
        self._whole.yield_to_interactive()
