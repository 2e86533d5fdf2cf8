"""A task vector over the loaded base, tau, one tensor at a time; whatever it was read from.

A fine-tuned checkpoint (tau = theta_tuned - theta_base), a LoRA adapter (tau = scale * B A) and a bare delta each have
a reader; which one it is shows in the files found. Opening reads headers only and refuses what does not fit the base;
tensors stay on disk until they are asked for, and NaN and infinity are found then.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.sources.adapter import AdapterSource
from stethoscope.delta.sources.base import Base, Remark
from stethoscope.delta.sources.checkpoint import CheckpointSource
from stethoscope.delta.sources.delta_file import DELTA_FILE, DeltaFileSource
from stethoscope.delta.sources.likeness import read_otherwise
from stethoscope.errors import CheckpointError, TiedApartError
from stethoscope.hub import ADAPTER, CHECKPOINT, fetch_folder
from stethoscope.locations import local_path
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import TaskVectorRef
from stethoscope.results import MovedWeights


@runtime_checkable
class DeltaSource(Protocol):
    """What reads a task vector: opened on its files and the base, it knows what moves, and reads tau when asked.

    Attributes:
        description: what it is and where it lies, for display.
        names: the parameters that it holds a delta of, in the model's order.
        remarks: what was noticed on opening and did not have to be refused.
    """

    description: str
    names: tuple[str, ...]
    remarks: tuple[Remark, ...]

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name` (one of `names`) in float32, on the parameter's device."""
        ...

    def holds_weights(self, name: str) -> bool:
        """Tell whether its file holds the fine-tuned weights of `name` (one of `names`) rather than what is added."""
        ...

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return some rows of tau of parameter `name`, in float32 on the CPU: enough to tell whether it was trained."""
        ...

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return in a clause what else its model has or lacks, besides the deltas of `names`; None: nothing.

        Of values that no delta needs, some rows of each are read; with `progress` all, and it counts and can cancel.
        """
        ...


READERS = (CheckpointSource, AdapterSource, DeltaFileSource)
FILES = (*CHECKPOINT, *ADAPTER, DELTA_FILE)  # what is fetched of a hub repository


class TaskVector:
    """tau over the parameters of a session; made by `open_task_vector`.

    Attributes:
        ref: what the recipe names.
        source: what kind of task vector it is and where it lies, for display.
        names: the parameters that it holds a delta of, in the model's order; every other parameter's tau is 0.
        remarks: what was noticed on opening and did not have to be refused.
    """

    def __init__(self, ref: TaskVectorRef, base: Base, source: DeltaSource) -> None:
        self.ref = ref
        self.source = source.description
        self.names = source.names
        self.remarks = source.remarks
        self._moves = frozenset(source.names)
        self._base = base
        self._loaded = base.loaded
        self._reader = source
        self._energies: dict[str, float] = {}
        self._relative_norms: tuple[float, ...] | None = None
        self._compared: Literal["rows", "whole"] | None = None
        self._other_model: str | None = None  # why, once `_compared`

    def moves(self, name: str) -> bool:
        """Tell whether the source holds a delta of parameter `name`; where it does not, tau is exactly 0."""
        return name in self._moves

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of any parameter `name` in float32, in its shape and on its device; do not write into it.

        Raises:
            CheckpointError: a tensor that cannot be read, or holds NaN or infinity.
        """
        if self.moves(name):
            return self._reader.delta(name)
        parameter = self._loaded.parameter(name)
        return torch.zeros((), dtype=torch.float32, device=parameter.device).expand(parameter.shape)  # one number

    def holds_weights(self, name: str) -> bool:
        """Tell whether the source holds the fine-tuned weights of parameter `name`, from which tau is a difference."""
        return self.moves(name) and self._reader.holds_weights(name)

    @property
    def brings_tokenizer(self) -> bool:
        """Tell whether a tokenizer lies beside it in other files than the base's."""
        return self._base.other_tokenizer is not None

    def read_otherwise(self, texts: Iterable[str]) -> str | None:
        """Return the first of `texts` that its tokenizer encodes otherwise than the base's, None where none is."""
        theirs = self._base.other_tokenizer
        return None if theirs is None else read_otherwise(theirs, self._loaded.tokenizer, texts)

    def as_stored(self, name: str) -> Tensor | None:
        """Return the base's numbers of parameter `name` as its files hold them, None where the live ones are exact.

        In float32 or narrower, on the parameter's device. Raises `CheckpointError` where the files have changed.
        """
        return self._base.as_stored(name)

    def origin(self, name: str) -> Tensor:
        """Return what tau of parameter `name` is added to: `as_stored`, or else the live parameter."""
        return self._base.origin(name)

    @property
    def not_the_fine_tune(self) -> str | None:
        """Why the base with all of tau (every layer, norms, embeddings) is not the fine-tuned model; None: it is.

        Of weights that no recipe edits, some rows of each are read (see `stored.some_rows`): after None, only
        `compared_whole` excludes that single other rows differ.
        """
        if self._compared is None:
            self._other_model, self._compared = self._why_another_model(None), "rows"
        return self._other_model

    def compared_whole(self, progress: Progress) -> str | None:
        """Return `not_the_fine_tune` after every number was read where some rows do not decide it.

        Raises:
            Cancelled: stopped through `progress`.
        """
        if self.not_the_fine_tune is None and self._compared != "whole":
            self._other_model, self._compared = self._why_another_model(progress), "whole"
        return self._other_model

    def _why_another_model(self, progress: Progress | None) -> str | None:
        try:
            reason = self._reader.besides(progress) or self._tied_apart() or self._unedited(progress)
        except CheckpointError as error:
            reason = f"it cannot be read whole: {error.got}"
        return (
            None if reason is None else f"The base with all of {self.ref.name} is not the fine-tuned model: {reason}."
        )

    def _tied_apart(self) -> str | None:
        """Return that it holds two tensors for weights that the base ties, so that embeddings and head stay."""
        live = self._loaded.model.named_parameters(remove_duplicate=False)
        twins = {id(parameter): name for name, parameter in live}
        for name in self._loaded.layout.outer:
            if self.moves(name) and twins[id(self._loaded.model.get_parameter(name))] != name:
                try:
                    self.delta(name)
                except TiedApartError as error:
                    return f"it holds {error.got}, and the base ties the two"
        return None

    def _unedited(self, progress: Progress | None) -> str | None:
        """Return that it moves weights that no recipe edits, such as biases and a mixture's routers, and the first."""
        layout = self._loaded.layout
        edited = {*(site.name for site in layout.matrices), *(norm.name for norm in layout.norms), *layout.outer}
        for name in self.names:
            if progress is not None:
                progress.check_cancel()
            if name not in edited and (bool(self._reader.rows(name).any()) if progress is None else self.energy(name)):
                return f"it moves weights that no recipe edits, the first {name}"
        return None

    def energy(self, name: str) -> float:
        """Return ||tau||^2 of parameter `name` (read once, then remembered): 0 where it stays the base's."""
        if name not in self._energies:
            self._energies[name] = _energy(self.delta(name)) if self.moves(name) else 0.0
        return self._energies[name]

    def relative_norms(self) -> tuple[float, ...]:
        """Return ||tau_l|| / ||theta_l|| of every layer, over its edited matrices."""
        if self._relative_norms is None:
            norms: list[float] = []
            for layer in range(self._loaded.layout.n_layers):
                names = [site.name for site in self._loaded.layout.of_layer(layer)]
                base = sum(_energy(self._loaded.parameter(name).detach().float()) for name in names)
                norms.append(math.sqrt(sum(map(self.energy, names)) / base) if base else 0.0)
            self._relative_norms = tuple(norms)
        return self._relative_norms

    def moved(self, layer: int) -> tuple[MovedWeights, ...]:
        """Return the weights of `layer` in which tau is not 0 everywhere, matrices before norms."""
        layout = self._loaded.layout
        names: dict[tuple[Literal["attention", "mlp"], Literal["read", "write", "norm"]], list[str]] = {}
        for site in layout.of_layer(layer):
            if self.energy(site.name):
                names.setdefault((site.part, site.side), []).append(site.matrix)
        for norm in layout.norms_of(layer):
            if self.energy(norm.name):
                short = norm.name.removesuffix(".weight").rpartition(".")[2]
                names.setdefault((norm.part, "norm"), []).append(short)
        return tuple(
            MovedWeights(layer=layer, part=part, side=side, names=tuple(found)) for (part, side), found in names.items()
        )

    @property
    def moves_outer(self) -> bool:
        """Tell whether the source holds a delta of embeddings, final norm or head; their values are not read."""
        return any(self.moves(name) for name in self._loaded.layout.outer)


