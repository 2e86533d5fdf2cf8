"""Where a named thing lies: shipped with the package (`embedded:base`), a local folder or file, or a hub id.

Records keep the name, never an absolute path of one machine, so that a recipe made with the mini opens anywhere.
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
    """Return the path that `text` names, with `~` as the home folder; whether anything lies there is not checked.

    Raises:
        LocationError: no path on this machine: an empty one, a NUL character, a home folder of nobody, a name that is
            too long, or a folder on the way that may not be entered.
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
    return LocationError(f"{shown!r} cannot be read as a path", got=got, next_step="Name another file or folder.")


def local_path(location: str) -> Path | None:
    """Return the path that `location` names on this machine, or None when it can only be a hub id.

    `embedded:x` is `x` among the mini's artifacts, or in the package (`embedded:corpora/controls`); a path that exists,
    or that looks like one
    (absolute, or starting with "." or "~"), is itself. Existence is the reader's to check.

    Raises:
        LocationError: an embedded name that leads out of the package, or what is no path (see `path_of`).
    """
    if location.startswith(EMBEDDED_PREFIX):
        name = location.removeprefix(EMBEDDED_PREFIX)
        if not name or not name[0].isalnum() or ".." in name.split("/"):
            raise LocationError(
                f"{location} is not shipped with the package",
                expected=f"{EMBEDDED_PREFIX} and a name, such as {EMBEDDED_PREFIX}base",
                next_step="Name a folder of your own by its path.",
            )
        place = path_of(str(EMBEDDED_ROOTS[0] / name))
        return next((root / name for root in EMBEDDED_ROOTS if (root / name).exists()), place)
    path = path_of(location)
    return path if path.exists() or location.startswith((".", "/", "~")) else None


def is_here(location: str) -> bool:
    """Return whether `location` is shipped or on this machine, so that reading it fetches nothing."""
    with contextlib.suppress(LocationError):
        return local_path(location) is not None
    return True
