"""Read a delta: a safetensors file whose tensors are tau itself, by parameter name.

Parameters that are not in the file do not change. Names that the base does not have are rejected, and so is a second
name of a tied parameter, because the delta of tied weights is given once.
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.sources.base import Base, Remark, described
from stethoscope.delta.sources.stored import StoredTensors
from stethoscope.errors import CheckpointError
from stethoscope.progress import Progress
from stethoscope.records import TaskVectorRef

DELTA_FILE = "delta.safetensors"
BASE_KEY = "base_model"  # key in the file's metadata for the name of its base


class DeltaFileSource:
    """Reads the task vector of a safetensors delta: a folder with delta.safetensors, or the file itself.

    Raises:
        CheckpointError: missing, corrupt or quantised; an unknown parameter, or a shape that differs from the base's.
    """

    wants = f"{DELTA_FILE} or a .safetensors file (a delta)"

    def __init__(self, path: Path, ref: TaskVectorRef, base: Base) -> None:
        self._base = base
        title = f"delta {ref.tuned}"
        folder, file = (path, DELTA_FILE) if path.is_dir() else (path.parent, path.name)
        self._tensors = StoredTensors(folder, title, [file])
        self._stored: dict[str, str] = {}
        for stored in self._tensors.names:
            self._add(stored, title)
        if not self._stored:
            raise CheckpointError(
                f"{title} contains no tensors",
                got=f"an empty {file}",
                expected="the delta of at least one parameter",
                next_step="Save it again.",
            )
        self.names = tuple(name for name in base.names if name in self._stored)
        self.description = f"delta {described(ref)}: {len(self.names)} tensors"
        self.remarks: tuple[Remark, ...] = (
            base.compare_tokens(folder, title),
            base.compare_name(self._tensors.metadata().get(BASE_KEY)),
        )

    @staticmethod
    def is_at(path: Path) -> bool:
        """Return whether `path` is a delta file or a folder with one."""
        return (path / DELTA_FILE).is_file() or (path.is_file() and path.suffix == ".safetensors")

    def _add(self, stored: str, title: str) -> None:
        name = self._base.parameter_of(stored)
        if name is None:
            raise self._base.refusal(
                title,
                got=f"a tensor called {stored}",
                expected=f"parameter names of the base, such as {self._base.loaded.layout.matrices[0].name}",
                next_step="For a LoRA adapter, use its folder."
                if ".lora_" in stored
                else "Save the delta under the parameter names of the model.",
            )
        if name in self._base.twins or name in self._stored:
            raise self._base.refusal(
                title,
                got=f"{stored} and another name for the same weights",
                expected=f"one delta, named {self._base.twins.get(name, name)}",
                next_step="Save the delta of each parameter once.",
            )
        self._base.check_shape(title, stored, self._tensors.check_float(stored), name)
        self._stored[name] = stored

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name` in float32, on the parameter's device."""
        return self._tensors.read_finite(self._stored[name], self._base.parameter(name).device).clone()

    def holds_weights(self, name: str) -> bool:
        """Return whether the file holds the weights of `name` themselves; see `DeltaSource`."""
        return False

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return some rows of tau of parameter `name`; see `DeltaSource`."""
        return next(self._tensors.rows([self._stored[name]]))

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return None, because a delta file contains nothing else; see `DeltaSource`."""
        return None
