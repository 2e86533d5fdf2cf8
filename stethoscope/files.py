"""Files that a person names: read whole and never waited for, written whole or not at all.

Reading takes regular files only (a pipe would be waited for, a device has no end) and raises nothing but `OSError` and
`ValueError`, so that every reader says its own sentence about its own file.
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
LARGEST_BYTES = 64 << 20  # of a file of settings; the index of a 400 GB checkpoint has 8 MB
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def read_bytes(path: str | Path, *, largest: int = LARGEST_BYTES) -> bytes:
    """Return the content of the regular file at `path`.

    Raises:
        OSError: not there, not readable, no regular file, or more than `largest` bytes; its `strerror` says which.
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
    """Return the JSON value in `content`; raise `ValueError` where it is no JSON, or nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: str | Path) -> Any:
    """Return the JSON value in the regular file at `path`; raise `OSError` or `ValueError`."""
    return parse_json(read_bytes(path))


def cannot_be_read(kind: type[Mistake], what: str, error: OSError) -> Mistake:
    """Return what to say of a file that is there, but which the system did not let us read."""
    return kind(
        f"{what} cannot be read",
        got=error.strerror or error,
        expected="a file that can be opened",
        next_step="Check the file and its permissions.",
    )


def write_file(path: Path, content: bytes, *, ours: Callable[[bytes], bool], force: bool = False) -> None:
    """Write `content` to `path`: into a hidden file beside it that then takes its place, so that no half file is seen.

    Args:
        ours: tells from the content of a file that stands there whether this program wrote it; it is then replaced.
        force: replace any file.

    Raises:
        OutputError: a file of another origin, a folder, pipe or device stands there, or nothing can be written.
    """
    temporary: Path | None = None
    try:
        path = path.resolve()  # what a link leads to is replaced, not the link
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
            next_step="Choose another place, free some space, or mend the folder's permissions.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path, ours: Callable[[bytes], bool], *, force: bool) -> int | None:
    """Return the permissions of the file at `path`, None without one; raise `OutputError` where it is to stay."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    kind = "a folder" if path.is_dir() else _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise OutputError(f"{path} exists already", got=kind, expected="the name of a file", next_step=ELSEWHERE)
    if force:
        return stat.S_IMODE(status.st_mode)
    try:
        known = ours(read_bytes(path))
    except OSError:
        known = False  # too large, or not readable
    if not known:
        raise OutputError(
            f"{path} exists already",
            got="a file that was not written here, or was changed since",
            expected="a new name, or an earlier output of the same command",
            next_step="Choose another name, or replace the file with --force.",
        )
    return stat.S_IMODE(status.st_mode)


def beside(out: Path) -> Path:
    """Return a new hidden name beside `out`, to write under before it takes the name of `out`."""
    return out.absolute().parent / f"{_hidden(out)}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


def clean_stale(out: Path) -> None:
    """Remove what a killed process left under such names (see `beside`)."""
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
