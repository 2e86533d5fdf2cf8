"""Guarded stdout and stderr: output that cannot be printed is dropped, and reported after all work is stored.

A full disk, a closed pipe or a closed stream stops only the printing. Characters that the stream's encoding lacks are
written in ASCII: as the usual replacement if there is one, otherwise as an escape.
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
    """Writes to `stream` until writing fails, and nothing afterwards.

    Attributes:
        failure: why writing failed; None if it has not failed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream: Any = io.StringIO() if stream is None else stream
        self.failure: Exception | None = OSError(errno.EBADF, "the stream is closed") if stream is None else None

    def write(self, text: str, /) -> int:
        """Write `text` if possible."""
        try:
            self._stream.write(self._encodable(text))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._fail(error)
        return len(text)

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.translate(STAND_INS).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="ascii") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())  # otherwise Python writes it again at exit

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's encoding."""
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor; raises `OSError` if it has none."""
        return self._stream.fileno()


@contextlib.contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Replace stdout and stderr by guarded streams, and yield that of stdout."""
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = guarded = GuardedStream(former[0]), GuardedStream(former[1])
    try:
        yield guarded[0]
    finally:
        for stream in guarded:
            stream.flush()
        sys.stdout, sys.stderr = former


def not_printed(failure: Exception, kept: Sequence[str]) -> ResourceError:
    """Return the error for a failed stdout; `kept` lists what was stored and how to show it."""
    return ResourceError(
        "the output could not be printed completely",
        got=f"stdout: {getattr(failure, 'strerror', None) or failure}",
        next_step=" ".join(kept) or "Make sure the file or terminal is writable, then run the command again.",
    )
