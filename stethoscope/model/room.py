"""Is there room for the weights? Told from config.json alone, before anything is loaded or a large file is fetched."""

import torch

from stethoscope.errors import ResourceError
from stethoscope.hub import fetch_file
from stethoscope.locations import local_path
from stethoscope.model.checkpoint import read_config
from stethoscope.model.memory import free_bytes
from stethoscope.model.shape import ModelShape, shape_of_config
from stethoscope.progress import Progress, size_text
from stethoscope.records import ModelRef


def read_shape(ref: ModelRef, progress: Progress) -> ModelShape:
    """Return the sizes of the language tower of `ref`; of a hub id only config.json is fetched.

    Raises:
        CheckpointError: no config.json, or one that describes no decoder.
        HubError: see `hub.fetch_file`.
    """
    path = local_path(ref.id)
    folder = (
        fetch_file(ref.id, "config.json", revision=ref.revision, progress=progress).path.parent
        if path is None
        else path
    )
    return shape_of_config(ref, read_config(ref.id, folder).get_text_config())


def check_room(ref: ModelRef, shape: ModelShape, device: torch.device) -> None:
    """Raise `ResourceError` where the weights alone take more than is free on `device`."""
    needed, free = shape.numbers * getattr(torch, ref.dtype).itemsize, free_bytes(device)
    if needed <= free:
        return
    half = "Load it in bfloat16, which takes half, or a" if ref.dtype == "float32" else "Load a"
    raise ResourceError(
        f"{ref.id} does not fit into the memory of {device}",
        got=f"{size_text(free)} free",
        expected=f"{size_text(needed)} for its weights in {ref.dtype}",
        next_step=f"{half} smaller model, use the device cpu, or close what else uses the memory.",
    )
