"""Locate a model's files, or download them at a commit, and check them against config.json.

A multimodal checkpoint (Gemma 3 from 4B up) is loaded into the class of its language tower only: keys are renamed from
`language_model.model.` to `model.`, and the vision tower is not read. After loading, the presence of every weight is
checked, because transformers silently initialises weights with unexpected names at random.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stethoscope.errors import CheckpointError
from stethoscope.files import read_json
from stethoscope.hub import fetch_folder
from stethoscope.locations import local_path
from stethoscope.model.weights import WeightFiles, weight_files
from stethoscope.progress import Progress
from stethoscope.records import ModelRef

TOWER_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
OTHER_TOWERS = ("vision_tower.", "vision_model.", "multi_modal_projector.", "audio_tower.", "visual.")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
CODE_FIELDS = ("auto_map", "custom_code")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this machine.

    Attributes:
        name: the user's name for it, for messages.
        folder: folder of the files.
        revision: commit of the files; None for a local folder.
        config: config of the text model.
        key_mapping: maps names on disk to names in the text model; None if they are equal.
        files: weight files, as transformers chooses them.
    """

    name: str
    folder: Path
    revision: str | None
    config: Any
    key_mapping: dict[str, str] | None
    files: WeightFiles

    def is_left_out(self, key: str) -> bool:
        """Return whether the weight named `key` on disk belongs to a tower other than the language model."""
        return self.key_mapping is not None and of_other_tower(key)

    def name_in_model(self, key: str) -> str:
        """Return the name in the text model of the weight named `key` on disk."""
        for pattern, replacement in (self.key_mapping or {}).items():
            if re.match(pattern, key):
                return re.sub(pattern, replacement, key)
        return key


def of_other_tower(key: str) -> bool:
    """Return whether a multimodal checkpoint's weight named `key` belongs to a vision or audio tower."""
    return key.removeprefix("model.").startswith(OTHER_TOWERS)


def open_checkpoint(ref: ModelRef, progress: Progress) -> Checkpoint:
    """Return the checkpoint of `ref`; a hub id is downloaded.

    Raises:
        CheckpointError: no such folder, no config or weights, an unsupported class or one that needs code from its
            repository, or quantised weights.
        HubError, ResourceError, Cancelled: see `hub.fetch_folder`.
    """
    folder, revision = local_path(ref.id), None
    if folder is None:
        fetched = fetch_folder(ref.id, revision=ref.revision, progress=progress)
        folder, revision = fetched.path, fetched.revision
    check_folder(ref.id, folder)
    config = read_config(ref.id, folder)
    files = weight_files(folder, ref.id)
    text = config.get_text_config()
    is_tower = text is not config and text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return Checkpoint(
        name=ref.id,
        folder=folder,
        revision=revision,
        config=text if is_tower else config,
        key_mapping=TOWER_KEYS if is_tower else None,
        files=files,
    )


def check_folder(name: str, folder: Path) -> None:
    """Raise `CheckpointError` unless `folder` contains the config of one model and no adapter."""
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint folder {name}",
            got="a file" if folder.exists() else "nothing there",
            expected="a folder with config.json and *.safetensors",
            next_step="Check the path or the hub id.",
        )
    has_config, has_adapter = (folder / "config.json").is_file(), (folder / "adapter_config.json").is_file()
    if has_adapter:
        raise CheckpointError(
            f"{name} contains both a model and a LoRA adapter"
            if has_config
            else f"{name} is a LoRA adapter, not a model",
            got="adapter_config.json",
            expected="a base model without an adapter",
            next_step="Move the adapter into its own folder, and use that folder as the task vector."
            if has_config
            else "Use the model that it was trained on as the base, and the adapter as the task vector.",
        )
    if not has_config:
        raise CheckpointError(
            f"{name} is not a checkpoint folder",
            got="no config.json",
            expected="config.json next to the weights",
            next_step="Check the path, or save the checkpoint again with save_pretrained.",
        )


def read_config(name: str, folder: Path) -> Any:
    """Return the config that transformers builds from config.json; code from the repository is never executed."""
    try:
        content = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise _unreadable_config(name, error, expected="a JSON object") from error
    if not isinstance(content, dict):
        raise _unreadable_config(name, type(content).__name__, expected="a JSON object")
    kind = content.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not known and any(content.get(field) for field in CODE_FIELDS):
        raise CheckpointError(
            f"{name} requires code from its repository, which is not executed",
            got=f"model_type {kind!r} with auto_map",
            expected="an architecture that is part of transformers",
            next_step="Use a checkpoint that was converted to such an architecture.",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        parts = (config, config.get_text_config())
    except Exception as error:  # each config class of transformers validates its fields differently
        raise _unreadable_config(name, error) from error
    for part in parts:
        if (quantisation := getattr(part, "quantization_config", None)) is not None:
            raise CheckpointError(
                f"{name} is quantised",
                got=f"quantization_config in config.json ({_method(quantisation)})",
                expected="float32, bfloat16 or float16 weights",
                next_step="Use the unquantised checkpoint.",
            )
    return config


def _unreadable_config(name: str, got: object, expected: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"cannot read config.json of {name}",
        got=first_line(got),
        expected=expected or f"an architecture and fields that transformers {transformers.__version__} supports",
        next_step="Correct config.json, or download the checkpoint again.",
    )


def _method(config: Any) -> str:
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(method or "unknown method")


def unreadable(name: str, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint that transformers cannot read."""
    return CheckpointError(
        f"cannot load {name}",
        got=first_line(error),
        expected="a causal language model that transformers can load",
        next_step="Check the path or the hub id, and the revision.",
    )


def first_line(error: object) -> str:
    """Return the first line of an error message (with the next one if it ends with a colon), or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
