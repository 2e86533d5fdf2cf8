"""Where the user's data lies: `runs/` is never deleted by us, `cache/` holds only what can be computed again."""

import os
from pathlib import Path

from stethoscope.locations import path_of

HOME_VARIABLE = "STETHOSCOPE_HOME"


def home() -> Path:
    """Return the folder of runs and cache: the environment's STETHOSCOPE_HOME, else the working directory.

    Raises:
        LocationError: no path (see `locations.path_of`).
    """
    named = os.environ.get(HOME_VARIABLE)
    return path_of(named) if named else Path.cwd()


def runs_dir() -> Path:
    """Return the folder of recipes, runs and results (it need not exist yet)."""
    return home() / "runs"


def cache_dir() -> Path:
    """Return the folder of what can be recomputed (it need not exist yet)."""
    return home() / "cache"
