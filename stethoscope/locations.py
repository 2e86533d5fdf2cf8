"""Resolve locations: files included in the package (`embedded:base`), local folders or files, and hub ids.

Records store the name and not an absolute path, so that a recipe for the mini can be opened on any machine.
"""

import contextlib
import errno
import os
from pathlib import Path

from stethoscope.errors import LocationError

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_ROOTS = (Path(__file__).parent / "mini" / "artifacts", Path(__file__).parent)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


def path_of(text: str) -> Path:
    """Return the path in `text`, with `~` expanded to the home folder; existence is not checked.

    Raises:
        LocationError: not a path on this machine: empty, a NUL character, an unknown home folder, a name that is too
            long, or a parent folder without access.
    """
    if not text:
        raise _no_path(text, "an empty name")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # a home folder of nobody
        raise _no_path(text, error) from error
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise _no_path(text, error.strerror) from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise _no_path(text, error) from error
    return path


def _no_path(text: str, got: object) -> LocationError:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return LocationError(f"{shown!r} cannot be read as a path", got=got, next_step="Use another file or folder.")


def local_path(location: str) -> Path | None:
    """Return the path of `location` on this machine, or None if it can only be a hub id.

    `embedded:x` is `x` among the mini's artifacts, or in the package (`embedded:corpora/controls`); a path that exists,
    or that looks like one (absolute, or starting with "." or "~"), is returned as is. The caller must check that it
    exists.

    Raises:
        LocationError: an embedded name outside the package, or not a path (see `path_of`).
    """
    if location.startswith(EMBEDDED_PREFIX):
        name = location.removeprefix(EMBEDDED_PREFIX)
        if not name or not name[0].isalnum() or ".." in name.split("/"):
            raise LocationError(
                f"{location} is not included in the package",
                expected=f"{EMBEDDED_PREFIX} and a name, for example {EMBEDDED_PREFIX}base",
                next_step="To use your own folder, enter its path.",
            )
        place = path_of(str(EMBEDDED_ROOTS[0] / name))
        return next((root / name for root in EMBEDDED_ROOTS if (root / name).exists()), place)
    path = path_of(location)
    return path if path.exists() or location.startswith((".", "/", "~")) else None


def is_here(location: str) -> bool:
    """Return whether `location` is included or on this machine, so that reading it needs no download."""
    with contextlib.suppress(LocationError):
        return local_path(location) is not None
    return True
