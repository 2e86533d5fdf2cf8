"""Progress counts finished items; cancel is a token that long loops look at between items.

A pipeline receives one `Progress` and calls `start`, `advance`, `check_cancel` and, for streamed text, `write`.
The base class keeps quiet; the job worker and the command line subclass it.
"""

from stethoscope.errors import Cancelled


class Progress:
    """Silent progress that is never cancelled unless `cancel` is called."""

    def __init__(self) -> None:
        self.stage = ""
        self.done = 0
        self.total = 0
        self._cancelled = False

    def start(self, stage: str, total: int) -> None:
        """Begin `stage` of `total` items; the count starts at zero."""
        self.stage, self.done, self.total = stage, 0, total

    def advance(self, items: int = 1) -> None:
        """Count `items` more as finished."""
        self.done += items

    def write(self, channel: str, text: str) -> None:
        """Append streamed `text` to `channel` (for example "base" or "edited")."""

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self._cancelled = True

    def check_cancel(self) -> None:
        """Raise `Cancelled` when the work was asked to stop."""
        if self._cancelled:
            raise Cancelled(f"cancelled at {self.stage}: {self.done} of {self.total} done")