def open_task_vector(ref: TaskVectorRef, loaded: LoadedModel, *, progress: Progress | None = None) -> TaskVector:
    """Return the task vector that `ref` names, over the model's base, fetching it where it is a hub id.

    Only headers are read here; the tensors stay on disk.

    Raises:
        CheckpointError: missing, corrupt, quantised, or of another architecture, vocabulary or shape than the base;
            an adapter of a kind that is no plain LoRA; nothing there that is a task vector, or more than one.
        HubError, ResourceError, Cancelled: see `hub.fetch_folder`.
    """
    path = _path_of(ref, progress)
    found = [reader for reader in READERS if reader.is_at(path)]
    if len(found) > 1:
        raise CheckpointError(
            f"{ref.tuned} holds more than one task vector",
            got=" and ".join(reader.wants for reader in found),
            expected="one of them",
            next_step="Move one into a folder of its own.",
        )
    if not found and not (path / "config.json").is_file():
        raise CheckpointError(
            f"there is no task vector in {ref.tuned}",
            got="a folder without any of these" if path.is_dir() else "another kind of file",
            expected=" or ".join(reader.wants for reader in READERS),
            next_step="Only safetensors files are read; convert others first.",
        )
    base = Base(loaded)
    return TaskVector(ref, base, (found or [CheckpointSource])[0](path, ref, base))


def _path_of(ref: TaskVectorRef, progress: Progress | None) -> Path:
    path = local_path(ref.tuned)
    if path is not None:
        if not path.exists():
            raise CheckpointError(
                f"there is no checkpoint at {ref.tuned}",
                got="nothing there",
                expected="a folder with a checkpoint or a LoRA adapter, or a safetensors delta",
                next_step="Check the name or path.",
            )
        _check_file(ref, path)
        return path
    return fetch_folder(ref.tuned, revision=ref.revision, patterns=FILES, progress=progress).path


def _check_file(ref: TaskVectorRef, path: Path) -> None:
    """Raise `CheckpointError` for one file of a checkpoint: its tensors are weights, not what is added to them."""
    if not path.is_file() or not (path.parent / "config.json").is_file():
        return
    if any(fnmatch(path.name, pattern) for pattern in CHECKPOINT):
        raise CheckpointError(
            f"{ref.tuned} is a file of a checkpoint, not a delta",
            got=f"{path.name} beside config.json",
            expected="the folder of the checkpoint",
            next_step=f"Name {path.parent}.",
        )


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum()) if tensor.device.type != "mps" else float(tensor.square().sum())
