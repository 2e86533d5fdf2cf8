"""Where a named thing lies: shipped with the package (`embedded:base`), a local folder or file, or a hub id.

Records keep the name, never an absolute path of one machine, so that a recipe made with the mini opens anywhere.
"""

from pathlib import Path

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_ROOT = Path(__file__).parent / "mini" / "artifacts"


def local_path(location: str) -> Path | None:
    """Return the path that `location` names on this machine, or None when it can only be a hub id.

    `embedded:x` is `x` among the artifacts shipped with the package; a path that exists, or that looks like one
    (absolute, or starting with "." or "~"), is itself. Existence is the reader's to check.
    """
    if location.startswith(EMBEDDED_PREFIX):
        return EMBEDDED_ROOT / location.removeprefix(EMBEDDED_PREFIX)
    path = Path(location).expanduser()
    return path if path.exists() or location.startswith((".", "/", "~")) else None
