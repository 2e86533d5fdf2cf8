"""Progress on stderr, and handling of Ctrl-C."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

from stethoscope.formatting import counted, duration_text, pace
from stethoscope.progress import Progress

FILE_S = 10.0  # interval between progress lines if stderr is not a terminal


class StderrProgress(Progress):
    """Updates one line on stderr with stage, finished items, rate and ETA; in a file, writes a line every 10 s."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = time.perf_counter()

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        self._show(force=True)

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        self._show(force=self.done >= self.total)

    def note(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _show(self, *, force: bool) -> None:
        now, rewritten = time.perf_counter(), sys.stderr.isatty()
        if not (force and rewritten) and now - self._shown < (0.1 if rewritten else FILE_S):
            return
        self._shown = now
        left = "" if self.rate is None else f", {pace(self.rate, self.unit)}, {duration_text(self.eta_s or 0.0)} left"
        end = "\n" if not rewritten or (self.total and self.done >= self.total) else ""
        begin = "\r\033[K" if rewritten else ""
        sys.stderr.write(f"{begin}{self.stage}: {counted(self.done, self.total, self.unit)}{left}{end}")
        sys.stderr.flush()


@contextlib.contextmanager
def stopped_by_ctrl_c(progress: Progress, *, for_now: bool) -> Iterator[None]:
    """Make Ctrl-C stop the work of the body at its next check (`for_now`: pause it); a second Ctrl-C raises
    immediately.

    No effect outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        if progress.stopping:
            raise KeyboardInterrupt
        if for_now:
            progress.pause()
        else:
            progress.cancel()
        sys.stderr.write("\nStopping after the current step; press Ctrl-C again to stop immediately.\n")

    former = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
