"""Read an SAE's arrays from safetensors or npz in float32, and check presence, shapes and finite values."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.files import cannot_be_read
from stethoscope.sae.formats import Format

AGAIN = "Save or download this SAE again."


class _Safetensors:
    def __init__(self, file: safe_open) -> None:
        self._file = file

    def names(self) -> set[str]:
        return set(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        return self._file.get_tensor(name).to(torch.float32)


class _Npz:
    def __init__(self, file: "np.lib.npyio.NpzFile") -> None:
        self._file = file

    def names(self) -> set[str]:
        return {self._ours(name) for name in self._file.files}

    def shape(self, name: str) -> tuple[int, ...]:
        with self._file.zip.open(f"{self._theirs(name)}.npy") as member:  # pyright: ignore[reportOptionalMemberAccess]
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            return tuple(read(member)[0])

    def read(self, name: str) -> Tensor:
        return torch.from_numpy(self._file[self._theirs(name)]).to(torch.float32)

    @staticmethod
    def _ours(name: str) -> str:
        return "W_" + name[2:] if name.startswith("w_") else name  # some SAEs of Gemma Scope 1 use w_enc

    def _theirs(self, name: str) -> str:
        return next(theirs for theirs in self._file.files if self._ours(theirs) == name)


ArrayFile = _Safetensors | _Npz  # names(), shape(name) without reading, read(name) in float32


@contextmanager
def _open(name: str, path: Path) -> Iterator[ArrayFile]:
    """Open the weights of the SAE named `name`.

    Raises:
        SaeError: a missing or corrupt file, also if this is detected while reading in the body.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                yield _Npz(file)
        else:
            with safe_open(path, framework="pt") as file:
                yield _Safetensors(file)
    except FileNotFoundError as error:
        raise SaeError(
            f"{name} has no {path.name}",
            next_step=AGAIN,
            got="nothing there",
            expected=f"{path.name} next to its settings",
        ) from error
    except OSError as error:
        raise cannot_be_read(SaeError, f"{path.name} of {name}", error) from error
    except (SafetensorError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SaeError(
            f"{path.name} of {name} is not a {path.suffix[1:]} file of plain arrays",
            got=error,
            expected="a complete file without pickled objects",
            next_step=AGAIN,
        ) from error


def read_sizes(name: str, path: Path, known: Format) -> tuple[int, int]:
    """Return (d_in, d_sae) from the shape of the weights, without reading them."""
    held = known.tensors["W_enc"]
    with _open(name, path) as file:
        _require(name, file, held.name, known)
        shape = file.shape(held.name)
    if len(shape) != 2:
        raise SaeError(f"{name} has {held.name} with the wrong shape", got=shape, expected="a matrix", next_step=AGAIN)
    return (shape[1], shape[0]) if held.transposed else (shape[0], shape[1])


def read_arrays(
    name: str, path: Path, known: Format, shapes: Mapping[str, tuple[int, ...]], architecture: str
) -> dict[str, Tensor]:
    """Return the arrays named in `shapes` (our names, our orientation) in float32.

    Raises:
        SaeError: an array that is missing, mis-shaped or not finite, or that this `architecture` does not use.
    """
    arrays: dict[str, Tensor] = {}
    with _open(name, path) as file:
        for other in sorted(file.names() & set(known.refused)):
            if not bool((file.read(other) == 1).all()):
                raise SaeError(
                    f"{name} contains more than an SAE",
                    got=other,
                    expected=", ".join(held.name for held in known.tensors.values()),
                    next_step="Use an SAE without it; its effect cannot be expressed by an encoder and a decoder.",
                )
        unused = file.names() - {known.tensors[ours].name for ours in shapes} - set(known.refused)
        if known.exact and unused:
            raise SaeError(
                f"{name} contains arrays that the architecture {architecture} does not use",
                got=", ".join(sorted(unused)),
                expected=", ".join(known.tensors[ours].name for ours in shapes),
                next_step=(
                    f"{known.config} and the weights do not match. Correct the architecture in {known.config}, "
                    "or save the SAE again."
                ),
            )
        for ours, shape in shapes.items():
            held = known.tensors[ours]
            _require(name, file, held.name, known)
            array = file.read(held.name)
            array = array.T.contiguous() if held.transposed else array
            if tuple(array.shape) != shape:
                raise SaeError(
                    f"{name} has {held.name} with the wrong shape",
                    got=tuple(array.shape),
                    expected=f"{shape} [{'d_in, d_sae' if ours == 'W_enc' else 'by its other arrays and settings'}]",
                    next_step=AGAIN,
                )
            if not torch.isfinite(array).all():
                raise SaeError(
                    f"{name} has NaN or infinity in {held.name}", got="not finite", expected="finite", next_step=AGAIN
                )
            arrays[ours] = array
    return arrays


def _require(name: str, file: ArrayFile, wanted: str, known: Format) -> None:
    if wanted not in file.names():
        raise SaeError(
            f"{name} has a missing tensor",
            got=f"no {wanted}",
            expected=f"{', '.join(held.name for held in known.tensors.values())}, as {known.title} has",
            next_step=f"Check the format in {known.config}, or save the SAE again.",
        )
