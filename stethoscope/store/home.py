"""Where the user's data lies: `runs/` is never deleted by us, `cache/` holds only what can be computed again."""

import os
from pathlib import Path

HOME_VARIABLE = "STETHOSCOPE_HOME"


def home() -> Path:
    """Return the folder of runs and cache: the environment's STETHOSCOPE_HOME, else the working directory."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).expanduser()


def runs_dir() -> Path:
    """Return the folder of recipes, runs and results (it need not exist yet)."""
    return home() / "runs"


def cache_dir() -> Path:
    """Return the folder of what can be recomputed (it need not exist yet)."""
    return home() / "cache"
