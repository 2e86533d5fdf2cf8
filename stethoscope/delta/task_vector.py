"""A task vector as two checkpoints: tau = theta_tuned - theta_base, read one tensor at a time.

The base is the session's own parameters, so that base + 1.0 * tau is the tuned model; the tuned checkpoint stays on
disk and each tensor is read through safetensors when it is asked for (no pickle). What does not fit the base is refused
when the checkpoint is opened: another architecture, vocabulary or shape, missing tensors, quantised or broken files.
NaN and infinity are found when a tensor is read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stethoscope.errors import CheckpointError
from stethoscope.locations import local_path
from stethoscope.model.session import ModelSession
from stethoscope.records import TaskVectorRef

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SAME_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


class CheckpointTensors:
    """Tensors of a safetensors checkpoint folder (one file or shards), by parameter name, read when asked for.

    Multimodal checkpoints keep the text tower under `language_model.model.` on disk and under
    `model.language_model.` in memory, the text-only class under `model.`; names are looked up in all these forms.

    Raises:
        CheckpointError: a missing folder or file, or files that are not readable safetensors.
    """

    def __init__(self, folder: Path, shown_as: str) -> None:
        self.shown_as = shown_as
        if not folder.is_dir():
            raise CheckpointError(
                f"there is no checkpoint at {shown_as}",
                expected="a folder with config.json and model.safetensors",
                next_step="Check the name or path.",
            )
        self._folder = folder
        self._file_of = self._read_index()

    def _read_index(self) -> dict[str, str]:
        index = self._folder / INDEX_FILE
        if not index.exists():
            if not (self._folder / SINGLE_FILE).exists():
                raise CheckpointError(
                    f"checkpoint {self.shown_as} has no weights",
                    expected=f"{SINGLE_FILE} or {INDEX_FILE}",
                    next_step="Only safetensors checkpoints are read; convert others with transformers.",
                )
            return dict.fromkeys(self._names_in(SINGLE_FILE), SINGLE_FILE)
        weight_map = _read_json(index, self.shown_as).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"checkpoint {self.shown_as} has a broken {INDEX_FILE}", expected="a weight_map")
        found = {name: file for file in sorted(set(weight_map.values())) for name in self._names_in(file)}
        missing = sorted(set(weight_map) - set(found))
        if missing:
            raise CheckpointError(f"checkpoint {self.shown_as} lacks tensors of its index", got=f"no {missing[0]}")
        return found

    def _names_in(self, file: str) -> list[str]:
        with self._open(file) as tensors:
            return list(tensors.keys())

    def _open(self, file: str) -> Any:  # safetensors has no public type for the open file
        if Path(file).name != file:
            raise CheckpointError(f"checkpoint {self.shown_as} names a file outside its folder", got=file)
        try:
            return safe_open(self._folder / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} of checkpoint {self.shown_as} is missing, corrupt or truncated",
                got=error,
                next_step="Fetch or write the checkpoint again.",
            ) from error

    def name_on_disk(self, name: str) -> str | None:
        """Return the name under which parameter `name` is stored, None where it is not."""
        plain = name.removeprefix("model.language_model.").removeprefix("model.")
        forms = (
            name,
            f"model.{plain}",
            f"language_model.model.{plain}",
            f"model.language_model.{plain}",
            plain,  # vision tower and projector
            plain.replace("vision_tower.", "vision_tower.vision_model.", 1),
        )
        return next((form for form in forms if form in self._file_of), None)

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and safetensors dtype (for example "BF16") of a stored tensor, from the header only."""
        with self._open(self._file_of[name]) as tensors:
            part = tensors.get_slice(name)
            return tuple(part.get_shape()), str(part.get_dtype())

    def read(self, name: str) -> Tensor:
        """Return the stored tensor `name` (a name on disk) on the CPU, in its dtype on disk."""
        with self._open(self._file_of[name]) as tensors:
            try:
                return tensors.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"cannot read {name} of checkpoint {self.shown_as}", got=error) from error


class TaskVector:
    """tau = theta_tuned - theta_base for the edited matrices of a session; made by `open_task_vector`.

    Attributes:
        ref: what the recipe names.
        source: how the task vector came about, for display.
    """

    def __init__(self, ref: TaskVectorRef, session: ModelSession, tensors: CheckpointTensors) -> None:
        self.ref = ref
        self.source = f"checkpoint {ref.tuned}" + (f" at {ref.revision}" if ref.revision else "")
        self._session = session
        self._tensors = tensors
        self._relative_norms: tuple[float, ...] | None = None

    def delta(self, name: str) -> Float[Tensor, "out in"]:
        """Return tau of parameter `name` in float32, on the parameter's device.

        Raises:
            CheckpointError: the tuned tensor cannot be read, or holds NaN or infinity.
        """
        base = self._session.parameter(name).detach()
        stored = self._tensors.name_on_disk(name)
        assert stored is not None, f"{name} was there when the task vector was opened"
        tuned = self._tensors.read(stored).to(base.device, torch.float32)
        if not bool(torch.isfinite(tuned).all()):
            raise CheckpointError(
                f"checkpoint {self.ref.tuned} is not usable as a task vector",
                got=f"NaN or infinity in {stored}",
                expected="finite weights",
                next_step="Train or export it again.",
            )
        return tuned - base.float()

    def relative_norms(self) -> tuple[float, ...]:
        """Return ||tau_l|| / ||theta_l|| of every layer, over its edited matrices (read once, then remembered)."""
        if self._relative_norms is None:
            norms: list[float] = []
            for layer in range(self._session.layout.n_layers):
                delta_energy = base_energy = 0.0
                for site in self._session.layout.of_layer(layer):
                    delta_energy += _energy(self.delta(site.name))
                    base_energy += _energy(self._session.parameter(site.name).detach().float())
                norms.append(math.sqrt(delta_energy / base_energy) if base_energy else 0.0)
            self._relative_norms = tuple(norms)
        return self._relative_norms


