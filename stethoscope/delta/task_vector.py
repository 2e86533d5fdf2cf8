"""A task vector tau for the loaded base, read one tensor at a time from any kind of source.

There are readers for fine-tuned checkpoints (tau = theta_tuned - theta_base), LoRA adapters (tau = scale * B A) and
deltas; the kind is detected from the files. Opening reads only headers and rejects mismatches with the base. Tensors
are read on request, and NaN and infinity are detected then.
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
    """A reader of task vectors: knows which parameters change, and reads tau on request.

    Attributes:
        description: kind and location, for display.
        names: the parameters with a delta, in the model's order.
        remarks: warnings from opening.
    """

    description: str
    names: tuple[str, ...]
    remarks: tuple[Remark, ...]

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name` (one of `names`) in float32, on the parameter's device."""
        ...

    def holds_weights(self, name: str) -> bool:
        """Return whether its file contains the fine-tuned weights of `name` (one of `names`) rather than a delta."""
        ...

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return some rows of tau of parameter `name`, in float32 on the CPU, sufficient to detect whether it was
        trained."""
        ...

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return a clause about other differences of its model besides the deltas of `names`; None if there are none.

        Of tensors that no delta needs, some rows are read; with `progress` all values, which are counted and can be
        cancelled.
        """
        ...


READERS = (CheckpointSource, AdapterSource, DeltaFileSource)
FILES = (*CHECKPOINT, *ADAPTER, DELTA_FILE)  # files downloaded from a hub repository


