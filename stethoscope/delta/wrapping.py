"""The multimodal checkpoint around an edited language tower: its other towers as they lie on disk, under their names.

The session holds the tower alone (see `model.checkpoint`); what is exported is the whole model again, so that it stands
in for its base everywhere.
"""

import json
import math
import shutil
from pathlib import Path

import huggingface_hub
from torch import Tensor

from stethoscope.delta.sources.stored import CheckpointTensors
from stethoscope.files import read_json
from stethoscope.model.session import ModelSession

COPIED = ("generation_config.json",)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def is_wrapped(session: ModelSession) -> bool:
    """Tell whether the session holds one tower of the checkpoint that it was read from."""
    return session.checkpoint.key_mapping is not None


def other_towers_bytes(session: ModelSession) -> int:
    """Return the size of what the checkpoint holds beside the language tower, from the headers."""
    if not is_wrapped(session):
        return 0
    stored = CheckpointTensors(session.folder, session.ref.id)
    shapes = [stored.shape_and_dtype(name) for name in stored.names if session.checkpoint.is_left_out(name)]
    return sum(math.prod(shape) * BYTES.get(dtype, 8) for shape, dtype in shapes)


def save_wrapped(session: ModelSession, folder: Path, max_shard_bytes: int) -> None:
    """Write the session's weights as they are now inside the checkpoint that they came from, with its config."""
    stored = CheckpointTensors(session.folder, session.ref.id)
    live = dict(session.model.named_parameters(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for name in stored.names:
        parameter = live.get(session.checkpoint.name_in_model(name))
        tensors[name] = stored.read(name) if parameter is None else parameter.detach().contiguous()
    huggingface_hub.save_torch_state_dict(
        tensors, folder, max_shard_size=max_shard_bytes, metadata={"format": "pt"}, safe_serialization=True
    )
    config = read_json(session.folder / "config.json")
    for part in (config, config.get("text_config", {})):
        part.pop("torch_dtype", None)
        part["dtype"] = session.ref.dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (session.folder / name).is_file():
            shutil.copyfile(session.folder / name, folder / name)
