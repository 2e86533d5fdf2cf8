"""Export of multimodal checkpoints: the edited language tower with the other towers unchanged from disk.

The loaded model contains only the language tower (see `model.checkpoint`). The export is the whole model, so that it
can replace its base.
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
    """Return whether the loaded model contains only one tower of its checkpoint."""
    return loaded.checkpoint.key_mapping is not None


def other_towers_bytes(loaded: LoadedModel) -> int:
    """Return the size of the other towers of the checkpoint, from the headers."""
    if not is_wrapped(loaded):
        return 0
    stored = CheckpointTensors(loaded.folder, loaded.ref.id)
    shapes = [stored.shape_and_dtype(name) for name in stored.names if loaded.checkpoint.is_left_out(name)]
    return sum(math.prod(shape) * BYTES.get(dtype, 8) for shape, dtype in shapes)


def save_wrapped(loaded: LoadedModel, folder: Path, max_shard_bytes: int) -> None:
    """Write the model's current weights within their original checkpoint, with its config."""
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
