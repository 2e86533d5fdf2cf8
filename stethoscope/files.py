"""Read and write files that users name: reads never block, and writes are atomic.

Only regular files are read (a pipe would block, a device has no end). Reading raises only `OSError` and `ValueError`,
so that each caller can raise its own message.
"""

import errno
import glob
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from stethoscope.errors import OutputError, UserError

Mistake = TypeVar("Mistake", bound=UserError)
ELSEWHERE = "Choose another name."
LARGEST_BYTES = 64 << 20  # maximum size of a settings file; the index of a 400 GB checkpoint has 8 MB
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def read_bytes(path: str | Path, *, largest: int = LARGEST_BYTES) -> bytes:
    """Return the content of the regular file at `path`.

    Raises:
        OSError: missing, unreadable, not a regular file, or larger than `largest` bytes; `strerror` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer opens at once
    except ValueError as error:  # a NUL or a surrogate in the path
        raise OSError(errno.EINVAL, str(error)) from error
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'something else')}, not a file", str(path))
        if status.st_size > largest:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {largest:,}", str(path))
        return file.readall()


def parse_json(content: bytes | str) -> Any:
    """Return the JSON value in `content`; raise `ValueError` if it is not JSON or nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: str | Path) -> Any:
    """Return the JSON value in the regular file at `path`; raise `OSError` or `ValueError`."""
    return parse_json(read_bytes(path))


def cannot_be_read(kind: type[Mistake], what: str, error: OSError) -> Mistake:
    """Return the error for an existing file that cannot be read."""
    return kind(
        f"{what} cannot be read",
        got=error.strerror or error,
        expected="a file that can be opened",
        next_step="Check the file and its permissions.",
    )


def write_file(path: Path, content: bytes, *, ours: Callable[[bytes], bool], force: bool = False) -> None:
    """Write `content` to `path` atomically, through a hidden temporary file in the same folder.

    Args:
        ours: returns whether this program wrote an existing file, given its content; such a file is replaced.
        force: replace any file.

    Raises:
        OutputError: a file from another source, a folder, pipe or device exists there, or writing fails.
    """
    temporary: Path | None = None
    try:
        path = path.resolve()  # replace the target of a link, not the link
        mode = _check_replaceable(path, ours, force=force)
        clean_stale(path)
        temporary = beside(path)
        with open(temporary, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}",
            got=error.strerror or error,
            next_step="Choose another folder, free some disk space, or fix the folder's permissions.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path, ours: Callable[[bytes], bool], *, force: bool) -> int | None:
    """Return the permissions of the file at `path`, None if there is none; raise `OutputError` if it must not be
    replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    kind = "a folder" if path.is_dir() else _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise OutputError(f"{path} already exists", got=kind, expected="the name of a file", next_step=ELSEWHERE)
    if force:
        return stat.S_IMODE(status.st_mode)
    try:
        known = ours(read_bytes(path))
    except OSError:
        known = False  # too large, or not readable
    if not known:
        raise OutputError(
            f"{path} already exists",
            got="a file from another source, or changed since it was written",
            expected="a new name, or a file written by the same command",
            next_step="Choose another name, or replace the file with --force.",
        )
    return stat.S_IMODE(status.st_mode)


def beside(out: Path) -> Path:
    """Return a new hidden name in the folder of `out` for a temporary file that is later renamed to `out`."""
    return out.absolute().parent / f"{_hidden(out)}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


def clean_stale(out: Path) -> None:
    """Remove temporary files of killed processes (see `beside`)."""
    for left in out.absolute().parent.glob(f"{glob.escape(_hidden(out))}*-*.partial"):
        process = left.name.rsplit(".", 2)[1].partition("-")[0]
        if process.isdecimal() and not _alive(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _hidden(out: Path) -> str:
    return f".{out.name[:50]}."  # a name has at most 255 bytes


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
