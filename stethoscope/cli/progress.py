"""What the command line shows on stderr while it works, and what Ctrl-C does meanwhile."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

from stethoscope.progress import Progress, counted, duration_text, pace

FILE_S = 10.0  # between two lines of progress where stderr is no terminal


class StderrProgress(Progress):
    """Rewrites one line on stderr with stage, finished items, rate and ETA; in a file, a line every 10 s."""

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
    """Let Ctrl-C ask the work of the body to stop at its next check (`for_now`: to pause); the second one raises.

    Outside the main thread, which receives no signals, nothing changes.
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
        sys.stderr.write("\nStopping at the next step; press Ctrl-C again to stop at once.\n")

    former = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
