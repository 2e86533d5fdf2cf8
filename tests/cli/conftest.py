"""The pico profile as a file for the command line."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from stethoscope.profiles import Profile


def _as_toml(profile: Profile) -> str:
    def value(item: object) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in item.items() if inner is not None) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(value(inner) for inner in item) + "]"
        return json.dumps(item)

    return "".join(f"{key} = {value(item)}\n" for key, item in profile.model_dump(mode="json").items())


@pytest.fixture
def profile_file(pico_profile: Profile, tmp_path: Path) -> Path:
    """The pico profile's TOML file."""
    path = tmp_path / "pico.toml"
    path.write_text(_as_toml(pico_profile), encoding="utf-8")
    assert Profile.model_validate(tomllib.loads(path.read_text())) == pico_profile
    return path


@pytest.fixture(scope="session")
def as_toml() -> Callable[[Profile], str]:
    """Function that writes a profile as TOML."""
    return _as_toml