class TaskVector:
    """tau over the parameters of a session; made by `open_task_vector`.

    Attributes:
        ref: reference in the recipe.
        source: kind and location of the task vector, for display.
        names: the parameters with a delta, in the model's order; tau of all others is 0.
        remarks: warnings from opening.
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
        """Return whether the source contains a delta of parameter `name`; if not, tau is exactly 0."""
        return name in self._moves

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of any parameter `name` in float32, with its shape and on its device; do not modify it.

        Raises:
            CheckpointError: a tensor that cannot be read, or contains NaN or infinity.
        """
        if self.moves(name):
            return self._reader.delta(name)
        parameter = self._loaded.parameter(name)
        return torch.zeros((), dtype=torch.float32, device=parameter.device).expand(parameter.shape)  # one number

    def holds_weights(self, name: str) -> bool:
        """Return whether the source contains the fine-tuned weights of parameter `name`, so that tau is a
        difference."""
        return self.moves(name) and self._reader.holds_weights(name)

    @property
    def brings_tokenizer(self) -> bool:
        """Return whether its folder has tokenizer files that differ from the base's."""
        return self._base.other_tokenizer is not None

    def read_otherwise(self, texts: Iterable[str]) -> str | None:
        """Return the first of `texts` that its tokenizer encodes differently from the base's; None if there is none."""
        theirs = self._base.other_tokenizer
        return None if theirs is None else read_otherwise(theirs, self._loaded.tokenizer, texts)

    def as_stored(self, name: str) -> Tensor | None:
        """Return the values of parameter `name` in the base's files; None if the loaded ones are exact.

        In float32 or narrower, on the parameter's device. Raises `CheckpointError` if the files have changed.
        """
        return self._base.as_stored(name)

    def origin(self, name: str) -> Tensor:
        """Return the tensor that tau of parameter `name` is added to: `as_stored`, or the model's parameter."""
        return self._base.origin(name)

    @property
    def not_the_fine_tune(self) -> str | None:
        """Why base plus tau (all layers, norms, embeddings) is not the fine-tuned model; None if it is.

        Of weights that no recipe can edit, only some rows are compared (see `stored.some_rows`); use `compared_whole`
        to compare all rows.
        """
        if self._compared is None:
            self._other_model, self._compared = self._why_another_model(None), "rows"
        return self._other_model

    def compared_whole(self, progress: Progress) -> str | None:
        """Return `not_the_fine_tune` after comparing all values if some rows are not sufficient.

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
            reason = f"it cannot be read completely: {error.got}"
        return (
            None
            if reason is None
            else f"The base plus the whole task vector {self.ref.name} is not the fine-tuned model: {reason}."
        )

    def _tied_apart(self) -> str | None:
        """Return the reason if it has two tensors for weights that the base ties, so that embeddings and head cannot be
        edited."""
        live = self._loaded.model.named_parameters(remove_duplicate=False)
        twins = {id(parameter): name for name, parameter in live}
        for name in self._loaded.layout.outer:
            if self.moves(name) and twins[id(self._loaded.model.get_parameter(name))] != name:
                try:
                    self.delta(name)
                except TiedApartError as error:
                    return f"it contains {error.got}, and the base ties the two"
        return None

    def _unedited(self, progress: Progress | None) -> str | None:
        """Return the reason if it changes weights that no recipe can edit, such as biases and routers, naming the
        first."""
        layout = self._loaded.layout
        edited = {*(site.name for site in layout.matrices), *(norm.name for norm in layout.norms), *layout.outer}
        for name in self.names:
            if progress is not None:
                progress.check_cancel()
            if name not in edited and (bool(self._reader.rows(name).any()) if progress is None else self.energy(name)):
                return f"it changes weights that no recipe can edit, the first is {name}"
        return None

    def energy(self, name: str) -> float:
        """Return ||tau||^2 of parameter `name` (cached); 0 if it is unchanged."""
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
        """Return the weights of `layer` with nonzero tau, matrices before norms."""
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
        """Return whether the source contains a delta of embeddings, final norm or head, without reading values."""
        return any(self.moves(name) for name in self._loaded.layout.outer)


def open_task_vector(ref: TaskVectorRef, loaded: LoadedModel, *, progress: Progress | None = None) -> TaskVector:
    """Return the task vector of `ref` for the model's base; a hub id is downloaded.

    Only headers are read.

    Raises:
        CheckpointError: missing, corrupt, quantised, or with an architecture, vocabulary or shapes that differ from the
            base; an adapter other than plain LoRA; no task vector found, or more than one.
        HubError, ResourceError, Cancelled: see `hub.fetch_folder`.
    """
    path = _path_of(ref, progress)
    found = [reader for reader in READERS if reader.is_at(path)]
    if len(found) > 1:
        raise CheckpointError(
            f"{ref.tuned} contains more than one task vector",
            got=" and ".join(reader.wants for reader in found),
            expected="one of them",
            next_step="Move one of them into its own folder.",
        )
    if not found and not (path / "config.json").is_file():
        raise CheckpointError(
            f"there is no task vector in {ref.tuned}",
            got="a folder without any of these" if path.is_dir() else "another kind of file",
            expected=" or ".join(reader.wants for reader in READERS),
            next_step="Only safetensors files are supported; convert others first.",
        )
    base = Base(loaded)
    return TaskVector(ref, base, (found or [CheckpointSource])[0](path, ref, base))


def _path_of(ref: TaskVectorRef, progress: Progress | None) -> Path:
    path = local_path(ref.tuned)
    if path is not None:
        if not path.exists():
            raise CheckpointError(
                f"no checkpoint at {ref.tuned}",
                got="nothing there",
                expected="a folder with a checkpoint or a LoRA adapter, or a safetensors delta",
                next_step="Check the name or the path.",
            )
        _check_file(ref, path)
        return path
    return fetch_folder(ref.tuned, revision=ref.revision, patterns=FILES, progress=progress).path


def _check_file(ref: TaskVectorRef, path: Path) -> None:
    """Raise `CheckpointError` for a single file of a checkpoint, because its tensors are weights and not deltas."""
    if not path.is_file() or not (path.parent / "config.json").is_file():
        return
    if any(fnmatch(path.name, pattern) for pattern in CHECKPOINT):
        raise CheckpointError(
            f"{ref.tuned} is a file of a checkpoint, not a delta",
            got=f"{path.name} next to config.json",
            expected="the folder of the checkpoint",
            next_step=f"Use {path.parent}.",
        )


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum()) if tensor.device.type != "mps" else float(tensor.square().sum())
