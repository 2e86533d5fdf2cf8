"""The base that a task vector has to fit: its parameters by name, the names on disk that mean them, its tokens.

A tied parameter counts once, under its first name (`model.embed_tokens.weight`); its other name (`lm_head.weight`) is a
twin. A task vector that moves the twins apart has no place in tied weights and is refused.

Where the model's dtype does not hold the numbers of the base's files, sums and differences are taken from the files:

    theta(alpha) = round(theta_file + alpha * tau),    tau = theta_tuned - theta_file  in float32.

With the base rounded first, tau would hold its rounding error in every weight, also where nothing was trained.
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

SAME_BASE = "A task vector needs a fine-tune of this very base."


@dataclass(frozen=True, slots=True)
class Remark:
    """What a reader noticed without refusing: the name of the check, what it saw, and whether that is suspicious."""

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
        self.other_tokenizer: PreTrainedTokenizerBase | None = None  # that `compare_tokens` found in files of its own

    @cached_property
    def _of_stored(self) -> dict[str, str]:
        """Parameter of every name on disk that means one; an exact name wins over another parameter's form."""
        forms = {form: name for name in (*self.names, *self.twins) for form in name_forms(name)[1:]}
        forms |= {saved[0]: name for name, saved in self.loaded.saved_names.items() if len(saved) == 1}
        return forms | {name: name for name in (*self.names, *self.twins)}

    def parameter_of(self, stored: str) -> str | None:
        """Return the parameter (or twin) that the name on disk means, None where the base has none."""
        return self._of_stored.get(stored)

    def leaves_out(self, stored: str) -> bool:
        """Tell whether the name on disk means a weight of another tower than the language model, which is not held."""
        return of_other_tower(stored) and self.parameter_of(stored) is None

    @property
    def decoder(self) -> tuple[str, ...]:
        """Names of the language tower's parameters: layers, embeddings and final norm."""
        prefix = self.loaded.layout.layers.rpartition(".")[0] + "."
        return tuple(name for name in self.names if name.startswith(prefix))

    def parameter(self, name: str) -> nn.Parameter:
        """Return the live parameter `name`."""
        return self.loaded.parameter(name)

    def open(self, folder: Path, shown_as: str) -> CheckpointTensors:
        """Return the tensors of a checkpoint of the base's architecture, as transformers names them on disk."""
        return CheckpointTensors(folder, shown_as, self.loaded.saved_names)

    @cached_property
    def _files(self) -> CheckpointTensors:
        return self.open(self.loaded.folder, self.loaded.ref.id)

    def as_stored(self, name: str) -> Tensor | None:
        """Return the numbers of parameter `name` in the base's files, None where the live parameter holds them exactly.

        They come in float32 or in the files' dtype, on the parameter's device, in memory of their own. A weight that no
        file holds under a name of the parameter's (transformers may join several when it loads) counts as exact.

        Raises:
            CheckpointError: rounded to the model's dtype they are not what was loaded.
        """
        parameter = self.parameter(name).detach()
        stored = self._held_inexactly(name)
        if stored is None:
            return None
        numbers = self._files.read(stored)
        numbers = numbers.float() if numbers.dtype == torch.float64 else numbers
        numbers = numbers.to(parameter.device, copy=True)  # a file's pages would be lost with the file
        if name not in self._compared and not torch.equal(numbers.to(parameter.dtype), parameter):
            raise CheckpointError(
                f"the files of {self.loaded.ref.id} hold no longer the numbers that were loaded",
                got=f"another {stored}",
                expected=f"numbers that are the loaded ones when rounded to {self.loaded.ref.dtype}",
                next_step="Load the model again.",
            )
        self._compared.add(name)
        return numbers

    def _held_inexactly(self, name: str) -> str | None:
        """Return the name on disk of parameter `name` where the live one may be rounded; see `as_stored`."""
        dtype = self.parameter(name).dtype
        stored = None if dtype == torch.float32 else self._on_disk(name)
        exact = stored is None or FLOAT_DTYPES.get(self._files.shape_and_dtype(stored)[1]) == dtype
        return None if exact else stored

    def _on_disk(self, name: str) -> str | None:
        names = (name, *(twin for twin, first in self.twins.items() if first == name))
        return next((stored for one in names if (stored := self._files.name_on_disk(one)) is not None), None)

    def holds(self, stored: str, tensor: Tensor) -> bool:
        """Tell whether the base's files hold just these numbers under the name `stored`."""
        return stored in self._files and torch.equal(self._files.read(stored).float(), tensor.float())

    def differing(self, tensors: StoredTensors, names: Sequence[str]) -> Iterator[str]:
        """Yield those of `names` of which `tensors` and the base's files hold other rows; see `stored.some_rows`.

        Only these rows are read, and of a tensor after it only when it is asked for. One that the base lacks differs.
        """
        yield from (name for name in names if name not in self._files)
        shared = [name for name in names if name in self._files]
        ours, theirs = self._files.rows(shared), tensors.rows(shared)
        for name, mine, other in zip(shared, ours, theirs, strict=True):
            if not torch.equal(mine, other):
                yield name

    def origin_rows(self, name: str) -> Tensor:
        """Return `stored.some_rows` of `origin`, in float32 on the CPU; of the files only these are read."""
        stored = self._held_inexactly(name)
        if stored is not None:
            return next(self._files.rows([stored]))
        parameter = self.parameter(name).detach()
        return some_rows(parameter, tuple(parameter.shape))

    def origin(self, name: str) -> Tensor:
        """Return what tau of parameter `name` is added to: its numbers in the base's files, or the live parameter."""
        stored = self.as_stored(name)
        return self.parameter(name).detach() if stored is None else stored

    def refusal(self, title: str, *, got: object, expected: object, next_step: str = SAME_BASE) -> CheckpointError:
        """Return the error for something of `title` that does not fit the base."""
        return CheckpointError(
            f"{title} does not fit the base {self.loaded.ref.id}", got=got, expected=expected, next_step=next_step
        )

    def check_shape(self, title: str, stored: str, shape: tuple[int, ...], name: str) -> None:
        """Raise `CheckpointError` where the stored tensor has another shape than parameter `name`."""
        expected = tuple(self.parameter(name).shape)
        if shape != expected:
            raise self.refusal(title, got=f"{stored} of shape {list(shape)}", expected=list(expected))

    def check_twins(self, tensors: StoredTensors, name: str) -> None:
        """Raise `TiedApartError` where the base ties two parameters of which `tensors` holds different values."""
        for twin, first in self.twins.items():
            if first != name:
                continue
            one, other = tensors.name_on_disk(name), tensors.name_on_disk(twin)
            if other is None or one == other:
                continue
            if one is None or not torch.equal(tensors.read(one), tensors.read(other)):
                raise self.tied_apart(tensors.title, got=f"{twin} that is not {name}")

    def tied_apart(self, title: str, *, got: str) -> TiedApartError:
        """Return the error for two weights of `title` that differ and have one place in the base."""
        return TiedApartError(
            f"{title} moves weights apart that the base {self.loaded.ref.id} ties",
            got=got,
            expected="one tensor for both, as in the base",
            next_step="Edit layers and norms only: leave the embeddings off, and the full fine-tune out of the arms.",
        )

    def compare_tokens(self, folder: Path, title: str) -> Remark:
        """Compare the tokenizer that `folder` brings with the base's as a whole: same size is not same tokens.

        Raises:
            CheckpointError: a token of another id, or a text that it encodes otherwise.
        """
        ours = self.loaded.tokenizer
        try:
            theirs = ours if likeness.same_files(folder, self.loaded.folder) else likeness.tokenizer_of(folder)
        except Exception as error:  # tokenizers raises bare Exception on a corrupt file
            raise self.refusal(
                title,
                got=f"a tokenizer that cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
                expected="a tokenizer as transformers writes it",
                next_step="Save it again, or remove its files: the base's is then used.",
            ) from error
        self.other_tokenizer = None if theirs is ours else theirs
        if theirs is None:
            return Remark("tokenizer", "it brings no tokenizer, so the base's is used")
        vocab, base = theirs.get_vocab(), ours.get_vocab()
        if (token := likeness.differing_token(vocab, base)) is not None:
            raise self.refusal(
                title,
                got=f"token {token!r} with id {vocab.get(token)}",
                expected=f"id {base.get(token)}, as in the base's tokenizer",
            )
        if (text := likeness.read_otherwise(theirs, ours, likeness.TEXTS)) is not None:
            raise self.refusal(title, got=f"a tokenizer that splits {text!r} otherwise", expected="the base's tokens")
        if parts := likeness.other_parts(theirs, ours):
            return Remark(
                "tokenizer",
                f"its tokenizer is not the base's, which is used: {', '.join(parts)}",
                suspicious=True,
                expected="the base's tokenizer",
                next_step="Compare the tokenizer's files: the fine-tune may have been trained on other prompts.",
            )
        return Remark("tokenizer", f"all {len(vocab)} tokens have the base's ids, and texts are split alike")

    def compare_name(self, named: str | None, revision: str | None = None) -> Remark:
        """Compare the base that a task vector names with the loaded one, by the last part of the name."""
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
            next_step="Load that base, or make sure that this one has the same weights.",
        )


def _last_part(name: str) -> str:
    return name.rstrip("/").replace(":", "/").rpartition("/")[2].lower()


def described(ref: TaskVectorRef) -> str:
    """Return what `ref` points to with its commit or revision, for display."""
    commit = known_commit(ref.tuned, ref.revision) if local_path(ref.tuned) is None else None
    revision = commit or ref.revision
    return ref.tuned + (f" at {revision}" if revision else "")


def left_out(names: Sequence[str]) -> tuple[Remark, ...]:
    """Return the remark that a source holds tensors of another tower, where it does."""
    if not names:
        return ()
    return (Remark("other towers", f"{len(names)} tensors of the vision tower are left out: text does not pass it"),)


def two_saves(files: WeightFiles, whose: str = "") -> tuple[Remark, ...]:
    """Return the remark that a checkpoint's folder holds another save of it, where it does."""
    if files.named is None:
        return ()
    return (
        Remark(
            f"{whose}weight files",
            files.named,
            suspicious=True,
            expected="one save in a folder",
            next_step="transformers reads the same. Move the save that is not meant into a folder of its own.",
        ),
    )
