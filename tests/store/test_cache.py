"""The disk cache returns what was stored bit for bit, or nothing."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from stethoscope.errors import ResourceError
from stethoscope.store.cache import ArrayCache, capacity_bytes

ARRAYS = {
    "a": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "b": np.array([0.1, np.nan, -0.0]),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
}


def same(one: dict[str, np.ndarray] | None, other: dict[str, np.ndarray]) -> bool:
    return one is not None and {name: (array.dtype, array.shape, array.tobytes()) for name, array in one.items()} == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in other.items()
    }


def files(cache: ArrayCache) -> list[Path]:
    return sorted(cache.root.glob("*.safetensors"))


def test_arrays_come_back_bit_for_bit_in_another_process(tmp_path: Path) -> None:
    ArrayCache(tmp_path / "cache").put("rates", "key", arrays=ARRAYS)
    again = ArrayCache(tmp_path / "cache")
    assert same(again.get("rates", "key"), ARRAYS)
    assert again.get("rates", "other key") is None
    assert again.get("ratesk", "ey") is None


@pytest.mark.parametrize("where", [0, 8, 40, -1])
def test_a_damaged_file_is_no_answer_and_is_removed(tmp_path: Path, where: int) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("key", arrays=ARRAYS)
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    found = cache.get("key")
    assert found is None or same(found, ARRAYS)  # a byte of padding decides nothing
    if found is None:
        assert files(cache) == []
    path.write_bytes(bytes(content[: len(content) // 2]))
    assert cache.get("key") is None
    assert files(cache) == []
    cache.put("key", arrays=ARRAYS)
    assert same(cache.get("key"), ARRAYS)


def test_a_file_of_other_arrays_is_no_answer(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("key", arrays={"x": np.zeros(1000)})
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last number's last bit
    path.write_bytes(content)
    assert cache.get("key") is None


def test_the_least_recently_used_files_go(tmp_path: Path) -> None:
    def block(n: int) -> dict[str, np.ndarray]:
        return {"x": np.full(1000, n)}  # 8,000 bytes and a header

    cache = ArrayCache(tmp_path, capacity=30_000)
    for age, n in enumerate((1, 2, 3)):
        cache.put(str(n), arrays=block(n))
        newest = max(files(cache), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    assert same(cache.get("1"), block(1))  # used just now
    cache.put("4", arrays=block(4))
    assert [cache.get(str(n)) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30_000


def test_too_much_for_the_capacity_or_the_disk_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ArrayCache(tmp_path / "small", capacity=10_000)
    small.put("key", arrays={"x": np.zeros(1000)})
    assert small.get("key") is None
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 20_000))
    full = ArrayCache(tmp_path / "full")
    full.put("key", arrays={"x": np.zeros(1000)})
    assert full.get("key") is None


def test_a_folder_that_cannot_be_written_only_means_work_done_again(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    cache = ArrayCache(tmp_path / "cache")
    cache.put("key", arrays=ARRAYS)
    assert cache.get("key") is None
    assert (tmp_path / "cache").read_text() == "a file, not a folder"


def test_what_an_unfinished_write_left_goes_first(tmp_path: Path) -> None:
    left = tmp_path / ".writing-x"
    left.write_bytes(bytes(25_000))
    os.utime(left, (1, 1))
    cache = ArrayCache(tmp_path, capacity=30_000)
    cache.put("key", arrays={"x": np.zeros(1000)})
    assert not left.exists()
    assert cache.get("key") is not None


def test_the_capacity_is_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capacity_bytes() == 4 << 30
    monkeypatch.setenv("STETHOSCOPE_CACHE_MIB", "3")
    assert capacity_bytes() == 3 << 20
    monkeypatch.setenv("STETHOSCOPE_CACHE_MIB", "0")
    none = ArrayCache(tmp_path)
    none.put("key", arrays=ARRAYS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["4 GB", "-1", "1.5"])
def test_a_capacity_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("STETHOSCOPE_CACHE_MIB", value)
    with pytest.raises(ResourceError, match="STETHOSCOPE_CACHE_MIB"):
        capacity_bytes()
