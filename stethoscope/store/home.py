"""Folders of user data: `runs/` is never deleted automatically, and `cache/` contains only data that can be
recomputed."""

import os
from pathlib import Path

from platformdirs import user_data_path

from stethoscope.errors import ResourceError
from stethoscope.locations import path_of

HOME_VARIABLE = "STETHOSCOPE_HOME"
CHECKOUT = Path(__file__).resolve().parent.parent.parent


def home() -> Path:
    """Return the folder of runs and cache.

    This is STETHOSCOPE_HOME if set; otherwise the checkout that contains this code; otherwise, for an installed
    package, the user's data folder (on Linux ~/.local/share/stethoscope).

    Raises:
        LocationError: not a path (see `locations.path_of`).
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return path_of(named)
    return CHECKOUT if is_checkout() else user_data_path("stethoscope", appauthor=False)


def is_checkout() -> bool:
    """Return whether this code is part of a checkout, not of an installed package."""
    return all((CHECKOUT / name).is_file() for name in ("app.py", "pyproject.toml"))


def runs_dir() -> Path:
    """Return the folder of recipes, runs and results (it need not exist yet)."""
    return home() / "runs"


def cache_dir() -> Path:
    """Return the cache folder (it need not exist yet)."""
    return home() / "cache"


def asked_bytes(variable: str) -> int | None:
    """Return the value of an environment variable in MiB as bytes; None if it is not set.

    Raises:
        ResourceError: not a number of MiB.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise ResourceError(
            f"cannot read {variable}",
            got=repr(text),
            expected="a whole number of MiB",
            next_step="Correct the environment variable, or remove it.",
        )
    return int(text) << 20
