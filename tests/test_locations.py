"""Included files are inside the package; a name that leads outside is refused."""

from pathlib import Path

import pytest

import stethoscope
from stethoscope.errors import LocationError
from stethoscope.locations import local_path
from stethoscope.profiles import MINI
from stethoscope.records import nested_records


@pytest.mark.parametrize("name", ["../..", "..", ".", "", "/etc", "base/../../..", "base/..", "~", "~root/.ssh"])
def test_an_embedded_name_stays_in_the_package(name: str) -> None:
    with pytest.raises(LocationError):
        local_path(f"embedded:{name}")


def test_everything_that_the_mini_names_is_shipped() -> None:
    package = Path(stethoscope.__file__).parent
    names = [
        text
        for part in nested_records(MINI)
        for text in vars(part).values()
        if isinstance(text, str) and text.startswith("embedded:")
    ]
    assert len(names) > 4
    for name in names:
        path = local_path(name)
        assert path is not None
        assert path.exists()
        assert package in path.parents
