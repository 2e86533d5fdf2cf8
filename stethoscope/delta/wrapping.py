"""The multimodal checkpoint around an edited language tower: its other towers as they lie on disk, under their names.

The loaded model holds the tower alone (see `model.checkpoint`); what is exported is the whole model, to stand in
for its base everywhere.
"""

import json
import math
import shutil
from pathlib import Path

import huggingface_hub
from torch import Tensor

from stethoscope.delta.sources.stored import CheckpointTensors
from stethoscope.files import read_json
from stethoscope.model.loaded_model import LoadedModel

COPIED = ("generation_config.json",)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def is_wrapped(loaded: LoadedModel) -> bool:
    """Tell whether the loaded model holds one tower of the checkpoint that it was read from."""
    return loaded.checkpoint.key_mapping is not None


def other_towers_bytes(loaded: LoadedModel) -> int:
    """Return the size of what the checkpoint holds beside the language tower, from the headers."""
    if not is_wrapped(loaded):
        return 0
    stored = CheckpointTensors(loaded.folder, loaded.ref.id)
    shapes = [stored.shape_and_dtype(name) for name in stored.names if loaded.checkpoint.is_left_out(name)]
    return sum(math.prod(shape) * BYTES.get(dtype, 8) for shape, dtype in shapes)


def save_wrapped(loaded: LoadedModel, folder: Path, max_shard_bytes: int) -> None:
    """Write the model's weights as they are now inside the checkpoint that they came from, with its config."""
    stored = CheckpointTensors(loaded.folder, loaded.ref.id)
    live = dict(loaded.model.named_parameters(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for name in stored.names:
        parameter = live.get(loaded.checkpoint.name_in_model(name))
        tensors[name] = stored.read(name) if parameter is None else parameter.detach().contiguous()
    huggingface_hub.save_torch_state_dict(
        tensors, folder, max_shard_size=max_shard_bytes, metadata={"format": "pt"}, safe_serialization=True
    )
    config = read_json(loaded.folder / "config.json")
    for part in (config, config.get("text_config", {})):
        part.pop("torch_dtype", None)
        part["dtype"] = loaded.ref.dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)
