"""Where the user's data lies: `runs/` is never deleted by us, `cache/` holds only what can be computed again."""

import os
from pathlib import Path

from platformdirs import user_data_path

from stethoscope.errors import ResourceError
from stethoscope.locations import path_of

HOME_VARIABLE = "STETHOSCOPE_HOME"
CHECKOUT = Path(__file__).resolve().parent.parent.parent


def home() -> Path:
    """Return the folder of runs and cache.

    It is the environment's STETHOSCOPE_HOME; else the checkout that this code is part of; else, for an installed
    package, the user's data folder (on Linux ~/.local/share/stethoscope).

    Raises:
        LocationError: no path (see `locations.path_of`).
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
    """Return the folder of what can be recomputed (it need not exist yet)."""
    return home() / "cache"


def asked_bytes(variable: str) -> int | None:
    """Return the bytes that an environment variable asks for in MiB, None where it is not set.

    Raises:
        ResourceError: no number of MiB.
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
