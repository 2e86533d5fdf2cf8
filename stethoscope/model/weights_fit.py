"""Check from config.json alone whether the weights fit into memory, before large files are downloaded or loaded."""

from typing import Any

import torch

from stethoscope.errors import ResourceError
from stethoscope.formatting import size_text
from stethoscope.hub import fetch_file
from stethoscope.locations import local_path
from stethoscope.model.checkpoint import check_folder, read_config
from stethoscope.model.devices import Placement, Plan, plan_placement
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.shape import ModelShape, meta_model, shape_of
from stethoscope.progress import Progress
from stethoscope.records import ModelRef


def read_sizes(ref: ModelRef, placement: Placement, progress: Progress) -> tuple[ModelShape, Plan]:
    """Return the sizes and placement of the language tower of `ref`; for a hub id, only config.json is downloaded.

    Raises:
        CheckpointError: no checkpoint at the path, or a config.json that does not describe a decoder.
        HubError: see `hub.fetch_file`.
    """
    folder = local_path(ref.id)
    if folder is None:
        folder = fetch_file(ref.id, "config.json", revision=ref.revision, progress=progress).path.parent
    else:
        check_folder(ref.id, folder)
    model: Any = meta_model(ref, read_config(ref.id, folder).get_text_config(), getattr(torch, ref.dtype))
    return shape_of(model, ref.roles), plan_placement(model, placement, ref.roles)


def check_room(ref: ModelRef, plan: Plan) -> None:
    """Raise `ResourceError` if the weights alone exceed the free memory of their devices."""
    devices = ", ".join(map(str, plan.devices))
    _check(ref, plan.on_devices, sum(map(free_bytes, plan.devices)), devices, "spread")
    if plan.in_memory:
        _check(ref, plan.in_memory, free_bytes(torch.device("cpu")), "host memory, where they wait", "offload-disk")


def _check(ref: ModelRef, needed: int, free: int, where: str, other: str) -> None:
    if needed <= free:
        return
    half = "Load it in bfloat16, which needs half, or a" if ref.dtype == "float32" else "Load a"
    raise ResourceError(
        f"{ref.id} does not fit into the memory of {where}",
        got=f"{size_text(free)} free",
        expected=f"{size_text(needed)} for its weights in {ref.dtype}",
        next_step=f"{half} smaller model, use the device {other}, or close other programs.",
    )
