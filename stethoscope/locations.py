"""Where a named thing lies: shipped with the package (`embedded:base`), a local folder or file, or a hub id.

Records keep the name, never an absolute path of one machine, so that a recipe made with the mini opens anywhere.
"""

import contextlib
from pathlib import Path

from stethoscope.errors import LocationError

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_ROOTS = (Path(__file__).parent / "mini" / "artifacts", Path(__file__).parent)


def local_path(location: str) -> Path | None:
    """Return the path that `location` names on this machine, or None when it can only be a hub id.

    `embedded:x` is `x` among the mini's artifacts, or in the package (`embedded:corpora/controls`); a path that exists,
    or that looks like one
    (absolute, or starting with "." or "~"), is itself. Existence is the reader's to check.

    Raises:
        LocationError: an embedded name that leads out of the package.
    """
    if location.startswith(EMBEDDED_PREFIX):
        name = location.removeprefix(EMBEDDED_PREFIX)
        if not name or not name[0].isalnum() or ".." in name.split("/"):
            raise LocationError(
                f"{location} is not shipped with the package",
                expected=f"{EMBEDDED_PREFIX} and a name, such as {EMBEDDED_PREFIX}base",
                next_step="Name a folder of your own by its path.",
            )
        return next((root / name for root in EMBEDDED_ROOTS if (root / name).exists()), EMBEDDED_ROOTS[0] / name)
    path = Path(location).expanduser()
    return path if path.exists() or location.startswith((".", "/", "~")) else None


def is_here(location: str) -> bool:
    """Return whether `location` is shipped or on this machine, so that reading it fetches nothing."""
    with contextlib.suppress(LocationError):
        return local_path(location) is not None
    return True