def open_task_vector(ref: TaskVectorRef, session: ModelSession) -> TaskVector:
    """Return the task vector from the session's base to the tuned checkpoint that `ref` names.

    Only headers are read here; the tensors stay on disk.

    Raises:
        CheckpointError: missing, corrupt, quantised, or of another architecture, vocabulary or shape than the base.
    """
    folder = _folder_of(ref)
    tensors = CheckpointTensors(folder, ref.tuned)
    _check_config(_read_json(folder / "config.json", ref.tuned), session, ref)
    _check_vocabulary(folder / "tokenizer.json", session, ref)
    embedding = session.model.get_input_embeddings().weight
    names = [name for name, parameter in session.model.named_parameters() if parameter is embedding]
    for needed in names + [site.name for site in session.layout.matrices]:
        name = tensors.name_on_disk(needed)
        if name is None:
            raise CheckpointError(
                f"checkpoint {ref.tuned} does not fit the base {session.ref.id}",
                got=f"no tensor {needed}",
                expected="every matrix of the base, and its embedding (a LoRA adapter has to be merged first)",
            )
        shape, dtype = tensors.shape_and_dtype(name)
        if dtype not in FLOAT_DTYPES:
            raise _quantised(ref, f"{name} stored as {dtype}")
        expected = tuple(session.parameter(needed).shape)
        if shape != expected:
            raise CheckpointError(
                f"checkpoint {ref.tuned} does not fit the base {session.ref.id}",
                got=f"{name} of shape {list(shape)}",
                expected=str(list(expected)),
                next_step="A task vector needs a fine-tune of this very base.",
            )
    return TaskVector(ref, session, tensors)


def _folder_of(ref: TaskVectorRef) -> Path:
    folder = local_path(ref.tuned)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download  # slow to import, and needed for hub ids only
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(ref.tuned, revision=ref.revision, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"there is no checkpoint {ref.tuned}, here or on the hub",
            got=str(error).splitlines()[0],
            next_step="Check the name, the connection and (for gated models) your login.",
        ) from error


def _check_config(config: Mapping[str, Any], session: ModelSession, ref: TaskVectorRef) -> None:
    text = config.get("text_config", config)
    if config.get("quantization_config") or text.get("quantization_config"):
        raise _quantised(ref, "a quantization_config")
    base = session.model.config.get_text_config()
    for field in SAME_FIELDS:
        expected = getattr(base, field, None)
        # Hub configs leave defaults out (Gemma 3 4B: even the vocabulary size); then the shapes decide.
        if expected is not None and text.get(field, expected) != expected:
            raise CheckpointError(
                f"checkpoint {ref.tuned} does not fit the base {session.ref.id}",
                got=f"{field} {text.get(field)}",
                expected=str(expected),
                next_step="A task vector needs a fine-tune of this very base.",
            )


def _check_vocabulary(tokenizer_file: Path, session: ModelSession, ref: TaskVectorRef) -> None:
    """Compare token strings with the base's where the checkpoint brings a tokenizer: same size is not same tokens."""
    if not tokenizer_file.exists():
        return
    vocab = _read_json(tokenizer_file, ref.tuned).get("model", {}).get("vocab")
    if not isinstance(vocab, dict):
        return  # a kind of tokenizer without a plain table; its size was compared above
    base = session.tokenizer.get_vocab()
    differing = next((token for token, index in vocab.items() if base.get(token) != index), None)
    if differing is not None:
        raise CheckpointError(
            f"checkpoint {ref.tuned} does not fit the base {session.ref.id}",
            got=f"token {differing!r} with id {vocab[differing]}",
            expected=f"id {base.get(differing)}, as in the base's tokenizer",
        )


def _quantised(ref: TaskVectorRef, got: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {ref.tuned} is quantised",
        got=got,
        expected="float32, bfloat16 or float16 weights",
        next_step="Take the unquantised checkpoint: a rounded one minus the base is mostly rounding.",
    )


def _read_json(path: Path, shown_as: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {shown_as} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} of checkpoint {shown_as} cannot be read", got=error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} of checkpoint {shown_as} is not a JSON object")
    return content


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum()) if tensor.device.type != "mps" else float(tensor.square().sum())
