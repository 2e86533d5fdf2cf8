"""Disk cache of computed arrays by key, which survives restarts and is verified when read.

A missing, damaged or unwritable file only means that the arrays are computed again. Files may be deleted at any time,
also by another process.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stethoscope.store.home import asked_bytes

CAPACITY_VARIABLE = "STETHOSCOPE_CACHE_MIB"
# Firing rates of Gemma 3 4B, 34 layers of 16k latents, take 100 MB for each corpus of 128 documents.
CAPACITY_BYTES = 4 << 30
SPARE = 4  # a file is written only if the disk has this many times its size free


def capacity_bytes() -> int:
    """Return the maximum size of the cache in bytes: STETHOSCOPE_CACHE_MIB in MiB, by default 4 GiB; 0 disables it.

    Raises:
        ResourceError: the value is not a number of MiB.
    """
    asked = asked_bytes(CAPACITY_VARIABLE)
    return CAPACITY_BYTES if asked is None else asked


class ArrayCache:
    """Files of named arrays in one folder; the least recently used ones are removed above `capacity`."""

    def __init__(self, root: Path, capacity: int | None = None) -> None:
        """Set the folder and the capacity in bytes (None: `capacity_bytes()`); writes nothing."""
        self.root = root
        self.capacity = capacity_bytes() if capacity is None else capacity

    def get(self, *key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of `key`, or None; a damaged file is removed."""
        from safetensors import SafetensorError, safe_open  # for the worker: no page reads or writes here

        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                digest = (file.metadata() or {}).get("digest")
            if digest == _digest(arrays):
                os.utime(path)
                return arrays
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            pass
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def put(self, *key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store `arrays` under `key` if they fit on the disk and into the capacity."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        size = sum(array.nbytes for array in arrays.values())
        if size > self.capacity // 2:
            return
        temporary: str | None = None
        with contextlib.suppress(OSError, SafetensorError):
            self.root.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.root).free < SPARE * size:
                return
            descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=self.root)
            os.close(descriptor)
            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(contiguous, temporary, metadata={"digest": _digest(contiguous)})
            os.replace(temporary, self._path(key))
            temporary = None
            self._trim()
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.root / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.safetensors"

    def _trim(self) -> None:
        """Remove leftovers of unfinished writes, then the least recently used files until the rest fits."""
        found = []
        for path in self.root.iterdir():
            if path.suffix == ".safetensors" or path.name.startswith(".writing-"):
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.capacity:
                return
            path.unlink(missing_ok=True)
            total -= size


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.blake2b(digest_size=32)
    for name in sorted(arrays):
        hashed.update(repr((name, arrays[name].dtype.str, arrays[name].shape)).encode())
        hashed.update(np.ascontiguousarray(arrays[name]).data)
    return hashed.hexdigest()
