"""The base as seen by task-vector readers: parameters by name, their names on disk, and the tokenizer.

A tied parameter is listed once, under its first name (`model.embed_tokens.weight`); its other name (`lm_head.weight`)
is a twin. A task vector that unties twins is rejected, because tied weights cannot represent it.

If the model's dtype cannot represent the values in the base's files, sums and differences use the files:

    theta(alpha) = round(theta_file + alpha * tau),    tau = theta_tuned - theta_file  in float32.

If the base were rounded first, tau would contain its rounding error in every weight, even in untrained ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stethoscope.delta.sources import likeness
from stethoscope.delta.sources.stored import FLOAT_DTYPES, CheckpointTensors, StoredTensors, name_forms, some_rows
from stethoscope.errors import CheckpointError, TiedApartError
from stethoscope.hub import known_commit
from stethoscope.locations import local_path
from stethoscope.model.checkpoint import of_other_tower
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.weights import WeightFiles
from stethoscope.records import TaskVectorRef

SAME_BASE = "A task vector needs a fine-tune of exactly this base."


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark of a reader: the name of the check, its finding, and whether it is suspicious."""

    check: str
    saw: str
    suspicious: bool = False
    expected: str | None = None
    next_step: str | None = None


class Base:
    """The session's base model as task-vector readers see it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        first: dict[int, str] = {}
        self.twins: dict[str, str] = {}
        for name, parameter in loaded.model.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                self.twins[name] = first[id(parameter)]
            else:
                first[id(parameter)] = name
        self.names = tuple(first.values())
        self._compared: set[str] = set()
        self.other_tokenizer: PreTrainedTokenizerBase | None = None  # found by `compare_tokens` in its own files

    @cached_property
    def _of_stored(self) -> dict[str, str]:
        """Maps names on disk to parameters; an exact name takes precedence over a form of another name."""
        forms = {form: name for name in (*self.names, *self.twins) for form in name_forms(name)[1:]}
        forms |= {saved[0]: name for name, saved in self.loaded.saved_names.items() if len(saved) == 1}
        return forms | {name: name for name in (*self.names, *self.twins)}

    def parameter_of(self, stored: str) -> str | None:
        """Return the parameter (or twin) for the name on disk; None if the base has none."""
        return self._of_stored.get(stored)

    def leaves_out(self, stored: str) -> bool:
        """Return whether the name on disk belongs to a tower other than the language model, which is not loaded."""
        return of_other_tower(stored) and self.parameter_of(stored) is None

    @property
    def decoder(self) -> tuple[str, ...]:
        """Names of the language tower's parameters: layers, embeddings and final norm."""
        prefix = self.loaded.layout.layers.rpartition(".")[0] + "."
        return tuple(name for name in self.names if name.startswith(prefix))

    def parameter(self, name: str) -> nn.Parameter:
        """Return the model's parameter `name`."""
        return self.loaded.parameter(name)

    def open(self, folder: Path, shown_as: str) -> CheckpointTensors:
        """Return the tensors of a checkpoint of the base's architecture, as transformers names them on disk."""
        return CheckpointTensors(folder, shown_as, self.loaded.saved_names)

    @cached_property
    def _files(self) -> CheckpointTensors:
        return self.open(self.loaded.folder, self.loaded.ref.id)

    def as_stored(self, name: str) -> Tensor | None:
        """Return the values of parameter `name` in the base's files; None if the loaded parameter equals them exactly.

        The values are in float32 or the files' dtype, on the parameter's device, in separate memory. A weight that is
        not in the files under one of its names (transformers may merge several on loading) counts as exact.

        Raises:
            CheckpointError: rounded to the model's dtype, they differ from the loaded values.
        """
        parameter = self.parameter(name).detach()
        stored = self._held_inexactly(name)
        if stored is None:
            return None
        numbers = self._files.read(stored)
        numbers = numbers.float() if numbers.dtype == torch.float64 else numbers
        numbers = numbers.to(parameter.device, copy=True)  # memory-mapped pages would be lost with the file
        if name not in self._compared and not torch.equal(numbers.to(parameter.dtype), parameter):
            raise CheckpointError(
                f"the files of {self.loaded.ref.id} have changed since they were loaded",
                got=f"a different {stored}",
                expected=f"values that round to the loaded ones in {self.loaded.ref.dtype}",
                next_step="Load the model again.",
            )
        self._compared.add(name)
        return numbers

    def _held_inexactly(self, name: str) -> str | None:
        """Return the name on disk of parameter `name` if the loaded one may be rounded; see `as_stored`."""
        dtype = self.parameter(name).dtype
        stored = None if dtype == torch.float32 else self._on_disk(name)
        exact = stored is None or FLOAT_DTYPES.get(self._files.shape_and_dtype(stored)[1]) == dtype
        return None if exact else stored

    def _on_disk(self, name: str) -> str | None:
        names = (name, *(twin for twin, first in self.twins.items() if first == name))
        return next((stored for one in names if (stored := self._files.name_on_disk(one)) is not None), None)

    def holds(self, stored: str, tensor: Tensor) -> bool:
        """Return whether the base's files contain exactly these values under the name `stored`."""
        return stored in self._files and torch.equal(self._files.read(stored).float(), tensor.float())

    def differing(self, tensors: StoredTensors, names: Sequence[str]) -> Iterator[str]:
        """Yield those of `names` whose rows in `tensors` differ from the base's files; see `stored.some_rows`.

        Only these rows are read, and each tensor only when it is requested. A tensor missing in the base counts as
        different.
        """
        yield from (name for name in names if name not in self._files)
        shared = [name for name in names if name in self._files]
        ours, theirs = self._files.rows(shared), tensors.rows(shared)
        for name, mine, other in zip(shared, ours, theirs, strict=True):
            if not torch.equal(mine, other):
                yield name

    def origin_rows(self, name: str) -> Tensor:
        """Return `stored.some_rows` of `origin`, in float32 on the CPU; from files, only these rows are read."""
        stored = self._held_inexactly(name)
        if stored is not None:
            return next(self._files.rows([stored]))
        parameter = self.parameter(name).detach()
        return some_rows(parameter, tuple(parameter.shape))

    def origin(self, name: str) -> Tensor:
        """Return the tensor that tau of parameter `name` is added to: its values in the base's files, or the model's
        parameter."""
        stored = self.as_stored(name)
        return self.parameter(name).detach() if stored is None else stored

    def refusal(self, title: str, *, got: object, expected: object, next_step: str = SAME_BASE) -> CheckpointError:
        """Return the error for a mismatch between `title` and the base."""
        return CheckpointError(
            f"{title} does not fit the base {self.loaded.ref.id}", got=got, expected=expected, next_step=next_step
        )

    def check_shape(self, title: str, stored: str, shape: tuple[int, ...], name: str) -> None:
        """Raise `CheckpointError` if the stored tensor and parameter `name` have different shapes."""
        expected = tuple(self.parameter(name).shape)
        if shape != expected:
            raise self.refusal(title, got=f"{stored} of shape {list(shape)}", expected=list(expected))

    def check_twins(self, tensors: StoredTensors, name: str) -> None:
        """Raise `TiedApartError` if `tensors` has different values for two parameters that the base ties."""
        for twin, first in self.twins.items():
            if first != name:
                continue
            one, other = tensors.name_on_disk(name), tensors.name_on_disk(twin)
            if other is None or one == other:
                continue
            if one is None or not torch.equal(tensors.read(one), tensors.read(other)):
                raise self.tied_apart(tensors.title, got=f"{twin} that is not {name}")

    def tied_apart(self, title: str, *, got: str) -> TiedApartError:
        """Return the error for two different weights of `title` that the base ties."""
        return TiedApartError(
            f"{title} unties weights that the base {self.loaded.ref.id} ties",
            got=got,
            expected="one tensor for both, as in the base",
            next_step="Edit only layers and norms, not embeddings, and leave out the full fine-tune.",
        )

    def compare_tokens(self, folder: Path, title: str) -> Remark:
        """Compare the tokenizer in `folder` with the base's completely, because equal sizes do not imply equal tokens.

        Raises:
            CheckpointError: a token with another id, or a text that is encoded differently.
        """
        ours = self.loaded.tokenizer
        try:
            theirs = ours if likeness.same_files(folder, self.loaded.folder) else likeness.tokenizer_of(folder)
        except Exception as error:  # tokenizers raises a plain Exception for a corrupt file
            raise self.refusal(
                title,
                got=f"a tokenizer that cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
                expected="a tokenizer in transformers' format",
                next_step="Save it again, or remove its files to use the base's tokenizer.",
            ) from error
        self.other_tokenizer = None if theirs is ours else theirs
        if theirs is None:
            return Remark("tokenizer", "it has no tokenizer; the base's tokenizer is used")
        vocab, base = theirs.get_vocab(), ours.get_vocab()
        if (token := likeness.differing_token(vocab, base)) is not None:
            raise self.refusal(
                title,
                got=f"token {token!r} with id {vocab.get(token)}",
                expected=f"id {base.get(token)}, as in the base's tokenizer",
            )
        if (text := likeness.read_otherwise(theirs, ours, likeness.TEXTS)) is not None:
            raise self.refusal(title, got=f"a tokenizer that splits {text!r} differently", expected="the base's tokens")
        if parts := likeness.other_parts(theirs, ours):
            return Remark(
                "tokenizer",
                f"its tokenizer differs from the base's, which is used: {', '.join(parts)}",
                suspicious=True,
                expected="the base's tokenizer",
                next_step="Compare the tokenizer files; the fine-tune may have been trained on other prompts.",
            )
        return Remark(
            "tokenizer", f"all {len(vocab)} tokens have the same ids as in the base, and texts are split the same way"
        )

    def compare_name(self, named: str | None, revision: str | None = None) -> Remark:
        """Compare the base in a task vector's config with the loaded one, by the last part of the name."""
        ref = self.loaded.ref
        if not named:
            return Remark("named base", "it names no base model")
        same = _last_part(named) == _last_part(ref.id)
        said = named + (f" at {revision}" if revision else "")
        if same and (not revision or not ref.revision or revision == ref.revision):
            return Remark("named base", f"made for {said}")
        return Remark(
            "named base",
            f"made for {said}",
            suspicious=True,
            expected=ref.id + (f" at {ref.revision}" if ref.revision else ""),
            next_step="Load that base, or make sure that this base has the same weights.",
        )


def _last_part(name: str) -> str:
    return name.rstrip("/").replace(":", "/").rpartition("/")[2].lower()


def described(ref: TaskVectorRef) -> str:
    """Return the location of `ref` with its commit or revision, for display."""
    commit = known_commit(ref.tuned, ref.revision) if local_path(ref.tuned) is None else None
    revision = commit or ref.revision
    return ref.tuned + (f" at {revision}" if revision else "")


def left_out(names: Sequence[str]) -> tuple[Remark, ...]:
    """Return a remark if a source contains tensors of another tower."""
    if not names:
        return ()
    return (
        Remark("other towers", f"{len(names)} tensors of the vision tower are left out, because text does not use it"),
    )


def two_saves(files: WeightFiles, whose: str = "") -> tuple[Remark, ...]:
    """Return a remark if a checkpoint's folder contains another set of weights."""
    if files.named is None:
        return ()
    return (
        Remark(
            f"{whose}weight files",
            files.named,
            suspicious=True,
            expected="one set of weights per folder",
            next_step="transformers reads the same files. Move the other set of weights into its own folder.",
        ),
    )
