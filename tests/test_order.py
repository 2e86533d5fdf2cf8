"""The order of the whole suite: every worker begins with its share of the long files, and nothing is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import LONGEST, _longest_first

HERE = Path(__file__).parent


@pytest.mark.parametrize("n_workers", [1, 2, 3, 4])
def test_every_worker_begins_with_long_files(n_workers: int) -> None:
    names = [f"short/test_{number}.py" for number in range(97)] + [name for name in LONGEST for _ in range(3)]
    items: list[Any] = [SimpleNamespace(path=HERE / name) for name in names]
    ordered = _longest_first(items, n_workers=n_workers)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    starts = [len(items) * number // n_workers for number in range(n_workers)]
    assert [ordered[start].path for start in starts] == [HERE / name for name in LONGEST[:n_workers]]


def test_every_long_file_is_there() -> None:
    assert [name for name in LONGEST if not (HERE / name).is_file()] == []
