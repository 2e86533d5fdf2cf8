"""Tensors in safetensors files by parameter name, read on request (no pickles).

Multimodal checkpoints name the text tower `language_model.model.` on disk and `model.language_model.` in memory; the
text-only class uses `model.`. All these forms are recognised in both directions.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from stethoscope.errors import CheckpointError, NotFiniteError
from stethoscope.model.weights import open_tensors, weight_files

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

ROWS_LOOKED_AT = 4  # rows of a matrix to check whether it was trained: an optimiser step changes values in every row

EMPTY: Mapping[str, tuple[str, ...]] = {}


def name_forms(name: str) -> tuple[str, ...]:
    """Return the possible stored names of parameter `name`, its own first."""
    plain = name.removeprefix("model.language_model.").removeprefix("model.")
    return (
        name,
        f"model.{plain}",
        f"language_model.model.{plain}",
        f"model.language_model.{plain}",
        plain,  # vision tower and projector
        plain.replace("vision_tower.", "vision_tower.vision_model.", 1),
        f"language_model.{plain}",  # head of LLaVA
    )


class StoredTensors:
    """Tensors of one or more safetensors files in a folder.

    Args:
        folder: folder of the files.
        title: name in messages, for example "checkpoint NAME".
        files: file names in `folder`.
        saved_names: names under which transformers saves each parameter (see `LoadedModel.saved_names`).

    Raises:
        CheckpointError: a missing file, or unreadable safetensors files.
    """

    def __init__(
        self, folder: Path, title: str, files: Iterable[str], saved_names: Mapping[str, tuple[str, ...]] = EMPTY
    ) -> None:
        self.title = title
        self._saved_names = saved_names
        self._folder = folder
        self._file_of: Mapping[str, str] = {name: file for file in files for name in self._names_in(file)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names on disk."""
        return tuple(self._file_of)

    def __contains__(self, name: str) -> bool:
        """Return whether a tensor is stored under exactly this name."""
        return name in self._file_of

    def _names_in(self, file: str) -> list[str]:
        with self._open(file) as tensors:
            return list(tensors.keys())

    def _open(self, file: str) -> Any:
        return open_tensors(self._folder, file, self.title)

    def name_on_disk(self, name: str) -> str | None:
        """Return the stored name of parameter `name`; None if it is missing or stored in parts."""
        saved = self._saved_names.get(name, ())
        forms = (*name_forms(name), *(saved if len(saved) == 1 else ()))
        return next((form for form in forms if form in self._file_of), None)

    def joined_from(self, name: str) -> tuple[str, ...]:
        """Return the stored tensors that transformers merges into parameter `name`; empty if one is missing or there
        are none."""
        saved = self._saved_names.get(name, ())
        return saved if len(saved) > 1 and all(part in self._file_of for part in saved) else ()

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and safetensors dtype (for example "BF16") of a stored tensor, from the header only."""
        with self._open(self._file_of[name]) as tensors:
            part = tensors.get_slice(name)
            return tuple(part.get_shape()), str(part.get_dtype())

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the files' headers."""
        found: dict[str, str] = {}
        for file in sorted(set(self._file_of.values())):
            with self._open(file) as tensors:
                found |= tensors.metadata() or {}
        return found

    def check_float(self, name: str) -> tuple[int, ...]:
        """Return the shape of the stored tensor `name`; raise `CheckpointError` if it is not a plain float type."""
        shape, dtype = self.shape_and_dtype(name)
        if dtype not in FLOAT_DTYPES:
            raise quantised(self.title, f"{name} stored as {dtype}")
        return shape

    def read(self, name: str) -> Tensor:
        """Return the stored tensor `name` (a name on disk) on the CPU, in its dtype on disk.

        The tensor is memory-mapped: copy it to keep it, because truncating the file would invalidate it.
        """
        with self._open(self._file_of[name]) as tensors, self._reading(name):
            return tensors.get_tensor(name)

    def rows(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Yield `some_rows` of each stored tensor, in float32 on the CPU; nothing else is read from the files."""
        with contextlib.ExitStack() as stack:
            opened: dict[
                str, Any
            ] = {}  # open each file once: experts of a mixture are thousands of tensors in a few files
            for name in names:
                file = self._file_of[name]
                if file not in opened:
                    opened[file] = stack.enter_context(self._open(file))
                with self._reading(name):
                    part = opened[file].get_slice(name)
                    rows = some_rows(part, tuple(part.get_shape()))
                yield rows

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except SafetensorError as error:
            raise CheckpointError(
                f"cannot read {name} of {self.title}",
                got=error,
                expected="a complete safetensors file",
                next_step="Download or save it again.",
            ) from error

    def read_finite(self, name: str, device: torch.device) -> Tensor:
        """Return the stored tensor `name` in float32 on `device`; raise `NotFiniteError` for NaN and infinity."""
        tensor = self.read(name).to(device, torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise NotFiniteError(
                f"{self.title} cannot be used as a task vector",
                got=f"NaN or infinity in {name}",
                expected="finite weights",
                next_step="Train or export it again.",
            )
        return tensor


def some_rows(tensor: Any, shape: tuple[int, ...]) -> Tensor:
    """Return `ROWS_LOOKED_AT` evenly spaced rows of a tensor or of its slice in a file, in float32 on the CPU.

    For a stack of matrices (experts in one tensor), the same rows of each; vectors and smaller matrices completely.
    """
    if len(shape) < 2 or shape[-2] <= ROWS_LOOKED_AT:
        return tensor[...].float().cpu()
    stack = (slice(None),) * (len(shape) - 2)
    first = [i * shape[-2] // ROWS_LOOKED_AT for i in range(ROWS_LOOKED_AT)]
    return torch.cat([tensor[(*stack, slice(i, i + 1))].float().cpu() for i in first], dim=-2)


class CheckpointTensors(StoredTensors):
    """Tensors of a checkpoint folder, from the files that transformers reads (see `model.weights`).

    Attributes:
        files: these files, and other files in the folder.

    Raises:
        CheckpointError: a missing folder or file, an invalid index, or unreadable safetensors files.
    """

    def __init__(self, folder: Path, shown_as: str, saved_names: Mapping[str, tuple[str, ...]] = EMPTY) -> None:
        title = f"checkpoint {shown_as}"
        self.files = weight_files(folder, title)
        super().__init__(folder, title, self.files.files, saved_names)


def quantised(title: str, got: str) -> CheckpointError:
    """Return the error for quantised weights."""
    return CheckpointError(
        f"{title} is quantised",
        got=got,
        expected="float32, bfloat16 or float16 weights",
        next_step="Use the unquantised checkpoint: quantised weights minus the base are mostly rounding error.",
    )
