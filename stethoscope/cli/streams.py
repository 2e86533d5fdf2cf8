"""stdout and stderr that never end the work: what cannot be printed is dropped, and told once all work is stored.

A full disk behind stdout, a reader that has closed its pipe and a closed stream stop the printing only. What the
stream's encoding lacks is written in ASCII: by its usual stand-in where there is one, else as its escape.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from stethoscope.errors import ResourceError

STAND_INS = str.maketrans({"–": "-", "−": "-", "±": "+/-", "·": "-", "…": "...", "→": "->", "×": "x", "’": "'"})


class GuardedStream(io.TextIOBase):
    """Writes to `stream` until that fails, and nothing from then on.

    Attributes:
        failure: why the stream could not be written to; None while it can.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream: Any = io.StringIO() if stream is None else stream
        self.failure: Exception | None = OSError(errno.EBADF, "it is closed") if stream is None else None

    def write(self, text: str, /) -> int:
        """Write `text`, if that can be done."""
        try:
            self._stream.write(self._encodable(text))
        except (OSError, ValueError) as error:  # ValueError: of a stream that was closed
            self._fail(error)
        return len(text)

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.translate(STAND_INS).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def flush(self) -> None:
        """Hand what was written to the system, if that can be done."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="ascii") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())  # else Python writes it once more when it ends

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's encoding."""
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor; raise `OSError` where it has none."""
        return self._stream.fileno()


@contextlib.contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Put guarded streams in the place of stdout and stderr, and yield that of stdout."""
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = guarded = GuardedStream(former[0]), GuardedStream(former[1])
    try:
        yield guarded[0]
    finally:
        for stream in guarded:
            stream.flush()
        sys.stdout, sys.stderr = former


def not_printed(failure: Exception, kept: Sequence[str]) -> ResourceError:
    """Return what to say where stdout failed; `kept` says what is stored all the same, and how to see it."""
    return ResourceError(
        "not everything could be printed",
        got=f"stdout: {getattr(failure, 'strerror', None) or failure}",
        next_step=" ".join(kept) or "Print to a file or terminal that can be written to, and give the command again.",
    )
